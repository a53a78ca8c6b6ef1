"""Requests for a JSON object of two keys, of 180 things; one thing in four is for test.

    python configs/data/things.py data/things

Writes train.jsonl and test.jsonl with {"prompt": messages, "keys": ["name", "color"]}.
"""

import json
import sys
from pathlib import Path

THINGS = """
apple anchor ant arrow ball banana barn basket bear bee bell bicycle bird blanket boat bone book bottle bowl box
bread brick bridge broom brush bucket bus butter button cabbage cake camel candle canoe carrot castle cat chair
cheese cherry chicken clock cloud coat coffee coin corn cow crab crown cup curtain deer desk dog dolphin door dress
drum duck eagle egg elephant envelope feather fence fire fish flag flower flute fork fox frog garlic gate ghost
giraffe glass glove goat grape grass guitar hammer hat hill honey horse house iron island ivy jacket jar kettle key
kite knife ladder lamp leaf lemon lion lizard lobster map melon milk mirror moon mouse mushroom nail needle nest
ocean olive onion orange owl paint paper parrot peach pear pearl pencil penguin pepper piano pig pillow plate plum
potato pumpkin rabbit rain ring river road rocket rope rose salt sand scarf shark sheep ship shoe silver snake snow
spider spoon star stone sun swan table tent tiger tomato tower train tree trumpet turtle umbrella violin wagon wall
whale wheel window wolf wool zebra
"""
EVERY = 4


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for side in ("train", "test"):
        chosen = [each for i, each in enumerate(THINGS.split()) if (i % EVERY == 0) == (side == "test")]
        text = 'Describe "{}" as a JSON object with two keys, "name" and "color". Write nothing else.'
        asked = ([{"role": "user", "content": text.format(each)}] for each in chosen)
        lines = [json.dumps({"prompt": messages, "keys": ["name", "color"]}) for messages in asked]
        (folder / f"{side}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        print(f"{side}: {len(lines)}")


if __name__ == "__main__":
    main(Path(sys.argv[1])) if len(sys.argv) > 1 else sys.exit(__doc__)

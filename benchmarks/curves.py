"""The learning curves of finished runs, kept as a picture and as numbers: results/NAME.png, results/NAME.csv.

    python benchmarks/curves.py runs/quickstart runs/bert_mlm_debian

A line of the table is a step: loss of the batch and of held-out documents in nats a token, seconds. Of a run that
learns from its own answers: their reward, that of held-out prompts, the divergence in nats an answer, seconds.
"""

import csv
import sys
from pathlib import Path

from jaxformer.train.metrics import draw_curves, read_metrics, shares

RESULTS = Path(__file__).parent / "results"


def keep(run: Path) -> None:
    lines = read_metrics(run)
    draw_curves(lines, RESULTS / f"{run.name}.png", run.name)
    rows: dict[int, dict[str, float]] = {}
    for line in lines:
        rows.setdefault(line["step"], {}).update(line["values"] | line["time"])
    with (RESULTS / f"{run.name}.csv").open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        names = ("loss", "held_out/loss", "seconds")
        if shares(lines):
            names = ("reward", "held_out/reward", "divergence", "seconds")
        out.writerow(("step", *(name.replace("/", "_") for name in names)))
        for step, row in rows.items():
            values = (row.get(name) for name in names)
            out.writerow((step, *("" if value is None else f"{value:.5g}" for value in values)))
    print(f"{run.name}: {len(rows)} steps in {sum(row.get('seconds', 0) for row in rows.values()) / 60:.1f} minutes")


if __name__ == "__main__":
    for name in sys.argv[1:] or sys.exit(__doc__):
        keep(Path(name))

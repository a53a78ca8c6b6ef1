"""Special tokens by role, as the published tokenizer_config.json and special_tokens_map.json name them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxformer.text.files import read_json, write_json

ROLES = ("bos", "eos", "unk", "pad", "mask", "cls", "sep")


def read_special(folder: Path) -> dict[str, str]:
    """{role: token} of a tokenizer folder; tokenizer_config.json goes before special_tokens_map.json."""
    published = read_json(folder / "special_tokens_map.json") | read_json(folder / "tokenizer_config.json")
    tokens = {}
    for role in ROLES:
        token = published.get(f"{role}_token")
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str):
            tokens[role] = token
    return tokens


def write_special(folder: Path, tokens: Mapping[str, str], config: Mapping[str, Any]) -> None:
    """Writes both files for `tokens`; `config` holds further entries of tokenizer_config.json."""
    named = {f"{role}_token": token for role, token in tokens.items()}
    write_json(folder / "special_tokens_map.json", named)
    write_json(folder / "tokenizer_config.json", {**config, **named})

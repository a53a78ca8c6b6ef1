"""Small files, written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

LONGEST = 1 << 27
"""Bytes of JSON that are parsed: in memory they become up to twenty times as many."""


def write_file(path: Path, data: bytes) -> None:
    """Writes `path` so that a reader sees the old file or the whole new one."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    os.replace(part, path)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON."""
    write_file(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`, {} where there is no such file."""
    if not path.is_file():
        return {}
    return parse_json(str(path), path.read_bytes())


def parse_json(name: str, data: bytes) -> dict[str, Any]:
    """The object that JSON in UTF-8 describes; `name` says in errors where it is from."""
    if len(data) > LONGEST:
        raise ValueError(f"{name}: expected at most {LONGEST} bytes of JSON, found {len(data)}")
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: expected JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected a JSON object, found {type(value).__name__}")
    return value

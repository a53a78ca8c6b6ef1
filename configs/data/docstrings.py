"""Instructions out of the standard library of this Python: questions about its functions, answered by docstrings.

    python configs/data/docstrings.py data/docstrings

Writes train.jsonl and test.jsonl with {"messages"}: a question that names a public function, class or method with
its arguments, and as the answer the first paragraph of its docstring. Modules are split by their first name, one in
sixteen for test, from which answers that training has too are dropped. Counts are printed.
"""

import ast
import hashlib
import json
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from jaxformer.text.corpus import DataConfig, find_files

HELD_OUT = 16
SHORTEST, LONGEST = 20, 300
"""Characters of an answer."""
QUESTIONS = (
    "What does the {kind} `{name}` of Python's standard library do?",
    "Describe the {kind} `{name}` of Python's standard library.",
    "In Python, what is `{name}` for?",
)


def digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def modules() -> Iterator[tuple[str, ast.Module]]:
    """The public modules with their names; a package has that of its folder."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path, _ in find_files(DataConfig()):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if not any(part.startswith("_") or "-" in part for part in name.split(".")):
            yield name, ast.parse(path.read_bytes())


def documented(body: list[ast.stmt], prefix: str, in_class: bool = False) -> Iterator[tuple[str, str, str]]:
    """(kind, name as one would write it, docstring) of what is public."""
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        name, text = f"{prefix}.{node.name}", ast.get_docstring(node) or ""
        if isinstance(node, ast.ClassDef):
            yield "class", name, text
            yield from documented(node.body, name, in_class=True)
        else:
            arguments = re.sub(r"^(self|cls)\b(, )?", "", ast.unparse(node.args))
            yield "method" if in_class else "function", f"{name}({arguments})", text


def conversation(kind: str, name: str, answer: str) -> dict[str, object]:
    question = QUESTIONS[digest(name) % len(QUESTIONS)].format(kind=kind, name=name)
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    sides: dict[str, dict[str, dict[str, object]]] = {"train": {}, "test": {}}  # by answer
    for module, tree in modules():
        side = "test" if digest(module.split(".")[0]) % HELD_OUT == 0 else "train"
        for kind, name, text in documented(tree.body, module):
            answer = " ".join(text.split("\n\n")[0].split())
            if SHORTEST <= len(answer) <= LONGEST and answer.endswith("."):
                sides[side].setdefault(answer, conversation(kind, name, answer))
    sides["test"] = {answer: made for answer, made in sides["test"].items() if answer not in sides["train"]}
    for side, found in sides.items():
        lines = "".join(f"{json.dumps(made, ensure_ascii=False)}\n" for made in found.values())
        (folder / f"{side}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{side}: {len(found):,}")


if __name__ == "__main__":
    main(Path(sys.argv[1])) if len(sys.argv) > 1 else sys.exit(__doc__)

"""Lines of functions that a run held out: written from what stands before and after, and from what stands before.

    python configs/baselines/infill.py runs/gpt_fim_stdlib

Of each function of five lines or more up to three are cut out, each by itself, none the first or last. A line counts
as found where every character is right, its indentation too. Left to right sees as many tokens, all of them before
the line. Both are asked for one line: what they write behind it is dropped; how often infilling ends there by itself
is told too. The brackets are 95% intervals (Wilson), as if lines had nothing to do with each other. What a token of
the line surprises by, in nats, is told of both: that tells smaller differences apart than whole lines do.
"""

import ast
import itertools
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxformer
from jaxformer.evaluating import recorded
from jaxformer.nn.model import Model
from jaxformer.tasks.infill import complete, infill_prompt
from jaxformer.tasks.seq2seq import write
from jaxformer.text.corpus import open_corpora
from jaxformer.text.tokenizer import Tokenizer

ROWS, MOST = 32, 48
BEFORE, AFTER = 68, 36  # tokens; with the line itself about a row of the run
LEAST, LINES = 5, 3  # lines of a function, and how many are cut out at most


def chosen(text: str) -> Iterator[tuple[list[str], int]]:
    """(lines of the file, the number of one within a function) for some lines of each function of a file."""
    draw, lines = random.Random(len(text)), text.split("\n")
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return
    nodes = list(ast.walk(tree))
    strings = [node for node in nodes if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno]
    within = {i for node in strings if node.lineno < node.end_lineno for i in range(node.lineno - 1, node.end_lineno)}
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 >= LEAST:
            inner = set(range(node.body[0].lineno, node.end_lineno - 1)) - within
            told = [i for i in sorted(inner) if lines[i].strip() and lines[i].strip()[0] != "#" and lines[i - 1]]
            yield from ((lines, i) for i in draw.sample(told, min(LINES, len(told))))


def whole_lines(tokenizer: Tokenizer, lines: list[str], room: int) -> list[str]:
    """As many of the first lines as have room, of so many tokens."""
    sizes = itertools.accumulate(len(tokenizer.encode("\n" + line)) for line in lines)
    return [line for line, _ in zip(lines, itertools.takewhile(lambda size: size <= room, sizes), strict=False)]


def first_line(text: str) -> str:
    return "\n".join(text.split("\n")[:2])


def told(name: str, found: np.ndarray) -> None:
    n, share, z = len(found), found.mean(), 1.96
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = (abs(middle + side * half) / (1 + z * z / n) for side in (-1, 1))  # 0 may come out below 0
    print(f"{name:34} {found.sum():4} of {n}  {share:6.1%} [{low:.1%}, {high:.1%}]", flush=True)


def surprise(model: Model, params: Any, prompts: list[np.ndarray], lines: list[list[int]]) -> float:
    """The mean over all tokens of the lines behind their prompts."""
    total, count = 0.0, 0
    log_p = jax.jit(lambda tokens: jax.nn.log_softmax(model.apply({"params": params}, tokens).logits))
    for i in range(0, len(prompts), ROWS):
        pairs = list(zip(prompts[i : i + ROWS], lines[i : i + ROWS], strict=True))
        tokens = np.zeros((ROWS, BEFORE + AFTER + 4 + max(map(len, lines))), np.int32)
        for row, (prompt, line) in zip(tokens, pairs, strict=False):
            row[: len(prompt) + len(line)] = [*prompt, *line]
        foretold = np.asarray(log_p(tokens))
        for row, (prompt, line) in zip(foretold, pairs, strict=False):
            total -= row[np.arange(len(line)) + len(prompt) - 1, line].sum()
            count += len(line)
    return total / count


def main(run: str) -> None:
    settings = recorded(Path(run))
    model, params, tokenizer = jaxformer.from_pretrained(run)
    held, (corpus,) = {"params": params}, open_corpora(None, settings.data)
    gaps, befores, wanted, copies = [], [], [], []
    for lines, at in itertools.chain.from_iterable(chosen(document.text) for document in corpus.held_out):
        short, long = (whole_lines(tokenizer, lines[:at][::-1], room)[::-1] for room in (BEFORE, BEFORE + AFTER))
        after = whole_lines(tokenizer, lines[at + 1 :], AFTER)
        gaps.append(("\n".join(short), "\n" + "\n".join(after)))
        befores.append(np.array([tokenizer.bos, *tokenizer.encode("\n".join(long))], np.int32))
        wanted.append("\n" + lines[at])
        copies.append("\n" + lines[at - 1])
    filled = complete(model, held, tokenizer, gaps, ROWS, MOST, spm=True)
    ahead = write(model, held, tokenizer, befores, ROWS, MOST)
    lines_ids = [tokenizer.encode(line) for line in wanted]
    turned = [infill_prompt(tokenizer, *gap, spm=True) for gap in gaps]
    right = lambda texts: np.array([text == line for text, line in zip(texts, wanted, strict=True)])
    inside, onward = (right([first_line(text) for text in texts]) for texts in (filled, ahead))
    print(f"{len(wanted)} lines of {len(corpus.held_out)} held-out files")
    told("the line before, once more", right(copies))
    told("left to right", onward)
    told("infilling", inside)
    told("infilling that ends by itself", right(filled))
    for name, prompts in (("left to right", befores), ("infilling", turned)):
        print(f"{name:34} {surprise(model, params, prompts, lines_ids):.3f} nats a token of the line", flush=True)
    print(f"found by infilling alone {(inside & ~onward).sum()}, by left to right alone {(onward & ~inside).sum()}")


if __name__ == "__main__":
    main(sys.argv[1]) if len(sys.argv) == 2 else sys.exit(__doc__)

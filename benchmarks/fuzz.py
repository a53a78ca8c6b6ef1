"""Damage small files of every kind again and again, and read them: each time it must work, or say clearly why not.

    python benchmarks/fuzz.py --mutations 10000

The same tiny model lies in six folders: as safetensors, as PyTorch's .bin and as Flax's .msgpack, each in one file
and in shards with an index. `--files` damages those of fuzz_files.py in their place: configs, tokenizers,
experiments, adapters, data, templates. A mutation flips, overwrites, cuts, doubles or inserts bytes of one file, or
truncates it, or puts another value at one place of a JSON file. Reading may then succeed (numbers may have changed)
or raise ValueError or OSError with a message that names the folder. Anything else escapes: another class of error, a
hang, a crash of the process, more than 4 GiB of memory. Prints the counts. tests/weights/test_fuzz.py and
tests/text/test_fuzz_data.py make a few hundred mutations with this file's tools.
"""

import argparse
import collections
import contextlib
import json
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization, traverse_util
from safetensors.numpy import save_file

WIDTH, VOCABULARY, LAYERS = 8, 7, 2
CONFIG = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": VOCABULARY,
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": 2,
    "n_positions": 5,
}
PATIENCE = 30  # seconds after which something hangs
MEMORY = 4 * 2**30
BATCH = 1000  # mutations a process
EXPECTED = (ValueError, OSError)
NASTY = (
    *(None, True, -1, 0, 2**31, 2**63, 10**12, 10**400, 1e308, float("nan"), 0.5, "", "x", "../../etc/passwd", "\0"),
    *("x" * 70000, "{", [], {}, [[]], [None], {"": 0}, {"type": {}}, {"content": []}, ["a", 1], "\ud800"),
)
"""What may stand in place of any value of a JSON file."""
STORAGES = {"float64": "Double", "float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "int64": "Long"}


class Hang(BaseException):
    """No `except Exception` stops it."""


def tensors() -> dict[str, np.ndarray]:
    """The published tensors of CONFIG."""
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (VOCABULARY, WIDTH), "wpe.weight": (5, WIDTH)}
    norms = ["ln_f"]
    for layer in range(LAYERS):
        norms += [f"h.{layer}.ln_1", f"h.{layer}.ln_2"]
        for name, inputs, outputs in (
            ("attn.c_attn", WIDTH, 3 * WIDTH),
            ("attn.c_proj", WIDTH, WIDTH),
            ("mlp.c_fc", WIDTH, 4 * WIDTH),
            ("mlp.c_proj", 4 * WIDTH, WIDTH),
        ):
            shapes |= {f"h.{layer}.{name}.weight": (inputs, outputs), f"h.{layer}.{name}.bias": (outputs,)}
    shapes |= {f"{name}.{what}": (WIDTH,) for name in norms for what in ("weight", "bias")}
    rng = np.random.default_rng(0)
    return {f"transformer.{name}": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


# What writes the three formats.


def text(value: str) -> bytes:
    """The instruction that pushes a string, of a pickle."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"


def rebuilt(
    key: str, kind: str, size: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0
) -> bytes:
    """What torch.save writes for a tensor, of numbers that lie in data/{key}."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text(key) + text("cpu")
    storage += b"J" + struct.pack("<i", size) + b"tQ"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    view = storage + b"J" + struct.pack("<i", offset) + numbers(shape) + numbers(strides) + hooks
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + view + b"tR"


def dictionary(values: dict[str, bytes]) -> bytes:
    """A pickle of a dictionary, its values given as the instructions that make them."""
    return b"\x80\x02}(" + b"".join(text(name) + value for name, value in values.items()) + b"u."


def write_archive(path: Path, program: bytes, storages: dict[str, bytes]) -> None:
    """A file as torch.save writes it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", b"little")
        for key, values in storages.items():
            archive.writestr(f"archive/data/{key}", values)
        archive.writestr("archive/version", b"3\n")


def write_pickled(path: Path, values: dict[str, np.ndarray]) -> None:
    """pytorch_model.bin, written without PyTorch."""
    program, storages = {}, {}
    for i, (name, value) in enumerate(values.items()):
        strides = tuple(int(np.prod(value.shape[axis + 1 :])) for axis in range(value.ndim))
        program[name] = rebuilt(str(i), STORAGES[str(value.dtype)], value.size, value.shape, strides)
        storages[str(i)] = value.tobytes()
    write_archive(path, dictionary(program), storages)


def flax_paths(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The paths and the layouts that Flax's class of the same model had."""
    found = {}
    for name, value in values.items():
        *parents, leaf = name.split(".")
        kernel = leaf == "weight" and value.ndim == 2 and parents[-1] not in ("wte", "wpe")
        new = leaf if leaf == "bias" else "kernel" if kernel else "embedding" if value.ndim == 2 else "scale"
        found["/".join([*parents, new])] = np.ascontiguousarray(value.T) if kernel else value
    return found


def write_flax(path: Path, values: dict[str, np.ndarray]) -> None:
    """flax_model.msgpack, one file."""
    path.write_bytes(serialization.msgpack_serialize(traverse_util.unflatten_dict(flax_paths(values), sep="/")))


def write_flax_shard(path: Path, values: dict[str, np.ndarray]) -> None:
    """A shard names its tensors by their whole paths."""
    path.write_bytes(serialization.msgpack_serialize(flax_paths(values)))


def write_safetensors(path: Path, values: dict[str, np.ndarray]) -> None:
    save_file(values, path, metadata={"format": "pt"})


def write_folders(root: Path) -> list[Path]:
    """The six folders."""
    found, values = [], tensors()
    names = sorted(values)
    halves = [{name: values[name] for name in part} for part in (names[::2], names[1::2])]
    for single, write, write_shard in (
        ("model.safetensors", write_safetensors, write_safetensors),
        ("pytorch_model.bin", write_pickled, write_pickled),
        ("flax_model.msgpack", write_flax, write_flax_shard),
    ):
        stem, _, ending = single.partition(".")
        whole, shards = root / ending, root / f"{ending}-shards"
        for folder in (whole, shards):
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps(CONFIG))
        write(whole / single, values)
        places = {}
        for i, half in enumerate(halves, start=1):
            file = f"{stem}-{i:05d}-of-00002.{ending}"
            write_shard(shards / file, half)
            places |= dict.fromkeys(flax_paths(half) if write is write_flax else half, file)
        (shards / f"{single}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
        found += [whole, shards]
    return found


# Damage, and what comes of it.


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    at, count = int(rng.integers(len(data))), int(rng.integers(1, 17))
    match rng.integers(6):
        case 0 | 1:
            out = bytearray(data)
            for place in rng.integers(len(data), size=rng.integers(1, 5)):
                out[place] ^= 1 << int(rng.integers(8)) if rng.integers(2) else int(rng.integers(1, 256))
            return bytes(out)
        case 2:
            return data[:at]
        case 3:
            return data[:at] + data[at + count :]
        case 4:
            return data[: at + count] + data[at:]
        case _:
            extreme = (b"\x00", b"\xff", b"\x7f", b"\x80", b"9", b"[")[int(rng.integers(6))]
            return data[:at] + extreme * count + data[at + count * int(rng.integers(2)) :]


def damaged_json(data: bytes, rng: np.random.Generator) -> bytes:
    """The JSON with another value, or none, at one place; or so deep that a parser gives up."""
    value = json.loads(data)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, inner in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(inner, dict | list):
                walk(inner)

    walk(value)
    # One entry of a vocabulary is as another: the shorter a container the likelier its places.
    weights = np.array([1 / len(node) for node, _ in places])
    node, key = places[int(rng.choice(len(places), p=weights / weights.sum()))]
    match rng.integers(8):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[key + "x"] = node.pop(key)
        case 2:
            node[key] = [node[key]]
        case 3:
            return b"[" * 100_000 + data
        case _:
            node[key] = NASTY[int(rng.integers(len(NASTY)))]
    return json.dumps(value).encode()


@contextlib.contextmanager
def mutated(folders: list[Path], seed: int, number: int) -> Iterator[tuple[Path, str]]:
    """(a folder with one damaged file, what is damaged): mutation `number` of this seed. Then it is whole again."""
    rng = np.random.default_rng([seed, number])
    folder = folders[number % len(folders)]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if len(files) < 5 and rng.integers(8):
        files = [path for path in files if path.name != "config.json"]
    path = files[int(rng.integers(len(files)))]
    whole = path.read_bytes()
    is_json = path.suffix == ".json" and rng.integers(3) > 0

    def put(data: bytes) -> None:  # as another file: the old one may still be mapped
        path.unlink()
        path.write_bytes(data)

    put(damaged_json(whole, rng) if is_json else damaged(whole, rng))
    try:
        yield folder, f"{folder.name}/{path.relative_to(folder)}"
    finally:
        put(whole)


def outcome(load: Callable[[Path], object], folder: Path) -> tuple[str, str]:
    """("loaded" or "refused" or "escaped", the class of the error and what it says)."""

    def stop(*_: object) -> None:
        raise Hang(f"more than {PATIENCE} s")

    signal.signal(signal.SIGALRM, stop)
    # Again and again: what is raised in a callback of the collector is lost.
    signal.setitimer(signal.ITIMER_REAL, PATIENCE, 5)
    try:
        load(folder)
    except EXPECTED as error:
        named = str(folder) in str(error) or not folder.exists()
        return "refused" if named else "escaped", f"{type(error).__name__}: {error}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "escaped", f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "loaded", ""


def serve(root: Path, files: bool, seed: int, start: int, stop: int) -> None:
    """The mutations from `start` to `stop`, a line of JSON for each."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    if files:
        import fuzz_files  # here, so that the tests read this file's tools alone

        loads = fuzz_files.write_all(root)
        folders = [root / name for name in loads]
    else:
        import jaxformer

        folders = write_folders(root)
        loads = {folder.name: jaxformer.from_pretrained for folder in folders}
    for folder in folders:
        loads[folder.name](folder)
    for number in range(start, stop):
        with mutated(folders, seed, number) as (folder, what):
            print(json.dumps([number, what, *outcome(loads[folder.name], folder)]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--files", action="store_true", help="those of fuzz_files.py in place of checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", type=int, nargs=2, metavar=("START", "STOP"), help="these, in this process")
    parser.add_argument("--folder", type=Path, help="of --serve: where the checkpoints are written")
    args = parser.parse_args()
    if args.serve:
        return serve(args.folder, args.files, args.seed, *args.serve)
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    escaped: list[str] = []
    start = 0
    while start < args.mutations:
        stop = min(start + BATCH, args.mutations)
        root = Path(tempfile.mkdtemp())
        mine = [sys.executable, __file__, "--seed", str(args.seed), "--folder", str(root / "fuzz")]
        mine += ["--files"] * args.files
        done = subprocess.run([*mine, "--serve", str(start), str(stop)], stdout=subprocess.PIPE, text=True)
        shutil.rmtree(root)
        for line in done.stdout.splitlines():
            number, what, found, error = json.loads(line)
            counts[what.partition("/")[0], found] += 1
            if found == "escaped":
                escaped.append(f"mutation {number} of {what}: {error}")
            start = number + 1
        if done.returncode:
            if not done.stdout:
                sys.exit("what is not damaged cannot be read")
            escaped.append(f"mutation {start}: the process ended with {done.returncode}")
            counts["crash", "escaped"] += 1
            start += 1
        print(f"{start} of {args.mutations}, {len(escaped)} escaped", file=sys.stderr)
    print("| read | loaded | refused | escaped |\n|---|---|---|---|")
    for kind in sorted({kind for kind, _ in counts}):
        print(
            f"| {kind} | " + " | ".join(str(counts[kind, found]) for found in ("loaded", "refused", "escaped")) + " |"
        )
    print(f"{args.mutations} mutations, seed {args.seed}; escaped: {len(escaped)}", *escaped, sep="\n")
    sys.exit(bool(escaped))


if __name__ == "__main__":
    main()

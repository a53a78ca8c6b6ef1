"""What devices say to each other in a compiled step, read from its text."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.-]+)")
NAMES = re.compile(r"%([\w.-]+)")


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind in a step."""

    kind: str
    count: int
    """How often they run, those of a loop once in each turn."""
    bytes: float
    """What a device receives of others, over all of them."""


@dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    op: str
    rest: str

    @property
    def operands(self) -> list[str]:
        return NAMES.findall(self.rest.partition(")")[0])


Program = dict[str, dict[str, _Instruction]]


def collectives(text: str) -> list[Collective]:
    """What the compiled program says (HLO after optimization, of a TPU, GPU or CPU), by kind, the most bytes first.

    The bytes are those that a ring, or any other best way, needs at least: of an array of S bytes in a group of n an
    all-gather, a reduce-scatter and an all-to-all bring S (n - 1) / n to each device, an all-reduce twice that.
    """
    program, entry = _parsed(text)
    runs: dict[str, float] = defaultdict(float)
    _count(program, entry, 1, runs)
    fused = {
        name for place in program.values() for one in place.values() if one.op == "fusion" for name in _called(one)
    }
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for place, times in runs.items():
        for instruction in program[place].values():
            kind = instruction.op.removesuffix("-start")
            if kind not in KINDS:
                continue
            moved, kind = _moved(instruction, kind, "all-reduce-scatter" in place)
            # The TPU compiler spreads one over several fusions: its channel says that it is one. Elsewhere a channel
            # says nothing: all that a mapped function writes itself have the same.
            channel = re.search(r"channel_id=(\d+)", instruction.rest) if place in fused else None
            key = kind, channel[1] if channel else f"{place}/{instruction.name}"
            found[key] = max(found.get(key, (0, 0)), (times, moved))
    sums = {kind: [pair for (own, _), pair in found.items() if own == kind] for kind, _ in found}
    listed = [
        Collective(kind, int(sum(times for times, _ in pairs)), sum(times * moved for times, moved in pairs))
        for kind, pairs in sums.items()
    ]
    return sorted((one for one in listed if one.bytes), key=lambda one: -one.bytes)


def kernels(text: str) -> int:
    """How many kernels of ours, or of jax's, the program holds: those that were compiled from Pallas."""
    return text.count('custom_call_target="tpu_custom_call"')


def _parsed(text: str) -> tuple[Program, str]:
    program: Program = {}
    entry = place = ""
    for line in text.splitlines():
        if (head := COMPUTATION.match(line)) is not None:
            place = head[1]
            program[place] = {}
            entry = place if line.startswith("ENTRY") else entry
        elif (one := INSTRUCTION.match(line)) is not None and place:
            program[place][one[1]] = _Instruction(*one.groups())
    return program, entry


def _count(program: Program, place: str, times: float, runs: dict[str, float]) -> None:
    runs[place] += times
    for instruction in program[place].values():
        turns = _turns(program, place, instruction) if instruction.op == "while" else 1
        for called in _called(instruction):
            if called in program:
                _count(program, called, times * turns, runs)


def _called(instruction: _Instruction) -> Iterator[str]:
    if instruction.op in ("all-reduce", "reduce-scatter", "all-reduce-start", "reduce", "scatter", "sort", "map"):
        return  # what they apply is a sum of two numbers
    yield from CALLED.findall(instruction.rest)
    for several, one in BRANCHES.findall(instruction.rest):
        yield from NAMES.findall(several) or [one]


def _turns(program: Program, place: str, loop: _Instruction) -> float:
    """How often a loop's body runs: as XLA notes it, else from its counter; 1 where neither says it."""
    if (noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)) is not None:
        return int(noted[1])
    named = dict(re.findall(r"(condition|body)=%?([\w.-]+)", loop.rest))
    condition, body = program.get(named["condition"], {}), program.get(named["body"], {})
    compare = next((one for one in condition.values() if one.op == "compare" and "direction=LT" in one.rest), None)
    if compare is None or len(compare.operands) != 2:
        return 1
    counter, limit = compare.operands
    index = re.search(r"index=(\d+)", condition[counter].rest)
    end = _constant(condition, limit)
    if index is None or end is None:
        return 1
    at = int(index[1])
    start = _element(program[place], loop.operands[0], at)
    step = _step(body, at)
    return max(math.ceil((end - (start or 0)) / (step or 1)), 1)


def _constant(computation: Mapping[str, _Instruction], name: str) -> int | None:
    one = computation.get(name)
    while one is not None and one.op in ("copy", "bitcast", "convert", "reshape") and one.operands:
        one = computation.get(one.operands[0])
    value = None if one is None or one.op != "constant" else re.match(r"-?\d+", one.rest)
    return None if value is None else int(value[0])


def _element(computation: Mapping[str, _Instruction], name: str, index: int) -> int | None:
    one = computation.get(name)
    if one is None or one.op != "tuple" or index >= len(one.operands):
        return None
    return _constant(computation, one.operands[index])


def _step(body: Mapping[str, _Instruction], index: int) -> int | None:
    """What a turn adds to the counter."""
    root = [one for one in body.values() if one.op == "tuple"]
    if not root or index >= len(root[-1].operands):
        return None
    added = body.get(root[-1].operands[index])
    if added is None or added.op != "add":
        return None
    return next((value for each in added.operands if (value := _constant(body, each)) is not None), None)


def _moved(instruction: _Instruction, kind: str, scatters: bool) -> tuple[float, str]:
    """(bytes that a device receives, the kind that it is)."""
    sizes = [_bytes(*shape) for shape in SHAPE.findall(instruction.shape)]
    if instruction.op in ("all-gather-start", "collective-permute-start"):
        size = max(sizes)  # of the operand, the result, and counters
    else:
        size = sum(sizes)
    members = _members(instruction.rest)
    if kind == "collective-permute":
        return size, kind
    if kind == "reduce-scatter":
        return size * (members - 1), kind
    if kind == "all-reduce" and scatters:  # how the TPU compiler writes a reduce-scatter
        return size * (members - 1) / members, "reduce-scatter"
    return size * (members - 1) / members * (2 if kind == "all-reduce" else 1), kind


def _members(rest: str) -> int:
    """How many devices talk to each other."""
    if (mesh := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest)) is not None:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        return math.prod(sizes[name] for name in re.findall(r"'([^']+)'", mesh[2]))
    if (listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest)) is not None:
        return listed[1].count(",") + 1
    if (counted := re.search(r"replica_groups=\[(?:\d+,)*(\d+)\]<=", rest)) is not None:
        return int(counted[1])
    return 1


def _bytes(dtype: str, dims: str) -> float:
    counted = re.search(r"\d+", dtype)
    bits = 8 if dtype == "pred" else 0 if counted is None else int(counted[0])
    return math.prod(int(size) for size in dims.split(",") if size) * bits / 8

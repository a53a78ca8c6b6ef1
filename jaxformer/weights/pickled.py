"""PyTorch's .bin files, without PyTorch. A pickle is a program: of this one no instruction that calls is obeyed.

The instructions only build a description (numbers, strings, lists, dictionaries, and `Call`: what was to be
called with what), and a description of tensors is then looked up among the few that are known.
"""

import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxformer.weights.mapped import FileTensor, MappedFile, are_sizes, map_file

STORAGES = {
    **{"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Bool": "bool"},
    **{"Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8"},
    **{"ComplexFloat": "complex64", "ComplexDouble": "complex128"},
}
"""torch.<name>Storage -> dtype."""
DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64", "complex128"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
)
UNTYPED = "torch.storage.UntypedStorage"
PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
TYPED_TENSOR = "torch._utils._rebuild_tensor_v3"
ORDERED = "collections.OrderedDict"
KNOWN = {
    *(ORDERED, UNTYPED, TYPED_TENSOR, *PARAMETERS, *TENSORS),
    *(f"torch.{name}Storage" for name in STORAGES),
    *(f"torch.{name}" for name in DTYPES),
}
"""All that a pickle may name."""
MADE: dict[str, Callable[[], Any]] = {
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
    **{"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple},
}
"""What the instructions without an argument push."""
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


@dataclass(frozen=True)
class Global:
    """One of KNOWN, by its name."""

    name: str


@dataclass(frozen=True, eq=False)
class Call:
    """What the pickle would have called with these arguments."""

    name: str
    args: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Storage:
    """The tuple by which a pickle speaks of bytes beside it."""

    id: Any


def open_pickled(path: Path) -> dict[str, FileTensor]:
    """The tensors of a file that torch.save made of a dictionary of tensors; mapped, not read.

    Raises a ValueError that names the file, and the tensor or the forbidden global, for anything else.
    """
    file = map_file(path)
    spans = _entries(file)
    roots = [name.removesuffix("data.pkl") for name in spans if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"{path}: a zip archive, but not one of torch: no data.pkl in a folder is there")
    spans = {name.removeprefix(roots[0]): span for name, span in spans.items()}
    order = bytes(file.bytes[slice(*spans.get("byteorder", (0, 0)))])
    if order not in (b"", b"little"):
        raise ValueError(f"{path}: its numbers are stored with byteorder {order[:20]!r}, expected 'little'")
    try:
        found = describe(file.bytes[slice(*spans["data.pkl"])])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (TypeError, LookupError):
        raise ValueError(f"{path}: not a whole file of torch.save: its pickle is broken") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{path}: expected a dictionary of tensors by name, found {_kind(found)}")
    return {name: _tensor(file, spans, name, value) for name, value in found.items()}


def describe(program: bytes) -> Any:
    """What a pickle would make, with `Call` and `Storage` in place of all that is no plain value.

    Raises ValueError, TypeError or LookupError for what is forbidden or broken.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []
    memo: dict[int, Any] = {}
    given: Any
    items: Sequence[Any]
    for code, given, _ in pickletools.genops(program):
        match code.name:
            case "STOP":
                return stack.pop()
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                below.append(stack)
                stack = []
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(given)
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append(MADE[code.name]())
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                memo[len(memo) if given is None else given] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[given])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(_pop(stack, int(code.name[-1])))
            case "TUPLE":
                items, stack = stack, below.pop()
                stack.append(tuple(items))
            case "APPEND":
                items = _pop(stack, 1)
                _append(stack[-1], items)
            case "APPENDS":
                items, stack = stack, below.pop()
                _append(stack[-1], items)
            case "SETITEM":
                items = _pop(stack, 2)
                _set(stack[-1], items)
            case "SETITEMS":
                items, stack = stack, below.pop()
                _set(stack[-1], items)
            case "GLOBAL":
                stack.append(_known(given.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                stack.append(_known(".".join(_pop(stack, 2))))
            case "BINPERSID":
                stack.append(Storage(stack.pop()))
            case "REDUCE":
                stack.append(_call(*_pop(stack, 2)))
            case "BUILD":
                owner, _ = _pop(stack, 2)
                if not isinstance(owner, dict):  # whose attributes torch uses for versions of modules
                    raise ValueError(f"its pickle gives attributes to {_kind(owner)}: refused")
                stack.append(owner)
            case forbidden:
                asked = "" if given is None else f" {given!s:.200}"
                raise ValueError(f"its pickle has the instruction {forbidden}{asked}: refused, nothing of it was run")
    raise ValueError("its pickle has no end")


def _known(name: str) -> Global:
    if name not in KNOWN:
        raise ValueError(
            f"its pickle names {name:.200}, which is no part of a dictionary of tensors: refused, and not run. "
            "Where you trust the file, open it with PyTorch and save its tensors as safetensors"
        )
    return Global(name)


def _call(called: Any, args: Any) -> Any:
    if not isinstance(called, Global) or not isinstance(args, tuple):
        raise ValueError(f"its pickle calls {_kind(called)}: refused")
    if called.name == ORDERED:
        if args:
            raise ValueError(f"its pickle makes an {ORDERED} of {len(args)} arguments: refused")
        return {}
    return Call(called.name, args)


def _pop(stack: list[Any], count: int) -> tuple[Any, ...]:
    if len(stack) < count:
        raise ValueError("its pickle takes more from its stack than is there")
    items = tuple(stack[-count:])
    del stack[-count:]
    return items


def _append(target: Any, items: Sequence[Any]) -> None:
    if not isinstance(target, list):
        raise ValueError(f"its pickle appends to {_kind(target)}")
    target.extend(items)


def _set(target: Any, items: Sequence[Any]) -> None:
    if not isinstance(target, dict) or len(items) % 2:
        raise ValueError(f"its pickle sets items of {_kind(target)}")
    for name, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(name, str | int):  # the hash of a deep nest of tuples would overflow the C stack
            raise ValueError(f"its pickle has a dictionary with {_kind(name)} as a key")
        if name in target:
            raise ValueError(f"{name} stands there twice")
        target[name] = value


def _tensor(file: MappedFile, spans: dict[str, tuple[int, int]], name: str, value: Any) -> FileTensor:
    while isinstance(value, Call) and value.name in PARAMETERS and value.args:
        value = value.args[0]
    dtype: Any = None
    key: Any
    match value:
        case Call(called, (storage, offset, tuple(shape), tuple(strides), *more)) if called in TENSORS:
            plain = len(more) < 3 or not more[2]  # of _v2: marks of a conjugate or negative view
        case Call(called, (storage, offset, tuple(shape), tuple(strides), _, _, Global(dtype), *more)) if (
            called == TYPED_TENSOR
        ):
            plain = not any(more)
        case _:
            raise ValueError(f"{file.path}: {name}: expected a tensor, found {_kind(value)}")
    match storage:
        case Storage(("storage", Global(kind), key, _, count)) if f"data/{key}" in spans:
            start, stop = spans[f"data/{key}"]
        case _:
            raise ValueError(f"{file.path}: {name}: its numbers are not in the file")
    if kind == UNTYPED:
        stored = (dtype or "").removeprefix("torch.")
    else:
        stored = STORAGES.get(kind.removeprefix("torch.").removesuffix("Storage"), kind)
    if not plain or not are_sizes([count, offset]) or dtype not in (None, f"torch.{stored}"):
        raise ValueError(f"{file.path}: {name}: a view of its storage that is not read here")
    return file.tensor(name, stored, shape, (start, stop), offset, strides)


def _entries(file: MappedFile) -> dict[str, tuple[int, int]]:
    """{name in the zip archive: (start, stop) of its bytes in the file}."""
    if file.bytes[: len(LEGACY)] == LEGACY:
        raise ValueError(
            f"{file.path}: in the format of PyTorch before 1.6, which is not read: open it with PyTorch and save "
            "its tensors again, as safetensors best"
        )
    try:
        with zipfile.ZipFile(file.path) as archive:
            entries = archive.infolist()
        found = dict(_places(file, entries))
    except Exception as error:  # a damaged archive raises nearly anything
        raise ValueError(f"{file.path}: not a whole file of torch.save: {error}") from None
    if len(found) < len(entries):
        raise ValueError(f"{file.path}: not a whole file of torch.save: an entry stands there twice")
    return found


def _places(file: MappedFile, entries: list[zipfile.ZipInfo]) -> Iterator[tuple[str, tuple[int, int]]]:
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
            raise ValueError(f"{entry.filename} is compressed or encrypted")
        signature, name, extra = struct.unpack_from("<4s22xHH", file.bytes, entry.header_offset)
        start = entry.header_offset + 30 + name + extra
        if signature != b"PK\x03\x04" or start + entry.file_size > len(file.bytes):
            raise ValueError(f"{entry.filename} is not where the archive says")
        yield entry.filename, (start, start + entry.file_size)


def _kind(value: Any) -> str:
    if isinstance(value, Call | Global):
        return value.name
    return f"a {type(value).__name__}"

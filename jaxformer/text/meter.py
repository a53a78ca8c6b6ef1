"""What a chat template may spend: each thing that it does is counted before it is done.

A sandbox withholds Python; it does not withhold an endless loop, "x" * 10**10, or lists that hold each other twice.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.visitor import NodeTransformer

SECONDS = 5.0
"""Of its thread, that a template may run; one of a long conversation takes milliseconds."""
MOST, ITEM = 1 << 26, 32
"""Characters that a template may make in all, and how many of them an item of a list or a turn of a loop counts."""
PIECE = 1 << 14
"""How much is counted before it is held against these bounds."""
WITHHELD = {"encode", "expandtabs", "to_bytes", "translate"}
"""Methods of strings and numbers that no chat template needs, and that make something large of something small."""
WIDE = re.compile(r"%[^a-zA-Z%]*(\*|\d{5})|:[^{}]*(\{|\d{5})")
"""A width in a format that is given elsewhere, or is a large number."""

_spent: ContextVar[list[float]] = ContextVar("spent")


@contextmanager
def metered() -> Iterator[None]:
    """What is spent within the block is counted from nothing."""
    token = _spent.set([0, time.thread_time() + SECONDS])
    try:
        yield
    finally:
        _spent.reset(token)


def spend(amount: int) -> None:
    """Count an amount. Raises SecurityError where it is too much, or where the time is over."""
    spent = _spent.get()
    spent[0] += amount
    if spent[0] > MOST:
        raise SecurityError(f"it makes more than {MOST} characters, of which an item of a list counts {ITEM}")
    if time.thread_time() > spent[1]:
        raise SecurityError(f"it runs for more than {SECONDS:.0f} s")


def weigh(value: Any) -> Any:
    """The value, its characters and items counted, as often as each is held."""
    left, amount = [value], 0
    while left:
        node = left.pop()
        if isinstance(node, str | bytes):
            amount += len(node)
        elif isinstance(node, int):
            amount += node.bit_length() // 8
        elif isinstance(node, Mapping):
            amount += ITEM * len(node)
            left += [*node.keys(), *node.values()]
        elif isinstance(node, list | tuple):
            amount += ITEM * len(node)
            left += node
        if amount > PIECE:
            spend(amount)
            amount = 0
    spend(amount)
    return value


def counted(values: Iterable[Any]) -> Iterator[Any]:
    """What a loop goes over."""
    for value in values:
        spend(ITEM)
        yield value


def joined(parts: Iterable[Any]) -> str:
    """The parts of a text as one."""
    return "".join(weigh([str(part) for part in counted(parts)]))


def operate(operator: str, left: Any, right: Any) -> None:
    """Count what `left operator right` will make."""
    size = [len(each) if isinstance(each, str | list | tuple) else 0 for each in (left, right)]
    if operator == "%":
        formats(left)
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        spend(left.bit_length() * max(right, 0))
    elif operator == "*" and isinstance(left, list | tuple):
        spend(_weight(left) * max(int(right), 0))
    elif operator == "*" and isinstance(right, list | tuple):
        spend(_weight(right) * max(int(left), 0))
    elif operator == "*" and isinstance(left, int) and isinstance(right, int):
        spend((left.bit_length() + right.bit_length()) // 8)
    elif operator == "*":
        spend(size[0] * int(right) if size[0] else size[1] * int(left) if size[1] else 0)
    else:
        spend(sum(size))


def method(name: str, text: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Count what a method of a text will make; its arguments, to call it with."""
    if name in ("center", "ljust", "rjust", "zfill") and args:
        spend(int(args[0]))
    elif name == "replace" and len(args) > 1:
        spend(len(text) + text.count(args[0]) * len(args[1]))
    elif name in ("format", "format_map"):
        formats(text)
    elif name == "join" and args:
        items = list(counted(args[0]))
        spend(len(text) * len(items))
        return (weigh(items), *args[1:])
    else:
        spend(len(text))
    return args


def formats(text: Any) -> None:
    """Raises SecurityError for a format with a width that the template could make large."""
    if isinstance(text, str) and WIDE.search(text):
        raise SecurityError("a format has a width that is too large, or is given elsewhere")


def filtered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of Jinja's whose result is counted, and before it is made where that may be large."""

    @wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        given = args[hasattr(function, "jinja_pass_arg") :]
        BEFORE.get(name, _nothing)(*given, **options)
        return weigh(function(*args, **options))

    return called


def _nothing(*args: Any, **options: Any) -> None:
    spend(ITEM)


def _indent(text: Any, width: Any = 4, *args: Any, **options: Any) -> None:
    spend((str(text).count("\n") + 2) * (len(width) if isinstance(width, str) else int(width)))


def _replace(text: Any, old: Any, new: Any, *args: Any, **options: Any) -> None:
    method("replace", str(text), (str(old), str(new)))


def _join(values: Any, between: Any = "", *args: Any, **options: Any) -> None:
    spend(len(str(between)) * len(values) if hasattr(values, "__len__") else 0)


def _width(value: Any, *args: Any, **options: Any) -> None:
    """Of filters that take a number of characters or items."""
    spend(sum(abs(int(each)) for each in (*args, *options.values()) if isinstance(each, int | float)))


def _sum(values: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, int | float):
        raise SecurityError("it sums what are no numbers")


BEFORE: dict[str, Callable[..., None]] = {
    **dict.fromkeys(("center", "batch", "slice", "wordwrap", "round", "truncate", "tojson"), _width),
    **{"indent": _indent, "replace": _replace, "join": _join, "sum": _sum},
    "format": lambda text, *args, **options: formats(str(text)),
}


def _weight(value: list[Any] | tuple[Any, ...]) -> int:
    before = _spent.get()[0]
    weigh(value)
    return int(_spent.get()[0] - before)


class Counted(NodeTransformer):
    """Has loops, joined texts and lists that are written out go through the filters of the same names."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        """Of `for x in values` the values | counted."""
        self.generic_visit(node)
        node.iter = _through("counted", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        """Of `a ~ b` (a, b) | joined."""
        self.generic_visit(node)
        return _through("joined", nodes.Tuple(node.nodes, "load", lineno=node.lineno))

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Filter:
        """Of `[a, b]` that list | weigh."""
        self.generic_visit(node)
        return _through("weigh", node)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        """As of a list, where it is no target of names."""
        self.generic_visit(node)
        return _through("weigh", node) if node.ctx == "load" else node


def _through(name: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


FILTERS: dict[str, Callable[..., Any]] = {"counted": counted, "joined": joined, "weigh": weigh}

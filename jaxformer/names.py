"""One row names one parameter twice: our path, and where and how it is published."""

from dataclasses import dataclass
from typing import Literal

Part = tuple[int, int, int]


@dataclass(frozen=True)
class Row:
    """A parameter of ours and the published tensor that holds it.

    Where `published` holds "{layer}" or "{expert}", the row speaks of one tensor for each; our leaf stacks them in
    its first axes, layers before experts.
    """

    path: str
    published: str
    layout: Literal["same", "row", "in_out", "out_in"] = "same"
    """"same": shape for shape; "row": the same with one more leading axis, of size 1. "in_out": our input axes
    flattened, then our output axes flattened; "out_in": the transpose of that, as torch's Linear has it."""
    inputs: int = 0
    """How many of our leading axes (not counting the stacked ones) are inputs of the product."""
    part: Part | None = None
    """(start, stop, total): ours is units start to stop of `total` equal ones of the published output axis."""
    also: tuple[str, ...] = ()
    """Other names under which a file may hold the same tensor, alone or once more; written as `published`."""
    within_heads: bool = False
    """The parts stand side by side within each head, not each for all heads together."""
    pairs: bool = False
    """The published last axis has as neighbours (2i, 2i + 1) what stands half the axis apart in ours."""
    plus: float = 0.0
    """What the published values have on top of ours."""

    @property
    def stacked(self) -> tuple[str, ...]:
        """What our leaf's first axes count: "layer", "expert", both or neither."""
        return tuple(count for count in ("layer", "expert") if f"{{{count}}}" in self.published)

    def spelled(self, at: tuple[int, ...]) -> tuple[str, ...]:
        """`published` and `also`, with the numbers of one place in the stacked axes."""
        numbers = dict(zip(self.stacked, at, strict=True))
        return tuple(name.format(**numbers) for name in (self.published, *self.also))


def linear(
    path: str,
    published: str,
    *,
    inputs: int = 1,
    bias: bool = False,
    layout: Literal["in_out", "out_in"] = "out_in",
    part: Part | None = None,
    within_heads: bool = False,
    pairs: bool = False,
) -> tuple[Row, ...]:
    """The rows of a projection: its kernel, and its bias if it has one."""
    kernel = Row(f"{path}/kernel", f"{published}.weight", layout, inputs, part, (), within_heads, pairs)
    shift = Row(f"{path}/bias", f"{published}.bias", "in_out", 0, part, (), within_heads, pairs)
    return (kernel, shift) if bias else (kernel,)


def norm(path: str, published: str, *, bias: bool = False, plus: float = 0.0) -> tuple[Row, ...]:
    """The rows of a norm: its scale, and its bias if it has one."""
    scale = Row(f"{path}/scale", f"{published}.weight", plus=plus)
    return (scale, Row(f"{path}/bias", f"{published}.bias")) if bias else (scale,)


def table(path: str, published: str, *, also: tuple[str, ...] = ()) -> tuple[Row, ...]:
    """The row of an embedding."""
    return (Row(f"{path}/embedding", f"{published}.weight", also=also),)

"""One row names one parameter twice: our path, and where and how it is published."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Row:
    """A parameter of ours and the published tensor that holds it.

    Where `published` holds "{layer}", the row speaks of one tensor a layer, stacked in our leaf's first axis.
    """

    path: str
    published: str
    layout: Literal["same", "in_out", "out_in"] = "same"
    """"same": shape for shape. "in_out": our input axes flattened, then our output axes flattened; "out_in":
    the transpose of that, as torch's Linear has it."""
    inputs: int = 0
    """How many of our leading axes (not counting the layer's) are inputs of the product."""
    part: tuple[int, int] | None = None
    """(i, n): ours is the i-th of n equal parts of the published tensor's output axis."""
    also: tuple[str, ...] = ()
    """Other names under which a file may hold the same tensor, alone or once more; written as `published`."""

    @property
    def stacked(self) -> bool:
        """Whether our leaf's first axis counts layers."""
        return "{layer}" in self.published


def linear(
    path: str,
    published: str,
    *,
    inputs: int = 1,
    bias: bool = False,
    layout: Literal["in_out", "out_in"] = "out_in",
    part: tuple[int, int] | None = None,
) -> tuple[Row, ...]:
    """The rows of a projection: its kernel, and its bias if it has one."""
    kernel = Row(f"{path}/kernel", f"{published}.weight", layout, inputs, part)
    return (kernel, Row(f"{path}/bias", f"{published}.bias", "in_out", 0, part)) if bias else (kernel,)


def norm(path: str, published: str, *, bias: bool = False) -> tuple[Row, ...]:
    """The rows of a norm: its scale, and its bias if it has one."""
    scale = Row(f"{path}/scale", f"{published}.weight")
    return (scale, Row(f"{path}/bias", f"{published}.bias")) if bias else (scale,)


def table(path: str, published: str, *, also: tuple[str, ...] = ()) -> tuple[Row, ...]:
    """The row of an embedding."""
    return (Row(f"{path}/embedding", f"{published}.weight", also=also),)

"""The least time that a step can take on a chip, and the share of its peak that this leaves."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxformer.flops import StepFlops
from jaxformer.plan.chips import Chip
from jaxformer.plan.collectives import Collective
from jaxformer.plan.compiling import Memory

ASSUMPTIONS = (
    "products run at the chip's peak for bfloat16, and nothing else takes time to compute",
    "attention kernels pass over what a causal mask hides, though MFU counts it",
    "state and batch cross the memory's bus once each way; what stays on the chip meanwhile is not counted",
    "collectives bring their bytes over all links of the chip at once, at half of both directions' rate",
    "hidden: compute, memory and links work at the same time; one by one: each waits for the others",
)
"""What the figures of `Roofline` take for granted. They are bounds: no run is faster, and real ones are slower."""


@dataclass(frozen=True)
class Roofline:
    """Seconds of a step, at best (Williams et al., 2009), by what takes them."""

    compute: float
    memory: float
    links: float
    peak: float
    """FLOP/s of all chips together."""
    model: float
    """FLOPs that count in MFU."""

    @property
    def hidden(self) -> float:
        """A step in which all three work at the same time."""
        return max(self.compute, self.memory, self.links)

    @property
    def one_by_one(self) -> float:
        """A step in which they wait for each other."""
        return self.compute + self.memory + self.links

    @property
    def utilization(self) -> tuple[float, float]:
        """Model FLOPs over what the chips could compute meanwhile (MFU): (hidden, one by one)."""
        return self.model / self.peak / self.hidden, self.model / self.peak / self.one_by_one

    @property
    def communication(self) -> float:
        """Share of a step in which links work, where nothing is hidden behind anything."""
        return self.links / self.one_by_one


def roofline(
    chip: Chip, chips: int, flops: StepFlops, computed: float, memory: Memory, spoken: Sequence[Collective]
) -> Roofline:
    """The bound of a step. `computed`: FLOPs that the devices really do, all together."""
    crossing = 2 * (memory.parameters + memory.optimizer) + memory.frozen + memory.batch
    return Roofline(
        compute=computed / (chips * chip.peak),
        memory=crossing / chip.bandwidth,
        links=sum(each.bytes for each in spoken) / (chip.links / 2),
        peak=chips * chip.peak,
        model=flops.model,
    )

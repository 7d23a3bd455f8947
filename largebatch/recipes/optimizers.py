"""What an optimizer of a recipe is, and all of them by name: those of the folder ``largebatch/optimizers``."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from largebatch.recipes import kinds
from largebatch.recipes.keys import Section

if TYPE_CHECKING:
    import torch


class Surroundings(NamedTuple):
    """Of an optimizer that is built."""

    precision: str
    engine: str  # its name
    model: torch.nn.Module

    @property
    def fused(self) -> bool | None:
        """What torch's optimizers are told.

        Its fused SGD leaves an uninitialised momentum buffer behind when the loss scaler skips the first step (seen
        with torch 2.15 on the CPU), so fp16 takes the foreach form.
        """
        return True if self.precision != "fp16" else None


class Averaged(NamedTuple):
    """A step that is lr times an average of gradients, and nothing else."""

    momentum: float
    nesterov: bool


class AtTimm(NamedTuple):
    """What timm calls an optimizer of the same kind, and what else ``timm.optim.create_optimizer_v2`` is told."""

    name: str
    arguments: dict[str, Any]


class Optimizer(Section):
    """An optimizer of a recipe."""

    STATES: ClassVar[int] = 2  # tensors kept of each weight, as large as it
    SHARD_SAFE: ClassVar[bool] = False  # whether a shard of a layer steps as it would in the whole
    FIXED: ClassVar[frozenset[str]] = frozenset({"name", "variant", "skip_adaptation"})  # keys that no phase changes
    REFERENCE: ClassVar[dict[str, Any]] = {}  # key -> its value in MLPerf's reference; what is not listed may be any

    name: str

    def build(self, groups: list[dict[str, Any]], lr: float, around: Surroundings) -> torch.optim.Optimizer:
        """``groups`` carry their ``names``, their own ``weight_decay`` and whether they are to ``adapt``."""
        raise NotImplementedError

    @property
    def words(self) -> str:
        """What is printed before time is spent."""
        variant = getattr(self, "variant", None)
        return f"{self.name}, variant {variant}" if variant else self.name

    @property
    def not_adapted(self) -> tuple[str, ...] | None:
        """Kinds and patterns of tensors that get no trust ratio; None: nobody gets one."""
        return None

    @property
    def averaged(self) -> Averaged | None:
        """None: the step is scaled layer by layer, element by element or so."""
        return None

    @property
    def at_timm(self) -> AtTimm | None:
        """timm's; None: it has none."""
        return None

    def settings_at(self, epoch: float) -> dict[str, Any]:
        """What beside the lr a parameter group is told anew at every step; ``epoch`` is a fractional one."""
        return {}

    def beside_the_reference(self) -> tuple[str, ...]:
        """The keys by which it is another optimizer than that of MLPerf's reference."""
        own = {key: getattr(self, key) for key in self.REFERENCE}
        return tuple(
            f"optimizer.{key} = {value}" if isinstance(value, str) else f"optimizer.{key}"
            for key, value in own.items()
            if value != self.REFERENCE[key]
        )


@functools.cache
def table() -> dict[str, type[Optimizer]]:
    """Every kind by its name."""
    package = "largebatch.optimizers"
    return kinds.sections_by_name(package, kinds.folders(package), Optimizer)

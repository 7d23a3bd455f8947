"""Learning rate as a pure function of the examples seen.

Peak, from the recipe's rule for a global batch B (κ = B / reference):

    linear   η = base · κ            Krizhevsky 2014 (1404.5997); Goyal et al. 2017 (1706.02677), §2.1
    sqrt     η = base · √κ           Krizhevsky 2014; Hoffer et al. 2017 (1705.08741); You et al. 2019 (1904.00962)
    none     η = base
    adascale η = base · r_t          r_t: the gain of each step, optim/adascale.py (Johnson et al. 2020, 2007.05105)
    table    η = the row of B        refused between two rows unless interpolation is asked for

Then, with s the examples seen *before* the step, W those of the warm-up, T those of the budget:

    warm-up     η(s) = start + (peak − start)·s/W            while s < W, anew at every step
    decay       η(s) = shape((s − W)/(T − W))                afterwards

``steps`` and ``piecewise`` count their epochs from the start of the run, as in Goyal et al., and a warm-up before
``piecewise`` ends at its first factor of the peak; every other decay runs from the end of the warm-up to the end of
the budget. A warm-up from zero thus begins with one step at lr 0; from ``base`` it begins at ``base`` (Goyal et al.,
§2.2), or at the peak where that is lower. Under AdaScale the clock is not the examples seen but the scale-invariant
ones, τ · reference.
"""

from __future__ import annotations

import dataclasses
import math

from largebatch.errors import UserError


def scaled_lr(base: float, scaling: str, global_batch_size: int, reference_batch_size: int | None) -> float:
    if scaling in ("none", "adascale"):
        return base
    assert reference_batch_size is not None
    kappa = global_batch_size / reference_batch_size
    return base * {"linear": kappa, "sqrt": math.sqrt(kappa)}[scaling]


def table_lr(table: dict[int, float], global_batch_size: int, interpolate: bool = False) -> float:
    """The row of this batch size; between two rows linear in the batch size, only if asked for."""
    if global_batch_size in table:
        return table[global_batch_size]
    below = max((size for size in table if size < global_batch_size), default=None)
    above = min((size for size in table if size > global_batch_size), default=None)
    if interpolate and below is not None and above is not None:
        part = (global_batch_size - below) / (above - below)
        return table[below] + part * (table[above] - table[below])
    rows = ", ".join(str(size) for size in sorted(table))
    hint = "" if below is None or above is None else "; lr.interpolate=true takes a value between two rows"
    raise UserError(f"lr.table has no row for global batch {global_batch_size}; rows: {rows}{hint}")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Examples seen -> learning rate. All lengths in examples; lr in the optimizer's units."""

    peak: float
    total: float
    warmup: float = 0.0
    start: float = 0.0  # lr at the first step of the warm-up
    decay: str = "constant"  # constant, linear, polynomial, cosine, steps, piecewise
    power: float = 1.0
    end: float = 0.0
    milestones: tuple[float, ...] = ()  # examples, for steps and piecewise
    factor: float = 0.1
    factors: tuple[float, ...] = ()  # of the peak, for piecewise: one more than milestones

    def __post_init__(self) -> None:
        if self.warmup > self.total:
            raise UserError(
                f"lr.warmup is longer than the run: {self.warmup:.0f} examples of warm-up, {self.total:.0f} of training"
            )
        if self.end > self.peak and self.decay in ("linear", "polynomial", "cosine"):
            raise UserError(f"lr.decay.end_lr = {self.end:g} is above the peak {self.peak:g}; a decay ends lower")

    def __call__(self, examples_seen: float) -> float:
        if examples_seen < self.warmup:
            summit = self.peak * self.factors[0] if self.decay == "piecewise" else self.peak
            return self.start + (summit - self.start) * (examples_seen / self.warmup)
        if self.decay == "steps":
            return self.peak * self.factor ** sum(examples_seen >= at for at in self.milestones)
        if self.decay == "piecewise":
            return self.peak * self.factors[sum(examples_seen >= at for at in self.milestones)]
        span = self.total - self.warmup
        progress = min(1.0, (examples_seen - self.warmup) / span) if span > 0 else 0.0
        return self.end + (self.peak - self.end) * self._shape(progress)

    def _shape(self, progress: float) -> float:
        match self.decay:
            case "constant":
                return 1.0
            case "linear":
                return 1.0 - progress
            case "polynomial":
                return (1.0 - progress) ** self.power
            case "cosine":
                return (1.0 + math.cos(math.pi * progress)) / 2.0
        raise AssertionError(self.decay)

"""Learning rate as a pure function of the examples seen.

Peak, from the recipe's rule for a global batch B (κ = B / reference):

    linear   η = base · κ            Krizhevsky 2014 (1404.5997); Goyal et al. 2017 (1706.02677), §2.1
    sqrt     η = base · √κ           Krizhevsky 2014; Hoffer et al. 2017 (1705.08741); You et al. 2019 (1904.00962)
    adam_sqrt  the same, and β1, β2 and ε follow     Malladi et al. 2022: :mod:`largebatch.recipes.moments`
    surge    η = η_max·2/(√(N/B) + √(B/N))    Li et al. 2024 (2405.14578), of Adam's kind: highest at B = N, the noise
                                               scale, and lower beyond; η_max makes η = base at the reference
    none     η = base
    table    η = the row of B        refused between two rows unless interpolation is asked for

Then, with s the examples seen *before* the step, W those of the warm-up, T those of the budget:

    warm-up     η(s) = start + (peak − start)·((s + k)/(W + k))^p     while s < W, anew at every step
    decay       η(s) = lr(peak, (s − A)/(Z − A), n)          afterwards; n: how many of its milestones lie behind

p is 1 and k is 0 unless the recipe says otherwise: k are examples of a warm-up that has begun before the run. A decay
runs from A = W to Z = T; those of BERT count from A = 0, so that the lr falls at once where the warm-up ends, and one
may end at a Z of its own, before or behind the budget.

A decay that jumps counts its epochs from the start of the run, as in Goyal et al., and may say where the warm-up ends
(``piecewise``: at its first factor of the peak).
A warm-up from zero thus begins with one step at lr 0; from ``base`` it begins at ``base`` (Goyal et al., §2.2), or at
the peak where that is lower. A method may set
another clock than the examples seen, and the lr of each step.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

from largebatch.errors import UserError


def scaled_lr(
    base: float,
    scaling: str,
    global_batch_size: int,
    reference_batch_size: int | None,
    noise_scale: float | None = None,
) -> float:
    """``noise_scale``: in examples, which ``surge`` alone needs."""
    if scaling not in ("linear", "sqrt", "adam_sqrt", "surge"):
        return base
    assert reference_batch_size is not None
    if scaling == "surge":
        assert noise_scale is not None
        return surge(base, reference_batch_size, noise_scale) / surge(1.0, global_batch_size, noise_scale)
    kappa = global_batch_size / reference_batch_size
    return base * (kappa if scaling == "linear" else math.sqrt(kappa))


def surge(lr: float, size: float, noise_scale: float) -> float:
    """The highest lr of the curve that is ``lr`` at a batch of this size."""
    return lr * (math.sqrt(noise_scale / size) + math.sqrt(size / noise_scale)) / 2


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


class AfterWarmup(Protocol):
    """What becomes of the peak after the warm-up; one file for each kind in ``largebatch/recipes/decays``."""

    def lr(self, peak: float, progress: float, passed: int) -> float: ...

    def summit(self, peak: float) -> float: ...

    def check(self, peak: float) -> None: ...


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Examples seen -> learning rate. All lengths in examples; lr in the optimizer's units."""

    peak: float
    total: float
    decay: AfterWarmup
    warmup: float = 0.0
    start: float = 0.0  # lr at the first step of the warm-up
    milestones: tuple[float, ...] = ()  # examples at which the decay jumps
    power: float = 1.0  # of the warm-up
    skipped: float = 0.0  # examples of the warm-up that count as seen before the first step
    decay_from: float | None = None  # unset: the end of the warm-up
    decay_to: float | None = None  # unset: the end

    def __post_init__(self) -> None:
        if self.warmup > self.total:
            raise UserError(
                f"lr.warmup is longer than the run: {self.warmup:.0f} examples of warm-up, {self.total:.0f} of training"
            )
        if self.decay_to is not None and self.decay_to < self.warmup:
            raise UserError(
                f"lr.decay ends after {self.decay_to:.0f} examples, before the {self.warmup:.0f} of the warm-up are "
                "over; let it end later"
            )
        self.decay.check(self.peak)

    @property
    def decay_span(self) -> tuple[float, float]:
        return (
            self.warmup if self.decay_from is None else self.decay_from,
            self.total if self.decay_to is None else self.decay_to,
        )

    @property
    def jumps(self) -> tuple[float, ...]:
        """Examples at which the lr is at once another."""
        begin, _ = self.decay_span
        return (self.warmup, *self.milestones) if begin < self.warmup else self.milestones

    def __call__(self, examples_seen: float) -> float:
        if examples_seen < self.warmup:
            share = (examples_seen + self.skipped) / (self.warmup + self.skipped)
            return self.start + (self.decay.summit(self.peak) - self.start) * share**self.power
        begin, end = self.decay_span
        progress = (examples_seen - begin) / (end - begin) if end > begin else 0.0
        passed = sum(examples_seen >= at for at in self.milestones)
        return self.decay.lr(self.peak, progress, passed)

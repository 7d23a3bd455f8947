"""How the batch grows during a run, and what the lr does where it grows. No torch.

    at epochs    B ← B·factor, or the next of the sizes
      lr: stays    η as it is                    Smith et al. 2018 (1711.00489), in place of a decay
      lr: sqrt     η times √ of B's growth       Merrill et al. 2025 (2505.23971) for Adam, where the critical batch
      lr: linear   η times B's growth            has come to twice the batch; linear for SGD
    adaptive     at marks, where B_noise > above·B: B ← B·factor, no further than ``largest``; η as at epochs. Above is
                 the factor: Merrill et al. 2025, who double B where the critical batch has come to 2·B
    seesaw       wherever the decay would have cut the lr by another a·√b:  η ← η/a, B ← B·b
                                                 Meterez et al. 2025 (2510.14717): a = √b, and no less

Merrill et al. measure the critical batch by branches of the run, and find B_noise = tr(Σ)/|G|² of McCandlish et al.
2018 (1812.06162) far below it: asked of that, the batch grows later than it could. diagnostics/noise.py has the
estimate; where that of |G|² is not above 0, the lower end of the interval stands for it. What is decided at a mark
follows from the steps before it alone, so that a run that goes on decides alike.

Seesaw rests on the line on which normalised steps have the same loss: cuts by a and growth by b are alike where a·√b
is; with a < √b a step's noise grows and the loss leaves that of the decay. Until the first cut the lr is as the warm-up
leaves it. Where the next growth would exceed ``largest``, which should be below the critical batch, the lr follows the
decay itself, b^(k/2) times as high after k growths: the square-root rule for that batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from largebatch.errors import UserError
from largebatch.plan.batch import BatchPlan
from largebatch.plan.schedules import AfterWarmup, Schedule
from largebatch.recipes import config
from largebatch.recipes.decays import listed
from largebatch.recipes.decided import ExplainedSchedule

HALVINGS = 200  # of an interval of epochs: to its last bit


class Growth(NamedTuple):
    epoch: float
    size: int  # from then on


def at_epochs(run: config.Run, ramp: config.Ramp) -> tuple[tuple[Growth, ...], tuple[float, ...]]:
    """Where it grows, and the epochs at which the lr falls instead."""
    at = [epoch * run.stretch for epoch in ramp.at_epochs or ()]
    if ramp.sizes is not None:
        return tuple(map(Growth, at, ramp.sizes)), ()
    assert ramp.factor is not None
    size, growth, drops = run.batch.global_batch_size, [], []
    for epoch in at:
        if ramp.largest is not None and size * ramp.factor > ramp.largest:
            drops.append(epoch)
        else:
            size *= ramp.factor
            growth.append(Growth(epoch, size))
    return tuple(growth), tuple(drops)


class Adaptation(NamedTuple):
    """What was decided at a mark."""

    size: int  # of the global batch from there on
    why: str


def adapted(ramp: config.Ramp, size: int, noise_scale: float | None, low: float, measured: float) -> Adaptation:
    """Of a batch of ``size``; the noise scale, in examples, was averaged over so many ``measured`` steps.

    None: the gradient cannot be told from its noise, and known is ``low``, the lower end of an interval of 95 %.
    """
    assert ramp.factor is not None
    needed = ramp.threshold * size
    if not grows_further(ramp, size):
        return Adaptation(size, f"stays: {size * ramp.factor:,} would be beyond batch.ramp.largest")
    if measured < ramp.least:
        return Adaptation(
            size, f"stays: the noise scale is that of {measured:.4g} steps, of {ramp.least} that it needs"
        )
    known, what = (noise_scale, "noise scale of") if noise_scale is not None else (low, "noise scale of at least")
    if not known > needed:
        return Adaptation(size, f"stays: the {what} {known:,.4g} is not above {needed:,.6g}")
    return Adaptation(size * ramp.factor, f"grows: the {what} {known:,.4g} is above {needed:,.6g}")


def grows_further(ramp: config.Ramp, size: int) -> bool:
    assert ramp.factor is not None
    assert ramp.largest is not None
    return size * ramp.factor <= ramp.largest


def may_come_to(run: config.Run) -> tuple[int, ...]:
    """Every batch that an adaptive ramp may come to, ascending; the first is the run's."""
    sizes = [run.batch.global_batch_size]
    if (ramp := run.batch.ramp) is not None and ramp.rule == "adaptive":
        assert ramp.factor is not None
        while grows_further(ramp, sizes[-1]):
            sizes.append(sizes[-1] * ramp.factor)
    return tuple(sizes)


def of_decay(run: config.Run, ramp: config.Ramp, peak: float) -> tuple[Growth, ...]:
    """Where the decay has cut the lr by another a·√b; one growth where it does so several times at once."""
    assert ramp.factor is not None
    assert ramp.largest is not None
    curve = in_epochs(run, peak)
    highest, lowest = curve(curve.warmup), curve(math.nextafter(curve.total, 0))
    cut, size, growth = ramp.cut * math.sqrt(ramp.factor), run.batch.global_batch_size, {}
    level = highest / cut
    while size * ramp.factor <= ramp.largest and lowest <= level * (1 + 1e-9):
        size *= ramp.factor
        growth[falls_to(curve, level)] = size
        level /= cut
    if not growth:
        raise UserError(
            f"batch.ramp.rule = seesaw finds no place to grow: from batch {run.batch.global_batch_size} by "
            f"{ramp.factor} at most to batch.ramp.largest = {ramp.largest}, wherever lr.decay has cut the lr by "
            f"{cut:.4g}, and it goes from {highest:.4g} to {lowest:.4g}"
        )
    return tuple(Growth(epoch, size) for epoch, size in growth.items())


def in_epochs(run: config.Run, peak: float) -> Schedule:
    """The lr as if the batch stayed, over epochs."""
    if run.epochs is None:
        raise UserError("batch.ramp needs the budget in epochs; with steps it would depend on the batch")
    warmup, total, times = run.lr.warmup, run.epochs * run.stretch, 1.0
    if warmup.scaling == "linear" and run.lr.reference_batch_size is not None:
        times = run.batch.global_batch_size / run.lr.reference_batch_size
    length = times * (warmup.share * total if warmup.share else warmup.epochs * run.stretch)
    if length >= total:
        raise UserError(f"lr.warmup takes {length:g} epochs, and must be below the run's {total:g}")
    begin, end = run.lr.decay.span(length, total, float)
    jumps = tuple(epoch * run.stretch for epoch in run.lr.decay.epochs)
    return Schedule(peak, total, run.lr.decay, length, milestones=jumps, decay_from=begin, decay_to=end)


def falls_to(curve: Schedule, level: float) -> float:
    """The first epoch after the warm-up at which it is no higher."""
    for jump in curve.milestones:
        if curve(math.nextafter(jump, 0)) > level * (1 + 1e-9) >= curve(jump):
            return jump
    low, high = curve.warmup, math.nextafter(curve.total, 0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if curve(middle) > level * (1 + 1e-9) else (low, middle)
    return high


class Level:
    """The peak, until the next growth."""

    def lr(self, peak: float, progress: float, passed: int) -> float:
        return peak

    def summit(self, peak: float) -> float:
        return peak

    def check(self, peak: float) -> None: ...


@dataclasses.dataclass(frozen=True)
class Raised:
    """A decay, ``times`` as high."""

    decay: AfterWarmup
    times: float

    def lr(self, peak: float, progress: float, passed: int) -> float:
        return self.times * self.decay.lr(peak, progress, passed)

    def summit(self, peak: float) -> float:
        return self.times * self.decay.summit(peak)

    def check(self, peak: float) -> None:
        self.decay.check(peak)


def of_stages(run: config.Run, plan: BatchPlan, lr: ExplainedSchedule) -> Sequence[ExplainedSchedule]:
    """The schedule of each stage of the plan; ``lr``: as if the batch stayed."""
    ramp, first = run.batch.ramp, run.batch.global_batch_size
    if ramp is None or (ramp.rule != "seesaw" and ramp.lr == "stays"):
        return [lr] * len(plan.stages)
    grown = [stage.global_batch_size / first for stage in plan.stages]
    if ramp.rule == "seesaw":
        return [seesaw(ramp, plan, lr, times, last=times == grown[-1]) for times in grown]
    power = 0.5 if ramp.lr == "sqrt" else 1.0
    what = "√ of the batch's growth" if ramp.lr == "sqrt" else "the batch's growth"
    words = dataclasses.replace(lr, rule=f"{lr.rule}, times {what} (batch.ramp)")
    return [
        dataclasses.replace(words, schedule=dataclasses.replace(lr.schedule, peak=lr.schedule.peak * times**power))
        for times in grown
    ]


def seesaw(ramp: config.Ramp, plan: BatchPlan, lr: ExplainedSchedule, times: float, last: bool) -> ExplainedSchedule:
    """That of the stage whose batch is so many times the first."""
    assert ramp.factor is not None
    growths = math.log(times) / math.log(ramp.factor)
    begin = lr.schedule.warmup
    highest = lr.schedule(begin)
    at = listed(round(stage.first_example / plan.dataset_size, 4) for stage in plan.stages[1:])
    words = (
        f"seesaw on {lr.decay}: ÷{ramp.cut:.4g} with each growth of the batch by {ramp.factor}, at epochs {at}; then "
        "as the decay, times √ of the growth"
    )
    schedule = dataclasses.replace(lr.schedule, peak=highest * ramp.cut**-growths, decay=Level(), milestones=())
    if last and growths:
        schedule = dataclasses.replace(lr.schedule, decay=Raised(lr.schedule.decay, math.sqrt(times)))
    return dataclasses.replace(lr, schedule=schedule, decay=words)

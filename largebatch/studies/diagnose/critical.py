"""``diagnose critical``: the largest multiple of a run's batch that loses nothing, at checkpoints of its training.

From each checkpoint, branches at k times the batch with lr·f(k) are trained on the same window of examples, in several
orders of the data (:mod:`largebatch.studies.diagnose.branches`); which k lose is said by paired tests
(:mod:`largebatch.diagnostics.critical`). Branches are kept as they are made: the same command goes on after them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import rich.table
import torch

from largebatch.diagnostics import critical
from largebatch.diagnostics.critical import CriticalFactor
from largebatch.errors import UserError
from largebatch.machine.determinism import deterministic
from largebatch.plan.batch import multiples_near
from largebatch.records.diagnoses import BranchRecord, CriticalPoint, CriticalRecord, FactorOutcome
from largebatch.studies.diagnose import noise
from largebatch.studies.diagnose.branches import LR_RULES, Trunk, kept_or_trained, trunks
from largebatch.studies.diagnose.opened import circumstances, keep, recipe_of

FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0)
STEPS_AT_LEAST = 16  # of the largest batch, in a window that nobody states
LAST_PART = 4  # one in so many examples of the window, for ``last``
JUDGES = ("last", "ema", "held_out")


class Design(NamedTuple):
    """What is trained at every checkpoint, and how it is judged."""

    factors: tuple[float, ...]
    window: int
    last_part: int  # examples
    orders: int
    lr_rule: str
    judge: str
    tolerance: float

    def judged(self, branch: BranchRecord) -> float:
        """The loss that a branch is judged by; infinite where it diverged."""
        losses = [math.inf if loss is None or not math.isfinite(loss) else loss for loss in branch.losses]
        if math.inf in losses:
            return math.inf
        if self.judge == "held_out":
            return math.inf if branch.held_out_loss is None else branch.held_out_loss
        return critical.smoothed(losses) if self.judge == "ema" else self.mean(losses, branch, last=True)

    def mean(self, losses: Sequence[float], branch: BranchRecord, last: bool) -> float:
        """Over the last part of the window, or over as many of its first examples."""
        assert branch.global_batch_size is not None
        count = self.last_part // branch.global_batch_size
        part = losses[-count:] if last else losses[:count]
        return math.fsum(part) / count

    def gained(self, branches: Sequence[BranchRecord]) -> float | None:
        """What the window gains at the run's batch, in the mean of its orders."""
        falls = [
            self.mean(losses, branch, last=False) - self.mean(losses, branch, last=True)
            for branch in branches
            if None not in branch.losses and (losses := [loss or 0.0 for loss in branch.losses])
        ]
        return math.fsum(falls) / len(falls) if falls else None


def measure(
    directory: Path,
    device: torch.device,
    *,
    factors: Sequence[float] = FACTORS,
    steps: Sequence[int] = (),
    window: int | None = None,
    orders: int = 5,
    lr_rule: str | None = None,
    judge: str = "last",
    tolerance: float = 0.0,
    noise_scale: bool = True,
    command: str = "",
    progress: Callable[[str], None] = lambda text: None,
) -> CriticalRecord:
    """Collective. ``steps``: of checkpoints; none: all that were kept."""
    run = recipe_of(directory)
    with deterministic(run.deterministic):
        places = trunks(directory, run, list(steps), device)
        design = designed(places[0], factors, window, orders, lr_rule, judge, tolerance)
        points = [_point(trunk, design, noise_scale, command, progress) for trunk in places]
    measured = CriticalRecord(
        run=run.name,
        title=f"{run.title or run.name}, batch {run.batch.global_batch_size:,}",
        directory=str(directory),
        model=run.model.name,
        data=run.data.name,
        optimizer=run.optimizer.words,
        lr_rule=design.lr_rule,
        window=design.window,
        judged_by=design.judge,
        last_part=design.last_part,
        tolerance=design.tolerance,
        orders=design.orders,
        points=points,
        **circumstances(device, command),
    )
    keep(directory, measured)
    return measured


def designed(
    trunk: Trunk,
    factors: Sequence[float],
    window: int | None,
    orders: int,
    lr_rule: str | None,
    judge: str,
    tolerance: float,
) -> Design:
    """What was asked for, made whole; refused, before anything is trained, where it cannot be."""
    for option, value, valid in (("--judge", judge, JUDGES), ("--lr-rule", lr_rule or "none", LR_RULES)):
        if value not in valid:
            raise UserError(f"{option} {value} is not known; valid: {', '.join(valid)}")
    if orders < 2:
        raise UserError(f"--orders {orders} leaves nothing to test; at least 2 orders of the data")
    if not 0 <= tolerance < math.inf:
        raise UserError(f"--tolerance {tolerance:g} should be a loss, 0 or above")
    rule = lr_rule or trunk.run.optimizer.LR_RULE
    if rule is None:
        raise UserError(
            f"optimizer.name = {trunk.run.optimizer.name} does not say how its lr follows the batch; state --lr-rule: "
            f"{', '.join(LR_RULES)}"
        )
    grid = _grid(factors)
    sizes = [_size(trunk, factor) for factor in grid]
    unit, most = math.lcm(*sizes), len(trunk.dataset.train)
    if window is None:
        window = min(math.ceil(STEPS_AT_LEAST * sizes[-1] / unit), max(1, most // unit)) * unit
    if window > most or window % unit or window < 1:
        listed, near = ", ".join(map(str, sizes)), multiples_near(window, unit, most)
        raise UserError(
            f"--window {window} should be whole steps of all batches ({listed}) and at most the {most} examples of an "
            f"epoch, beyond which they are not new; nearest that are: {near}"
        )
    for factor in grid:
        branch = trunk.branch(factor, 0, rule, window)
        with trunk.told_of(branch):
            trunk.plan(branch)
    last_part = math.ceil(window / LAST_PART / unit) * unit
    return Design(grid, window, last_part, orders, rule, judge, tolerance)


def _grid(factors: Sequence[float]) -> tuple[float, ...]:
    grid, written = tuple(sorted(set(factors))), ",".join(f"{factor:g}" for factor in factors)
    if any(not 0 < factor < math.inf for factor in grid) or len(grid) < max(2, len(factors)):
        raise UserError(f"--factors {written} should be two or more different multiples of the batch, all above 0")
    if 1.0 not in grid:
        raise UserError(f"--factors {written} has no 1, the run's own batch; add it")
    return grid


def _size(trunk: Trunk, factor: float) -> int:
    size = factor * trunk.global_batch_size
    if not math.isclose(size, round(size), rel_tol=1e-9) or size < 0.5:
        raise UserError(
            f"--factors {factor:g} times the run's batch {trunk.global_batch_size} is {size:g}, which is no number of "
            "examples"
        )
    return round(size)


def _point(
    trunk: Trunk, design: Design, noise_scale: bool, command: str, progress: Callable[[str], None]
) -> CriticalPoint:
    of_factors: dict[float, list[BranchRecord]] = {factor: [] for factor in design.factors}
    for order in range(design.orders):  # so that what an interruption leaves is whole orders
        for factor in design.factors:
            branch = trunk.branch(factor, order, design.lr_rule, design.window)
            made, anew = kept_or_trained(trunk, branch, design.judge == "held_out", command)
            of_factors[factor].append(made)
            loss, took = design.judged(made), f"{made.seconds:.1f} s" if anew else "kept"
            words = f"loss {loss:.5g}" if math.isfinite(loss) else "diverged"
            progress(f"step {trunk.step:,}, k = {factor:g}, order {order}: {words} ({took})")
    losses = {factor: [design.judged(made) for made in branches] for factor, branches in of_factors.items()}
    gained = design.gained(of_factors[1.0])
    said, size = critical.verdict(losses, design.tolerance, gained), trunk.global_batch_size
    return CriticalPoint(
        step=trunk.step,
        examples_seen=trunk.examples_seen,
        global_batch_size=size,
        lr=trunk.lr,
        verdict=said.word,
        factor=said.factor,
        factor_low=said.low,
        factor_high=said.high,
        critical_batch_size=None if said.factor is None else said.factor * size,
        drawn=None if said.drawn is None else said.drawn * size,
        excluded=said.excluded,
        gained=gained,
        **(_noise(trunk, command, progress) if noise_scale else dict.fromkeys(NOISE)),
        branches=[_outcome(said, branches, losses[factor]) for factor, branches in of_factors.items()],
    )


NOISE = ("noise_scale", "noise_scale_low", "noise_scale_high")


def _noise(trunk: Trunk, command: str, progress: Callable[[str], None]) -> dict[str, float | None]:
    """At the same weights; what cannot be measured costs no branch."""
    try:
        measured = noise.at_weights(trunk.directory, trunk.device, step=trunk.step, command=command)
    except UserError as error:
        progress(f"step {trunk.step:,}: no noise scale ({error})")
        return dict.fromkeys(NOISE)
    return {key: getattr(measured, key) for key in NOISE}


def _outcome(said: CriticalFactor, branches: Sequence[BranchRecord], losses: Sequence[float]) -> FactorOutcome:
    first = branches[0]
    pairs = [pair for pair in said.pairs if pair.larger == first.factor and math.isfinite(pair.excess)]
    worst = max(pairs, key=lambda pair: pair.excess, default=None)
    return FactorOutcome(
        factor=first.factor,
        global_batch_size=first.global_batch_size,
        lr=first.lr,
        steps=len(first.losses),
        losses=[loss if math.isfinite(loss) else None for loss in losses],
        excess=worst and worst.excess,
        excess_high=max((pair.high(critical.LEVEL) for pair in pairs), default=None),
        p=min((pair.p for pair in pairs), default=None),
    )


def table(measured: CriticalRecord) -> rich.table.Table:
    """A line for each k at each checkpoint."""
    judge = {
        "last": f"mean loss of the last {measured.last_part:,} examples",
        "ema": f"loss, smoothed with α = {critical.SMOOTHING:g}",
        "held_out": "held-out loss at the end",
    }[str(measured.judged_by)]
    shown = rich.table.Table(
        title=f"{measured.title}: branches of {measured.window:,} examples in {measured.orders} orders, lr rule "
        f"{measured.lr_rule}; {judge}"
    )
    for heading in ("step", "k", "batch", "lr", "steps", "loss", "above a smaller k", "p", ""):
        shown.add_column(heading, justify="left" if not heading else "right")
    for point in measured.points:
        for row in point.branches:
            known = [loss for loss in row.losses if loss is not None]
            mean = f"{math.fsum(known) / len(known):.5g}" if len(known) == len(row.losses) else "diverged"
            shown.add_row(
                f"{point.step:,}" if row is point.branches[0] else "",
                f"{row.factor:g}",
                f"{row.global_batch_size:,}",
                f"{row.lr:.4g}",
                f"{row.steps:,}",
                mean,
                "" if row.excess is None else f"{row.excess:+.2g}",
                "" if row.p is None else f"{row.p:.2g}",
                "critical" if row.factor == point.factor else "",
            )
        shown.add_section()
    return shown


def sentences(measured: CriticalRecord) -> list[str]:
    """What was found at each checkpoint, beside the noise scale."""
    return [f"step {point.step:,}: {_found(point)}{_beside(point)}" for point in measured.points]


def _found(point: CriticalPoint) -> str:
    if point.factor is None or point.critical_batch_size is None:
        assert point.factor_low is not None
        assert point.factor_high is not None
        between = f"between k = {point.factor_low:g} and {point.factor_high:g}"
        where = between if point.factor_low < point.factor_high else f"the branches at k = {point.factor_low:g} diverge"
        return f"not decided, {where}; more --orders or a longer --window see more"
    word = {critical.CRITICAL: "critical batch", critical.AT_LEAST: "critical batch at least"}
    said = f"{word.get(str(point.verdict), 'critical batch at most')} {point.critical_batch_size:,.0f}"
    said += f" (k = {point.factor:g}{f'; drawn at {point.drawn:,.0f}' if point.verdict == critical.CRITICAL else ''})"
    if point.excluded is not None and point.excluded > 0:
        said += f"; what it loses against a smaller one is below {point.excluded:.2g}"
    return said


def _beside(point: CriticalPoint) -> str:
    if point.noise_scale is None:
        return "; noise scale not bounded" if point.noise_scale_low is not None else ""
    high = f"{point.noise_scale_high:,.0f}" if point.noise_scale_high is not None else "no upper end"
    return f"; noise scale {point.noise_scale:,.0f} (95 %: {point.noise_scale_low:,.0f} to {high})"

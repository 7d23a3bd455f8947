"""``lb.critical_batch``: what ``largebatch diagnose critical`` measures, of a run with parts of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from largebatch.api.handed_over import Handed
from largebatch.api.training import Recipe, command, prepared
from largebatch.machine import distributed
from largebatch.records.diagnoses import CriticalRecord
from largebatch.studies.diagnose import critical


def critical_batch(
    run: Recipe,
    *,
    model: Any = None,
    dataset: Any = None,
    task: Any = None,
    optimizer: Any = None,
    factors: Sequence[float] = critical.FACTORS,
    steps: Sequence[int] = (),
    window: int | None = None,
    orders: int = 5,
    lr_rule: str | None = None,
    judge: str = "last",
    tolerance: float = 0.0,
    noise_scale: bool = True,
) -> CriticalRecord:
    """The largest multiple of the batch of a trained run that loses nothing, at checkpoints of it. Collective.

    Args:
        run: the recipe that :func:`largebatch.train` trained, with its directory.
        model, dataset, task, optimizer: as they were handed over there.
        factors: multiples of the run's batch, 1 among them.
        steps: of the checkpoints where branches begin; none: all that were kept.
        window: examples that each branch is trained on; else 16 steps of the largest batch.
        orders: of the data; in each, every factor has a branch.
        lr_rule: ``linear``, ``sqrt`` or ``none``; else the optimizer's. One of your own has to be told.
        judge: ``last``, the mean loss of the window's last quarter; ``ema``, Merrill et al.'s average; ``held_out``.
        tolerance: the loss that may be lost.
        noise_scale: whether it is measured at the same weights.

    Returns:
        What stands in ``diagnostics/critical.json``. ``record.points`` has one for each checkpoint, with ``verdict``,
        ``critical_batch_size`` and the losses of all branches. Those are kept: the same call trains none again.

    Raises:
        UserError: a mistake, in one sentence.
    """
    with prepared(run, Handed(model, dataset, task, optimizer)) as standing:
        return critical.measure(
            standing.directory,
            distributed.choose_device(standing.device),
            factors=factors,
            steps=steps,
            window=window,
            orders=orders,
            lr_rule=lr_rule,
            judge=judge,
            tolerance=tolerance,
            noise_scale=noise_scale,
            command=command(),
        )

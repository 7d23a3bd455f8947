"""One step of the optimizer, from its examples to what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from largebatch.data.nested import Batch
from largebatch.machine import distributed
from largebatch.steps.evaluate import Tally
from largebatch.tasks.task import Task


def _unnoticed(doing: str) -> None: ...


@dataclasses.dataclass
class Step:
    """A step of a run, or a *turn* of it: what one set of weights takes of its examples.

    Parts change what they are there to change: the micro-batches, the learning rate, who watches.
    """

    number: int  # steps done before it
    examples: int  # that its loss is the mean over, of all ranks; where units vary, over their units
    micro_batches: Iterable[Batch]  # of this rank
    last: int | None  # the micro-batch whose backward sums over ranks; None: this rank is alone with its weights
    lr: float
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # beside the lr, of every parameter group
    measured: bool = False  # whether the norm of its gradient is asked for
    phase: int | None = None  # whose settings its groups have, counted from 0; None: none, but what the recipe says
    workers: int = 1  # so many sets of weights take a turn each
    together: bool = True  # whether all of them are the same at the end
    tally: Tally | None = None  # what the task makes numbers of is counted here
    lap: Callable[[str], None] = _unnoticed  # called as the step goes from one thing to the next: methods/step_times.py
    # What came of it.
    units: int | Tensor | None = None  # that the sum of losses is divided by
    loss: Tensor | None = None  # this rank's part of the mean
    norm: Tensor | None = None  # of the gradient before clipping
    squares: Tensor | None = None  # of gradients of parts, as engines/ddp.py gives them
    skipped: bool = False  # its gradient was not finite, and nobody stepped
    numbers: dict[str, float] = dataclasses.field(default_factory=dict)  # recorded with its loss

    @property
    def alone(self) -> bool:
        return self.last is None

    def turn(self, **changes: Any) -> Step:
        """What one set of weights takes of it; nothing has come of that yet."""
        return dataclasses.replace(self, units=None, loss=None, **changes)

    def add(self, loss: Tensor) -> None:
        """A part of its loss."""
        self.loss = loss if self.loss is None else self.loss + loss

    def count(self, task: Task, outputs: Any, batch: Batch) -> None:
        if self.tally is not None:
            with torch.no_grad():
                self.tally.count(task, outputs, batch)


def count_units(turn: Step, task: Task, device: torch.device) -> int | Tensor:
    """What the sum of its losses is divided by. Collective where units vary and it is not alone."""
    if turn.units is None:
        if task.units_vary:
            turn.lap("data")
        turn.micro_batches, turn.units = units_of(turn.micro_batches, turn.examples, task, device, turn.alone)
    return turn.units


def units_of(
    batches: Iterable[Batch], examples: int, task: Task, device: torch.device, alone: bool
) -> tuple[Iterable[Batch], int | Tensor]:
    """The batches of ``examples`` again, and their units: those that vary are counted, of all ranks if not alone."""
    if not task.units_vary:
        return batches, examples
    batches = list(batches)
    counts = [torch.as_tensor(task.units(batch), dtype=torch.int64) for batch in batches]
    here = torch.stack([count.to(device) for count in counts]).sum()
    return batches, (here if alone else distributed.sum_(here)).clamp(min=1)

"""What every task is.

    gradient of a step = ∇ Σ loss(outputs, batch) / Σ units(batch)        both sums over the global batch

The loss is summed over *units*, and the step divides by the units of the global batch, so the result does not depend on
how the batch is cut. For most tasks a unit is an example, whose number the plan knows. Where units vary by example (the
masked tokens of a sequence) a task says so: then they are counted and summed over ranks before the first backward.
"""

from __future__ import annotations

import abc
import math
import operator
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from largebatch.data.nested import Batch, examples_of, rows_of, tensors_of
from largebatch.errors import UserError
from largebatch.plan.score import Score


class Task(abc.ABC):
    """``batch`` is whatever the data set gives; those of this package give (inputs, targets)."""

    score: ClassVar[Score]
    units_vary: ClassVar[bool] = False  # whether units() is more than the examples, and asked of every batch
    soft_labels: ClassVar[bool] = False  # whether the loss of this class takes shares of several labels, as mixup makes
    answers: ClassVar[Literal["classes", "labels", "numbers"] | None] = None  # what :meth:`answered` gives

    def forward(self, model: Any, batch: Batch) -> Any:
        """The model's outputs. ``model`` may be wrapped by an engine: call it, once."""
        return model(batch[0])

    @abc.abstractmethod
    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """What is trained, summed over the batch's units: a single number, in float32 or wider."""

    def units(self, batch: Batch) -> int | Tensor:
        """What the loss is summed over. A whole number, or a tensor of one on the batch's device."""
        return examples_of(batch)

    @abc.abstractmethod
    def tally(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """What an evaluation adds up over all examples and ranks: tensors of any shape, summed in float64."""

    @abc.abstractmethod
    def numbers(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """An evaluation's numbers by key, ``loss`` and the score's among them.

        ``sums`` holds those of :meth:`tally`, and ``examples`` and ``units``.
        """

    def answered(self, outputs: Any) -> Tensor:
        """What outputs say of each example, (m, columns) float64, for people: probabilities of its ``classes`` (one is
        right) or of its ``labels`` (any may be), or the ``numbers`` that were asked for. ``batch[1]`` has the truth.

        Asked where :attr:`answers` says which; a task without has scores alone.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no answers by example")

    def check_data(self, batch: Batch, data: str) -> None:  # noqa: B027
        """Refuse a data set that the task cannot be learned on. ``batch``: a blank one, as ``data`` gives them."""

    def check_outputs(self, outputs: Any, batch: Batch, model: str, wanted: int | None) -> None:  # noqa: B027
        """Refuse a model whose outputs the task cannot use: what ``model`` made of a blank batch. ``wanted``: how many
        numbers the data set asks for per example; None: it does not say."""


def takes_soft_labels(task: Task) -> bool:
    """As the class says that has the loss: one that overrides it says so anew."""
    for kind in type(task).__mro__:
        if "soft_labels" in vars(kind):
            return kind.soft_labels  # type: ignore[attr-defined]
        if "loss" in vars(kind):
            return False
    return False


def check_targets(batch: Batch, task: str, data: str, wanted: str, fits: Callable[[Tensor], bool]) -> None:
    """Refuse what is no (inputs, targets), and targets that are not what is ``wanted``, of which ``fits`` is true.

    Inputs may be any nest of tensors: a task's ``forward`` hands them to the model.
    """
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor)):
        raise UserError(f"task.name = {task} needs batches of (inputs, targets), and data.name = {data} gives others")
    if not fits(batch[1]):
        kind, shape = str(batch[1].dtype).removeprefix("torch."), "×".join(map(str, batch[1].shape[1:])) or "one"
        raise UserError(
            f"task.name = {task} needs {wanted}, and data.name = {data} has targets of {kind}, {shape} per example; "
            "leave task out to take the data set's own"
        )


def is_floating_matrix(targets: Tensor) -> bool:
    """(examples, several numbers)."""
    return targets.is_floating_point() and targets.dim() == 2


def check_shape(outputs: Any, batch: Batch, model: str, wanted: int | None, of: str) -> None:
    """Refuse outputs that are not (examples, ``wanted``), a column for each ``of`` the data set."""
    if not isinstance(outputs, Tensor):
        columns = of if wanted is None else wanted
        raise UserError(f"model {model} gives a {type(outputs).__name__}; wanted is a tensor (examples, {columns})")
    if wanted is None and outputs.dim() == 2 and len(outputs) == examples_of(batch):
        return
    if tuple(outputs.shape) != (examples_of(batch), wanted):
        has = f"the task wants a number for each of its {of}" if wanted is None else f"the data set has {wanted} {of}"
        raise UserError(f"model {model} gives {tuple(outputs.shape[1:])} per example; {has}")


def check_loss(task: Task, outputs: Any, batch: Batch) -> None:
    """Refuse a loss that is not summed, which its shape tells, and one in half precision."""
    loss = task.loss(outputs, batch)
    name = type(task).__name__
    if not isinstance(loss, Tensor) or loss.dim():
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise UserError(f"the loss of {name} is {what}; it should be summed over the batch's units, a single number")
    if loss.dtype not in (torch.float32, torch.float64):
        raise UserError(f"the loss of {name} is {loss.dtype}; it should be summed in float32 or wider")


def check_sum(task: Task, outputs: Any, batch: Batch) -> None:
    """Refuse a loss that is a mean where a sum is due: that of a batch is the mean of its halves, and not their sum."""
    count = examples_of(batch)
    if count < 2 or any(not part.dim() or len(part) != count for part in tensors_of(outputs)):
        return
    halves = [rows_of((outputs, batch), half) for half in (slice(count // 2), slice(count // 2, count))]
    losses = [float(task.loss(*half)) for half in halves]
    units = [float(task.units(half[1])) for half in halves]
    whole, mean = float(task.loss(outputs, batch)), sum(map(operator.mul, losses, units)) / (sum(units) or 1.0)
    if math.isclose(whole, mean, rel_tol=1e-3) and not math.isclose(whole, sum(losses), rel_tol=1e-3):
        raise UserError(
            f"the loss of {type(task).__name__} is a mean: {whole:.4g} of {count} examples, {losses[0]:.4g} and "
            f"{losses[1]:.4g} of the halves; it should be summed over the batch's units (reduction='sum'), which "
            "the step divides by those of the global batch"
        )


def check_numbers(task: Task, outputs: Any, batch: Batch) -> list[str]:
    """The keys of an evaluation's numbers; refused where the loss or the score is not among them."""
    counts = {"examples": examples_of(batch), "units": task.units(batch)}
    with torch.no_grad():
        found = {**task.tally(outputs, batch), **{key: max(int(count), 1) for key, count in counts.items()}}
    keys = list(task.numbers({key: torch.as_tensor(part).double().cpu() for key, part in found.items()}))
    for key in ("loss", task.score.key):
        if key not in keys:
            raise UserError(
                f"an evaluation of {type(task).__name__} has no {key}; it should be one of its numbers, which are "
                f"{', '.join(keys) or 'none'}"
            )
    return keys

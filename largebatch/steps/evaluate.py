"""Exact evaluation: every example once, whatever the world size.

Each rank evaluates its contiguous share, shares may differ by one; what the task tallies is summed over examples and
ranks in float64. No padding, no dropped remainder. :func:`exact_sums` is the same for a loop of one's own.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from largebatch.data.nested import Batch, examples_of
from largebatch.engines.ddp import unwrapped
from largebatch.engines.engine import averaged_statistics
from largebatch.engines.fsdp import unsharded
from largebatch.machine import distributed, watchdog
from largebatch.plan.image_views import AS_THEY_ARE, ImageViews
from largebatch.tasks.task import Task


class Evaluation(NamedTuple):
    numbers: dict[str, float]  # by key: the loss, the score, and what else the task tells
    examples: int

    @property
    def loss(self) -> float:
        return self.numbers["loss"]


def evaluate(
    model: nn.Module,
    task: Task,
    forward: Callable[[Batch], Any],
    batches: Iterable[Batch],
    device: torch.device,
    *,
    views: ImageViews = AS_THEY_ARE,
    seen: Callable[[Any, Batch], None] | None = None,
    over_ranks: bool = True,
) -> Evaluation:
    """``forward`` in evaluation mode over this rank's ``batches``; ``model`` is returned to its mode after.

    What is judged, the mean over ``views``, is shown to ``seen``, batch by batch. Not ``over_ranks``: every rank
    evaluates a model of its own. Else collective.
    """

    def tally(batch: Batch) -> dict[str, Any]:
        outputs = judged(forward, batch, views)
        if seen is not None:
            seen(outputs, batch)
        return tallied(task, outputs, batch)

    sums = _sums(model, batches, tally)
    found = sums.over_ranks(device) if over_ranks else sums.sums
    found = {key: tensor.cpu() for key, tensor in found.items()}
    return Evaluation(task.numbers(found), int(found["examples"]))


def judged(forward: Callable[[Batch], Any], batch: Batch, views: ImageViews) -> Any:
    """The outputs; of ``views`` of the images (m, C, H, W) of a batch, with mirror images left to right of each."""
    if not (views.flips or views.shift):
        return forward(batch)
    images, labels = batch

    def of(seen: Tensor) -> Tensor:
        once = forward((seen, labels))
        return (once + forward((seen.flip(3), labels))) / 2 if views.flips else once

    if not views.shift:
        return of(images)
    height, width = images.shape[2:]
    wider = torch.nn.functional.pad(images, [views.shift] * 4, mode="reflect")
    moved = [wider[:, :, at : at + height, at : at + width] for at in (0, 2 * views.shift)]
    return of(images) / 2 + sum(of(view) for view in moved) / 4


def exact_sums(
    model: nn.Module, batches: Iterable[Batch], tally: Callable[[nn.Module, Batch], dict[str, Any]]
) -> dict[str, Tensor]:
    """What ``tally(model, batch)`` counts, summed over all batches of all ranks in float64; on every rank, on the CPU.

    ``batches`` are this rank's alone, such as a loader's over a :class:`~largebatch.data.sampler.ShareSampler`; ranks
    may have unlike numbers of them, or none. ``tally`` gives sums over a batch by key, numbers or tensors of any shape.
    ``model`` may be DistributedDataParallel or of FSDP2: inside it is whole and communicates nothing, in evaluation
    mode, with running statistics that are the means over ranks. Collective.
    """
    plain = unwrapped(model)
    with shown_whole(plain):
        sums = _sums(plain, batches, lambda batch: tally(plain, batch))
    device = next((parameter.device for parameter in plain.parameters()), torch.device("cpu"))
    return {key: tensor.cpu() for key, tensor in sums.over_ranks(device).items()}


@contextlib.contextmanager
def shown_whole(plain: nn.Module) -> Iterator[None]:
    """Inside, all ranks have the same model, and its forward passes communicate nothing. Collective."""
    with unsharded(plain), averaged_statistics(plain):
        yield


def _sums(model: nn.Module, batches: Iterable[Batch], tally: Callable[[Batch], dict[str, Any]]) -> Tally:
    """Of this rank's batches; ``model`` is returned to its mode after."""
    training = model.training
    model.eval()
    sums = Tally()
    with torch.no_grad():  # not inference mode: engines gather weights in it
        for batch in batches:
            sums.add(tally(batch))
            watchdog.alive()
    model.train(training)
    return sums


def tallied(task: Task, outputs: Any, batch: Batch) -> dict[str, Any]:
    """What the task makes numbers of, of one batch."""
    return {**task.tally(outputs, batch), "examples": examples_of(batch), "units": task.units(batch)}


class Tally:
    """Sums by key in float64, of whatever shape; a rank that has seen nothing has none."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, parts: dict[str, Any]) -> None:
        for key, part in parts.items():
            part = part.detach().double() if isinstance(part, Tensor) else torch.tensor(float(part)).double()
            self.sums[key] = self.sums[key] + part if key in self.sums else part

    def count(self, task: Task, outputs: Any, batch: Batch) -> None:
        self.add(tallied(task, outputs, batch))

    def over_ranks(self, device: torch.device) -> dict[str, Tensor]:
        """The sums of all ranks, on each. Collective."""
        own = {key: tuple(tensor.shape) for key, tensor in self.sums.items()}
        shapes = max(distributed.gather(own), key=len)
        parts = [self.sums.get(key, torch.zeros(shape)).to(device, torch.float64) for key, shape in shapes.items()]
        flat = distributed.sum_(torch.cat([part.reshape(-1) for part in parts]))
        split = flat.split([math.prod(shape) for shape in shapes.values()])
        return {key: part.view(shape) for (key, shape), part in zip(shapes.items(), split, strict=True)}

"""What one would write without a framework: the model, the data and the optimizer, and nothing else.

No records, no schedule, no checkpoints, no checks: the yardstick of ``bench throughput``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from largebatch.data.nested import Batch
from largebatch.tasks.task import Task

Batches = Iterable[Batch]  # the micro-batches of a step, on the model's device


def bare_loop(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    steps: Iterable[Batches],
    global_batch_size: int,
    autocast: torch.autocast,
) -> None:
    for micro_batches in steps:
        for batch in micro_batches:
            with autocast:
                loss = task.loss(task.forward(model, batch), batch)
            (loss / global_batch_size).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def gathered(
    images: Tensor,  # uint8 (N, C, H, W) on the model's device
    labels: Tensor,
    mean: Tensor,  # (C, 1, 1), of pixels 0 to 255, like std
    std: Tensor,
    global_batch_size: int,
    micro_batch_size: int,
    steps: int,
    dtype: torch.dtype,
    layout: torch.memory_format,
) -> Iterator[Batches]:
    """Steps over a set that lives on the device: shuffled, picked and normalised there."""

    def micro_batches(chosen: Tensor) -> Batches:
        for part in chosen.split(micro_batch_size):
            yield ((images[part].to(dtype) - mean) / std).contiguous(memory_format=layout), labels[part]

    order, place = torch.randperm(len(labels), device=labels.device), 0
    for _ in range(steps):
        if place + global_batch_size > len(order):
            order, place = torch.randperm(len(labels), device=labels.device), 0
        yield micro_batches(order[place : place + global_batch_size])
        place += global_batch_size

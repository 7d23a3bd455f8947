"""What one would write without a framework: the model, the data and the optimizer, and nothing else.

No records, no schedule, no checkpoints, no checks: the yardstick of ``bench throughput``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def bare_loop(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,  # uint8 (N, C, H, W) on the model's device
    labels: Tensor,
    mean: Tensor,  # (C, 1, 1), of pixels 0 to 255, like std
    std: Tensor,
    global_batch_size: int,
    micro_batch_size: int,
    steps: int,
    autocast: torch.autocast,
    dtype: torch.dtype,
    layout: torch.memory_format,
) -> None:
    order = torch.randperm(len(labels), device=labels.device)
    place = 0
    for _ in range(steps):
        if place + global_batch_size > len(order):
            order, place = torch.randperm(len(labels), device=labels.device), 0
        for start in range(place, place + global_batch_size, micro_batch_size):
            chosen = order[start : start + micro_batch_size]
            batch = ((images[chosen].to(dtype) - mean) / std).contiguous(memory_format=layout)
            with autocast:
                loss = F.cross_entropy(model(batch), labels[chosen], reduction="sum") / global_batch_size
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        place += global_batch_size
    if labels.is_cuda:
        torch.cuda.synchronize()

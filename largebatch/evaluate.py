"""Exact evaluation: every example once, whatever the world size.

Each rank evaluates its contiguous share, shares may differ by one; loss, correct answers and examples are
summed over ranks in float64. No padding, no dropped remainder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch import distributed, watchdog


class Evaluation(NamedTuple):
    loss: float  # mean cross-entropy, without label smoothing
    accuracy_percent: float
    examples: int


def evaluate(
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    sum_: Callable[[Tensor], Tensor] = distributed.sum_,
) -> Evaluation:
    """``forward`` in evaluation mode over this rank's ``batches``; ``model`` is returned to its mode after.

    ``sum_`` adds up over ranks; the identity where every rank evaluates a model of its own.
    """
    training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, correct, examples
    with torch.no_grad():  # not inference mode: engines gather weights in it
        for images, labels in batches:
            outputs = forward(images)
            sums[0] += F.cross_entropy(outputs, labels, reduction="sum")
            sums[1] += (outputs.argmax(dim=1) == labels).sum()
            sums[2] += labels.numel()
            watchdog.alive()
    model.train(training)
    loss, correct, examples = sum_(sums).tolist()
    return Evaluation(loss / examples, 100.0 * correct / examples, int(examples))

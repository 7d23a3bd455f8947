"""Auxiliary classifiers: what torchvision's GoogLeNet and Inception v3 give beside their logits while they train.

    loss = H(logits, y) + w · Σ H(auxiliary, y)

GoogLeNet   w = 0.3 for each of two: Szegedy et al. 2014 (arXiv:1409.4842), §5
Inception   w = 0.4 for its one: TensorFlow-Slim's training of Inception v3, which PyTorch's tutorials took over;
            Szegedy et al. 2015 (arXiv:1512.00567) keep one classifier and state no weight

They exist with ``aux_logits: true`` and in training alone: what is evaluated, predicted and exported has the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

WEIGHTS = {"GoogLeNetOutputs": 0.3, "InceptionOutputs": 0.4}  # by the name of torchvision's tuple


def logits_of(outputs: Any) -> Any:
    """The classifier's own; what a model gives in training may hold auxiliary ones beside it."""
    return outputs.logits if type(outputs).__name__ in WEIGHTS else outputs


def summed(outputs: Any, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """``loss`` of the logits, that of auxiliary classifiers included where there are any."""
    if type(outputs).__name__ not in WEIGHTS:
        return loss(outputs)
    logits, *auxiliary = outputs
    total = loss(logits)
    for other in auxiliary:
        if other is not None:
            total = total + WEIGHTS[type(outputs).__name__] * loss(other)
    return total


def cross_entropy(outputs: Any, labels: Tensor, label_smoothing: float = 0.0, reduction: str = "sum") -> Tensor:
    """The training loss; ``labels`` are classes (m,) or shares of them (m, C)."""
    options: dict[str, Any] = {"label_smoothing": label_smoothing, "reduction": reduction}
    return summed(outputs, lambda logits: F.cross_entropy(logits, labels, **options))

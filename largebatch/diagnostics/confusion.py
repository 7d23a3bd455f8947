"""Which classes are taken for which, and how much of each is right.

M[y, ŷ]      = examples of class y that were taken for ŷ
recall_c     = M[c, c] / Σ_ŷ M[c, ŷ]         the accuracy of the class
precision_c  = M[c, c] / Σ_y M[y, c]
F1_c         = 2·M[c, c] / (Σ_ŷ M[c, ŷ] + Σ_y M[y, c])      the harmonic mean of both
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class OfClasses(NamedTuple):
    """Counts (C,) int64."""

    examples: Tensor
    predicted: Tensor
    right: Tensor

    @property
    def recall(self) -> Tensor:
        """(C,) float64; NaN where nothing is counted, as in the others."""
        return self.right.double() / self.examples

    @property
    def precision(self) -> Tensor:
        return self.right.double() / self.predicted

    @property
    def f1(self) -> Tensor:
        return 2 * self.right.double() / (self.examples + self.predicted)


def matrix(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """M (C, C) int64, of labels and predictions (n,) int64."""
    return torch.bincount(labels * classes + predictions, minlength=classes**2).view(classes, classes)


def of_classes(labels: Tensor, predictions: Tensor, classes: int) -> OfClasses:
    """The margins and the diagonal of M, without the matrix."""
    counted = (labels, predictions, labels[labels == predictions])
    return OfClasses(*(torch.bincount(numbers, minlength=classes) for numbers in counted))


def most_confused(confusion: Tensor, most: int) -> list[tuple[int, int, int]]:
    """(class, taken for, examples), most first; of equally many the first."""
    wrong = confusion.clone()
    wrong.fill_diagonal_(0)
    places = wrong.flatten().argsort(descending=True, stable=True)[:most].tolist()
    pairs = [divmod(place, len(wrong)) for place in places]
    return [(y, taken, int(wrong[y, taken])) for y, taken in pairs if wrong[y, taken]]

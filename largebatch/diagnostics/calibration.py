"""Whether a classifier's probabilities mean what they say (Guo et al. 2017, arXiv:1706.04599, §2).

    ECE = Σ_b n_b/n · |acc_b − conf_b|        MCE = max_b |acc_b − conf_b|

over bins b of equal width, ((b − 1)/B, b/B], of the confidence: the probability of the answer given. acc_b is the share
of right answers among the n_b in the bin, conf_b their mean confidence. Guo et al. take B = 15. Brier's score (1950) is
the mean of Σ_c (p_c − [c = y])² over examples.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BINS = 15


class Bins(NamedTuple):
    """(B,) each; mean confidence and accuracy are NaN in a bin without examples."""

    examples: Tensor  # int64
    confidence: Tensor
    accuracy: Tensor

    @property
    def gaps(self) -> Tensor:
        """|acc − conf|; 0 in a bin without examples."""
        return (self.accuracy - self.confidence).abs().nan_to_num(0.0)

    @property
    def expected_error(self) -> float:
        return float((self.gaps * self.examples).sum() / self.examples.sum())

    @property
    def largest_error(self) -> float:
        return float(self.gaps.max())


def binned(confidence: Tensor, right: Tensor, bins: int = BINS) -> Bins:
    """``confidence`` (n,) in (0, 1]; ``right`` (n,) whether the answer was."""
    edges = torch.arange(1, bins, dtype=torch.float64) / bins
    place = torch.bucketize(confidence.double().contiguous(), edges)  # the edge itself belongs below
    count = torch.bincount(place, minlength=bins)
    sums = [torch.bincount(place, weights=one.double(), minlength=bins) for one in (confidence, right)]
    return Bins(count, *(total / count for total in sums))


def brier(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Of each example, (n,) float64; ``probabilities`` (n, C)."""
    wanted = torch.nn.functional.one_hot(labels, probabilities.shape[1])
    return (probabilities.double() - wanted).square().sum(dim=1)

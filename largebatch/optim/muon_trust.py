"""OrScale: Muon's step of a layer, as long as the layer's trust ratio says (Lou & You 2026, 2605.07815).

    D = λ·W + s·O         what is subtracted, decay and all, measured as it is
    r = ‖W‖_F / (c·‖D‖_F)                              W ← W − η · min(max(r, smallest), largest) · D

    variant        s                      c                                         smallest   largest
    orscale        1                      1                                         0.5        1.5
    orscale_lm     0.2·√max(A, B)         ‖W‖_F/‖D‖_F of the layer's first step,    0.1        5
                                          so that r begins at 1

The bounds are those of its authors' code. Its ε of 1e-6 beside the denominator is not here: where either norm is 0, r
is 1 (:mod:`.trust_ratio`), and c waits for a step that has both.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from largebatch.optim.loading import Group
from largebatch.optim.shards import Shards, add_up
from largebatch.optim.trust_ratio import trust_ratio

CALIBRATION = "trust_calibration"  # c of a layer, a tensor of one number; 0: not yet


class Trust(NamedTuple):
    smallest: float
    largest: float
    calibrated: bool = False

    def bounds(self, group: Group) -> tuple[float, float]:
        """The group's; those that are None are the variant's."""
        smallest, largest = group["min_trust_ratio"], group["max_trust_ratio"]
        return self.smallest if smallest is None else smallest, self.largest if largest is None else largest

    def ratio(self, weight_norms: Tensor, step_norms: Tensor, group: Group) -> Tensor:
        smallest, largest = self.bounds(group)
        return trust_ratio(weight_norms, step_norms, largest=largest, smallest=smallest)


def decayed(shards: Shards, ends: list[Tensor], scales: list[float], weight_decay: float) -> list[Tensor]:
    """D of each part, from its O and s."""
    return [
        torch.mul(weight, weight_decay).add_(end, alpha=scale)
        for weight, end, scale in zip(shards.weights, ends, scales, strict=True)
    ]


def lengths(work: list[tuple[Shards, list[Tensor]]]) -> list[tuple[Tensor, Tensor]]:
    """‖W‖ and ‖D‖ of the whole layers of each group, in float64. Collective where shards make a layer."""
    sums = add_up([shards.sums(shards.weights, steps) for shards, steps in work], [shards.groups for shards, _ in work])
    return [(whole[:, 0].sqrt(), whole[:, 1].sqrt()) for whole in sums]


def calibration_of(kept: Tensor, weight_norms: Tensor, step_norms: Tensor) -> Tensor:
    """c of each layer: what was kept, else that of this step; 0 where there is nothing to measure."""
    now = torch.where((weight_norms > 0) & (step_norms > 0), weight_norms / step_norms, 0.0)
    return torch.where(kept > 0, kept, now.to(kept.dtype))

"""The trust ratio: how long a layer's step may be, relative to the layer. Stated once, for all of ``optim``.

    LARS   You, Gitman, Ginsburg 2017 (1708.03888), Algorithm 1:   λ = η·‖w‖ / (‖g‖ + β·‖w‖ + ε)
           norm of the sum instead (VISSL, optax):                 λ = η·‖w‖ / (‖g + β·w‖ + ε)
    LAMB   You et al. 2019 (1904.00962), Algorithm 2:              λ = φ(‖w‖) / ‖r + β·w‖

A layer without length or without a direction has no ratio: where either norm is zero, λ = 1. So a
zero-initialised layer moves with the plain learning rate, and a zero gradient moves nothing.
"""

from __future__ import annotations

from torch import Tensor


def trust_ratio(
    weight_norm: Tensor,
    step_norm: Tensor,
    coefficient: float = 1.0,
    largest: float | None = None,
    smallest: float | None = None,
) -> Tensor:
    """``coefficient·weight_norm / step_norm``, from ``smallest`` to ``largest``; 1 where either norm is 0. Elementwise.

    ``step_norm`` is the whole denominator. Both are 0-d tensors of one layer or 1-d tensors of many;
    the result has their shape and device, and nothing is read back to the host.
    """
    ratio = coefficient * weight_norm / step_norm
    if largest is not None or smallest is not None:
        ratio = ratio.clamp(min=smallest, max=largest)
    return ratio.where((weight_norm > 0) & (step_norm > 0), 1.0)

"""AdaScale's gain: how many steps of the small batch a step is worth (Johnson et al. 2020, 2007.05105).

    r = (σ² + ‖∇F‖²) / (σ²/S + ‖∇F‖²)        in [1, S]
    σ̂² = (1/(S−1))·Σᵢ‖gᵢ‖² − (S/(S−1))·‖ḡ‖²     μ̂² = ‖ḡ‖² − σ̂²/S      from the gradients of S parts and their mean

σ² is the variance of a part's gradient (the trace of its covariance). Both estimates are clipped, σ̂² ≥ 1e-6 and
μ̂² ≥ 0, and then averaged over steps with θ = max(1 − S/1000, 0); the plain mean for the first 1/(1 − θ) steps.
The first step takes r = 1, as in the paper. A part has ``reference_batch_size`` examples however many devices there
are, so the estimates do not depend on the machine; ``fairscale.optim.AdaScale`` takes a rank's gradient as the part.
"""

from __future__ import annotations

import dataclasses
import math

from largebatch.optim.loading import State

SMALLEST_VARIANCE = 1e-6


def variance_and_square(sum_of_squares: float, square_of_mean: float, parts: int) -> tuple[float, float]:
    """(σ̂², μ̂²), clipped, from Σ‖gᵢ‖² over ``parts`` gradients and ‖ḡ‖² of their mean."""
    variance = sum_of_squares / (parts - 1) - square_of_mean * parts / (parts - 1)
    square = square_of_mean - variance / parts
    return max(variance, SMALLEST_VARIANCE), max(square, 0.0)


def gain(variance: float, square: float, parts: int) -> float:
    """r of the averaged estimates."""
    return (variance + square) / (variance / parts + square)


@dataclasses.dataclass
class AdaScaleAverages:
    """The averages over steps, and the clock τ in steps of the small batch."""

    parts: int  # S = global batch / reference batch
    progress: float = 0.0  # τ
    steps: int = 0
    variance: float = 0.0
    square: float = 0.0

    @property
    def smoothing(self) -> float:
        return max(1.0 - self.parts / 1000.0, 0.0)

    def observe(self, sum_of_squares: float, square_of_mean: float) -> float:
        """The gain of the step whose gradients these are; call :meth:`advance` when the step is done."""
        if self.parts == 1 or not math.isfinite(sum_of_squares + square_of_mean):
            return 1.0  # gradients that are not finite teach nothing; what they do to the loss is found there
        now = variance_and_square(sum_of_squares, square_of_mean, self.parts)
        count, theta = self.steps + 1, self.smoothing
        weight = 1.0 / count if count * (1.0 - theta) < 1.0 else 1.0 - theta
        self.variance += weight * (now[0] - self.variance)
        self.square += weight * (now[1] - self.square)
        return 1.0 if self.steps == 0 else gain(self.variance, self.square, self.parts)

    def advance(self, gain: float) -> None:
        self.progress += gain
        self.steps += 1

    def state_dict(self) -> State:
        return dataclasses.asdict(self)

    def load_state_dict(self, state: State) -> None:
        for key, value in state.items():
            setattr(self, key, value)

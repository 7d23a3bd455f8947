"""The gradient noise scale: how large a batch must be before a larger one is wasted.

    B_simple = tr(Σ) / |G|²          McCandlish et al. 2018 (1812.06162), eq. 2.9; G the true gradient, Σ the covariance
                                     of one example's. Near B_simple a batch twice as large saves few steps.
    E|g_B|² = |G|² + tr(Σ)/B         for the mean gradient g_B of B examples, so that two batch sizes give (app. A.1)
    |G|²  ~ (B·|g_B|² − b·|g_b|²) / (B − b)            tr(Σ) ~ (|g_b|² − |g_B|²) / (1/b − 1/B)

Here b < B are the small and the big batch, and |g_b|² is the mean over the B/b parts that the big one consists of.
Where a loss is a mean over units of which examples have unlike numbers (masked tokens), it is Σ (uᵢ/U)·|gᵢ|² over parts
of uᵢ units, U in all, and Σ the covariance of an example's (Gₖ − uₖ·G)/ū, to first order in the spread of u. Each of
the two is unbiased; their ratio is not, so they are averaged separately and divided last. The interval is Fieller's
(1954, of a ratio of two means): where |G|² cannot be told from zero it has no upper end, and says so.

    B_noise = tr(HΣ) / (GᵀHG)        eq. 2.8, where the Hessian H is at hand
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from scipy.special import stdtrit

from largebatch.errors import UserError


class Squares(NamedTuple):
    """What one step shows: b, B, and the squared norms of their gradients (the small one's a mean over parts)."""

    small_batch_size: int
    big_batch_size: int
    small: float
    big: float

    @classmethod
    def of_parts(cls, small_batch_size: int, big_batch_size: int, sum_over_parts: float, whole: float) -> Squares:
        """``sum_over_parts``: of ‖gᵢ/S‖², gᵢ the mean gradient of part i of S; ``whole``: ‖ḡ‖²."""
        parts = big_batch_size // small_batch_size
        return cls(small_batch_size, big_batch_size, sum_over_parts * parts, whole)


class Estimate(NamedTuple):
    """``noise_scale`` in examples, None where |G|² comes out at zero or below; bounds of 95 %, ``high`` None: none."""

    gradient_square: float
    variance_trace: float
    noise_scale: float | None
    low: float
    high: float | None


def check_sizes(small: int, big: int, small_key: str, big_key: str) -> None:
    """Refuse sizes that show no noise."""
    if not 1 <= small < big or big % small:
        raise UserError(
            f"{small_key} = {small} must be smaller than {big_key} = {big} and divide it: the noise scale is read from "
            "what the gradients of two batch sizes differ by"
        )


def of_one_step(squares: Squares) -> tuple[float, float]:
    """The unbiased (|G|², tr Σ); either may come out negative."""
    b, big, of_small, of_big = squares
    return (big * of_big - b * of_small) / (big - b), (of_small - of_big) / (1 / b - 1 / big)


def of_steps(steps: Sequence[Squares]) -> Estimate:
    """From steps at the same weights, each as good as another."""
    if len(steps) < 2:
        raise UserError(f"a noise scale of {len(steps)} batches has no interval; valid: at least 2 batches")
    averages = Averages(smoothing=1.0)
    for step in steps:
        averages.add(step)
    return averages.estimate()


@dataclasses.dataclass
class Averages:
    """Of (|G|², tr Σ) over steps, separately: what is kept of them at a new one is ``smoothing``; 1: the plain mean.

    The weights of the past decay as smoothing^age and are normalised, so that the first step counts fully at first.
    """

    smoothing: float = 0.99
    weight: float = 0.0  # Σ of the weights
    weight_of_squares: float = 0.0  # Σ of their squares
    first: tuple[float, float] = (0.0, 0.0)  # weighted means of |G|², tr Σ
    second: tuple[float, float, float] = (0.0, 0.0, 0.0)  # weighted Σ (x−x̄)², (y−ȳ)², (x−x̄)(y−ȳ)

    def add(self, step: Squares) -> None:
        now = of_one_step(step)
        if not all(map(math.isfinite, now)):
            return  # a gradient that is not finite teaches nothing
        keep = self.smoothing
        self.weight = keep * self.weight + 1.0
        self.weight_of_squares = keep**2 * self.weight_of_squares + 1.0
        share = 1.0 / self.weight
        x, y = (value - mean for value, mean in zip(now, self.first, strict=True))
        self.first = (self.first[0] + share * x, self.first[1] + share * y)
        left = 1.0 - share  # West 1979's update, of weighted sums
        xx, yy, xy = (keep * value for value in self.second)
        self.second = (xx + left * x * x, yy + left * y * y, xy + left * x * y)

    @property
    def count(self) -> float:
        """As many independent steps would be as certain."""
        return self.weight**2 / self.weight_of_squares if self.weight else 0.0

    def estimate(self) -> Estimate:
        square, trace = self.first
        low, high = 0.0, None
        if self.count > 1.001:
            divisor = self.weight - self.weight_of_squares / self.weight  # makes the variance of one step unbiased
            squares, traces, both = (value / divisor / self.count for value in self.second)
            low, high = ratio_interval(trace, square, traces, squares, both, self.count - 1)
        return Estimate(square, trace, trace / square if square > 0 else None, low, high)

    def state_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            setattr(self, key, value)


def ratio_interval(
    above: float, below: float, variance_above: float, variance_below: float, covariance: float, freedom: float
) -> tuple[float, float | None]:
    """Fieller's 95 % interval of above/below, cut at 0; without an upper end where ``below`` may be zero.

    It holds every R for which above − R·below is not further from 0 than t of its standard errors. The variances are
    those of the two means.
    """
    t2 = float(stdtrit(freedom, 0.975)) ** 2
    a = below**2 - t2 * variance_below
    b = above * below - t2 * covariance
    c = above**2 - t2 * variance_above
    root = math.sqrt(max(b * b - a * c, 0.0))
    if a > 0 and below > 0:
        return max((b - root) / a, 0.0), max((b + root) / a, 0.0)
    if a < 0 < c and above > 0:
        return (b - root) / a, None  # a is negative: this is the positive root
    return 0.0, None


def steps_needed(noise_scale: float, batch_size: float) -> float:
    """Steps at a batch, as a multiple of the fewest possible: 1 + B_crit/B (McCandlish et al. 2018, §2.4)."""
    return 1.0 + noise_scale / batch_size


def examples_needed(noise_scale: float, batch_size: float) -> float:
    """Examples at a batch, as a multiple of the fewest possible: 1 + B/B_crit."""
    return 1.0 + batch_size / noise_scale

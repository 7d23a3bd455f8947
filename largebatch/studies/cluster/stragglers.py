"""How much longer the slowest of n devices takes than one of them on average.

A device computes for the model's seconds times D·S: D is its own in all steps, S another one in each step, ln D and
ln S normal with deviations σ_D and σ_S, D and S of mean 1. So a single device takes the model's seconds on average, and
a step, which waits for the slowest, on average

    E max = n·E[Φ(Z + σ)^(n − 1)],  Z standard normal, σ² = σ_D² + σ_S²

times as many: the mean ∫ x·n·f(x)·F(x)^(n − 1) dx of the largest of n (David & Nagaraja 2003, Order Statistics, 2.1)
with the lognormal's x·f(x), which is its density moved by σ. With n = 2 it is 2·Φ(σ/√2). With σ_D > 0 the mean is over
clusters: each has its slowest device, and keeps it. Seconds that were measured on m devices hold the wait for the
slowest of them, so that both, draws and mean, are then divided by E max of m. No torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.integrate import quad
from scipy.special import log_ndtr, ndtri

from largebatch.errors import UserError

DRAWS = 2**21
"""Held at once."""


@dataclass(frozen=True)
class Stragglers:
    """σ_S and σ_D, and m."""

    of_steps: float = 0.0
    of_devices: float = 0.0
    measured_on: int = 1

    def __post_init__(self) -> None:
        for name, value in (("step", self.of_steps), ("device", self.of_devices)):
            if not 0 <= value <= 2:
                raise UserError(f"the deviation of ln seconds from {name} to {name} is {value:g}; valid: 0 to 2")

    def expected(self, devices: int) -> float:
        """How many times as long as on m devices a step computes on so many."""
        return self.largest(devices) / self.largest(self.measured_on)

    def largest(self, devices: int) -> float:
        """n·E[Φ(Z + σ)^(n − 1)]"""
        sigma = math.hypot(self.of_steps, self.of_devices)
        if sigma == 0 or devices == 1:
            return 1.0

        def density(z: float) -> float:
            power = (devices - 1) * float(log_ndtr(z)) - 0.5 * (z - sigma) ** 2
            return math.exp(power + math.log(devices / math.sqrt(2 * math.pi)))

        middle = max(sigma, float(ndtri(1 - 1 / devices)))
        points = [middle - 1, middle, middle + 1, middle + 3]
        mean: Any = quad(density, middle - 12, middle + 12, points=points, limit=200)
        return float(mean[0])

    def drawn(self, devices: int, steps: int, random: np.random.Generator) -> np.ndarray:
        """The same in each step of one cluster."""
        own = self.of_devices * random.standard_normal(devices) if self.of_devices else 0.0
        if not self.of_steps:
            slowest = np.full(steps, np.max(own))
        else:
            slowest = np.empty(steps)
            rows = max(1, DRAWS // devices)
            for begin in range(0, steps, rows):
                draws = random.standard_normal((min(rows, steps - begin), devices))
                draws *= self.of_steps
                draws += own
                draws.max(axis=1, out=slowest[begin : begin + rows])
        return np.exp(slowest - (self.of_steps**2 + self.of_devices**2) / 2) / self.largest(self.measured_on)

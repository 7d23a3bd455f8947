"""What failures cost a run, and how often it should save.

Failures come at a constant rate, one in M seconds on average: of n devices that each fail once in M₁ seconds, M = M₁/n.
The run saves after every τ seconds of work. A save lets it stand still for δ, and can be read ℓ later (0 where the run
waits for the disk; at most τ + δ, for there is one save at a time). A failure undoes all that came after the last save
that can be read, and R seconds pass until the run works again; it may hit saves and restarts, too. To work for k·τ
seconds, with a save after the last, takes on average

    T(k) = k·M·e^{(R + ℓ)/M}·(e^{(τ + δ)/M} − 1) + M·e^{R/M}·(e^{ℓ/M} − 1)

A run that ends with w seconds of work after its last save, w ≥ ℓ, need not save them: in the place of the second term
stands M·e^{R/M}·(e^{w/M} − 1), for until the save can be read its ℓ seconds count as those waited for do, and from then
on whatever fails costs a restart and w anew. With no save at all that is everything. Which k is best for a run of W
seconds is looked for: near W/τ, and none where W is short.

With ℓ = 0 it is Daly's complete model. The ℓ of an asynchronous save costs what a restart longer by ℓ would (and once
the wait for the last one): only a piece that follows a failure has to outlive it. So the best τ, that of the least
T/(k·τ), depends on neither R nor ℓ. It solves (1 − τ/M)·e^{(τ + δ)/M} = 1, with Lambert's W:

    τ = M·(1 + W₀(−e^{−1−δ/M}))
    τ ≈ √(2δM)                                                 Young 1974, to first order
    τ ≈ √(2δM)·(1 + ⅓·√(δ/2M) + ⅑·δ/2M) − δ, M for δ ≥ 2M      Daly 2006, to a higher one

(J. W. Young 1974, A first order approximation to the optimum checkpoint interval, Commun. ACM 17(9), 530; J. T. Daly
2006, A higher order estimate of the optimum checkpoint interval for restart dumps, Future Gener. Comput. Syst. 22(3),
303.) No torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from scipy.special import lambertw

from largebatch.errors import UserError

SMALL = 1e-6
"""Of δ/M: below, W₀ near its branch point has lost more digits than Daly's series."""
ROUNDED = 1e-9
NEAR = 3
"""Pieces, or steps of one, beside those of a long run that are tried for a short one."""
ENDLESS = 100.0
"""Seconds for each of work, beyond which a run is said to come to no end."""


@dataclass(frozen=True)
class CheckpointTimes:
    """Seconds of δ, ℓ and R."""

    standing: float
    """For which a save lets the run stand still."""
    lag: float
    """From then on until it can be read."""
    restart: float
    """From a failure until the run works again: noticed, started, read."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= (value := getattr(self, field.name)) < math.inf:
                raise UserError(f"{field.name} is {value:g} s; valid: 0 or more seconds")


@dataclass(frozen=True)
class TimeLost:
    """What a long run spends its seconds on: shares that add up to 1."""

    interval: float
    """τ"""
    between_failures: float
    """M"""
    working: float
    saving: float
    repeating: float
    """Work and saves that a failure undid."""
    restarting: float

    @property
    def slowdown(self) -> float:
        """Seconds for each that the run would take without failures and saves; infinite where it comes to no end."""
        return 1 / self.working if self.working else math.inf


def between_failures(device_seconds: float, devices: int) -> float:
    """M₁/n; infinite for devices that never fail."""
    if not device_seconds > 0:
        raise UserError(f"a device fails once in {device_seconds:g} seconds; valid: more than 0")
    return device_seconds / devices


def young_interval(standing: float, mean: float) -> float:
    """√(2δM)"""
    return math.sqrt(2 * standing * mean)


def daly_interval(standing: float, mean: float) -> float:
    """√(2δM)·(1 + ⅓·√(δ/2M) + ⅑·δ/2M) − δ; M for δ ≥ 2M."""
    small = standing / (2 * mean)
    if small >= 1:
        return mean
    return young_interval(standing, mean) * (1 + math.sqrt(small) / 3 + small / 9) - standing


def best_interval(standing: float, mean: float) -> float:
    """M·(1 + W₀(−e^{−1−δ/M}))"""
    if math.isinf(mean):
        return math.inf
    if standing < SMALL * mean:
        return daly_interval(standing, mean)
    return mean * (1 + float(lambertw(-math.exp(-1 - standing / mean)).real))


def best_steps(times: CheckpointTimes, mean: float, step: float) -> int:
    """Steps between two saves, the best whole number: at least so many that no save overtakes the one before."""
    least = max(1, math.ceil((times.lag - times.standing) / step))
    best = best_interval(times.standing, mean) / step
    if math.isinf(best):
        raise UserError("devices that never fail need no saves; state how often one fails")
    around = {max(least, math.floor(best)), max(least, math.ceil(best))}
    return min(sorted(around), key=lambda steps: piece_seconds(times, mean, steps * step) / steps)


def piece_seconds(times: CheckpointTimes, mean: float, interval: float) -> float:
    """M·e^{(R + ℓ)/M}·(e^{(τ + δ)/M} − 1): T(k + 1) − T(k); infinite where it is beyond any number."""
    if math.isinf(mean):
        return interval + times.standing
    try:
        late = math.exp((times.restart + times.lag) / mean)
        return mean * late * math.expm1((interval + times.standing) / mean)
    except OverflowError:
        return math.inf


def expected_seconds(
    times: CheckpointTimes, mean: float, interval: float, pieces: int, after: float | None = None
) -> float:
    """T(k); with w seconds of work ``after`` the last save the run is over unsaved."""
    last = times.lag if after is None else after
    unsaved = piece_seconds(CheckpointTimes(0, 0, times.restart), mean, last)
    return (pieces * piece_seconds(times, mean, interval) if pieces else 0.0) + unsaved


@dataclass(frozen=True)
class SavesOfRun:
    """Of a run that is not saved at its end: every how many steps it is, and how often."""

    steps: int
    every: int
    saves: int
    """Between the pieces: the steps after the last are at most as many as ``every``."""

    def seconds(self, times: CheckpointTimes, mean: float, step: float) -> float:
        """On average, of steps of ``step`` seconds; infinite where it is beyond any number."""
        after = max(times.lag * (self.saves > 0), (self.steps - self.saves * self.every) * step)
        return expected_seconds(times, mean, self.every * step, self.saves, after)


def best_saves(times: CheckpointTimes, mean: float, step: float, steps: int) -> SavesOfRun:
    """Those by which a run of so many steps is over soonest on average."""

    around = max(1, round(min(steps, steps * step / best_interval(times.standing, mean)))) if times.standing else steps
    every = math.ceil(steps / around)
    by_pieces = {max(1, min(steps, around + more)) for more in range(-NEAR, NEAR + 1)}
    by_steps = {math.ceil(steps / max(1, every + more)) for more in range(-NEAR, NEAR + 1)}
    found = [cut(times, step, steps, pieces) for pieces in sorted({1} | by_pieces | by_steps)]
    return min(found, key=lambda one: one.seconds(times, mean, step))


def cut(times: CheckpointTimes, step: float, steps: int, pieces: int) -> SavesOfRun:
    """Into so many, as nearly equal as whole steps are. No save overtakes the one before; the end overtakes none."""
    least = max(1, math.ceil((times.lag - times.standing) / step))
    for fewer in range(min(pieces, math.ceil(steps / least)), 0, -1):
        every = max(least, math.ceil(steps / fewer))
        saves = math.ceil(steps / every) - 1
        if not saves or (steps - saves * every) * step >= times.lag:
            return SavesOfRun(steps, every, saves)
    return SavesOfRun(steps, steps, 0)


def time_lost(times: CheckpointTimes, mean: float, interval: float) -> TimeLost:
    """Of a run of many pieces.

    It fails once in M of its seconds, whatever it does, and spends on each restart R or what is left until the next
    failure, M·(1 − e^{−R/M}) on average: the share 1 − e^{−R/M} of all.
    """
    if not 0 < interval < math.inf:
        raise UserError(f"a save after every {interval:g} seconds of work; valid: more than 0, and a number")
    if interval + times.standing < (1 - ROUNDED) * times.lag:
        raise UserError(
            f"a save after every {interval:g} seconds of work would begin before the last one can be read; "
            f"valid: {times.lag - times.standing:g} or more"
        )
    whole = piece_seconds(times, mean, interval)
    working, saving, restarting = interval / whole, times.standing / whole, -math.expm1(-times.restart / mean)
    return TimeLost(interval, mean, working, saving, max(0.0, 1 - working - saving - restarting), restarting)

"""A run that fails now and then, event by event: work, saves, failures, restarts.

What failures.py says on average, for single runs, with steps that differ in length and a whole number of them between
saves. Since a failure undoes what no save has kept, the steps between two saves count together: their seconds are the
sum of as many that are drawn from the simulated ones, again each time that they are made, and of more than DRAWN a
normal number of its mean and variance. Failures come at a constant rate. The run is over when the save after its last
step can be read, or where none is made with that step. No loop is over steps or devices: from one failure to the next
all is drawn at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from largebatch.studies.cluster.failures import CheckpointTimes

DRAWN = 256


@dataclass(frozen=True)
class InterruptedRun:
    """Seconds, by what they were spent on, and how often the run failed."""

    working: float
    saving: float
    """The last save's wait until it can be read included."""
    repeating: float
    restarting: float
    failures: int

    @property
    def seconds(self) -> float:
        return self.working + self.saving + self.repeating + self.restarting


@dataclass(frozen=True)
class _Attempt:
    """From a start to a failure, or to the end of the run: what of it stays."""

    steps: int
    working: float
    saving: float
    seconds: float


def interrupted_run(
    step_seconds: np.ndarray, steps: int, every: int, times: CheckpointTimes, mean: float, random: np.random.Generator,
    saved: bool = True,
) -> InterruptedRun:  # fmt: skip
    """``steps`` steps like those of ``step_seconds``, a save after ``every`` of them, and after the last if ``saved``.

    Unsaved, the steps after the last save should take longer than that save needs until it can be read.
    """
    done, working, saving, spent, restarting, failures = 0, 0.0, 0.0, 0.0, 0.0, 0
    while True:
        until = random.exponential(mean) if np.isfinite(mean) else np.inf
        kept = _attempt(step_seconds, steps - done, every, times, until, random, saved)
        done, spent = done + kept.steps, spent + kept.seconds
        working, saving = working + kept.working, saving + kept.saving
        if done == steps:
            return InterruptedRun(working, saving, spent - working - saving, restarting, failures)
        *hit, whole = _restarts(times.restart, mean, random)
        failures += 1 + len(hit)
        restarting += sum(hit) + whole


def _attempt(
    step_seconds: np.ndarray, left: int, every: int, times: CheckpointTimes, until: float, random: np.random.Generator,
    saved: bool,
) -> _Attempt:  # fmt: skip
    """The steps that are left, up to a failure after ``until`` seconds."""
    reachable = min(-(-left // every), int(min(left, until / (every * step_seconds.min()) + 1)))
    counts = np.full(reachable, every)
    counts[-1:] = min(every, left - every * (reachable - 1))
    worked = np.cumsum(sums(step_seconds, counts, random))
    last = times.standing + times.lag if saved or counts.sum() < left else 0.0
    readable = worked + times.standing * np.arange(1, reachable + 1) + times.lag
    readable[-1:] += last - times.standing - times.lag
    saves = int(np.searchsorted(readable, until, side="right"))
    if not saves:
        return _Attempt(0, 0.0, 0.0, until)
    made, working = int(counts[:saves].sum()), float(worked[saves - 1])
    if made < left:
        return _Attempt(made, working, times.standing * saves, until)
    return _Attempt(made, working, times.standing * (saves - 1) + last, float(readable[-1]))


def sums(step_seconds: np.ndarray, counts: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Of so many steps each."""
    if counts[0] > DRAWN:
        return random.normal(step_seconds.mean() * counts, step_seconds.std() * np.sqrt(counts))
    return np.add.reduceat(random.choice(step_seconds, int(counts.sum())), np.cumsum(counts) - counts)


def _restarts(restart: float, mean: float, random: np.random.Generator) -> Iterator[float]:
    """Seconds of restarts that fail, and at last of one that does not."""
    while (until := random.exponential(mean)) < restart:
        yield until
    yield restart

"""Runs with failures: the closed form on average, a clock that goes second by second, what is counted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch.studies.cluster.failures import CheckpointTimes, best_steps, expected_seconds, time_lost
from largebatch.studies.cluster.interrupted import interrupted_run, sums

SECOND = np.ones(1)


def runs(count, step_seconds, steps, every, times, mean, seed=0):
    random = np.random.default_rng(seed)
    return [interrupted_run(step_seconds, steps, every, times, mean, random) for _ in range(count)]


def close(values, expected, errors=4.0):
    values = np.array(values)
    return abs(values.mean() - expected) < errors * values.std() / math.sqrt(len(values))


@pytest.mark.parametrize(
    ("times", "mean"),
    [
        (CheckpointTimes(5, 0, 60), 3000.0),
        (CheckpointTimes(5, 0, 60), 200.0),
        (CheckpointTimes(2, 90, 300), 700.0),
        (CheckpointTimes(0.5, 20, 0), 100.0),
    ],
)  # fmt: skip
def test_many_runs_have_the_mean_of_the_closed_form(times, mean):
    every = best_steps(times, mean, 1.0)
    made = runs(600, SECOND, 30 * every, every, times, mean)
    assert close([run.seconds for run in made], expected_seconds(times, mean, every, 30))
    assert {run.working for run in made} == {30.0 * every}
    assert close([run.failures for run in made], expected_seconds(times, mean, every, 30) / mean, 4.5)


def test_what_the_seconds_are_spent_on():
    """But for the wait for the last save, of which a long run has one."""
    times, mean, every = CheckpointTimes(4, 30, 200), 900.0, 100
    made = runs(300, SECOND, 200 * every, every, times, mean)
    total, lost = sum(run.seconds - times.lag for run in made), time_lost(times, mean, every)
    assert sum(run.saving - times.lag for run in made) / total == pytest.approx(lost.saving, rel=0.02)
    for name in ("working", "repeating", "restarting"):
        assert sum(getattr(run, name) for run in made) / total == pytest.approx(getattr(lost, name), rel=0.02), name


class Stated:
    """In the place of a generator: the times to the next failure as they are listed, then none."""

    def __init__(self, gaps):
        self.gaps = iter(gaps)

    def exponential(self, mean):
        return next(self.gaps, math.inf)

    def choice(self, seconds, count):
        return np.full(count, seconds[0])


def plodding(gaps, steps, every, times):
    """Each step of a second, each save and each restart for itself."""
    gaps, clock, done, failures = iter(gaps), 0.0, 0, 0
    while True:
        fails = clock + next(gaps, math.inf)
        now, made, saves = clock, done, []
        while made < steps and now < fails:
            now, made = now + 1, made + 1
            if made % every == 0 or made == steps:
                now += times.standing
                saves.append((made, now + times.lag))
        done = max([done, *(count for count, readable in saves if readable <= fails)])
        if done == steps:
            return saves[-1][1], failures
        clock, failures = fails, failures + 1
        while (gap := next(gaps, math.inf)) < times.restart:
            clock, failures = clock + gap, failures + 1
        clock += times.restart


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(0.1, 60), max_size=12), st.integers(1, 40), st.integers(1, 12),
    st.floats(0, 3), st.floats(0, 1), st.floats(0, 40),
)  # fmt: skip
def test_every_failure_undoes_what_could_not_be_read(gaps, steps, every, standing, lag, restart):
    times = CheckpointTimes(standing, lag * (every + standing), restart)
    run = interrupted_run(SECOND, steps, every, times, 1.0, Stated(gaps))
    seconds, failures = plodding(gaps, steps, every, times)
    assert (run.seconds, run.failures) == (pytest.approx(seconds), failures)
    assert run.working == steps
    assert run.saving == pytest.approx(math.ceil(steps / every) * standing + times.lag)
    assert run.repeating >= -1e-9


def test_a_run_told_moment_by_moment():
    """Saves of 1 s after 10 steps, read 5 s later: a failure finds the second one unread, the next hits the restart."""
    times = CheckpointTimes(1, 5, 7)
    run = interrupted_run(SECOND, 20, 10, times, 1.0, Stated([23.0, 2.0]))
    assert run.failures == 2
    assert run.restarting == 2 + 7
    assert run.repeating == 23 - 11  # all but the first ten steps and their save
    assert run.seconds == 23 + 2 + 7 + 11 + 5


def test_steps_that_differ_are_drawn_anew_each_time():
    lengths = np.array([0.5, 1.5, 4.0])
    times, mean = CheckpointTimes(1, 0, 20), 400.0
    made = runs(400, lengths, 300, 30, times, mean)
    assert close([run.working for run in made], 300 * lengths.mean())
    assert close([run.seconds for run in made], expected_seconds(times, mean, 30 * lengths.mean(), 10))


@pytest.mark.parametrize("count", [1, 7, 256, 257, 5000])
def test_sums_of_steps_have_their_mean_and_deviation(count):
    lengths, number = np.array([0.5, 1.5, 4.0]), 3000
    made = sums(lengths, np.full(number, count), np.random.default_rng(1))
    assert close(made, count * lengths.mean())
    assert made.std() == pytest.approx(math.sqrt(count) * lengths.std(), rel=5 / math.sqrt(2 * number))
    assert sums(SECOND, np.array([count, 3]), np.random.default_rng(1)).tolist() == [count, 3]


def test_devices_that_never_fail():
    run = interrupted_run(SECOND, 25, 10, CheckpointTimes(2, 3, 50), math.inf, np.random.default_rng(0))
    assert (run.working, run.saving, run.repeating, run.restarting, run.failures) == (25, 9, 0, 0, 0)


@pytest.mark.parametrize(
    ("steps", "every", "times", "mean"),
    [
        (300, 1000, CheckpointTimes(5, 0, 60), 400.0),  # no save at all
        (300, 100, CheckpointTimes(5, 0, 60), 400.0),
        (250, 100, CheckpointTimes(2, 40, 30), 200.0),  # 50 s after the last save, which can be read after 40
    ],
)  # fmt: skip
def test_a_run_that_is_not_saved_at_its_end_has_the_mean_of_the_closed_form(steps, every, times, mean):
    random, saves = np.random.default_rng(3), math.ceil(steps / every) - 1
    made = [interrupted_run(SECOND, steps, every, times, mean, random, saved=False) for _ in range(4000)]
    expected = expected_seconds(times, mean, every, saves, steps - saves * every)
    assert close([run.seconds for run in made], expected)
    assert {run.working for run in made} == {float(steps)}
    assert min(run.seconds for run in made) == steps + saves * times.standing, "nothing is waited for at the end"
    assert close([run.failures for run in made], expected / mean, 4.5)

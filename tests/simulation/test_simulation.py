"""Clusters of rising size: the columns are what they say, agree within their errors, and stand in table and picture."""

from __future__ import annotations

import io
import json
import math
import re

import pytest
from rich.console import Console
from simulation.clusters import MACHINE, summed

from largebatch.errors import UserError
from largebatch.records.simulation import SimulationRecord
from largebatch.records.typed import content, read
from largebatch.report.alone import write_picture
from largebatch.studies.cluster.failures import CheckpointTimes, best_steps, time_lost
from largebatch.studies.cluster.simulation import ClusterSize, FailingRuns, notes, simulation, tables
from largebatch.studies.cluster.step import step_time
from largebatch.studies.cluster.stragglers import Stragglers

LAW = Stragglers(0.05, 0.02)
FAILING = FailingRuns(1e7, CheckpointTimes(0.5, 5, 120), 4_000.0, runs=30)
FEW = FailingRuns(1e7, FAILING.times, 400.0, runs=2)


def made(sizes=(8, 512), law=LAW, failing=FAILING, **more):
    return simulation(
        MACHINE, summed(), "ResNet-50", [ClusterSize(size, 40) for size in sizes], law, failing, command="c", **more
    )


@pytest.fixture(scope="module")
def facts():
    return made(sizes=(4096, 8, 100_000), steps=10)


def test_closed_forms_stand_beside_what_was_simulated(facts):
    assert [one.devices for one in facts.clusters] == [8, 4096, 100_000]
    for one in facts.clusters:
        closed = step_time(MACHINE, summed(), one.devices, 40)
        assert (one.step_seconds, one.exposed_seconds) == (closed.total, closed.exposed)
        assert one.slowest == LAW.expected(one.devices)
        assert one.slowed_step_seconds == pytest.approx(closed.total + closed.compute * (one.slowest - 1), rel=2e-3)
        assert abs(one.simulated_step_seconds - one.slowed_step_seconds) < 4 * one.simulated_step_error
        assert one.simulated_step_low < one.simulated_step_seconds < one.simulated_step_high
        assert one.simulated_step_error < 0.01 * one.step_seconds


def test_runs_with_failures_agree_with_their_closed_form(facts):
    for one in facts.clusters:
        failures = one.failures
        assert failures.between_failures == 1e7 / one.devices
        step = one.simulated_step_seconds
        assert failures.steps_between_saves == best_steps(FAILING.times, failures.between_failures, step)
        lost = time_lost(FAILING.times, failures.between_failures, failures.steps_between_saves * step)
        assert failures.working == pytest.approx(lost.working)
        assert failures.slowdown == pytest.approx(lost.slowdown, rel=3e-2), "but for the end of the run"
        assert abs(failures.steps * step - 4000) < failures.steps_between_saves * step
    largest = facts.clusters[-1].failures
    assert largest.failures > 100
    assert abs(largest.simulated_slowdown - largest.slowdown) < 4 * largest.simulated_slowdown_error


def test_a_size_does_not_depend_on_the_others():
    alone, beside = made(sizes=(64,), failing=FEW, steps=5), made(sizes=(8, 64), failing=FEW, steps=5)
    one, other = (content(facts)["clusters"][-1] for facts in (alone, beside))
    assert {key: one[key] for key in one if key != "seconds"} == {key: other[key] for key in other if key != "seconds"}
    assert (
        made(sizes=(64,), failing=FEW, steps=5, seed=1).clusters[0].simulated_step_seconds
        != one["simulated_step_seconds"]
    )


def test_the_record_survives_its_file(facts):
    assert read(SimulationRecord, json.loads(json.dumps(content(facts))), "here") == facts


def shown(facts):
    console = Console(width=250, record=True, file=io.StringIO())
    for made_table in tables(facts):
        console.print(made_table)
    return console.export_text()


def test_the_tables_and_what_is_said_of_it(facts):
    text = shown(facts)
    largest = facts.clusters[-1]
    assert f"{1000 * largest.simulated_step_seconds:.2f} ± {1000 * largest.simulated_step_error:.2f}" in text
    assert f"{largest.failures.slowdown:.4f}" in text
    assert "100,000" in text
    said = " ".join(notes(facts))
    assert "a device fails once in 2,778 h" in said
    assert "10 steps each; a device's seconds are lognormal, deviation 0.05 from step to step and 0.02" in said
    never = made(failing=None, steps=2, sources="stated by nobody")
    assert "failures" not in shown(never)
    assert list(notes(never))[2:] == ["stated by nobody"]


def test_the_picture(facts, tmp_path):
    write_picture(content(facts), tmp_path / "failing.svg")
    text = (tmp_path / "failing.svg").read_text()
    assert {"10", "1k", "100k", "work undone", "restarts", "step, ms"} <= set(re.findall(r">([^<]+)</text>", text))
    assert f"100,000 devices: {1000 * facts.clusters[-1].step_seconds:.2f} ms alike" in text
    write_picture(content(made(failing=None, steps=2)), tmp_path / "steps.svg")
    assert "restarts" not in (tmp_path / "steps.svg").read_text()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: made(sizes=(8, 2_000_000)), "2,000,000 devices are not simulated; valid: 1 to 100,000"),
        (lambda: made(sizes=(0,)), "0 devices are not simulated"),
        (
            lambda: made(failing=FailingRuns(1e9, FAILING.times, 1e10)),
            r"2.77778e\+06 hours of work are [\d,]+ times [\d,]+ steps and a save; valid: at most 100,000",
        ),
        (
            lambda: made(sizes=(100_000,), steps=2, failing=FailingRuns(1e6, CheckpointTimes(1, 0, 200), 1e3)),
            "100,000 devices fail once in 10 s, and a save and a restart take 201 s: such a run comes to no end",
        ),
    ],
)
def test_what_cannot_be_simulated(call, sentence):
    with pytest.raises(UserError, match=sentence):
        call()


def test_devices_that_never_fail_are_no_failing_runs():
    with pytest.raises(UserError, match="never fail need no saves"):
        made(failing=FailingRuns(math.inf, FAILING.times, 1e3))


def test_devices_that_are_all_alike_leave_no_error_of_the_mean():
    alike = made(sizes=(8, 96, 4096), law=Stragglers(), failing=None)
    assert [one.simulated_step_error for one in alike.clusters] == [0.0] * 3
    assert all(one.simulated_step_seconds == pytest.approx(one.step_seconds) for one in alike.clusters)

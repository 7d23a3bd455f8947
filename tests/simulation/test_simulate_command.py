"""`largebatch plan simulate`: what it prints, its numbers and picture, and mistakes."""

from __future__ import annotations

import json
import math

import pytest
from programs import REPOSITORY

from largebatch.records.simulation import SimulationRecord
from largebatch.records.typed import read

MACHINE = """
name: cluster
devices_per_node: 8
inside: {bandwidth: 2.0e+11, latency: 3.0e-6}
between: {bandwidth: 1.0e+11, latency: 1.0e-5}
workloads:
  images: {per_example: 3.0e-4, fixed: 5.0e-3, gradient_bytes: 1.0e+8}
  silent: {per_example: 3.0e-4}
"""
PAUSE = str(REPOSITORY / "results" / "checkpoint" / "pause.json")
FAILING = ("--device-hours", "5000", "--restart", "60", "--hours", "0.2", "--runs", "2")


@pytest.fixture
def ask(tmp_path, monkeypatch, front_door):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    (tmp_path / "cluster.yaml").write_text(MACHINE)

    def answer(*arguments: str, workload: str = "images", devices: str = "8,4096") -> tuple[int, str, str]:
        asked = ["--machine", "cluster.yaml", "--workload", workload, "--share", "40", "--devices", devices]
        asked = asked[:-2] if "--devices" in arguments else asked
        return front_door("plan", "simulate", *asked, "--draws", "3", *arguments)

    return answer


def test_steps_and_failures_in_tables_numbers_and_a_picture(ask, tmp_path):
    code, out, err = ask(
        "--step-deviation", "0.05", *FAILING, "--standing", "1", "--lag", "5", "--json", "n.json", "--picture", "p.svg"
    )
    assert (code, err) == (0, "")
    facts = read(SimulationRecord, json.loads((tmp_path / "n.json").read_text()), "n.json")
    assert [one.devices for one in facts.clusters] == [8, 4096]
    assert (facts.step_deviation, facts.measured_on_devices, facts.clusters[0].slowest) == (0.05, 8, pytest.approx(1))
    assert (facts.device_hours, facts.restart_seconds, facts.lag_seconds) == (5000, 60, 5)
    assert facts.clusters[1].failures.between_failures == pytest.approx(5000 * 3600 / 4096)
    for one in facts.clusters:
        assert f"{1000 * one.slowed_step_seconds:.2f}" in out
        assert f"{one.failures.simulated_slowdown:.4f}" in out
    assert (tmp_path / "p.svg").stat().st_size > 5000


def test_devices_that_are_alike_and_never_fail(ask):
    code, out, _ = ask(devices="8")
    assert code == 0
    assert "failures" not in out
    (line,) = [line for line in out.splitlines() if line.split()[:2] == ["8", "40"]]
    step = line.split()[2]
    assert line.split()[3:7] == [step, step, "±", "0.00"]
    assert "how long a run takes: --steps N" in out


def test_a_run_in_hours_and_money(ask, tmp_path):
    """The closed form of a run that no save would pay for, beside a thousand of them."""
    failing = ("--device-hours", "5000", "--restart", "60", "--standing", "5", "--runs", "1000")
    arguments = ("--steps", "90000", "--price", "2", "--json", "n.json")
    code, out, err = ask(*arguments, *failing)
    assert (code, err) == (0, "")
    facts = read(SimulationRecord, json.loads((tmp_path / "n.json").read_text()), "n.json")
    few, many = facts.clusters
    assert few.failures.saves == 0
    mean, work = 5000 * 3600 / 8, 90000 * few.simulated_step_seconds
    expected = mean * math.exp(60 / mean) * math.expm1(work / mean)
    assert 3600 * few.run.hours == pytest.approx(expected, rel=1e-6)
    assert many.failures.saves > 0
    assert many.failures.saves * many.failures.steps_between_saves < 90000
    assert abs(many.run.simulated_hours - many.run.hours) < 4 * many.run.simulated_hours_error
    assert many.run.cost == pytest.approx(2 * 4096 * many.run.simulated_hours)
    assert many.run.simulated_hours_low < many.run.simulated_hours < many.run.simulated_hours_high
    assert "a run of 90,000 steps with failures" in out
    assert "on 8 devices fewer than 10 failures were drawn" in out
    ask(*arguments)
    never = read(SimulationRecord, json.loads((tmp_path / "n.json").read_text()), "n.json").clusters[0]
    assert 3600 * never.run.hours == pytest.approx(90000 * never.slowed_step_seconds)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_number_of_a_narrow_table_is_cut(ask, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = ask(*FAILING[:-2], "--runs", "2", "--standing", "1", "--price", "3")
    assert code == 0
    assert "…" not in out
    tables, _, _ = out.partition("alike: closed form")
    assert max(len(line.rstrip()) for line in tables.splitlines()) <= width
    assert sum(line.split()[:1] == ["4,096"] for line in tables.splitlines()) == 3


def test_measured_saves(ask):
    code, out, _ = ask(*FAILING, "--saves", PAUSE, "--megabytes", "377")
    assert code == 0
    assert "377 MB" in out
    assert "16 of" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--device-hours", "5"), "--device-hours needs --restart S, the seconds from a failure until"),
        (FAILING, "--device-hours needs --standing S, seconds that a save halts the run, or --saves RUN; one of them"),
        ((*FAILING, "--standing", "1", "--saves", PAUSE), "one of them"),
        ((*FAILING, "--lag", "1", "--saves", PAUSE), "--lag 1 is in --saves"),
        ((*FAILING, "--standing", "1", "--megabytes", "5"), "--megabytes 5 goes with --saves RUN"),
        ((*FAILING, "--standing", "-1"), "standing is -1 s; valid: 0 or more seconds"),
        (("--step-deviation", "nan"), "the deviation of ln seconds from step to step is nan; valid: 0 to 2"),
        (("--share", "1e-9"), "--share 1e-09 is less than an example in 1,000 micro-batches; valid: 0.001 or more"),
        (("--hours", "0"), "--hours 0 must be above 0"),
        (("--stragglers", "x", "--step-deviation", "1"), "leave out --step-deviation and --device-deviation"),
        (("--stragglers", "nowhere"), "is missing"),
        (("--picture", "x.pdf"), "--picture x.pdf should end in .svg or .png"),
        ((*FAILING, "--saves", "cluster.yaml"), "cluster.yaml is not valid JSON"),
        (("--steps", "5", "--hours", "5"), "both say how long the run is; give one of them"),
        (("--price", "5"), "--price 5 is of a run, and needs --steps N"),
        (("--steps", "9" * 12), "--steps 1e+12 is beyond what can be simulated; valid: at most 1,000,000,000"),
        (("--draws", "99999"), "on each of 10 clusters are too many draws; valid: at most 24,414 steps"),
        (("--devices", "200000"), "200,000 devices are not simulated; valid: 1 to 100,000"),
        ((*FAILING, "--standing", "1e9"), "--standing 1e+09 is beyond what can be simulated; valid: at most 10,000"),
        (("--saves", PAUSE), "--saves is of runs that fail, and needs --device-hours H"),
        (("--restart", "5"), "--restart is of runs that fail, and needs --device-hours H"),
    ],
)  # fmt: skip
def test_mistakes(ask, arguments, sentence):
    code, out, err = ask(*arguments)
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1


def test_a_workload_that_sends_nothing_and_one_that_is_not_there(ask):
    code, _, err = ask(workload="silent")
    assert code == 2
    assert "cluster says no gradient_bytes of silent" in err
    assert ask(workload="imagse")[0] == 2

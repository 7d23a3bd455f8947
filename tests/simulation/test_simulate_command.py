"""`largebatch plan simulate`: what it prints, its numbers and picture, and mistakes."""

from __future__ import annotations

import json

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
        return front_door("plan", "simulate", *asked, "--steps", "3", *arguments)

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
    (line,) = [line for line in out.splitlines() if line.startswith("│")]
    step = line.split("│")[3].strip()
    assert line.split("│")[4].strip() == step
    assert line.split("│")[5].strip() == f"{step} ± 0.00"


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
        ((*FAILING, "--standing", "-1"), "standing = -1 seconds of a checkpoint; valid: 0 or more"),
        (("--step-deviation", "nan"), "of_steps = nan, a deviation of ln seconds; valid: 0 to 2"),
        (("--hours", "0"), "--hours 0 must be above 0"),
        (("--stragglers", "x", "--step-deviation", "1"), "leave out --step-deviation and --device-deviation"),
        (("--stragglers", "nowhere"), "is missing"),
        (("--picture", "x.pdf"), "--picture x.pdf should end in .svg or .png"),
        ((*FAILING, "--saves", "cluster.yaml"), "cluster.yaml is not valid JSON"),
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

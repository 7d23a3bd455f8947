"""diagnose step: what a run's steps took beside what the cluster model says, in a sentence, a file and the report."""

import json

import pytest

from largebatch.errors import UserError
from largebatch.report import summarize, write
from largebatch.report.diagnostics import step_time_table
from largebatch.studies.cluster.machine import Link, Machine, Pace
from largebatch.studies.cluster.step import step_time as model_of_step
from largebatch.studies.cluster.workload import data_parallel
from largebatch.studies.diagnose import step_time

LINK = Link(bandwidth=1e9, latency=1e-4)
PACE = Pace(per_example=1e-3, floor=2e-2, fixed=5e-3)
HOST = Machine(name="host", devices_per_node=4, inside=LINK, between=LINK, workloads={"tiny_cnn": PACE})
PLANNED = {"micro_batch_size": 8, "accumulation_steps": 4, "world_size": 2}


def test_a_run_stands_beside_the_model(tmp_path, write_run):
    run = write_run(tmp_path / "a" / "0", **PLANNED)
    record = step_time.measure(run, HOST)
    time = model_of_step(HOST, data_parallel(PACE, 4.0 * 1234), 2, 8, 4)
    kept = json.loads((run / "diagnostics" / "step.json").read_text())
    assert (kept["seconds"], kept["model_seconds"]) == pytest.approx((0.12, time.total))
    assert (record.compute_seconds, record.exposed_seconds) == (time.compute, time.exposed)
    assert time.compute == pytest.approx(4 * (2e-2 + 8e-3))
    assert record.model_seconds_low is None  # nothing was fitted
    assert f"a step took 120 ms; the model of host has {1e3 * time.total:,.4g} ms, " in step_time.sentence(record)
    [cells] = [line.cells for line in step_time_table(summarize([run])).lines]
    assert cells[1:5] == ("64", "2", "host", "120")
    assert cells[6:9] == ("–", "112", "5.00")


def test_a_pace_of_another_precision_is_told(tmp_path, write_run):
    run = write_run(tmp_path / "a" / "0", **PLANNED)
    half = HOST.model_copy(update={"workloads": {"tiny_cnn": PACE.model_copy(update={"precision": "bf16"})}})
    record = step_time.measure(run, half)
    assert (record.precision, record.pace_precision) == ("fp32", "bf16")
    assert step_time.sentence(record).endswith("; its pace was measured in bf16, and the run computed in fp32")
    assert "precision" not in step_time.sentence(step_time.measure(run, HOST))


@pytest.mark.worlds
def test_the_page_shows_it(tmp_path, write_run):
    run = write_run(tmp_path / "a" / "0", **PLANNED)
    step_time.measure(run, HOST)
    assert "A step as it was measured" in write([run]).html.read_text()


@pytest.mark.parametrize(
    ("changed", "workload", "sentence"),
    [
        ({"ramp": [[0, 64], [1, 128]]}, None, "differ, by a ramp or phases"),
        ({"beside": {"seconds_per_step": None}}, None, "does not say what its steps took"),
        ({}, "resnet50", "host has no pace of resnet50"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(tmp_path, write_run, changed, workload, sentence):
    run = write_run(tmp_path / "a" / "0", **PLANNED, **changed)
    with pytest.raises(UserError, match=sentence):
        step_time.measure(run, HOST, workload)

"""A machine from the JSON of the benches: rows of worlds, the network of all-reduces, the model beside the steps."""

from __future__ import annotations

import json
from typing import Any

import pytest
from programs import REPOSITORY

from largebatch.errors import UserError
from largebatch.studies.cluster import calibrate
from largebatch.studies.cluster.fit import fit, seconds_of
from largebatch.studies.cluster.fitted import machine_fit
from largebatch.studies.cluster.machine import Link, Machine, Meeting, Pace
from largebatch.studies.cluster.rows import StepRow, StepRows
from largebatch.studies.cluster.step import collective_time, step_time
from largebatch.studies.cluster.workload import data_parallel

LINK = Link(bandwidth=5e8, latency=5e-5)
PACES = {
    "small": Pace(per_example=1e-4, floor=2e-3, fixed=1e-3, gradient_bytes=4e5),
    "large": Pace(per_example=8e-4, floor=9e-3, fixed=4e-3, gradient_bytes=6e6),
}
HOST = Machine(name="host", devices_per_node=4, inside=LINK, between=LINK, workloads=PACES)


def scaling(model: str, ranks: tuple[int, ...] = (1, 2), host: Machine = HOST) -> dict[str, Any]:
    """What bench scaling would tell of ``host`` at 256 examples for each rank, or 256 in all."""
    pace = PACES[model]

    def of(world: int, batch: int) -> dict[str, Any]:
        seconds = step_time(host, data_parallel(pace), world, batch / world).total
        return {"global_batch_size": batch, "accumulation_steps": 1, "seconds_per_step": [seconds, 0.9 * seconds, 2.0]}

    def alone(world: int) -> dict[str, Any] | None:
        if world == 1:
            return None
        seconds = collective_time(host, "all_reduce", pace.gradient_bytes, world)
        rate = pace.gradient_bytes / seconds
        return {"bytes": pace.gradient_bytes, "seconds": [seconds], "algorithm_bytes_per_second": rate}

    worlds = [
        {
            "ranks": world,
            "hosts": 1,
            "all_reduce": alone(world),
            "weak": of(world, 256 * world),
            "strong": of(world, 256),
        }
        for world in ranks
    ]
    return {
        "kind": "scaling",
        "recipe": "r",
        "precision": "fp32",
        "model": model,
        "worlds": worlds,
        "machine": {"host_cpu": "some cores"},
    }


def throughput(model: str) -> dict[str, Any]:
    seconds = step_time(HOST, data_parallel(PACES[model]), 1, 256).total
    return {"kind": "throughput", "recipe": "r", "model": model, "global_batch_size": 256, "accumulation_steps": 1,
            "trainer_examples_per_second": [256 / seconds], "machine": {"host_cpu": "some cores"}, "precision": "fp32",
            "arithmetic": {"forward_flop_per_image": 1e6, "backward_flop_per_image": 2e6, "passes": 2}}  # fmt: skip


def test_rows_of_worlds():
    rows = calibrate.rows_of(scaling("small", (1, 2, 4)))
    assert [(row.devices, row.batch) for row in rows] == [(1, 256), (2, 512), (2, 256), (4, 1024), (4, 256)]
    for row in rows:
        truth = step_time(HOST, data_parallel(PACES["small"]), row.devices, row.share).total
        assert row.seconds == truth  # the median of three


def test_what_meeting_costs_is_found_from_one_model_and_holds_for_another():
    """Two ranks of a CPU wait 8 ms in each step, which shows in short steps; the fit has seen one rank of the other."""
    known, other = "small", "large"
    host = HOST.model_copy(update={"meeting": Meeting(seconds=8e-3)})
    benches = {name: scaling(name, host=host) for name in (known, other)}
    rows = [*calibrate.rows_of(benches[known]), *(r for r in calibrate.rows_of(benches[other]) if r.devices == 1)]
    facts = {name: calibrate.facts_of(bench) for name, bench in benches.items()}
    base = calibrate.this_host([benches[known]])
    machine = fit(StepRows(tuple(rows), facts), base, calibrate.transfers_of(benches[known]))
    assert machine.meeting is not None
    low, high = machine.meeting.interval("seconds")
    assert low < 8e-3 < high
    assert machine.meeting.seconds == pytest.approx(8e-3, rel=0.2)
    for row in calibrate.rows_of(benches[other]):
        if row.devices > 1:
            assert seconds_of(machine, row) == pytest.approx(row.seconds, rel=0.12)


def test_devices_that_do_not_share_cores_with_communication_do_not_wait():
    bench = scaling("small") | {"machine": {"host_cpu": "some cores", "gpu": "a device"}}
    assert calibrate.this_host([bench]).meeting is None


def test_another_model_is_predicted_by_its_throughput_alone(tmp_path):
    """The network is known from one model, how fast another computes from one rank: two and four ranks follow."""
    files = [tmp_path / "scaling.json", tmp_path / "throughput.json"]
    for file, facts in zip(files, (scaling("small", (1, 2, 4)), throughput("large")), strict=True):
        file.write_text(json.dumps(facts))
    machine, _ = machine_fit(files, None, gradients=6e6, name="host")
    assert (machine.name, machine.devices_per_node) == ("host", 4)
    assert machine.pace("large").gradient_bytes == 6e6
    assert machine.pace("large").flops == 2 * 3e6
    assert {pace.precision for pace in machine.workloads.values()} == {"fp32"}
    for ranks in (2, 4):
        row = StepRow("large", ranks, 256 * ranks, 1.0)
        truth = step_time(HOST, data_parallel(PACES["large"]), ranks, 256).total
        assert seconds_of(machine, row) == pytest.approx(truth, rel=0.05)


def test_the_model_stands_beside_the_steps_of_a_scaling():
    facts = calibrate.modelled(scaling("large", (1, 2, 4)))
    first, *others = facts["worlds"]
    assert first["weak"]["model_seconds_per_step"] == pytest.approx(first["weak"]["seconds_per_step"][0], rel=1e-3)
    for world in others:
        for kind in calibrate.KINDS:
            low, high = world[kind]["model_seconds_interval"]
            measured = world[kind]["seconds_per_step"][0]
            assert world[kind]["model_seconds_per_step"] == pytest.approx(measured, rel=0.1)
            assert low < measured < high


def test_one_world_has_nothing_to_be_predicted_from():
    facts = scaling("small", (1,))
    assert calibrate.modelled(facts) == facts


def test_two_ranks_of_this_projects_own_measurement():
    """results/bench/scaling-cpu.json: two ranks from one, within 15 %; they share a memory that the model knows
    nothing of, so it says less than was measured."""
    facts = calibrate.modelled(calibrate.read(REPOSITORY / "results/bench/scaling-cpu.json"))
    for kind in calibrate.KINDS:
        row = facts["worlds"][1][kind]
        error = row["model_seconds_per_step"] / sorted(row["seconds_per_step"])[1] - 1
        assert -0.15 < error < 0


def test_what_is_no_bench_is_told_in_a_sentence(tmp_path):
    file = tmp_path / "facts.json"
    file.write_text(json.dumps({"kind": "batch_time"}))
    with pytest.raises(UserError, match="is of kind batch_time; a machine is fitted to scaling or throughput"):
        calibrate.read(file)
    file.write_text("[]")
    with pytest.raises(UserError, match="is of kind None"):
        calibrate.read(file)
    file.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        calibrate.read(file)

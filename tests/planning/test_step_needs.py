"""Memory and traffic of a step, from few traces: closed forms of made-up ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning.clusters import collective, machine, trace

from largebatch.recipes import config
from largebatch.studies.cluster.machine import Pace
from largebatch.studies.cluster.step import step_time
from largebatch.studies.planning.memory import StepMemory, StepNeeds
from largebatch.studies.planning.pace import pace_for, seconds_between
from largebatch.studies.planning.sent import workload_of
from largebatch.studies.planning.traces import TracedShape

PACE = Pace(per_example=1e-3, fixed=1e-3)
SLOW = {"inside": {"bandwidth": 1e9}, "between": {"bandwidth": 1e9}}


class MadeUp:
    """Traces whose memory is known: 1,000 bytes stay, 2,000 where gradients are accumulated."""

    def __init__(self) -> None:
        self.asked: list[TracedShape] = []

    def at(self, shape: TracedShape):
        self.asked.append(shape)
        stays = 1000 * min(2, shape.accumulation)
        parts = {"weights": stays, "activations": 100 * shape.micro, "gathered blocks": 0}
        return trace(shape.micro, shape.accumulation, shape.world, bytes_by_part=parts)


@given(micro=st.integers(1, 300), accumulation=st.integers(1, 5), world=st.integers(1, 64))
def test_activations_follow_the_micro_batch_and_the_rest_does_not(micro, accumulation, world):
    traces = MadeUp()
    memory = StepMemory(config.from_dict(WRITTEN), traces)  # type: ignore[arg-type]
    needs = memory.needs(world, micro, accumulation)
    assert needs.bytes == pytest.approx(
        1000 * min(2, accumulation) + max(100 * micro, 50 * _evaluated(world, min(2, world)))
    )
    assert len(set(traces.asked)) <= 3


def _evaluated(world: int, traced: int) -> float:
    return min(10, -(-100 // world)) / min(10, -(-100 // traced))


WRITTEN = {
    "name": "x", "model": {"name": "mlp"}, "data": {"name": "digits"}, "batch": {"global_batch_size": 96}, "epochs": 1,
    "optimizer": {"name": "sgd"}, "lr": {"base": 0.1},
}  # fmt: skip


def test_a_sharding_engine_is_traced_on_its_own_ranks():
    traces = MadeUp()
    memory = StepMemory(config.from_dict({**WRITTEN, "engine": {"name": "fsdp"}}), traces)  # type: ignore[arg-type]
    memory.needs(32, 8, 1)
    assert TracedShape(32, 8) in traces.asked


def test_room_is_left_beside_what_is_counted():
    assert StepNeeds(1e10, (), 1.0).fits(1e10 + 3e9, 3e9)
    assert not StepNeeds(1e10 + 1, (), 1.0).fits(1e10 + 3e9, 3e9)


def of(engine: str, rows: list, accumulation: int = 1, devices: int = 4, **changes):
    cluster = machine(**(SLOW | changes))
    return cluster, workload_of(cluster, PACE, engine, rows, accumulation, devices)


def test_ddp_sends_its_buckets_beside_the_last_backward_pass():
    rows = [collective("all_reduce", "gradients", size) for size in (100, 300, 600)]
    _, workload = of("ddp", rows, accumulation=3)
    assert workload.buckets == (100, 300, 600)
    (transfer,) = workload.transfers
    assert (transfer.bytes, transfer.hidden_by, transfer.times) == (1000, "backward", 1)


def test_fsdp_gathers_in_both_passes_of_every_micro_batch():
    rows = [
        collective("all_gather", "weights", 400, calls=2, repeated=True),
        collective("all_gather", "weights", 400, calls=2),
        collective("reduce_scatter", "gradients", 500, repeated=True), collective("reduce_scatter", "gradients", 500),
    ]  # fmt: skip
    _, workload = of("fsdp", rows, accumulation=4)
    gathered = [one for one in workload.transfers if one.collective == "all_gather"]
    assert sum(one.bytes * one.times for one in gathered) == 4 * 800
    assert {one.hidden_by for one in gathered} == {"forward", "backward"}
    assert sum(one.bytes * one.times for one in workload.transfers if one.collective == "reduce_scatter") == 4 * 500


def test_zero_waits_for_its_sums_and_for_its_weights():
    rows = [collective("all_reduce", "gradients", 1000), collective("all_gather", "weights", 1000)]
    cluster, workload = of("deepspeed", rows)
    time = step_time(cluster, workload, 4, 8)
    assert time.exposed == pytest.approx(time.communication) == pytest.approx(3 / 4 * 1e-6 * 3)


def test_batch_norm_is_shared_by_its_ranks_alone_and_waited_for():
    rows = [collective("all_reduce", "batch norm", 1000, calls=5, ranks=2)]
    cluster, workload = of("ddp", rows, devices=4, inside={"bandwidth": 1e9, "latency": 1e-5})
    assert workload.pace.fixed == pytest.approx(PACE.fixed + 5 * (2 * 1e-5 + 1e-6))
    assert cluster.devices_per_node == 4


def test_examples_of_more_operations_take_longer_and_the_floor_stays():
    cluster = machine(workloads={"mlp": {"per_example": 1e-3, "floor": 5e-3, "flops": 1e6}})
    assert pace_for(cluster, "mlp", 1.01e6).per_example == 1e-3
    pace = pace_for(cluster, "mlp", 3e6)
    assert (pace.per_example, pace.floor) == (pytest.approx(3e-3), 5e-3)


def test_stated_intervals_move_the_step_in_squares():
    intervals = {"per_example": [0.9e-3, 1.1e-3], "fixed": [0.0, 2e-3]}
    cluster = machine(workloads={"mlp": {"per_example": 1e-3, "fixed": 1e-3, "intervals": intervals}})

    def seconds(cluster):
        return 10 * cluster.pace("mlp").per_example + cluster.pace("mlp").fixed

    between = seconds_between(cluster, "mlp", 8, seconds)
    middle, half = 11e-3, (1e-3**2 + 1e-3**2) ** 0.5
    assert (between.low, between.high) == (pytest.approx(middle - half), pytest.approx(middle + half))
    assert seconds_between(machine(), "mlp", 8, seconds).low is None

"""The closed form of a step: cases that anybody can work out, messages counted one by one, and units."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from step_time.clusters import PACE, machine

from largebatch.studies.cluster.machine import Link, Machine, Meeting, Pace
from largebatch.studies.cluster.step import BACKWARD, collective_time, on_link, step_time
from largebatch.studies.cluster.workload import Transfer, Workload, buckets_of, data_parallel
from largebatch.studies.dry_run import trace
from largebatch.studies.planning import sent

FAST = {"inside": 1e30, "between": 1e30, "hop": 0.0}
KINDS = ("all_reduce", "reduce_scatter", "all_gather")


def test_without_a_network_and_launches_the_speed_up_is_exact():
    pace = Pace(per_example=1e-3, gradient_bytes=1e9)
    alone = step_time(machine(**FAST), data_parallel(pace), 1, 4096).total
    for devices in (2, 8, 64, 4096):
        assert alone / step_time(machine(**FAST), data_parallel(pace), devices, 4096 / devices).total == devices


def test_with_infinite_bandwidth_only_hops_are_left():
    latency = machine(inside=1e30, between=1e30, hop=1e-3)
    # 3 hops up and down a tree of 8 devices, 2 of 4 nodes; inside the two halves are a reduce-scatter and an all-gather
    assert collective_time(latency, "all_reduce", 1e9, 32) == pytest.approx((3 + 2 * 2 + 3) * 1e-3)


def test_one_device_sends_nothing():
    time = step_time(machine(), data_parallel(PACE), 1, 100)
    assert (time.compute, time.fixed, time.communication, time.exposed) == (4e-3 + 1e-2, 1e-3, 0, 0)


def test_ranks_that_meet_wait_once_a_step():
    """Whatever they compute, send and accumulate; one alone meets nobody."""
    for devices, parts in ((1, 1), (1, 4), (2, 1), (8, 4), (64, 1)):
        alone = step_time(machine(), data_parallel(PACE), devices, 10, parts)
        meeting = machine().model_copy(update={"meeting": Meeting(seconds=5e-3)})
        together = step_time(meeting, data_parallel(PACE), devices, 10, parts)
        wait = 0.0 if devices == 1 else 5e-3
        assert together.total == pytest.approx(alone.total + wait, rel=1e-12)
        assert together.exposed == pytest.approx(alone.exposed + wait, rel=1e-12)
        assert together.communication == alone.communication


@pytest.mark.parametrize("devices", [2, 5, 8])
def test_in_one_node_the_network_between_nodes_does_not_count(devices):
    times = [step_time(machine(between=rate), data_parallel(PACE), devices, 10) for rate in (1e3, 1e12)]
    assert times[0] == times[1]


def test_nodes_of_one_device_are_a_flat_network():
    flat = machine(node=1)
    assert collective_time(flat, "all_reduce", 1e8, 16) == on_link(flat.between, "all_reduce", 1e8, 16)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("members", [2, 3, 8, 13])
def test_a_ring_is_its_messages(kind, members):
    """Each of the n − 1 rounds sends one n-th of the bytes a hop further; without latency a ring is the best."""
    rate, bytes = 1e9, 1e7
    rounds = (members - 1) * (2 if kind == "all_reduce" else 1)
    messages = math.fsum(bytes / members / rate for _ in range(rounds))
    assert on_link(Link(bandwidth=rate), kind, bytes, members) == pytest.approx(messages, rel=1e-12)


@pytest.mark.parametrize("members", [2, 4, 64, 100])
def test_a_tree_is_its_depth(members):
    """With nothing to send but a byte, what counts is how often half of those who are left fall silent."""
    depth, left = 0, members
    while left > 1:
        left, depth = -(-left // 2), depth + 1
    assert on_link(Link(bandwidth=1e30, latency=1e-6), "reduce_scatter", 1, members) == pytest.approx(depth * 1e-6)


def arrived(pieces: list[float], times: list[float], backward: float) -> float:
    """max_k(r_k + Σ_{j ≥ k} c_j), every k on its own."""
    whole = math.fsum(pieces)
    return max(math.fsum(pieces[: k + 1]) / whole * backward + math.fsum(times[k:]) for k in range(len(pieces)))


@given(
    st.lists(st.floats(1e3, 1e9), min_size=1, max_size=8), st.integers(2, 3000), st.floats(0, 300), st.floats(1e8, 1e12)
)
def test_what_is_exposed_is_what_arrives_behind_the_pass(buckets, devices, share, rate):
    cluster = machine(between=rate)
    workload = Workload(PACE, (Transfer("all_reduce", sum(buckets), "backward"),), tuple(buckets))
    time = step_time(cluster, workload, devices, share)
    times = [collective_time(cluster, "all_reduce", bucket, devices) for bucket in buckets]
    backward = BACKWARD * time.compute
    assert time.exposed == pytest.approx(arrived(buckets, times, backward) - backward, rel=1e-9, abs=1e-12)
    assert time.communication == pytest.approx(math.fsum(times), rel=1e-9)
    assert times[-1] <= time.exposed * (1 + 1e-9) + 1e-12
    assert time.exposed <= time.communication * (1 + 1e-9) + 1e-12


@given(
    st.integers(1, 2000), st.floats(0.5, 500), st.integers(1, 8), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3),
    st.sampled_from(KINDS), st.sampled_from([None, "backward", "forward"]),
)  # fmt: skip
def test_other_units_of_time_and_size_change_nothing(devices, share, accumulation, second, byte, kind, hidden):
    """In seconds that are ``second`` times as short and bytes ``byte`` times as small all scales as its dimension."""

    def total(second: float, byte: float) -> float:
        pace = PACE.model_copy(update={key: second * getattr(PACE, key) for key in ("per_example", "floor", "fixed")})
        rates = {"inside": 1e11 * byte / second, "between": 1e10 * byte / second, "hop": 1e-5 * second}
        pace = pace.model_copy(update={"data_per_example": 1e-4 * second})
        workload = Workload(pace, (Transfer(kind, 1e8 * byte, hidden, 2),), (1e6 * byte, 9e7 * byte))
        return step_time(machine(**rates), workload, devices, share, accumulation).total

    assert total(second, byte) == pytest.approx(second * total(1, 1), rel=1e-9)


@given(st.integers(1, 5000), st.integers(1, 5000), st.floats(1, 300))
def test_with_the_same_share_more_devices_are_never_faster(one, other, share):
    few, many = sorted((one, other))
    times = [step_time(machine(), data_parallel(PACE), devices, share).total for devices in (few, many)]
    assert times[0] <= times[1] * (1 + 1e-12)


def test_accumulation_pays_floors_and_sends_once():
    once, four = (step_time(machine(), data_parallel(PACE), 64, 25, accumulation=n) for n in (1, 4))
    assert four.compute == pytest.approx(4 * once.compute)
    assert (four.fixed, four.communication, four.exposed) == (once.fixed, once.communication, once.exposed)


def test_a_transfer_of_every_micro_batch_is_exposed_in_every_one():
    each = Workload(PACE, (Transfer("all_gather", 1e9, "forward", times=4),))
    once = dataclasses.replace(each, transfers=(Transfer("all_gather", 1e9, "forward"),))
    four = step_time(machine(), each, 64, 25, accumulation=4)
    assert four.exposed == pytest.approx(4 * step_time(machine(), once, 64, 25).exposed)
    forward = (1 - BACKWARD) * PACE.computing(25)
    assert four.exposed == pytest.approx(4 * (collective_time(machine(), "all_gather", 1e9, 64) - forward))


def test_without_buckets_all_gradients_are_ready_at_the_end():
    whole = Workload(PACE, (Transfer("all_reduce", 1e8, "backward"),))
    time = step_time(machine(), whole, 64, 1000)
    assert time.communication == collective_time(machine(), "all_reduce", 1e8, 64)
    assert time.exposed == pytest.approx(time.communication)


def test_data_are_waited_for_only_where_they_take_longer():
    quick, slow = (Workload(PACE.model_copy(update={"data_per_example": seconds})) for seconds in (1e-5, 1e-2))
    assert step_time(machine(), quick, 1, 100).data == 0
    late = step_time(machine(), slow, 1, 100, accumulation=2)
    assert late.data > 0
    assert late.total == pytest.approx(2 * 100 * 1e-2)


@given(st.floats(0, 1e9), st.floats(1e5, 1e8), st.floats(1e5, 1e8))
def test_buckets_hold_all_bytes(gradients, first, others):
    buckets = buckets_of(gradients, first, others)
    assert math.fsum(buckets) == pytest.approx(gradients)
    assert all(0 < bucket <= max(first, others) for bucket in buckets)


def test_a_machine_that_is_not_full_has_a_node_more():
    full: Machine = machine()
    assert [full.nodes(devices) for devices in (1, 8, 9, 16, 17)] == [1, 1, 2, 2, 3]


def test_gradients_beyond_any_model_have_few_buckets():
    workload = data_parallel(PACE, 1e15)
    assert len(workload.buckets) <= 4098
    assert math.fsum(workload.buckets) == pytest.approx(1e15)


@pytest.mark.parametrize("gradients", [3e5, 5e7, 4e9, 7e11])
@pytest.mark.parametrize("share", [0.0, 3.0, 100.0, 4000.0])
def test_equal_buckets_count_as_if_one_by_one(gradients, share):
    workload = data_parallel(PACE, gradients)
    time = step_time(machine(), workload, 64, share)
    times = [collective_time(machine(), "all_reduce", bucket, 64) for bucket in workload.buckets]
    ready, end, whole = 0.0, 0.0, math.fsum(workload.buckets)
    for bucket, seconds in zip(workload.buckets, times, strict=True):
        ready += bucket / whole * BACKWARD * time.compute
        end = max(end, ready) + seconds
    assert time.exposed == pytest.approx(max(0.0, end - BACKWARD * time.compute), rel=1e-9, abs=1e-12)
    assert time.communication == pytest.approx(math.fsum(times), rel=1e-9)


def test_an_all_to_all_is_pairwise():
    """4 of 8 devices are in a node: each sends an eighth of its bytes to every other one."""
    slow = Machine(
        name="m",
        devices_per_node=4,
        inside=Link(bandwidth=1e9, latency=1e-6),
        between=Link(bandwidth=1e8, latency=1e-5),
    )
    expected = 3 * (1e-6 + 1e6 / 8 / 1e9) + 4 * (1e-5 + 4 * 1e6 / 8 / 1e8)
    assert collective_time(slow, "all_to_all", 1e6, 8) == pytest.approx(expected)
    assert collective_time(slow, "all_to_all", 1e6, 1) == collective_time(slow, "all_to_all", 0, 8) == 0


def test_what_a_dry_run_counts_has_a_time():
    assert set(trace.NAMES.values()) <= set(sent.KINDS)

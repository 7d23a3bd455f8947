"""Simulated steps: the closed form where it applies, a dumber simulation of every device where it does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation.clusters import MACHINE, PACE, alone, summed

from largebatch.studies.cluster.machine import Link, Machine, Pace
from largebatch.studies.cluster.simulate import simulated_steps
from largebatch.studies.cluster.step import BACKWARD, collective_time, step_time
from largebatch.studies.cluster.stragglers import Stragglers
from largebatch.studies.cluster.workload import Transfer, Workload, buckets_of

ALIKE = Stragglers()


def simulated(workload, devices, share, accumulation=1, law=ALIKE, steps=3, machine=MACHINE, seed=0):
    return simulated_steps(machine, workload, devices, share, accumulation, law, steps, np.random.default_rng(seed))


links = st.builds(
    lambda bandwidth, latency: Link(bandwidth=bandwidth, latency=latency), st.floats(1e8, 1e12), st.floats(0, 1e-3)
)
paces = st.builds(
    lambda a, floor, fixed: Pace(per_example=a, floor=floor, fixed=fixed),
    st.floats(1e-5, 1e-2), st.floats(0, 0.1), st.floats(0, 0.1),
)  # fmt: skip
machines = st.builds(
    lambda inside, between, each: Machine(name="m", devices_per_node=each, inside=inside, between=between),
    links, links, st.integers(1, 16),
)  # fmt: skip
transfers = st.sampled_from(
    [
        Transfer("all_reduce", 1e8, "backward"), Transfer("reduce_scatter", 3e8, "backward"),
        Transfer("all_gather", 2e8, "forward"), Transfer("all_gather", 2e8, "backward"), Transfer("all_reduce", 1e7),
    ]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    machines,
    paces,
    transfers,
    st.integers(1, 100_000),
    st.floats(0.5, 500),
    st.integers(1, 4),
    st.booleans(),
    st.floats(0, 1e-2),
)
def test_alike_devices_and_one_transfer_are_the_closed_form(
    machine, pace, transfer, devices, share, micros, each, data
):
    times = micros if each else 1
    sent = Transfer(transfer.collective, transfer.bytes, transfer.hidden_by, times)
    pace = pace.model_copy(update={"data_per_example": data})
    workload = Workload(pace, (sent,), buckets_of(transfer.bytes))
    closed = step_time(machine, workload, devices, share, micros)
    steps = simulated(workload, devices, share, micros, machine=machine)
    assert steps.seconds == pytest.approx(np.full(3, closed.total), rel=1e-9)
    assert steps.exposed == pytest.approx(np.full(3, closed.exposed), rel=1e-9, abs=1e-9 * closed.total)
    assert steps.compute == pytest.approx(np.full(3, closed.compute))


@pytest.mark.parametrize("devices", [8, 512])
def test_each_step_is_the_closed_form_of_its_slowest_device(devices):
    steps = simulated(summed(), devices, 40, law=Stragglers(0.3), steps=20)
    for seconds, slowest in zip(steps.seconds, steps.slowest, strict=True):
        slower = Pace(per_example=PACE.per_example * slowest, fixed=PACE.fixed, gradient_bytes=PACE.gradient_bytes)
        assert seconds == pytest.approx(step_time(MACHINE, summed(slower), devices, 40).total)
    assert np.ptp(steps.slowest) > 0.05


def test_without_a_network_a_step_takes_the_mean_of_the_slowest():
    law, devices = Stragglers(0.1), 256
    steps = simulated(alone(), devices, 64, law=law, steps=4000)
    expected = 64 * PACE.per_example * law.expected(devices) + PACE.fixed
    assert abs(steps.seconds.mean() - expected) < 4 * steps.seconds.std() / len(steps.seconds) ** 0.5


def test_a_longer_pass_hides_more():
    """So stragglers cost less than the closed form with the mean of the slowest added to it."""
    devices = 4096
    slow = Machine(name="slow", devices_per_node=8, inside=MACHINE.inside, between=Link(bandwidth=8e9))
    closed = step_time(slow, summed(), devices, 40)
    assert closed.exposed > 0
    law = Stragglers(0.2)
    steps = simulated(summed(), devices, 40, law=law, steps=200, machine=slow)
    added = closed.total + closed.compute * (law.expected(devices) - 1)
    assert closed.total < steps.seconds.mean() < added
    assert steps.exposed.mean() < closed.exposed


def every_device(workload, devices, share, micros, factors):
    """One step, one event after another in plain Python: all devices, all pieces, one channel."""
    clock = 0.0
    for remaining in range(micros - 1, -1, -1):
        micro = [workload.pace.computing(share) * factor for factor in factors]
        here = []
        for transfer in workload.transfers:
            count = transfer.times // micros + (1 if remaining < transfer.times % micros else 0)
            here += [transfer] * count
        seconds = {id(t): collective_time(MACHINE, t.collective, t.bytes, devices) for t in workload.transfers}
        channel = clock
        for transfer in here:
            if transfer.hidden_by == "forward":
                channel += seconds[id(transfer)]
        turned = max(max(clock + (1 - BACKWARD) * one for one in micro), channel)
        channel = turned
        for transfer in here:
            if transfer.hidden_by == "backward" and transfer.collective == "all_gather":
                channel += seconds[id(transfer)]
        over = max(max(turned + BACKWARD * one for one in micro), channel)
        events = []
        for transfer in here:
            if transfer.hidden_by == "backward" and transfer.collective != "all_gather":
                total, passed = sum(workload.buckets), 0.0
                for bucket in workload.buckets:
                    passed += bucket
                    piece = transfer.bytes * bucket / total
                    ready = turned + (over - turned) * passed / total
                    events.append((ready, collective_time(MACHINE, transfer.collective, piece, devices)))
        for ready, lasting in sorted(events):
            channel = max(channel, ready) + lasting
        clock = max(over, channel)
    for transfer in workload.transfers:
        if transfer.hidden_by is None:
            clock += transfer.times * seconds[id(transfer)]
    return clock + workload.pace.fixed


SHARDED = (  # gathered before the forward and the backward pass, scattered beside the latter
    Transfer("all_gather", 2e9, "forward", 3), Transfer("all_gather", 2e9, "backward", 3),
    Transfer("reduce_scatter", 4e9, "backward", 3), Transfer("all_reduce", 1e6),
)  # fmt: skip


@pytest.mark.parametrize("share", [20, 200, 1000])
@pytest.mark.parametrize("times", [3, 4, 1])
def test_several_transfers_beside_one_another(share, times):
    sent = tuple(Transfer(t.collective, t.bytes, t.hidden_by, times) for t in SHARDED)
    workload = Workload(PACE, sent, buckets_of(4e9))
    steps = simulated(workload, 16, share, 3, law=Stragglers(0.2), steps=5)
    for step in range(5):
        factors = np.linspace(0.5, 1, 16) * steps.slowest[step]
        assert steps.seconds[step] == pytest.approx(every_device(workload, 16, share, 3, factors))


@settings(max_examples=60, deadline=None)
@given(st.lists(transfers, min_size=1, max_size=4), st.integers(1, 4096), st.floats(1, 500), st.integers(1, 3))
def test_transfers_that_share_the_channel_never_take_less(sent, devices, share, micros):
    workload = Workload(PACE, tuple(sent), buckets_of(3e8))
    closed = step_time(MACHINE, workload, devices, share, micros)
    steps = simulated(workload, devices, share, micros)
    assert steps.seconds[0] >= closed.compute + closed.fixed - 1e-12
    work = closed.compute + closed.fixed + closed.communication + closed.data
    assert steps.seconds[0] <= work * (1 + 1e-12)


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.integers(1, 2000))
def test_units_of_seconds_and_bytes(second, byte, devices):
    inside, between = (
        Link(bandwidth=link.bandwidth * byte / second, latency=link.latency * second)
        for link in (MACHINE.inside, MACHINE.between)
    )
    other = Machine(name="o", devices_per_node=8, inside=inside, between=between)
    pace = Pace(per_example=PACE.per_example * second, fixed=PACE.fixed * second)
    sent = (Transfer("all_reduce", 1e8, "backward"),)
    scaled = (Transfer("all_reduce", 1e8 * byte, "backward"),)
    law = Stragglers(0.1)
    plain = simulated(Workload(PACE, sent, buckets_of(1e8)), devices, 30, law=law)
    changed = simulated(
        Workload(pace, scaled, tuple(byte * b for b in buckets_of(1e8))), devices, 30, law=law, machine=other
    )
    assert changed.seconds == pytest.approx(plain.seconds * second, rel=1e-9)


def test_the_same_seed_is_the_same_cluster():
    one, same, other = (simulated(summed(), 64, 40, law=Stragglers(0.1, 0.1), seed=seed) for seed in (4, 4, 5))
    assert (one.seconds == same.seconds).all()
    assert (one.seconds != other.seconds).all()


def test_a_hundred_thousand_devices():
    steps = simulated(summed(), 100_000, 40, law=Stragglers(0.05), steps=20)
    closed = step_time(MACHINE, summed(), 100_000, 40)
    assert abs(steps.slowest.mean() / Stragglers(0.05).expected(100_000) - 1) < 0.01
    assert (steps.seconds > closed.total).all()

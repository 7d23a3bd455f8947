"""A machine and its workloads for the tests of simulated clusters."""

from __future__ import annotations

from largebatch.studies.cluster.machine import Link, Machine, Pace
from largebatch.studies.cluster.workload import Workload, data_parallel

MACHINE = Machine(
    name="made-up", devices_per_node=8,
    inside=Link(bandwidth=2e11, latency=3e-6), between=Link(bandwidth=1e11, latency=1e-5),
)  # fmt: skip
PACE = Pace(per_example=3e-4, fixed=5e-3, gradient_bytes=1.02e8)


def alone(pace: Pace = PACE) -> Workload:
    """Nothing is sent."""
    return Workload(pace)


def summed(pace: Pace = PACE) -> Workload:
    return data_parallel(pace)

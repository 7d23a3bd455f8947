"""Machines and workloads with round numbers."""

from __future__ import annotations

from typing import Any

from largebatch.studies.cluster.machine import Link, Machine, Pace

PACE = Pace(per_example=1e-4, floor=4e-3, fixed=1e-3, gradient_bytes=1e8, update_bytes=1e9)


def machine(inside: float = 1e11, between: float = 1e10, hop: float = 1e-5, node: int = 8, **more: Any) -> Machine:
    return Machine(
        name="round", devices_per_node=node, inside=Link(bandwidth=inside, latency=hop),
        between=Link(bandwidth=between, latency=hop), **more,
    )  # fmt: skip

"""Machines, traces and points that the tests of plans are about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from largebatch.records.plan import ClusterPlanRecord, KeptTrace, PlannedPhase, PlannedPoint, TracedCollective
from largebatch.records.typed import read
from largebatch.studies.cluster.machine import Machine, checked

FREE = {"bandwidth": 1e30}  # a network that costs nothing
PACE = {"per_example": 1e-3, "floor": 0.0, "fixed": 2e-3}


def machine(**changes: Any) -> Machine:
    return checked(machine_file(**changes), "a test's machine")


def machine_file(**changes: Any) -> dict[str, Any]:
    written = {
        "name": "cluster", "devices_per_node": 4, "memory": 8e10, "inside": FREE, "between": FREE,
        "workloads": {"mlp": PACE},
    }  # fmt: skip
    return written | changes


def trace(micro: int = 8, accumulation: int = 1, world: int = 2, **changes: Any) -> KeptTrace:
    """Of 1,000 bytes that stay and 100 for each example."""
    facts: dict[str, Any] = {
        "micro_batch_size": micro, "accumulation_steps": accumulation, "world_size": world,
        "bytes_by_part": {"weights": 1000, "activations": 100 * micro, "gathered blocks": 0},
        "evaluation_bytes": 50, "evaluation_batch_size": 10, "test_examples": 100, "flops": 1e6, "convolutions": 0.0,
        "collectives": [],
    }  # fmt: skip
    return KeptTrace(**(facts | changes))


def collective(name: str, what_for: str, size: int, calls: int = 1, ranks: int = 2, repeated: bool = False):
    return TracedCollective(collective=name, what_for=what_for, ranks=ranks, bytes=size, calls=calls, repeated=repeated)


def point(devices: int, batch: int, hours: float, cost: float | None = None) -> PlannedPoint:
    phase = PlannedPhase(
        global_batch_size=batch, micro_batch_size=1, accumulation_steps=1, steps=1, examples=1.0, memory_gib=1.0,
        compute_seconds=1.0, fixed_seconds=0.0, communication_seconds=0.0, exposed_seconds=0.0, data_seconds=0.0,
        step_seconds=1.0, step_seconds_low=None, step_seconds_high=None, work=None, borrowed=False, basis="law",
        precision="fp32", precision_ratio=1.0, precision_basis="same",
    )  # fmt: skip
    return PlannedPoint(
        devices=devices, nodes=1, global_batch_size=batch, phases=[phase], examples=1.0, examples_low=None,
        examples_high=None, epochs=1.0, hours=hours, hours_low=None, hours_high=None, device_hours=devices * hours,
        cost=cost, efficiency=1.0, strong=None, weak=None,
    )  # fmt: skip


def planned(ask: Any, *arguments: str) -> ClusterPlanRecord:
    """The facts of a plan of the tiny recipe, through the program's door."""
    code, _, err = ask("tiny.yaml", "--machine", "cluster.yaml", "--json", "plan.json", *arguments)
    assert (code, err) == (0, "")
    return read(ClusterPlanRecord, json.loads(Path("plan.json").read_text()), "plan.json")

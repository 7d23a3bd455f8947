"""A machine from what ``bench scaling`` and ``bench throughput`` measured on it: their JSON, as rows of a fit.

Every world of a scaling is a row at each of its batches, its all-reduce alone a measured transfer; a throughput is a
row of one device. Rows of one model are of one workload, called after the model, in the precision of the bench. How
many bytes its gradients have a scaling says, how many operations an example has a throughput.

Ranks of a CPU compute on the cores that communicate, so that a step of several takes some milliseconds longer than one
alone and its all-reduce, whatever it computes: what they are the worlds of a scaling say (``meeting``).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from largebatch.errors import UserError
from largebatch.studies.cluster.fit import TransferRow, fit, interval_of, seconds_of
from largebatch.studies.cluster.machine import Link, Machine, Meeting, Precision
from largebatch.studies.cluster.rows import LONGEST, PRECISIONS, SHORTEST, StepRow, StepRows, WorkloadFacts
from largebatch.studies.cluster.workload import Transfer

KINDS = ("weak", "strong")
SLOW, HOP = 1e9, 1e-4
"""[bytes/s], [s] Of the network where no world of several ranks was measured: next to nothing is known of it."""
MEETING = 1e-3
"""[s] Of a CPU's ranks, before any world of several was measured."""


def read(file: Path) -> dict[str, Any]:
    """The facts of a bench, checked for being some."""
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"the bench {file} cannot be read: {str(error)[:200]}") from None
    kind = facts.get("kind") if isinstance(facts, dict) else None
    if kind not in ("scaling", "throughput"):
        raise UserError(f"{file} is of kind {str(kind)[:40]}; a machine is fitted to scaling or throughput")
    try:
        seconds = [row.seconds for row in (*rows_of(facts), *transfers_of(facts))]
        this_host([facts])
        facts_of(facts)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
        seconds = []
    if not seconds or not all(SHORTEST <= value <= LONGEST for value in seconds):
        raise UserError(f"the bench {file} is not whole: it lacks seconds of a step; measure it anew")
    return facts


def rows_of(facts: Mapping[str, Any]) -> list[StepRow]:
    """A row for each world and batch; in the smallest world weak and strong scaling are one measurement."""
    source, precision = f"bench {facts['kind']}: {facts['recipe']}", precision_of(facts)
    if facts["kind"] == "throughput":
        batch, parts = facts["global_batch_size"], facts["accumulation_steps"]
        seconds = batch / statistics.median(facts["trainer_examples_per_second"])
        return [StepRow(facts["model"], 1, batch, seconds, parts, source, precision=precision)]
    found = []
    for number, world in enumerate(facts["worlds"]):
        for kind in KINDS if number else KINDS[:1]:
            one = world[kind]
            seconds = statistics.median(one["seconds_per_step"])
            batch, parts = one["global_batch_size"], one["accumulation_steps"]
            found.append(StepRow(facts["model"], world["ranks"], batch, seconds, parts, source, precision=precision))
    return found


def precision_of(facts: Mapping[str, Any]) -> Precision | None:
    """As the recipe has it; None in benches from before it was written."""
    return next((one for one in PRECISIONS if one == facts.get("precision")), None)


def facts_of(facts: Mapping[str, Any]) -> WorkloadFacts:
    """What a bench says of its model."""
    counted = facts.get("arithmetic")
    flops = None
    if isinstance(counted, Mapping) and counted.get("forward_flop_per_image"):
        flops = counted.get("passes", 1) * (counted["forward_flop_per_image"] + counted["backward_flop_per_image"])
    return WorkloadFacts(gradient_bytes(facts), flops=flops, precision=precision_of(facts))


def transfers_of(facts: Mapping[str, Any]) -> list[TransferRow]:
    alone = [(world["ranks"], world["all_reduce"]) for world in facts.get("worlds", ()) if world["all_reduce"]]
    return [
        TransferRow(Transfer("all_reduce", one["bytes"]), ranks, statistics.median(one["seconds"]))
        for ranks, one in alone
    ]


def gradient_bytes(facts: Mapping[str, Any]) -> float:
    """As many as were summed alone; 0 where no world of several ranks was measured."""
    return max((float(row.transfer.bytes) for row in transfers_of(facts)), default=0.0)


def this_host(benches: Sequence[Mapping[str, Any]]) -> Machine:
    """As many devices in a node as a host had ranks; its network from the fastest all-reduce, else next to unknown."""
    worlds = [world for facts in benches for world in facts.get("worlds", ())]
    rates = [world["all_reduce"]["algorithm_bytes_per_second"] for world in worlds if world["all_reduce"]]
    rate = max(rates, default=SLOW)
    link = Link(
        bandwidth=rate, latency=HOP,
        intervals={"bandwidth": (rate / 10, 10 * rate), "latency": (HOP / 100, 100 * HOP)},
    )  # fmt: skip
    ranks = max((-(-world["ranks"] // world["hosts"]) for world in worlds), default=1)
    machine = benches[0]["machine"]
    name = machine.get("gpu") or machine.get("host_cpu") or "this machine"
    meeting = None if machine.get("gpu") else Meeting(seconds=MEETING)
    return Machine(name=str(name), devices_per_node=ranks, inside=link, between=link, meeting=meeting)


def modelled(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a scaling, with what the model makes of every world: fitted to the smallest one and the all-reduces
    alone, it has seen no step of the others. Where there is one world, the facts as they are."""
    worlds = facts["worlds"]
    if len(worlds) < 2:
        return dict(facts)
    rows = rows_of(facts)
    known = {facts["model"]: facts_of(facts)}
    smallest = tuple(row for row in rows if row.devices == worlds[0]["ranks"])
    machine = fit(StepRows(smallest, known), this_host([facts]), transfers_of(facts))
    return {**facts, "worlds": [_with_model(world, facts["model"], machine) for world in worlds]}


def _with_model(world: Mapping[str, Any], model: str, machine: Machine) -> dict[str, Any]:
    found = dict(world)
    for kind in KINDS:
        one = world[kind]
        row = StepRow(model, world["ranks"], one["global_batch_size"], 1.0, one["accumulation_steps"])
        bounds = interval_of(machine, lambda other, row=row: seconds_of(other, row), world["ranks"], model)
        found[kind] = {**one, "model_seconds_per_step": seconds_of(machine, row), "model_seconds_interval": bounds}
    return found

"""Muon's step in a world, ``bench optimizer --muon --ranks N``: each matrix once, beside one process that does all.

In one world of N processes, in turn: one process steps on whole weights while the others wait; all of them on whole
weights that they deal out (as under DDP), on the shards of FSDP2, and on the flat partitions of ZeRO 1, where the step
is DeepSpeed's with its all-gather of the weights. All have the same weights and gradients and as many threads. A time
is that of the slowest rank; a ratio to the process alone is the median of those within each round.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import rich.box
import rich.table
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from largebatch.engines import deepspeed as zero
from largebatch.engines.fsdp import blocks
from largebatch.errors import UserError
from largebatch.machine import distributed, launched
from largebatch.optim import Muon, muon_groups, parameter_groups, treatments
from largebatch.plan import batch
from largebatch.studies.bench.contestants import LR, MOMENTUM, NEITHER, WEIGHT_DECAY
from largebatch.studies.bench.optimizer import DROPPED, median_ratio
from largebatch.studies.bench.scaling.measure import counted, in_a_world, threads_per_rank
from largebatch.studies.bench.throughput.turns import Clock

WANTED_OF_ONE = 0.65  # of the time of one process, at most, on two ranks


class Contestant(NamedTuple):
    """One way of keeping the weights."""

    name: str
    step: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None  # before each step, not timed
    alone: bool = False  # only the first rank steps


def start(ranks: int, words: list[str]) -> None:
    """This very command in a world of so many processes on this host, which prints and writes what it finds."""
    if ranks < 2:
        raise UserError(f"--ranks {ranks} is no world to deal matrices among; at least 2")
    in_a_world(ranks, words, threads_per_rank([ranks]))


def is_started(ranks: int) -> bool:
    """Whether this process is one of such a world."""
    there = launched.number(os.environ, "WORLD_SIZE", 1)
    if there not in (1, ranks):
        raise UserError(f"--ranks {ranks} in a world of {there}; start it without a launcher, or with --ranks {there}")
    return there > 1


def measure(name: str, model: nn.Module, device: torch.device, repeats: int) -> dict[str, Any]:
    """The numbers of one model, alike on all ranks. Collective."""
    distributed.same_as_on_first(model.parameters())
    model, left_out = model.to(device), []
    contestants = [whole(model, dealt=False), whole(model, dealt=True), fsdp(model, device)]
    if importlib.util.find_spec("deepspeed") is None:
        left_out.append("ZeRO 1 is left out: the package deepspeed is not installed")
    else:
        contestants.append(zero1(model, device))
    clock = Clock(device)
    times: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for number in range(DROPPED + repeats):
        for contestant in contestants if number % 2 == 0 else reversed(contestants):
            times[contestant.name].append(milliseconds(contestant, clock))
    times = {who: values[DROPPED:] for who, values in times.items()}
    alone = times[contestants[0].name]
    rows = []
    for who, own in times.items():
        low, median, high = statistics.quantiles(own, n=4, method="inclusive")
        rows.append(
            {"weights": who, "milliseconds": own, "milliseconds_median": median, "milliseconds_quartiles": [low, high],
             "times_one_process": median_ratio(own, alone)}
        )  # fmt: skip
    matrices = [p for group in grouped(model) if group["muon"] for p in group["params"]]
    return {
        "model": name,
        "device": device.type,
        "ranks": distributed.world_size(),
        "threads_per_rank": torch.get_num_threads(),
        "matrices": len(matrices),
        "matrix_elements": sum(p.numel() for p in matrices),
        "left_out": left_out,
        "rows": rows,
    }


def milliseconds(contestant: Contestant, clock: Clock) -> float:
    """Of one step on the slowest rank that takes part. Collective."""
    contestant.prepare()
    clock.start()
    took = 0.0
    if distributed.is_first() or not contestant.alone:
        contestant.step()
        took = 1e3 * clock.seconds()
    torch.distributed.barrier()  # without work for the others, whose cores the one process is to have
    return max(distributed.gather(took))


def grouped(model: nn.Module) -> list[dict[str, Any]]:
    return muon_groups(parameter_groups(model, WEIGHT_DECAY, treatments(model, NEITHER, NEITHER)), model)


def muon(model: nn.Module) -> Muon:
    return Muon(grouped(model), LR, momentum=MOMENTUM, others_momentum=MOMENTUM)


def drawn(model: nn.Module) -> list[Tensor]:
    """A gradient for every parameter, the same on all ranks and for everyone."""
    generator = torch.Generator().manual_seed(0)
    return [(0.01 * torch.randn(p.shape, generator=generator)).to(p.device) for p in model.parameters()]


def whole(model: nn.Module, dealt: bool) -> Contestant:
    """All weights on every rank: the matrices dealt out, or one process with all of them."""
    own = copy.deepcopy(model)
    for parameter, gradient in zip(own.parameters(), drawn(own), strict=True):
        parameter.grad = gradient
    optimizer = muon(own)
    if not dealt:
        return Contestant("whole, one process", optimizer.step, alone=True)
    optimizer.deal_among(torch.distributed.group.WORLD)
    return Contestant("whole, dealt (DDP)", optimizer.step)


def fsdp(model: nn.Module, device: torch.device) -> Contestant:
    own = copy.deepcopy(model)
    gradients = drawn(own)
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    for part in (*blocks(own), own):
        fully_shard(part, mesh=mesh)
    for parameter, gradient in zip(own.parameters(), gradients, strict=True):
        assert isinstance(parameter, DTensor)
        parameter.grad = distribute_tensor(gradient, mesh, parameter.placements)
    return Contestant("shards of FSDP2", muon(own).step)


def zero1(model: nn.Module, device: torch.device) -> Contestant:
    own, ranks = copy.deepcopy(model), distributed.world_size()
    deepspeed = zero.installed(device)
    plan = batch.resolve(dataset_size=ranks, global_batch_size=ranks, world_size=ranks, steps=1)
    with zero.quiet():
        zero.forget_other_groups(deepspeed)
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend())
        engine, *_ = deepspeed.initialize(model=own, optimizer=muon(own), config=zero.configuration(plan, 1, None))
    zero.show_layers(engine)
    gradients = drawn(own)

    def backward() -> None:
        """DeepSpeed takes a gradient where autograd leaves it."""
        engine.backward(sum((p * g).sum() for p, g in zip(own.parameters(), gradients, strict=True)))

    return Contestant("partitions of ZeRO 1", engine.step, backward)


def table(facts: dict[str, Any]) -> rich.table.Table:
    rounds = len(facts["rows"][0]["milliseconds"])
    title = (
        f"Muon's step on {facts['model']}, {facts['device']}: {facts['matrices']} matrices of "
        f"{facts['matrix_elements'] / 1e6:,.1f} million elements, {facts['ranks']} ranks, {rounds} rounds"
    )
    shown = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for heading in ("weights", "ms", "quartiles", "× one process"):
        shown.add_column(heading, justify="left" if heading == "weights" else "right", no_wrap=True)
    for row in facts["rows"]:
        low, high = row["milliseconds_quartiles"]
        shown.add_row(
            row["weights"],
            f"{row['milliseconds_median']:,.1f}",
            f"{low:,.1f}–{high:,.1f}",
            f"{row['times_one_process']:.2f}",
        )
    return shown


def notes(facts: dict[str, Any]) -> list[str]:
    """What is said below the table."""
    said = [*facts["left_out"], f"{counted(facts['threads_per_rank'], 'thread')} for each process"]
    if facts["ranks"] == 2:
        said.append(f"wanted of two ranks: at most {WANTED_OF_ONE} of one process, each matrix being computed once")
    return said

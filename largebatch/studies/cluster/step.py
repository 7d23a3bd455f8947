"""The time of a step in closed form.

    T = A·(floor + a·n) + fixed + exposed + data        A micro-batches of n examples on each of P devices

**A collective** of M bytes over P devices, at most g of them in a node, on N = ⌈P/g⌉ nodes, is hierarchical: a
reduce-scatter inside the nodes, an all-reduce between them in which a node's devices each carry their part, an
all-gather inside. Nodes of several hosts are filled evenly, by whole hosts, and send by the cards of those that take
part. With α the latency of a hop and β the bytes/s of a device inside or of a node between,

    ring, n members     reduce-scatter, all-gather    (n − 1)·α + (n − 1)/n·M/β         all-reduce: both
    tree                all-reduce                    2·⌈log₂ n⌉·α + 2·M/β              two trees, pipelined
                        reduce-scatter, all-gather    ⌈log₂ n⌉·α + (n − 1)/n·M/β        halving, doubling

and the lesser of ring and tree counts, on each level alone. An **all-to-all** in which each device sends M bytes is
pairwise: (g − 1)·(α + M/(P·β)) inside, (P − g)·(α + g·M/(P·β)) between (Thakur et al.). Ring: Patarasuk & Yuan 2009 (J.
Parallel Distrib. Comput. 69, 117); halving and doubling: Thakur, Rabenseifner & Gropp 2005 (Int. J. High Perform.
Comput. Appl. 19, 49); two trees: Sanders, Speck & Träff 2009 (Parallel Comput. 35, 581), which NCCL has had since 2.4.

**Overlap.** The backward pass is 2/3 of a micro-batch's computing, the forward pass 1/3. Bucket k of the gradients is
ready when the backward pass is as far as the bytes of buckets 1…k are of all: r_k. One bucket travels at a time, in
c_k, so that the last one has arrived at max_k(r_k + Σ_{j ≥ k} c_j): what of it lies behind the end of the pass is
exposed. Along equal buckets that sum is a line in k, so that the first and the last of them tell. Whatever else is
hidden by a pass is exposed as far as it takes longer. Communication takes nothing from what it goes on beside.

**Meeting.** Ranks of a CPU compute on the cores that communicate: a step of several costs some turns of the scheduler
more (``meeting`` of the machine), and they are exposed.

**Data** that take longer to read than the rest of the step takes are waited for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from largebatch.studies.cluster.machine import Link, Machine
from largebatch.studies.cluster.workload import Kind, Transfer, Workload, runs_of

BACKWARD = 2 / 3
"""Of the computing of a micro-batch: the gradient by the activations and the one by the weights cost a forward each."""


@dataclass(frozen=True)
class StepTime:
    """Seconds. ``communication`` is all that is sent, of which ``exposed`` is what nothing hides."""

    compute: float
    fixed: float
    communication: float
    exposed: float
    data: float

    @property
    def total(self) -> float:
        return self.compute + self.fixed + self.exposed + self.data


def step_time(machine: Machine, workload: Workload, devices: int, share: float, accumulation: int = 1) -> StepTime:
    """Of ``accumulation`` micro-batches of ``share`` examples on each device."""
    micro = workload.pace.computing(share)
    passes = {"forward": (1 - BACKWARD) * micro, "backward": BACKWARD * micro}
    communication = 0.0
    exposed = machine.meeting.seconds if machine.meeting and devices > 1 else 0.0
    for transfer in workload.transfers:
        runs = pieces_of(transfer, workload)
        times = [collective_time(machine, transfer.collective, transfer.bytes * part, devices) for part, _ in runs]
        sent = sum(number * seconds for (_, number), seconds in zip(runs, times, strict=True))
        communication += transfer.times * sent
        if transfer.hidden_by is None:
            exposed += transfer.times * sent
        elif transfer.gradients:
            exposed += transfer.times * behind(runs, times, passes["backward"])
        else:
            exposed += transfer.times * max(0.0, sent - passes[transfer.hidden_by])
    compute = accumulation * micro
    busy = compute + workload.pace.fixed + exposed
    data = max(0.0, accumulation * share * workload.pace.data_per_example - busy)
    return StepTime(compute, workload.pace.fixed, communication, exposed, data)


def pieces_of(transfer: Transfer, workload: Workload) -> Sequence[tuple[float, int]]:
    """Shares of its bytes, each with how many such follow one another: gradients travel in the workload's buckets, in
    proportion; all else in one piece."""
    return (transfer.gradients and runs_of(workload.buckets)) or ((1.0, 1),)


def behind(runs: Sequence[tuple[float, int]], times: Sequence[float], backward: float) -> float:
    """Seconds after the end of the backward pass at which the last of the pieces has arrived; ``times`` are those of
    one piece of each run."""
    ready, arrived = 0.0, 0.0
    for (part, number), seconds in zip(runs, times, strict=True):
        first, ready = ready + part * backward, ready + number * part * backward
        arrived = max(max(arrived, first) + number * seconds, ready + seconds)
    return max(0.0, arrived - backward)


def collective_time(machine: Machine, collective: Kind, bytes: float, devices: int) -> float:
    """Seconds of one collective of ``bytes`` over ``devices``, with nothing beside it."""
    inside, nodes = machine.in_a_node(devices), machine.nodes(devices)
    if collective == "all_to_all":
        return pairwise(machine, bytes, devices)
    if nodes == 1:
        return on_link(machine.inside, collective, bytes, inside)
    between = on_link(cards_of(machine, devices), collective, bytes, nodes)
    if collective != "all_reduce":
        return on_link(machine.inside, collective, bytes, inside) + between
    scatter, gather = (on_link(machine.inside, kind, bytes, inside) for kind in ("reduce_scatter", "all_gather"))
    return scatter + between + gather


def pairwise(machine: Machine, bytes: float, devices: int) -> float:
    """An all-to-all in which each device sends its parts one after another; a node's devices share its network."""
    if not bytes:
        return 0.0
    inside, part, between = machine.in_a_node(devices), bytes / devices, cards_of(machine, devices)
    near = (inside - 1) * (machine.inside.latency + part / machine.inside.bandwidth)
    return near + (devices - inside) * (between.latency + inside * part / between.bandwidth)


def cards_of(machine: Machine, devices: int) -> Link:
    """The network between nodes, as a node of so many devices in all has it: of a part of its hosts the cards."""
    share = machine.cards(devices)
    if share == 1:
        return machine.between
    return machine.between.model_copy(update={"bandwidth": share * machine.between.bandwidth})


def on_link(link: Link, collective: Kind, bytes: float, members: int) -> float:
    """The lesser of ring and tree among ``members`` of one level."""
    if members == 1 or not bytes:
        return 0.0
    passes = 2 if collective == "all_reduce" else 1
    part = (members - 1) / members * bytes / link.bandwidth
    ring = passes * ((members - 1) * link.latency + part)
    whole = bytes / link.bandwidth if collective == "all_reduce" else part
    return min(ring, passes * (math.ceil(math.log2(members)) * link.latency + whole))

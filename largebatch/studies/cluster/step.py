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
exposed. Whatever else is hidden by a pass is exposed as far as it takes longer. Communication takes nothing from what
it goes on beside.

**Data** that take longer to read than the rest of the step takes are waited for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from largebatch.studies.cluster.machine import Link, Machine
from largebatch.studies.cluster.workload import Kind, Transfer, Workload

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
    communication = exposed = 0.0
    for transfer in workload.transfers:
        pieces = pieces_of(transfer, workload)
        seconds = {piece: collective_time(machine, transfer.collective, piece, devices) for piece in set(pieces)}
        times = [seconds[piece] for piece in pieces]
        communication += transfer.times * sum(times)
        if transfer.hidden_by is None:
            exposed += transfer.times * sum(times)
        elif transfer.gradients:
            exposed += transfer.times * behind(pieces, times, passes["backward"])
        else:
            exposed += transfer.times * max(0.0, sum(times) - passes[transfer.hidden_by])
    compute = accumulation * micro
    busy = compute + workload.pace.fixed + exposed
    data = max(0.0, accumulation * share * workload.pace.data_per_example - busy)
    return StepTime(compute, workload.pace.fixed, communication, exposed, data)


def pieces_of(transfer: Transfer, workload: Workload) -> list[float]:
    """Gradients travel in the workload's buckets, in proportion; all else in one piece."""
    if not transfer.gradients or not sum(workload.buckets):
        return [transfer.bytes]
    return [transfer.bytes * size / sum(workload.buckets) for size in workload.buckets]


def behind(pieces: list[float], times: list[float], backward: float) -> float:
    """Seconds after the end of the backward pass at which the last of the pieces has arrived."""
    whole, ready, arrived = sum(pieces), 0.0, 0.0
    for piece, seconds in zip(pieces, times, strict=True):
        ready += piece / whole * backward if whole else 0.0
        arrived = max(arrived, ready) + seconds
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

"""Whole matrices of layers that engines have cut: dealt to ranks by cost, gathered there, and given back.

    deal        every matrix has one owner in the world: the most costly first, each to the rank with the least so far
    gather      whoever holds a region of a matrix sends it to the owner: one all-to-all
    give back   the owner sends to everyone the regions that it holds: one all-to-all, or one all-gather where
                everyone holds everything

What a rank holds of a layer is a few regions: boxes of the layer (a DTensor cut along any axes, replicated or not) or
of its elements in a row (ZeRO's flat partitions). Who holds what follows from meshes and partitions and is known to
every rank alike. Of a region with several holders one sends. Alone a rank owns everything, and nothing is sent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.utils._python_dispatch import _disable_current_modes

from largebatch.errors import UserError
from largebatch.optim.shards import Partition, Segment

Shape = tuple[int, ...]
Ways = dict[tuple[int, int], list[tuple[int, int]]]  # (owner, holder) -> (number of a layer, of a region held of it)


class Region(NamedTuple):
    """A box of a tensor that has all the layer's elements in their order."""

    shape: Shape  # of that tensor: the layer's own, or its elements in a row
    begin: Shape
    size: Shape

    @property
    def elements(self) -> int:
        return math.prod(self.size)

    def of(self, matrix: Tensor) -> Tensor:
        """Of the layer as a contiguous matrix: a view."""
        box = tuple(slice(begin, begin + size) for begin, size in zip(self.begin, self.size, strict=True))
        return matrix.view(self.shape)[box]


class DealtLayer(NamedTuple):
    """A layer as a matrix of (first axis, all others), and the regions that each rank of the group holds of it."""

    name: str
    shape: Shape
    group: Any  # None: this rank alone
    held: tuple[tuple[Region, ...], ...]

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def columns(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def row_numbers(self) -> DealtLayer:
        """A number for each row, which all ranks hold."""
        return DealtLayer(self.name, (self.rows,), self.group, ((whole((self.rows,)),),) * len(self.held))

    @property
    def cost(self) -> int:
        """About what an iteration takes: of an A×B matrix, A ≤ B, A²·(2·B + A)."""
        few, many = sorted((self.rows, self.columns))
        return few * few * (2 * many + few)


class Traffic(NamedTuple):
    """Of this rank."""

    collectives: int = 0
    sent: int = 0  # elements
    orthogonalised: int = 0  # matrices that this rank has computed
    due: int = 0  # that the whole world, or alone this rank, had to compute

    def and_then(self, later: Traffic) -> Traffic:
        return Traffic(*(before + after for before, after in zip(self, later, strict=True)))


def whole(shape: Shape) -> Region:
    return Region(shape, (0,) * len(shape), shape)


def ranks_of(group: Any) -> int:
    return 1 if group is None else dist.get_world_size(group)


def layer_of_tensor(name: str, parameter: Tensor, among: Any) -> DealtLayer:
    """Of a plain tensor, the same on all ranks ``among`` which it is dealt (None: computed by each), or a DTensor."""
    shape = tuple(parameter.shape)
    if not isinstance(parameter, DTensor):
        return DealtLayer(name, shape, among, ((whole(shape),),) * ranks_of(among))
    mesh = parameter.device_mesh
    if not all(type(place) in (Shard, Replicate) for place in parameter.placements):
        raise UserError(
            f"Muon gathers layers that are cut into rows, columns or other blocks; {name} is placed as "
            f"{parameter.placements}: shard it by Shard and Replicate alone"
        )
    coordinates = itertools.product(*(range(size) for size in mesh.shape))
    with _disable_current_modes():  # a dry run pretends all tensors; these numbers are meant
        by_rank = dict(zip(mesh.mesh.flatten().tolist(), coordinates, strict=True))
    group = group_of_mesh(mesh)
    held = []
    for rank in range(ranks_of(group)):
        region = box_of(shape, parameter, by_rank[dist.get_global_rank(group, rank)])
        held.append((region,) if region.elements else ())
    return DealtLayer(name, shape, group, tuple(held))


def box_of(shape: Shape, parameter: DTensor, coordinate: Shape) -> Region:
    """What the rank at this place of the mesh holds, as torch cuts: equal pieces, the last ones smaller or empty."""
    begin, size = [0] * len(shape), list(shape)
    for place, number, ranks in zip(parameter.placements, coordinate, parameter.device_mesh.shape, strict=True):
        if isinstance(place, Shard):
            dim = place.dim % len(shape)
            piece = -(-size[dim] // ranks)
            first = min(number * piece, size[dim])
            begin[dim] += first
            size[dim] = min(piece, size[dim] - first)
    return Region(shape, tuple(begin), tuple(size))


def group_of_mesh(mesh: Any) -> Any:
    """One of all its ranks."""
    if mesh.size() == dist.get_world_size():
        return dist.group.WORLD
    return mesh.get_group() if mesh.ndim == 1 else mesh._flatten().get_group()


def layers_of_partition(partition: Partition) -> list[DealtLayer]:
    """Collective where the partition does not say what the other ranks hold."""
    group = dist.group.WORLD if dist.get_world_size(partition.group) == dist.get_world_size() else partition.group
    segments: Sequence[Sequence[Segment]] = partition.everyone
    if not segments:
        gathered: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(gathered, [tuple(segment) for segment in partition.segments], group=group)
        segments = [[Segment(*one) for one in of_rank] for of_rank in gathered]
    found = []
    for number, (name, shape) in enumerate(partition.layers):
        row = (math.prod(shape),)
        held = tuple(
            tuple(Region(row, (one.start,), (one.length,)) for one in of_rank if one.layer == number)
            for of_rank in segments
        )
        found.append(DealtLayer(name, shape, group, held))
    return found


class Deal:
    """Layers of one process group, and the ways of their regions. Every rank of the group makes the same one.

    Of the layers ``normalised`` a number for each row goes with what is given back, to all ranks: its place is behind
    the layers, in their order.
    """

    def __init__(self, layers: Sequence[DealtLayer], normalised: Sequence[int] = ()) -> None:
        self.group = layers[0].group
        self.rank, self.ranks = (0, 1) if self.group is None else (dist.get_rank(self.group), ranks_of(self.group))
        beside = [layers[number].row_numbers for number in normalised]
        self.layers, self.matrices = [*layers, *beside], len(layers)
        owners = dealt_by_cost([layer.cost for layer in layers], self.ranks)
        self.owners = [*owners, *(owners[number] for number in normalised)]
        self.owned = [number for number in range(self.matrices) if owners[number] == self.rank]
        self.inward: Ways = {}  # (owner, holder) -> the regions that the holder sends to the owner
        self.outward: Ways = {}  # and those that the owner gives back
        for number, layer in enumerate(self.layers):
            owner = self.owners[number]
            senders = first_holders(layer, owner)
            for holder, i in ((rank, i) for rank, held in enumerate(layer.held) for i in range(len(held))):
                self.outward.setdefault((owner, holder), []).append((number, i))
                if number < self.matrices and senders[layer.held[holder][i]] == holder:
                    self.inward.setdefault((owner, holder), []).append((number, i))
        self.everywhere = all(held == (whole(layer.shape),) for layer in self.layers for held in layer.held)
        self.collectives = self.sent = 0

    def gather(self, parts: list[list[Tensor]], kind: torch.dtype, device: torch.device) -> dict[int, Tensor]:
        """The owned matrices by number, from ``parts``: of each layer a tensor for each region held here."""
        self.collectives = self.sent = 0
        layers = self.layers
        matrices = {n: torch.empty(layers[n].rows, layers[n].columns, dtype=kind, device=device) for n in self.owned}
        goes = [[parts[n][i] for n, i in self.inward.get((owner, self.rank), [])] for owner in range(self.ranks)]
        comes = [
            [layers[n].held[holder][i].of(matrices[n]) for n, i in self.inward.get((self.rank, holder), [])]
            for holder in range(self.ranks)
        ]
        if all(owner == holder for owner, holder in self.inward):
            received = [goes[rank] if rank == self.rank else [] for rank in range(self.ranks)]
        else:
            received = self._all_to_all(goes, [[place.shape for place in places] for places in comes], kind, device)
        for places, values in zip(comes, received, strict=True):
            for place, value in zip(places, values, strict=True):
                place.copy_(value.view_as(place))
        return matrices

    def give_back(self, ends: dict[int, Tensor], kind: torch.dtype, device: torch.device) -> list[list[Tensor]]:
        """Of each layer a tensor for each region held here, from the owned matrices and what goes with them."""
        ends = {number: tensor.contiguous() for number, tensor in ends.items()}
        goes = [
            [self.layers[n].held[holder][i].of(ends[n]) for n, i in self.outward.get((self.rank, holder), [])]
            for holder in range(self.ranks)
        ]
        ways = [self.outward.get((owner, self.rank), []) for owner in range(self.ranks)]
        shapes = [[self.layers[n].held[self.rank][i].size for n, i in regions] for regions in ways]
        if self.ranks == 1:
            received = goes
        elif self.everywhere:
            received = self._all_gather(goes[self.rank], shapes, kind, device)
        else:
            received = self._all_to_all(goes, shapes, kind, device)
        parts: list[list[Tensor]] = [[] for _ in self.layers]
        for regions, values in zip(ways, received, strict=True):
            for (number, _), value in zip(regions, values, strict=True):
                parts[number].append(value)
        return parts

    def _all_to_all(
        self, goes: list[list[Tensor]], shapes: list[list[Shape]], kind: torch.dtype, device: torch.device
    ) -> list[list[Tensor]]:
        """What every rank sends here, in those shapes."""
        travelling = joined([tensor for tensors in goes for tensor in tensors], kind, device)
        sizes = [sum(math.prod(shape) for shape in of_rank) for of_rank in shapes]
        into = torch.empty(sum(sizes), dtype=kind, device=device)
        dist.all_to_all_single(
            into, travelling, sizes, [sum(t.numel() for t in tensors) for tensors in goes], group=self.group
        )
        self._count(travelling)
        return [parted(piece, of_rank) for piece, of_rank in zip(into.split(sizes), shapes, strict=True)]

    def _all_gather(
        self, goes: list[Tensor], shapes: list[list[Shape]], kind: torch.dtype, device: torch.device
    ) -> list[list[Tensor]]:
        """What every rank has for all; the shorter are filled up."""
        sizes = [sum(math.prod(shape) for shape in of_rank) for of_rank in shapes]
        travelling = torch.zeros(max(sizes), dtype=kind, device=device)
        travelling[: sizes[self.rank]] = joined(goes, kind, device)
        into = torch.empty(self.ranks * max(sizes), dtype=kind, device=device)
        dist.all_gather_into_tensor(into, travelling, group=self.group)
        self._count(travelling)
        pieces = [piece[:size] for piece, size in zip(into.split(max(sizes)), sizes, strict=True)]
        return [parted(piece, of_rank) for piece, of_rank in zip(pieces, shapes, strict=True)]

    def _count(self, travelling: Tensor) -> None:
        self.collectives += 1
        self.sent += travelling.numel()

    @property
    def traffic(self) -> Traffic:
        """Of the last :meth:`gather` and :meth:`give_back`."""
        return Traffic(self.collectives, self.sent, due=self.matrices)


def first_holders(layer: DealtLayer, owner: int) -> dict[Region, int]:
    """Of each region of a layer the one rank that sends it: the owner, where it holds it."""
    first: dict[Region, int] = {}
    for rank in (owner, *range(len(layer.held))):
        for region in layer.held[rank]:
            first.setdefault(region, rank)
    missing = math.prod(layer.shape) - sum(region.elements for region in first)
    assert missing == 0, f"{missing} elements of {layer.name} are nobody's, or somebody's twice"
    return first


def joined(tensors: list[Tensor], kind: torch.dtype, device: torch.device) -> Tensor:
    """Their elements in a row."""
    if not tensors:
        return torch.empty(0, dtype=kind, device=device)
    return torch.cat([tensor.to(kind).reshape(-1) for tensor in tensors])


def parted(row: Tensor, shapes: list[Shape]) -> list[Tensor]:
    pieces = row.split([math.prod(shape) for shape in shapes]) if shapes else ()
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def dealt_by_cost(costs: list[int], ranks: int) -> list[int]:
    """The owner of each: the most costly first, to the rank with the least so far, the first of equals."""
    loads, owners = [0] * ranks, [0] * len(costs)
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
        owner = loads.index(min(loads))
        owners[number] = owner
        loads[owner] += costs[number]
    return owners

"""What of a layer lies on this rank, and the sums of squares of whole layers.

The norms of LARS and LAMB are properties of the layer. A rank may hold

    a whole layer         a plain tensor: one process, DistributedDataParallel, ZeRO 0
    a shard of it         a DTensor: FSDP2's ``fully_shard``, whatever the mesh
    a piece of it         a range of a flat tensor that holds many layers: ZeRO 1, 2, 3, described by a Partition

:class:`Shards` makes these alike: lists of local tensors, each with the row of its layer in one matrix of sums of
squares, which :func:`add_up` completes with one small all-reduce. Nothing is read back to the host.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from largebatch.errors import UserError
from largebatch.optim.loading import Group, State

CPU = torch.device("cpu")
ALIGNED = 64  # bytes: where torch's own allocations begin on the CPU
HALF = (torch.bfloat16, torch.float16)
Groups = tuple[Any, ...]  # process groups over which the parts of a layer add up


class Segment(NamedTuple):
    """A contiguous piece of a layer inside a flat tensor."""

    layer: int  # which of the partition's layers
    offset: int  # where the piece begins in the flat tensor
    length: int  # elements
    start: int  # where it begins in the flattened layer


@dataclasses.dataclass(frozen=True)
class Partition:
    """The table of a flat tensor: which layers its parameter group has in the whole world, and what is here.

    ``layers`` is the same list of (name, shape) on every rank of ``group``; ``segments`` are this rank's, and
    ``everyone`` has those of all ranks, where they are known. What no segment covers is padding, which nobody touches.
    """

    layers: tuple[tuple[str, tuple[int, ...]], ...]
    segments: tuple[Segment, ...]
    group: Any
    everyone: tuple[tuple[Segment, ...], ...] = ()


@dataclasses.dataclass
class Shards:
    """This rank's parts of the layers of one parameter group: lists of equal length.

    ``weights`` are what the algebra works on: the parameters, or their float32 masters where they are bfloat16 or
    float16; ``rounded`` holds those parameters (else None). ``buffers`` are the optimizer's states by name, ``steps``
    the counters. Part i is of ``parameters[i]`` and belongs to the layer ``rows[i]`` among ``names``, the layers of
    the group in the whole world, which ``groups`` says where to add up.
    """

    weights: list[Tensor] = dataclasses.field(default_factory=list)
    grads: list[Tensor] = dataclasses.field(default_factory=list)
    rounded: list[Tensor | None] = dataclasses.field(default_factory=list)
    buffers: dict[str, list[Tensor]] = dataclasses.field(default_factory=dict)
    steps: list[Tensor] = dataclasses.field(default_factory=list)
    rows: list[int] = dataclasses.field(default_factory=list)
    names: list[str] = dataclasses.field(default_factory=list)
    groups: list[Groups] = dataclasses.field(default_factory=list)
    device: torch.device = CPU
    parameters: list[Tensor] = dataclasses.field(default_factory=list)
    given: list[Tensor] = dataclasses.field(default_factory=list)  # the parameters, those without elements included
    look: list[tuple[torch.dtype, tuple[int, ...]]] = dataclasses.field(default_factory=list)  # of the weights
    _pieces: list[tuple[slice, Shards]] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def alone(self) -> bool:
        """Every layer of the group is here as a whole."""
        return not any(self.groups)

    def still_of(self, parameters: list[Tensor], state: dict[Tensor, dict[str, Any]]) -> bool:
        """Whether new gradients are all that is new: the same whole tensors, laid out alike, with the same states."""
        if len(parameters) != len(self.given) or not all(map(operator.is_, parameters, self.given)):
            return False
        if [(weight.dtype, weight.stride()) for weight in self.weights] != self.look:
            return False
        states = [*self.buffers.items(), *([("step", self.steps)] if self.steps else [])]
        return all(
            state[parameter].get(name) is tensor
            for name, tensors in states
            for parameter, tensor in zip(self.parameters, tensors, strict=True)
        ) and all(
            state[parameter].get("master_weight") is (None if rounded is None else weight)
            for parameter, weight, rounded in zip(self.parameters, self.weights, self.rounded, strict=True)
        )

    def forget_grads(self) -> None:
        """Keep no gradient alive between steps."""
        self.grads = []
        for _, piece in self._pieces:
            piece.grads = []

    @property
    def whole_tensors(self) -> bool:
        """Whether the parts are the parameters or their masters themselves, not views of them."""
        return self.alone and not any(
            isinstance(parameter, DTensor) or parameter.is_complex() or not parameter.dim() for parameter in self.given
        )

    @functools.cached_property
    def laid_out_alike(self) -> bool:
        """Whether weights and states are dense, of float32 or float64, and lie in memory alike, part by part."""
        for i, weight in enumerate(self.weights):
            if weight.dtype not in (torch.float32, torch.float64) or not is_dense(weight):
                return False
            states = [tensors[i] for tensors in self.buffers.values()]
            if any(tensor.dtype != weight.dtype or tensor.stride() != weight.stride() for tensor in states):
                return False
        return True

    def pieces(self, elements: int) -> list[Shards]:
        """The same parts in several :class:`Shards`, each of one part or of at most so many elements; if alone."""
        if not self._pieces:
            first = size = 0
            for last in range(1, len(self) + 1):
                size += self.weights[last - 1].numel()
                if last == len(self) or size + self.weights[last].numel() > elements:
                    self._pieces.append((slice(first, last), self._piece(slice(first, last))))
                    first, size = last, 0
        for cut, piece in self._pieces:
            piece.grads = self.grads[cut]
        return [piece for _, piece in self._pieces]

    def _piece(self, cut: slice) -> Shards:
        return Shards(
            self.weights[cut],
            self.grads[cut],
            self.rounded[cut],
            {name: tensors[cut] for name, tensors in self.buffers.items()},
            self.steps[cut],
            list(range(cut.stop - cut.start)),
            [self.names[row] for row in self.rows[cut]],
            [()] * (cut.stop - cut.start),
            self.device,
            self.parameters[cut],
        )

    def sums(self, *columns: Sequence[Tensor]) -> Tensor:
        """(layers, columns), float64: this rank's sums of squares of each column's tensors, one per part."""
        whole = torch.zeros(len(self.names), len(columns), dtype=torch.float64, device=self.device)
        if not self.weights:
            return whole
        here = torch.stack([squares(column) for column in columns], dim=1)
        if self.rows == list(range(len(self.names))):
            return here
        return whole.index_add_(0, index_of(tuple(self.rows), self.device), here)


def shards_of(
    group: Group,
    parameters: list[Tensor],
    state: dict[Tensor, dict[str, Any]],
    buffers: Sequence[str],
    counted: bool,
    partitions: dict[int, Partition],
    first_number: int = 0,
) -> Shards:
    """The parts of ``parameters`` (those of ``group`` that have a gradient); states are created on first sight.

    Layers without a name are called by their number, the group's first being ``first_number``.
    """
    found = Shards(buffers={name: [] for name in buffers}, device=parameters[0].device, given=parameters)
    names = group.get("names") or group.get("param_names")
    if not names or len(names) != len(group["params"]):  # who divides a group among ranks copies the list whole
        names = [f"parameter {first_number + i}" for i in range(len(group["params"]))]
    known = dict(zip(map(id, group["params"]), names, strict=False))
    for parameter in parameters:
        assert parameter.grad is not None
        states = state_of(parameter, state[parameter], buffers, counted)
        weight = states.get("master_weight", parameter)
        rounded = [parameter] if weight is not parameter else []
        tensors = [weight, parameter.grad, *(states[name] for name in buffers), *rounded]
        partition = partitions.get(id(parameter))
        first = len(found.names)
        if partition is None:
            check_layout(parameter, parameter.grad)
            found.names.append(known.get(id(parameter), "parameter"))
            found.groups.append(sharding_groups(parameter))
            parts = [(0, [elements(tensor) for tensor in tensors])]
        else:
            found.names.extend(name for name, _ in partition.layers)
            found.groups.extend([(partition.group,)] * len(partition.layers))
            parts = [
                (s.layer, [elements(t.narrow(0, s.offset, s.length)) for t in tensors]) for s in partition.segments
            ]
        for layer, part in parts:
            if part[0].numel() == 0:
                continue
            found.weights.append(part[0])
            found.grads.append(part[1])
            found.rounded.append(part[-1] if rounded else None)
            for name, tensor in zip(buffers, part[2:], strict=False):
                found.buffers[name].append(tensor)
            if counted:
                found.steps.append(states["step"])
            found.rows.append(first + layer)
            found.parameters.append(parameter)
    found.look = [(weight.dtype, weight.stride()) for weight in found.weights]
    return found


def state_of(parameter: Tensor, state: State, buffers: Sequence[str], counted: bool) -> dict[str, Any]:
    """The parameter's states, made on first sight: zeros, a counter at zero, a float32 master of half precision."""
    like = parameter
    if parameter.dtype in HALF:
        if "master_weight" not in state:
            state["master_weight"] = parameter.detach().to(torch.float32, copy=True)
        like = state["master_weight"]
    for name in buffers:
        if name not in state:
            state[name] = torch.zeros_like(like, memory_format=torch.preserve_format)
    if counted and "step" not in state:
        state["step"] = torch.zeros((), dtype=torch.float32)
    return state


def local(tensor: Tensor) -> Tensor:
    """What of it is here; to be used without gradients."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def elements(tensor: Tensor) -> Tensor:
    """:func:`local`, as real numbers along at least one dimension: a view, so that the algebra knows nothing else.

    torch takes a tensor without dimension for a scalar and lets its type give way to another's. A complex number is two
    real ones, as in torch's optimizers.
    """
    here = local(tensor)
    here = torch.view_as_real(here) if here.is_complex() else here
    return here if here.dim() else here.view(1)


def sharding_groups(parameter: Tensor) -> Groups:
    """The process groups over which this tensor's shards make a whole; none if it is whole here."""
    if not isinstance(parameter, DTensor):
        return ()
    mesh = parameter.device_mesh
    return tuple(mesh.get_group(dim) for dim, place in enumerate(parameter.placements) if not place.is_replicate())


def check_layout(parameter: Tensor, grad: Tensor) -> None:
    if isinstance(parameter, DTensor) and any_partial(parameter):
        raise UserError(
            f"a parameter placed as {parameter.placements} is a sum yet to be made: give it whole or sharded"
        )
    if isinstance(parameter, DTensor) and (
        not isinstance(grad, DTensor) or grad.placements != parameter.placements or any_partial(grad)
    ):
        raise UserError(
            f"the gradient of a parameter sharded as {parameter.placements} must be sharded the same way; it is "
            f"{getattr(grad, 'placements', 'a plain tensor')}"
        )


def any_partial(tensor: DTensor) -> bool:
    return any(place.is_partial() for place in tensor.placements)


def squares(tensors: Sequence[Tensor]) -> Tensor:
    """Sums of squares, one per tensor, in float64; added up in at least float32.

    On the CPU the dot product of a long tensor is both faster and a hundred times more exact than its float32 norm.
    """
    if not tensors:
        return torch.zeros(0, dtype=torch.float64)
    if tensors[0].device.type == "cpu":
        return torch.stack([dot(tensor) for tensor in tensors])
    norms = torch._foreach_norm(list(tensors), 2, torch.float32 if tensors[0].dtype in HALF else None)
    return torch.stack(norms).double().square()


def dot(tensor: Tensor) -> Tensor:
    flat = flat_memory(tensor)
    if flat.dtype in HALF:
        flat = flat.float()
    elif flat.data_ptr() % ALIGNED:  # a BLAS may add up in another order where memory begins elsewhere
        flat = flat.clone()
    return torch.dot(flat, flat).double()


def is_dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or flat_memory(tensor).data_ptr() == tensor.data_ptr()


def flat_memory(tensor: Tensor) -> Tensor:
    """The elements in the order in which memory holds them, without a copy where the tensor is dense."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    dense = math.prod(tensor.shape) == 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((tensor.numel(),), (1,)) if dense else tensor.reshape(-1)


@functools.lru_cache(maxsize=256)
def index_of(rows: tuple[int, ...], device: torch.device) -> Tensor:
    """Kept on the device, so that a step copies nothing there."""
    return torch.tensor(rows, device=device)


def add_up(matrices: list[Tensor], groups: list[list[Groups]]) -> list[Tensor]:
    """Sums over the whole layers, from each rank's: one all-reduce for each set of process groups, mostly one.

    ``matrices`` are what :meth:`Shards.sums` returned, ``groups`` the process groups of their rows. Collective.
    """
    flat = [g for rows in groups for g in rows]
    kinds = [g for g in dict.fromkeys(flat) if g]
    if not kinds:
        return matrices
    whole = torch.cat(matrices)
    for kind in kinds:
        rows = tuple(i for i, g in enumerate(flat) if g == kind)
        index = None if len(rows) == len(flat) else index_of(rows, whole.device)
        part = whole if index is None else whole.index_select(0, index)
        for process_group in kind:
            dist.all_reduce(part, group=process_group)
        if index is not None:
            whole.index_copy_(0, index, part)
    return list(whole.split([len(m) for m in matrices]))

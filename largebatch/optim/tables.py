"""The tables that the Triton kernels read: where the parts of the layers lie, and in which chunks they are walked.

Elements are walked in the order of memory. What is not dense, or not laid out like its weight, is copied before every
step, and back after it where the step writes it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from largebatch.errors import UserError
from largebatch.optim.shards import Shards, elements, is_dense

CHUNK = 8192  # elements of a program; a multiple of BLOCK
BLOCK = 1024
WORKING = {torch.float32, torch.float64}  # what the arithmetic is done in
TYPES = {torch.float16, torch.bfloat16} | WORKING
DTYPE = operator.attrgetter("dtype")
Look = tuple[int, tuple[int, ...], torch.dtype]


class PartLine(NamedTuple):
    """A line of the table of parts: addresses, then numbers. The order is the kernels'."""

    weight: int
    first: int  # buffer
    second: int
    rounded: int
    length: int
    group: int  # line of the settings
    row: int  # of its layer in the sums, −1 if it is not adapted
    counter: int


class GroupSettings(NamedTuple):
    """A group's line in the table of settings. The order is the kernels'."""

    lr: float
    decay: float
    trust_coefficient: float = 1.0
    ratio_eps: float = 0.0
    ratio_decay: float = 0.0  # of ‖w‖ in the ratio's denominator
    smallest_ratio: float = 0.0
    largest_ratio: float = math.inf
    largest_norm: float = math.inf
    buffer_scale: float = 0.0
    proposal_decay: float = 0.0  # of w in what is measured
    largest_element: float = math.inf
    lr_inside: float = 0.0
    ratio_inside: float = 0.0
    share_of_update: float = 0.0  # w moves by so much of what entered the buffer, and by
    share_of_buffer: float = 1.0  # so much of the buffer
    beta1: float = 0.0
    beta2: float = 0.0
    log_beta1: float = -math.inf  # −∞: no bias correction
    log_beta2: float = -math.inf
    eps: float = 0.0


class Bucket(NamedTuple):
    """Parts of the same types, whose chunks follow one another; those of adapted layers come first."""

    types: tuple[torch.dtype, ...]  # of the weight, the gradient and the rounded parameter
    first: int  # chunk
    adapted: int  # chunks
    chunks: int


class Placed(NamedTuple):
    """A part on its way into the tables."""

    layer: int
    line: PartLine
    grad: int  # the gradient's address: beyond that of ``owner``'s gradient, where there is one
    owner: int | None  # among the parameters with a gradient


class DeviceTable:
    """A tensor on the device that can be filled anew without waiting for it."""

    def __init__(self, values: Any, dtype: torch.dtype, device: torch.device) -> None:
        host = torch.as_tensor(values, dtype=dtype)
        self.tensor = torch.empty_like(host, device=device)
        self._pinned: Tensor | None = None
        self._captured: list[Tensor] = []
        self.fill(host)

    def fill(self, values: Any) -> None:
        host = torch.as_tensor(values, dtype=self.tensor.dtype)
        if self.tensor.device.type == "cpu":
            self.tensor.copy_(host)
            return
        pinned = self._pinned if self._pinned is not None else torch.empty_like(host, pin_memory=True)
        pinned.copy_(host)
        self.tensor.copy_(pinned, non_blocking=True)
        self._pinned = None  # torch gives this memory out again only after it has been read
        if torch.cuda.is_current_stream_capturing():
            self._captured.append(pinned)  # a graph reads it again at every replay
        else:
            self._pinned = torch.empty_like(host, pin_memory=True)  # there before a capture, which must not ask for any


class Tables:
    """Made from the shards of all groups, the adapted groups first; ``adapted`` is how many those are.

    ``parameters`` are those with a gradient, ``partitioned`` the ids of flat ones.
    """

    def __init__(
        self, work: list[Shards], adapted: int, counters: dict[int, int], parameters: list[Tensor], partitioned: Any
    ) -> None:
        self.device = work[0].device
        self.copies: list[tuple[Tensor, Tensor]] = []  # (laid out as the kernels want it, the tensor itself)
        self.copied_grads: list[tuple[Tensor, Tensor]] = []  # (laid out as the kernels want it, the parameter)
        self._kept: list[Tensor] = []  # what the addresses in the tables point at
        looks = look_at([p.grad for p in parameters])
        placed: dict[tuple[torch.dtype, ...], list[Placed]] = {}
        owners = {id(p): i for i, p in enumerate(parameters)}
        layers = 0
        for number, shards in enumerate(work):
            for i, weight in enumerate(shards.weights):
                rounded, grad, parameter = shards.rounded[i], shards.grads[i], shards.parameters[i]
                types = (weight.dtype, grad.dtype, weight.dtype if rounded is None else rounded.dtype)
                states = {tensors[i].dtype for tensors in shards.buffers.values()}
                if not set(types) <= TYPES or weight.dtype not in WORKING or states != {weight.dtype}:
                    what = f"{shards.names[shards.rows[i]]} with types {[*types, *states]}"
                    raise UserError(f'the Triton kernels do not take {what}; form = "plain" may')
                like = weight if is_dense(weight) else weight.contiguous()
                buffers = [self._address(tensors[i], like) for tensors in shards.buffers.values()]
                layer = layers + shards.rows[i]
                line = PartLine(
                    weight=self._address(weight, like),
                    first=buffers[0],
                    second=buffers[-1],
                    rounded=0 if rounded is None else self._address(rounded, like),
                    length=weight.numel(),
                    group=number,
                    row=layer if number < adapted else -1,
                    counter=counters[id(shards.steps[i])] if shards.steps else 0,
                )
                owner = owners[id(parameter)]
                if laid_out_alike(grad, like):
                    at = Placed(layer, line, grad.data_ptr() - looks[owner][0], owner)
                elif id(parameter) in partitioned:
                    raise UserError("the gradient of a flat partition must be contiguous")
                else:
                    copy = torch.empty_like(like, dtype=grad.dtype)
                    self.copied_grads.append((copy, parameter))
                    at = Placed(layer, line, copy.data_ptr(), None)
                placed.setdefault(types, []).append(at)
            layers += len(shards.names)
        self._fill(placed, layers, looks)

    def _address(self, tensor: Tensor, like: Tensor) -> int:
        """Of the tensor, or of the copy that takes its place."""
        here = tensor
        if not laid_out_alike(tensor, like):
            here = torch.empty_like(like, dtype=tensor.dtype)
            self.copies.append((here, tensor))
        self._kept.append(here)
        return here.data_ptr()

    def _fill(self, placed: dict[tuple[torch.dtype, ...], list[Placed]], layers: int, looks: list[Look]) -> None:
        """In the order of layers, so that the chunks of a layer follow one another."""
        sort = operator.attrgetter("layer")
        self._placed = [part for bucket in placed.values() for part in sorted(bucket, key=sort)]
        counts = [-(-part.line.length // CHUNK) for part in self._placed]
        lengths = torch.tensor(counts, dtype=torch.int64)
        begins = lengths.cumsum(0) - lengths
        numbers = torch.arange(len(counts)).repeat_interleave(lengths)
        ranges = [[0, 0] for _ in range(layers)]
        for part, begin, count in zip(self._placed, begins.tolist(), counts, strict=True):
            known = ranges[part.layer]
            ranges[part.layer] = [known[0] if known[1] else begin, begin + count]
        self.buckets: list[Bucket] = []
        first = done = 0
        for types, bucket in placed.items():
            here = counts[done : done + len(bucket)]
            adapted = sum(part.line.row >= 0 for part in bucket)
            self.buckets.append(Bucket(types, first, sum(here[:adapted]), sum(here)))
            first, done = first + sum(here), done + len(bucket)
        chunks = torch.stack([numbers, torch.arange(len(numbers)) - begins[numbers]], dim=1)
        self.chunks = DeviceTable(chunks, torch.int64, self.device).tensor  # part, which of its chunks
        self.parts = DeviceTable([part.line for part in self._placed], torch.int64, self.device).tensor
        self.ranges = DeviceTable(ranges, torch.int64, self.device).tensor  # the chunks of every layer: first, last + 1
        self.grads = DeviceTable(self._grad_addresses(looks), torch.int64, self.device)
        self.partials = torch.zeros(max(1, first), 2, dtype=torch.float64, device=self.device)

    def move_grads(self, looks: list[Look]) -> None:
        """The gradients lie elsewhere than before."""
        self.grads.fill(self._grad_addresses(looks))

    def _grad_addresses(self, looks: list[Look]) -> list[int]:
        return [part.grad if part.owner is None else part.grad + looks[part.owner][0] for part in self._placed]

    def copy_in(self) -> None:
        if self.copied_grads:
            grads = [elements(p.grad) for _, p in self.copied_grads if p.grad is not None]
            torch._foreach_copy_([copy for copy, _ in self.copied_grads], grads)
        if self.copies:
            torch._foreach_copy_([copy for copy, _ in self.copies], [tensor for _, tensor in self.copies])

    def copy_out(self) -> None:
        if self.copies:
            torch._foreach_copy_([tensor for _, tensor in self.copies], [copy for copy, _ in self.copies])


def look_at(tensors: Sequence[Any]) -> list[Look]:
    """Where tensors lie and how; of a DTensor, what is here. At every step, hence no Python beyond the calls."""
    here = tensors
    if any(issubclass(kind, DTensor) for kind in set(map(type, tensors))):
        here = [t._local_tensor if isinstance(t, DTensor) else t for t in tensors]
    return list(zip(map(Tensor.data_ptr, here), map(Tensor.stride, here), map(DTYPE, here), strict=True))


def laid_out_alike(tensor: Tensor, like: Tensor) -> bool:
    """Whether the same elements follow one another in memory; ``like`` is dense."""
    if tensor.stride() == like.stride():
        return True
    return all(n == 1 or a == b for n, a, b in zip(like.shape, tensor.stride(), like.stride(), strict=True))

"""The engines, where their own machinery cannot hold fake tensors.

fsdp        the real one
ddp         the real one around a stand-in for DistributedDataParallel, whose C++ reads the memory of gradients: the
            same buckets (torch's own division of the gradients in the order in which they arrive), filled and summed
            in the same order. As there, gradients of a micro-batch that does not communicate lie beside the buckets
deepspeed   arithmetic: ZeRO's flat partitions as its stages 1 and 2 cut them, the optimizer told where the layers lie
            as on the cluster, and the collectives of its default settings. Its package is not imported
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from largebatch.checkpoint.pieces import State
from largebatch.engines import Ddp, DeepSpeed, Engine, Fsdp, states
from largebatch.engines.deepspeed import check_one_after_another
from largebatch.engines.engine import check_cut, check_exact
from largebatch.optim.muon import Muon
from largebatch.optim.sharded import ShardedOptimizer
from largebatch.optim.shards import Partition, Segment
from largebatch.plan.batch import BatchPlan
from largebatch.studies.dry_run.trace import fake_addresses_allowed

BUCKET_BYTES = 25 * 2**20  # of DistributedDataParallel, all but the first
ZERO_BUCKET = 500_000_000  # elements: DeepSpeed's reduce_bucket_size
ZERO_ALIGNMENT = 2  # elements per rank: DeepSpeed's nccl_start_alignment_factor
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def as_fakes(model: nn.Module, mode: Any) -> nn.Module:
    """Parameters and buffers keep their shapes, strides and types, and lose their memory."""
    with fake_addresses_allowed(), mode:
        return model.to_empty(device="cpu")


class FakeEngine(Engine):
    """What the three share."""

    def __init__(self, mode: Any, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.mode = mode

    def begin_with_states(self, saved: State, fresh: Collection[str]) -> None:
        """They are those of the same optimizer over the same layers; fakes take none."""
        states.check(self.optimizer, self.layout(), saved)


class FakeDdp(FakeEngine, Ddp):
    def place(self, model: nn.Module) -> nn.Module:
        return as_fakes(super().place(model), self.mode)

    def wrap(self, plan: BatchPlan) -> nn.Module:
        self.reducer = Reducer(self) if dist.get_world_size() > 1 else None
        return self.model

    def communicate(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        self._last = last
        if self.reducer is not None:
            self.reducer.listening = last
        return contextlib.nullcontext()

    def gradient_tensors(self) -> list[Tensor]:
        """All that holds gradients now: the buckets, and what lies beside them."""
        buckets = [bucket.flat for bucket in self.reducer.buckets] if self.reducer is not None else []
        return buckets + [p.grad for p in self.model.parameters() if p.grad is not None]


class GradBucketStandIn:
    """As much of DDP's GradBucket as our communication hook asks for."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.flat = torch.empty(sum(p.numel() for p in parameters), dtype=parameters[0].dtype)
        self.views = {}
        begin = 0
        for parameter in parameters:
            place = self.flat[begin : begin + parameter.numel()]
            self.views[parameter] = place.as_strided(parameter.shape, parameter.stride(), begin)
            begin += parameter.numel()
        self.missing = len(parameters)

    def buffer(self) -> Tensor:
        return self.flat

    def parameters(self) -> list[nn.Parameter]:
        return list(self.views)

    def gradients(self) -> list[Tensor]:
        return [view.view_as(view) for view in self.views.values()]


class Reducer:
    """The first step shows in which order gradients arrive; DDP rebuilds its buckets by it and keeps them."""

    def __init__(self, engine: FakeDdp) -> None:
        self.engine = engine
        self.listening = False
        self.arrived: list[nn.Parameter] = []
        self.buckets: list[GradBucketStandIn] = []
        self.bucket_of: dict[nn.Parameter, GradBucketStandIn] = {}
        for parameter in engine.model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._arrives)

    def build(self) -> None:
        """Between the first step and the second. Workers that step alone from the first one on have sent nothing."""
        if not self.arrived:
            return
        with self.engine.mode:
            for members in buckets_of(self.arrived):
                bucket = GradBucketStandIn(members)
                self.buckets.append(bucket)
                self.bucket_of |= dict.fromkeys(members, bucket)

    def _arrives(self, parameter: Any) -> None:
        if not self.listening:
            return
        if not self.buckets:
            self.arrived.append(parameter)
            return
        bucket = self.bucket_of[parameter]
        bucket.views[parameter].copy_(parameter.grad)
        parameter.grad = bucket.views[parameter]
        bucket.missing -= 1
        if not bucket.missing:
            bucket.missing = len(bucket.views)
            self._sum(bucket)

    def _sum(self, bucket: GradBucketStandIn) -> None:
        if self.engine.parts is not None:
            self.engine.parts.meet(bucket)
        travelling = bucket.flat.to(HALF.get(self.engine.all_reduce, bucket.flat.dtype))
        dist.all_reduce(travelling.div_(dist.get_world_size()))


def buckets_of(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """As DDP divides them: a small first one, so that the summing begins early, then equal ones."""
    limits = [dist._DEFAULT_FIRST_BUCKET_BYTES, BUCKET_BYTES]
    with torch.no_grad():
        like = [torch.empty(p.shape, dtype=p.dtype, device="meta") for p in parameters]
    indices, _ = dist._compute_bucket_assignment_by_size(like, limits, [False] * len(like), list(range(len(like))))
    return [[parameters[i] for i in members] for members in indices]


class FakeFsdp(FakeEngine, Fsdp):
    def place(self, model: nn.Module) -> nn.Module:
        return as_fakes(super().place(model), self.mode)

    def gradient_tensors(self) -> list[Tensor]:
        """Shards; a whole gradient waits for its block's end among the activations."""
        return [p.grad for p in self.model.parameters() if isinstance(p.grad, DTensor)]


class FakeZero(FakeEngine, DeepSpeed):
    """Stages 0, 1 and 2."""

    def __init__(self, mode: Any, *arguments: Any, **settings: Any) -> None:
        super().__init__(mode, *arguments, **settings)
        self.half = self.weights is torch.bfloat16
        self.masters: list[Tensor] = []
        self.flats: list[Tensor] = []  # all weights of a group end to end
        self.bucket: Tensor | None = None

    def place(self, model: nn.Module) -> nn.Module:
        return as_fakes(super().place(model).to(self.weights), self.mode)

    def wrap(self, plan: BatchPlan) -> nn.Module:
        check_cut(self.model, self.NAME)
        if self.zero:
            check_exact(self.optimizer, f"{self.NAME} with engine.zero = {self.zero}", self.shard_safe)
            if isinstance(self.optimizer, ShardedOptimizer):
                check_one_after_another(self.optimizer, None)
            with self.mode:
                for group in self.optimizer.param_groups:
                    self._cut(group)
        elif isinstance(self.optimizer, Muon):
            self.optimizer.deal_among(dist.group.WORLD)
        return self.model

    def _cut(self, group: dict[str, Any]) -> None:
        """Rank zero's: the first of equal ranges of all the group's layers laid end to end."""
        layers, world = group["params"], dist.get_world_size()
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        unit = ZERO_ALIGNMENT * world
        whole = math.ceil(sum(p.numel() for p in layers) / unit) * unit
        flat = torch.empty(whole // world, requires_grad=True)
        everyone = tuple(ranges(layers, rank * len(flat), (rank + 1) * len(flat)) for rank in range(world))
        table = tuple((names[id(layer)], tuple(layer.shape)) for layer in layers)
        group["params"] = [flat]
        self.partitions[id(flat)] = Partition(table, everyone[0], dist.group.WORLD, everyone)
        if isinstance(self.optimizer, ShardedOptimizer):
            self.optimizer.use_partition(flat, self.partitions[id(flat)])
        self.masters.append(flat)
        self.flats.append(torch.empty(whole, dtype=self.weights))

    def communicate(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        self._last = last
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        (loss * dist.get_world_size()).backward()
        if self._last or self.zero == 2:
            self._reduce()

    def _reduce(self) -> None:
        """Buckets are summed whole at every stage; from stage 1 on each rank then keeps its range."""
        elements = sum(p.grad.numel() for p in self.model.parameters() if p.grad is not None)
        for begin in range(0, elements, ZERO_BUCKET):
            dist.all_reduce(torch.empty(min(ZERO_BUCKET, elements - begin), dtype=torch.float32))
        if self.zero == 2:
            for parameter in self.model.parameters():
                parameter.grad = None

    def step(self, measure: bool = False, alone: bool = False) -> Tensor | None:
        for flat in self.masters:
            flat.grad = torch.zeros_like(flat)
        self.optimizer.step()
        for flat in self.flats:
            part = torch.empty(len(flat) // dist.get_world_size(), dtype=flat.dtype)
            dist.all_gather_into_tensor(flat, part)
        for tensor in (*self.model.parameters(), *self.masters):
            tensor.grad = None
        return None

    def gradient_tensors(self) -> list[Tensor]:
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def bytes_by_part(self, gradients: int) -> dict[str, int]:
        """What stays, as DeepSpeed's stages keep it. ``gradients``: bytes of all of them in the weights' type."""
        if not self.zero:
            return {}
        masters = sum(4 * flat.numel() for flat in self.masters)
        frozen = [parameter for parameter in self.model.parameters() if not parameter.requires_grad]
        weights = sum(tensor.numel() * tensor.element_size() for tensor in (*self.flats, *frozen))
        whole = gradients * 3 if self.half else gradients  # beside half-precision gradients their float32 sum
        return {
            "weights": weights,
            "master weights": masters,
            "gradients": masters + (whole if self.zero == 1 else 0),
            "reduction bucket": ZERO_BUCKET * (2 if self.half and self.zero == 2 else 4),
        }


def ranges(layers: list[Tensor], begin: int, end: int) -> tuple[Segment, ...]:
    """Of layers laid end to end what lies between two places."""
    segments, first = [], 0
    for index, layer in enumerate(layers):
        start, stop = max(begin, first), min(end, first + layer.numel())
        if start < stop:
            segments.append(Segment(index, start - begin, stop - start, start - first))
        first += layer.numel()
    return tuple(segments)


FAKES: dict[str, Any] = {"ddp": FakeDdp, "fsdp": FakeFsdp, "deepspeed": FakeZero}

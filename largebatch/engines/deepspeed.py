"""DeepSpeed's ZeRO, with layer-wise optimizers that stay exact (Rajbhandari et al. 2020, 1910.02054).

    zero 0   nothing is divided: DeepSpeed's own data parallelism
    zero 1   optimizer states are divided among the ranks
    zero 2   gradients as well; each micro-batch communicates
    zero 3   weights as well: :func:`show_layers` makes the optimizers exact there, too; a run is offered FSDP2 instead

From stage 1 on an optimizer does not see layers but, for each parameter group, one flat float32 partition: this rank's
range of all the group's layers laid end to end. :func:`show_layers` tells ours where the layers lie in it, from
DeepSpeed's own table (``_hp_mapping``), so that the norms of LARS and LAMB are those of whole layers and Muon's
matrices are whole. It is of use without the rest of this project, too: call it after ``deepspeed.initialize``.

The JSON comes from the BatchPlan, so the two cannot disagree. Accumulation is counted here and shown to DeepSpeed as a
boundary; the loss is divided by the global batch in the loop and nowhere else; clipping is DeepSpeed's alone, and off
unless the run asks for it (left unsaid, DeepSpeed clips at 1.0); there is no DeepSpeed scheduler.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.checkpoint.pieces import Pieces
from largebatch.data.nested import cast
from largebatch.engines import states
from largebatch.engines.engine import Engine, check_cut, check_exact
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.optim.muon import Muon
from largebatch.optim.sharded import ShardedOptimizer
from largebatch.optim.shards import Partition, Segment
from largebatch.plan.batch import BatchPlan


class DeepSpeed(Engine):
    NAME = "deepspeed"
    STRIDED_WEIGHTS = False

    def __init__(
        self,
        device: torch.device,
        precision: str,
        channels_last: bool,
        compile: bool,
        zero: int = 1,
        weights: str = "fp32",
    ) -> None:
        if precision in ("fp16", "fp64"):
            raise UserError(f"precision = {precision} runs on engine.name = ddp or fsdp; deepspeed takes fp32 and bf16")
        if weights == "bf16" and (precision != "bf16" or zero == 0):
            raise UserError("engine.weights = bf16 needs precision = bf16 and engine.zero = 1 or 2")
        super().__init__(device, precision, channels_last, compile)
        self.zero = zero
        self.weights = torch.bfloat16 if weights == "bf16" else torch.float32
        self.partitions: dict[int, Partition] = {}
        if self.weights is torch.bfloat16:
            self.autocast = torch.autocast(device.type, enabled=False)

    @property
    def description(self) -> str:
        weights = ", bf16 weights with fp32 masters" if self.weights is torch.bfloat16 else ""
        return f"{self.NAME}, ZeRO stage {self.zero}{weights}"

    def prepare(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, plan: BatchPlan, max_grad_norm: float | None
    ) -> None:
        super().prepare(model, optimizer, plan, max_grad_norm)
        if self.weights is torch.bfloat16:
            model.register_forward_pre_hook(_in_bfloat16, with_kwargs=True)

    def wrap(self, plan: BatchPlan) -> nn.Module:
        check_cut(self.model, self.NAME)
        if self.zero:
            check_exact(self.optimizer, f"{self.NAME} with engine.zero = {self.zero}", self.shard_safe)
        os.environ.setdefault("LOCAL_RANK", "0")  # alone there is no launcher to say so, and DeepSpeed insists
        deepspeed = installed(self.device)
        if self.device.type == "cpu" and distributed.is_first():
            print("DeepSpeed may now compile its C++ extension for the CPU: about a minute, once", file=sys.stderr)
        with quiet():
            forget_other_groups(deepspeed)
            deepspeed.init_distributed(dist_backend=torch.distributed.get_backend())  # takes up the group there is
            self.engine, *_ = deepspeed.initialize(
                model=self.model,
                optimizer=self.optimizer,
                config=configuration(plan, self.zero, self.max_grad_norm, self.weights),
            )
        self.partitions = show_layers(self.engine)
        return self.engine

    def compiled(self) -> Any:
        self.engine.compile()
        return self.engine

    def communicate(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        self.engine.set_gradient_accumulation_boundary(last)
        self._last = last
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss * distributed.world_size(), scale_wrt_gas=False)
        if not self._last:
            self.engine.step()  # counts the micro-batch, updates nothing

    def step(self, measure: bool = False, alone: bool = False) -> Tensor | None:
        norm = None
        if measure and not self.zero:
            norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        self.engine.step()
        if measure and self.zero:
            norm = torch.as_tensor(self.engine.get_global_grad_norm())
        return norm

    def layout(self) -> states.Layout:
        return super().layout()._replace(partitions=self.partitions)

    def held_weights(self) -> dict[str, Tensor | Pieces]:
        """The float32 weights, which with ZeRO are those that the optimizer sees."""
        found = super().held_weights()
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) in self.partitions:
                    found |= dict(states.held_values(parameter, parameter.detach(), self.layout()))
        return found

    def take_up_weights(self) -> None:
        self._cut_weights(dict(self.model.named_parameters()))

    def _take_weights(self, saved: dict[str, Tensor | Pieces]) -> None:
        super()._take_weights(saved)
        self._cut_weights(saved)

    def _cut_weights(self, saved: Mapping[str, Tensor | Pieces]) -> None:
        """Flat partitions have the saved weights."""
        with torch.no_grad():
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    if id(parameter) in self.partitions:
                        states.cut(self.partitions[id(parameter)], saved, parameter)


def installed(device: torch.device) -> Any:
    """The package, set to this device."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    try:
        import deepspeed
    except ImportError as error:
        raise UserError(
            f"engine.name = deepspeed needs the package deepspeed ({error}); pip install 'largebatch[deepspeed]', or "
            "choose engine.name = ddp or fsdp"
        ) from None
    return deepspeed


_taken_up: list[Any] = []  # the process group that DeepSpeed has made its own of


def forget_other_groups(deepspeed: Any) -> None:
    """DeepSpeed keeps those that it made of a process group, which may have ended: of another they are made anew."""
    from deepspeed.utils import groups

    now = torch.distributed.group.WORLD
    if _taken_up and _taken_up[0] is not now:
        deepspeed.comm.comm.cdb = None
        for name, value in list(vars(groups).items()):
            if re.fullmatch(r"_[A-Z_]+_GROUPS?(_RANKS)?", name):
                setattr(groups, name, {} if isinstance(value, dict) else None)
    _taken_up[:] = [now]


def _in_bfloat16(model: nn.Module, given: Any, named: Any) -> Any:
    """A model with such weights takes numbers in their type; tokens and masks stay what they are."""
    return cast((given, named), torch.bfloat16)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """DeepSpeed warns of optimizers it has not tested (ours knows its layers) and prints what it has compiled."""
    from deepspeed.utils import logger

    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def configuration(
    plan: BatchPlan, zero: int, max_grad_norm: float | None, weights: torch.dtype = torch.float32
) -> dict[str, Any]:
    """DeepSpeed's JSON: every number of the batch from the plan, and nothing that would do a thing twice."""
    return {
        "train_batch_size": plan.global_batch_size,
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation_steps,
        "gradient_clipping": max_grad_norm or 0.0,
        "zero_optimization": {"stage": zero},
        "bf16": {"enabled": weights is torch.bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,  # ours are told where the layers lie
        "steps_per_print": 2**31 - 1,
    }


def show_layers(engine: Any) -> dict[int, Partition]:
    """Tell the optimizer of a ``DeepSpeedEngine`` where the layers lie in its flat partitions, at any ZeRO stage.

    The tables by ``id`` of the partition; none at stage 0. Raises UserError where the optimizer could not be exact.
    """
    stage, optimizer = engine.zero_optimization_stage(), engine.basic_optimizer
    if stage == 0:
        if isinstance(optimizer, Muon):  # whole weights and gradients, alike on all ranks
            optimizer.deal_among(engine.data_parallel_group)
        return {}
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    tables = whole_weights_cut(engine.optimizer, names) if stage < 3 else cut_weights(engine.optimizer, names)
    if isinstance(optimizer, ShardedOptimizer):
        check_one_after_another(optimizer, engine.optimizer)
        for flat, table in tables:
            optimizer.use_partition(flat, table)
    return {id(flat): table for flat, table in tables}


def check_one_after_another(optimizer: ShardedOptimizer, zero: Any) -> None:
    """ZeRO steps one flat partition after another, so what one step must see at once cannot be had."""
    if optimizer.max_grad_norm is not None:
        raise UserError(
            f"max_grad_norm = {optimizer.max_grad_norm} of {type(optimizer).__name__} would see one parameter group at "
            "a time under ZeRO; use DeepSpeed's gradient_clipping (max_grad_norm of the run)"
        )
    of_groups = list(getattr(zero, "sub_group_to_group_id", {}).values())
    for number, group in enumerate(optimizer.param_groups):
        if group.get("momentum_correction") and of_groups.count(number) > 1:
            raise UserError(
                f"momentum_correction under ZeRO 3 needs each parameter group in one sub-group; group {number} is in "
                f"{of_groups.count(number)}: raise zero_optimization.sub_group_size"
            )


def whole_weights_cut(zero: Any, names: dict[int, str]) -> list[tuple[Tensor, Partition]]:
    """Stages 1 and 2: a group's layers laid end to end and cut into equal ranges, one for each rank."""
    found = []
    for number, group in enumerate(zero.optimizer.param_groups):
        [flat] = group["params"]
        layers = (zero.bit16_groups if hasattr(zero, "bit16_groups") else zero.bf16_groups)[number]
        segments = []
        for index, layer in enumerate(layers):
            if (piece := layer._hp_mapping) is not None:
                here, there = piece.hp_fragment_address, piece.lp_fragment_address
                segments.append(Segment(index, here.start, here.numel, there.start))
        table = tuple((names[id(layer)], tuple(layer.shape)) for layer in layers)
        found.append((flat, Partition(table, tuple(segments), zero.dp_process_group)))
    return found


def cut_weights(zero: Any, names: dict[int, str]) -> list[tuple[Tensor, Partition]]:
    """Stage 3: every layer cut into equal ranges, the last padded; this rank's of a sub-group's layers end to end."""
    found = []
    rank = torch.distributed.get_rank(zero.dp_process_group)
    for flat, layers in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
        segments = []
        offset = 0
        for index, layer in enumerate(layers):
            size = layer.partition_numel()
            start = rank * size
            if (length := min(size, layer.ds_numel - start)) > 0:
                segments.append(Segment(index, offset, length, start))
            offset += size
        table = tuple((names[id(layer)], tuple(layer.ds_shape)) for layer in layers)
        found.append((flat, Partition(table, tuple(segments), zero.dp_process_group)))
    return found

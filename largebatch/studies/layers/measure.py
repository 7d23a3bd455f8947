"""One micro-batch, forward and backward, through the model of a dry run: whose parameters, operations and activations.

Operations are counted by torch (``FlopCounterMode``): those of matrix products, attention and convolutions, two for
each multiply-add. A module has what was counted between its being called and its answer, so with what lies below it.

Activations are what autograd keeps for the backward pass, each storage once: where several layers keep the same, it
counts for the first. Weights and buffers are none; the input is, where a layer keeps it, and so are weights in
bf16 or fp16 that autocast made. The most that lies in memory during a step is the dry run's number, which has gradients
of activations and what passes in between, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from largebatch.data.nested import Batch, tensors_of
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.recipes import config
from largebatch.recipes.config.engines import DdpEngine
from largebatch.records.looking import LayerRow, ModelRecord
from largebatch.run.assemble import Job
from largebatch.studies.dry_run.autocast import AsOnCuda
from largebatch.studies.dry_run.job import Cluster, job_of, pretended
from largebatch.studies.dry_run.step import numbers_of, size_of
from largebatch.studies.dry_run.trace import fake_addresses_allowed


@dataclasses.dataclass
class SeenLayer:
    """What one forward pass showed of a module."""

    calls: int = 0
    output_shape: list[int] | None = None
    flops: int = 0
    kept_bytes: int = 0


class Watcher:
    """Hooks on every module of ``model``; ``counter`` counts meanwhile."""

    def __init__(self, model: nn.Module, counter: FlopCounterMode) -> None:
        self.counter = counter
        self.seen = {module: SeenLayer() for module in model.modules()}
        self.open: list[tuple[nn.Module, int]] = []  # modules at work, and what was counted before each
        self.held = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self.kept: dict[int, int] = {}  # storages kept for the backward pass, and their bytes
        self.alive: list[Tensor] = []  # so that no address is given twice

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        hooks = [
            handle
            for module in self.seen
            for handle in (module.register_forward_pre_hook(self._begins), module.register_forward_hook(self._ends))
        ]
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _begins(self, module: nn.Module, _: Any) -> None:
        self.open.append((module, self.counter.get_total_flops()))

    def _ends(self, module: nn.Module, _: Any, output: Any) -> None:
        _, before = self.open.pop()
        seen = self.seen[module]
        seen.calls += 1
        if not any(module is above for above, _ in self.open):  # of one within itself all was counted
            seen.flops += self.counter.get_total_flops() - before
        tensors = [leaf for leaf in tree_leaves(_plain(output)) if isinstance(leaf, Tensor)]
        if seen.output_shape is None and tensors:
            seen.output_shape = list(tensors[0].shape)

    def _keep(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        key = _storage(tensor)
        if key not in self.held and key not in self.kept:
            self.kept[key] = size = tensor.untyped_storage().nbytes()
            self.alive.append(tensor)
            for module in dict.fromkeys(module for module, _ in self.open):
                self.seen[module].kept_bytes += size
        return tensor


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _plain(output: Any) -> Any:
    """What transformers' models give is a dictionary of its own kind."""
    return dict(output) if isinstance(output, dict) else output


def measured(run: config.Run, cluster: Cluster) -> ModelRecord:
    """Raises UserError where ``train`` would.

    The engine is ``ddp`` whichever the recipe names: others cut the same layers.
    """
    if distributed.joined():
        raise UserError("recipe model pretends its ranks; start it without a launcher")
    run = run.model_copy(update={"engine": DdpEngine()})
    with pretended(cluster.world_size):
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        job = dataclasses.replace(job_of(run, cluster, mode), device=torch.device("cpu"))
        with fake_addresses_allowed(), mode, AsOnCuda() if cluster.device == "cuda" else contextlib.nullcontext():
            return _of_job(job, cluster.device)


def _of_job(job: Job, device: str) -> ModelRecord:
    run, model, task = job.run, job.engine.model, job.task
    stage = max(job.plan.stages, key=lambda stage: numbers_of(job, stage))
    batch: Batch = job.placement.placed(job.dataset.blank(stage.micro_batch_size, size_of(job, stage)))
    shape, micro = list(tensors_of(batch)[0].shape), stage.micro_batch_size
    model.train()
    counter = FlopCounterMode(display=False)
    watcher = Watcher(model, counter)
    with counter:
        with watcher.watching():
            outputs = job.engine.predict(task, batch)
            of_model = counter.get_total_flops()
            loss = task.loss(outputs, batch)
        forward = counter.get_total_flops()
        loss.backward()
        backward = counter.get_total_flops() - forward
    trainable, frozen = parameters_of(model)
    rows = list(rows_of(watcher, model, micro, of_model))
    return ModelRecord(
        recipe=run.name,
        model=run.model.name,
        data=run.data.name,
        task=job.decided.task,
        device=device,
        precision=job.decided.precision,
        micro_batch_size=micro,
        input_shape=shape,
        trainable=trainable,
        frozen=frozen,
        forward_flops=forward // micro,
        backward_flops=backward // micro,
        activation_bytes=sum(watcher.kept.values()),
        layers=rows,
        outside_flops=(forward - of_model) // micro,
    )


def rows_of(watcher: Watcher, model: nn.Module, micro: int, of_model: int) -> Iterator[LayerRow]:
    """The whole model, and every module in it once, in the order of their names' definition."""
    for name, module in model.named_modules():
        seen = watcher.seen[module]
        flops = seen.flops if name else of_model  # a task may call parts of the model, and never the whole
        trainable, frozen = parameters_of(module)
        yield LayerRow(
            name=name,
            type=type(module).__name__,
            depth=name.count(".") + 1 if name else 0,
            trainable=trainable,
            frozen=frozen,
            calls=seen.calls,
            output_shape=seen.output_shape,
            forward_flops=flops // micro,
            share_percent=100 * flops / of_model if of_model else None,
            activation_bytes=seen.kept_bytes if name or seen.calls else sum(watcher.kept.values()),
        )


def parameters_of(module: nn.Module) -> tuple[int, int]:
    """Trainable and frozen, each once."""
    both = {flag: sum(p.numel() for p in module.parameters() if p.requires_grad is flag) for flag in (True, False)}
    return both[True], both[False]

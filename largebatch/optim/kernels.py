"""The fused form of LARS and LAMB on CUDA: a step in a few launches, however many tensors there are.

    count     LAMB: t ← t + 1 and the bias corrections                    one number per tensor
    clip      only with max_grad_norm: the global norm of the gradients   reads g; three launches
    measure   sums of squares of every chunk, and LAMB's moments          LARS reads w, g; LAMB w, g, m, v, writes m, v
    reduce    chunks -> whole layers, one small all-reduce if sharded     reads the sums
    advance   the ratio from the sums, then the step                      LARS reads w, g, v, writes w, v;
                                                                          LAMB reads w, m, v, writes w

``measure`` and ``advance`` are launched once for each combination of types. The kernels (``triton_kernels``) find
everything in tables on the device (:mod:`largebatch.optim.tables`), which are sent again from pinned memory when
something in them changed: no step waits for the device, and a CUDA graph can be captured.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import operator
import os
from typing import Any

import torch
from torch import Tensor

from largebatch.optim import tables
from largebatch.optim.loading import Group
from largebatch.optim.shards import Shards, add_up
from largebatch.optim.tables import DeviceTable, GroupSettings, Tables, look_at


@functools.cache
def usable(device: torch.device) -> bool:
    """On CUDA with Triton; on the CPU only in Triton's interpreter, for tests."""
    if importlib.util.find_spec("triton") is None:
        return False
    if device.type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    if programs:
        kernel[(programs,)](*arguments, **constants)


class KernelStep:
    """One step of all groups, from tables made for these parameters and the places where they lie."""

    def __init__(self, optimizer: Any, work: list[tuple[Shards, Group]]) -> None:
        from largebatch.optim import triton_kernels  # not before it is needed: Triton may be absent

        work = sorted(work, key=lambda item: not optimizer.adapts(item[1]))
        everything = [shards for shards, _ in work]
        self.kernels = triton_kernels
        self.optimizer = optimizer
        self.device = everything[0].device
        self.groups = [group for _, group in work]
        self.names = [shards.names for shards in everything]
        self.process_groups = [groups for shards in everything for groups in shards.groups]
        self.adapted = [len(shards.names) for shards, group in work if optimizer.adapts(group)]
        self.signature = self._signature()
        self.buffers = self._buffers()
        self.parameters = self._all_parameters()
        self.without_gradient = [p.grad is None for p in self.parameters]
        self.moving = [p for p in self.parameters if p.grad is not None]
        self.weights, self.grads = look_at(self.moving), look_at([p.grad for p in self.moving])
        counters = self._take_counters(everything)
        self.tables = Tables(everything, len(self.adapted), counters, self.moving, optimizer.partitions)
        self.rows: list[GroupSettings] = []
        self.settings = DeviceTable([[0.0] * len(GroupSettings._fields)] * (len(work) + 1), torch.float64, self.device)
        self.slots = [
            dict(zip(GroupSettings._fields, line.unbind(), strict=True)) for line in self.settings.tensor.unbind()
        ]
        self.previous_lrs = [self._previous_lr(group) for group in self.groups]
        self.sums = torch.zeros(len(self.process_groups), 2, dtype=torch.float64, device=self.device)
        self.clip = torch.ones((), dtype=torch.float64, device=self.device)

    def _all_parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _buffers(self) -> list[Any]:
        """One state tensor of each parameter: others if somebody has replaced them."""
        name, state = self.optimizer.BUFFERS[0], self.optimizer.state
        return [state[p].get(name) if p.grad is not None else None for p in self._all_parameters()]

    def _signature(self) -> list[Any]:
        """What decides about the launches of a step, besides the tensors."""
        kinds = [(self._lr_on_device(group), self.optimizer.adapts(group)) for group in self.groups]
        return [self.optimizer.max_grad_norm is None, kinds]

    def _lr_on_device(self, group: Group) -> bool:
        return isinstance(group["lr"], Tensor) and group["lr"].device == self.device

    def _previous_lr(self, group: Group) -> Tensor | None:
        """Kept on the device where the lr is, so that the momentum correction does not wait for it."""
        if not self._lr_on_device(group):
            return None
        known = group.get("previous_lr", group["lr"])
        previous = torch.zeros((), dtype=torch.float64, device=self.device)
        group["previous_lr"] = previous.copy_(known) if isinstance(known, Tensor) else previous.fill_(known)
        return previous

    def _take_counters(self, everything: list[Shards]) -> dict[int, int]:
        """The counters of updates become views of one vector on the device; where each of them is there."""
        found = {
            id(step): (step, parameter, number)
            for number, shards in enumerate(everything)
            for step, parameter in zip(shards.steps, shards.parameters, strict=False)
        }
        self.steps = torch.zeros(len(found), device=self.device)
        self.corrections = torch.ones(max(1, len(found)), 2, dtype=torch.float64, device=self.device)
        self.counter_groups = DeviceTable([number for _, _, number in found.values()], torch.int64, self.device).tensor
        if not found:
            return {}
        steps = [step for step, _, _ in found.values()]
        if all(step.device.type == "cpu" for step in steps):
            self.steps = DeviceTable(torch.stack(steps), torch.float32, self.device).tensor
        else:
            self.steps = torch.stack([step.to(self.device, torch.float32) for step in steps])
        for view, (_, parameter, _) in zip(self.steps.unbind(), found.values(), strict=True):
            self.optimizer.state[parameter]["step"] = view
        return {key: i for i, key in enumerate(found)}

    def fits(self) -> bool:
        """Whether everything lies where it lay; gradients may have moved."""
        parameters = self._all_parameters()
        if len(parameters) != len(self.parameters) or not all(map(operator.is_, parameters, self.parameters)):
            return False
        grads = [p.grad for p in parameters]
        if [g is None for g in grads] != self.without_gradient or self._signature() != self.signature:
            return False
        if look_at(self.moving) != self.weights or not all(map(operator.is_, self._buffers(), self.buffers)):
            return False
        grads = look_at([g for g in grads if g is not None])
        if grads != self.grads:
            if [look[1:] for look in grads] != [look[1:] for look in self.grads]:
                return False
            self.grads = grads
            self.tables.move_grads(grads)
        return True

    def step(self) -> list[tuple[Group, list[str], Tensor]]:
        with torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext():
            settings = self._settle()
            self.tables.copy_in()
            sums = self._launch_all()
            self.tables.copy_out()
        of_groups = sums[: sum(self.adapted)].split(self.adapted) if self.adapted else ()
        return list(zip(settings, self.names, of_groups, strict=False))

    def _settle(self) -> list[Group]:
        """The settings of this step, sent if they have changed; a learning rate on the device stays there."""
        settings, rows = [], []
        for group, previous in zip(self.groups, self.previous_lrs, strict=True):
            if previous is None:
                settings.append(self.optimizer.settled(group))
                rows.append(self.optimizer.kernel_row(settings[-1]))
            else:
                settings.append({**group, "buffer_scale": group.get("momentum", 0.0)})
                rows.append(self.optimizer.kernel_row(settings[-1])._replace(lr=0.0))
        rows.append(GroupSettings(self.optimizer.max_grad_norm or math.inf, 0.0))
        if rows != self.rows:
            self.settings.fill(rows)
            self.rows = rows
        for group, previous, slots in zip(self.groups, self.previous_lrs, self.slots, strict=False):
            if previous is None:
                continue
            slots["lr"].copy_(group["lr"])
            if group.get("momentum_correction"):
                factor = (slots["lr"] / previous).where(previous > 0, 1.0)
                slots["buffer_scale"].copy_(factor * group["momentum"])
            previous.copy_(slots["lr"])
        return settings

    def _launch_all(self) -> Tensor:
        kernels, lamb = self.kernels, self.optimizer.KERNELS == "lamb"
        measure = kernels.lamb_measure if lamb else kernels.lars_measure
        advance = kernels.lamb_advance if lamb else kernels.lars_advance
        tables_ = (self.tables.parts, self.tables.grads.tensor, self.tables.chunks)
        common = (*tables_, self.settings.tensor, self.clip, self.corrections)
        sizes = {"CHUNK": tables.CHUNK, "BLOCK": tables.BLOCK}
        if many := len(self.steps):
            counted = (self.steps, self.counter_groups, self.settings.tensor, self.corrections, many)
            launch(kernels.lamb_count, -(-many // 128), *counted, BLOCK=128)
        buckets = [(bucket, *(kernels.TYPES[dtype] for dtype in bucket.types)) for bucket in self.tables.buckets]
        if self.optimizer.max_grad_norm is not None:
            for bucket, w, g, _ in buckets:
                place = (self.tables.partials, bucket.first)
                launch(kernels.gradient_squares, bucket.chunks, *tables_, *place, W=w, G=g, **sizes)
            layers = len(self.process_groups)
            largest = self.slots[-1]["lr"]
            launch(kernels.clip_coefficient, 1, self._reduce(layers), layers, largest, self.clip, BLOCK=512)
        for bucket, w, g, _ in buckets:
            chunks = bucket.chunks if lamb else bucket.adapted
            launch(measure, chunks, *common, self.tables.partials, bucket.first, W=w, G=g, **sizes)
        sums = self._reduce(sum(self.adapted))
        for bucket, w, g, r in buckets:
            launch(advance, bucket.chunks, *common, sums, bucket.first, W=w, G=g, R=r, HALF=r != w, **sizes)
        return sums

    def _reduce(self, layers: int) -> Tensor:
        """The sums of the first so many layers, in the whole world."""
        if not layers:
            return self.sums
        launch(self.kernels.reduce, layers, self.tables.partials, self.tables.ranges, self.sums, BLOCK=512)
        return add_up([self.sums[:layers]], [self.process_groups[:layers]])[0]

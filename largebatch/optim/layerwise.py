"""What LARS and LAMB share: the walk of one step, in three forms of one truth.

    for every group:   propose        what the layer's ratio is measured against
    once:              add up         the sums of squares of whole layers, one small all-reduce if they are sharded
    for every group:   advance        the step, scaled by the ratio of each layer

``plain`` does it tensor after tensor and is the specification. ``foreach`` is the same algebra on lists of tensors.
``fused`` takes all of it in a few passes over memory: Triton kernels on CUDA (:mod:`largebatch.optim.kernels`), on the
CPU torch's fused kernels. All read ``p.grad`` and never write it, and none reads anything back to the host on CUDA.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from largebatch.errors import UserError, suggestion
from largebatch.optim import cpu, kernels
from largebatch.optim.loading import Group, State
from largebatch.optim.sharded import ShardedOptimizer
from largebatch.optim.shards import Shards, add_up

FORMS = ("auto", "plain", "foreach", "fused")
CACHED_ELEMENTS = 1 << 20  # layers that the fused form on the CPU takes together


class Layer(NamedTuple):
    """One part as the plain form sees it."""

    weight: Tensor
    grad: Tensor
    buffers: dict[str, Tensor]
    step: int  # updates so far, this one included


class LayerwiseOptimizer(ShardedOptimizer):
    """Each optimizer says what it proposes and how it advances, for one layer and for lists.

    Groups carry ``adapt``: whether their tensors take the trust ratio (default True). The settings that reach the
    algebra are the group's, with ``buffer_scale`` added: momentum, times the momentum correction of this step.
    """

    BUFFERS: tuple[str, ...] = ()  # the states, each of its parameter's shape
    COUNTED = False  # whether updates are counted per tensor, in the state "step"
    USES_SCRATCH = False  # what it proposes on the CPU takes memory of its own; it clips there, too
    KERNELS: str | None = None  # its name among the Triton kernels, which read its settings by ``kernel_row``

    def __init__(
        self, params: Iterable[Any], defaults: dict[str, Any], form: str, max_grad_norm: float | None = None
    ) -> None:
        if form not in FORMS:
            raise UserError(f"form = {form!r} is not known{suggestion(str(form), list(FORMS))}")
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise UserError(f"max_grad_norm = {max_grad_norm} must be above 0")
        self.form = form
        self.max_grad_norm = max_grad_norm
        # Of the last step of each of its parameters: (settings, layers, sums of squares) of the adapted groups.
        self._measured: dict[tuple[int, ...], list[Measured]] = {}
        # By the parameters it was made for: ZeRO steps one flat partition after another.
        self._triton: dict[tuple[int, ...], kernels.KernelStep] = {}
        self._scratch: cpu.Scratch | None = None
        super().__init__(params, {"adapt": True, **defaults})

    @abc.abstractmethod
    def propose(self, layer: Layer, group: Group) -> Tensor:
        """What the ratio of this layer is measured against; updates the states that do not depend on the ratio."""

    @abc.abstractmethod
    def advance(self, layer: Layer, proposal: Tensor, ratio: Tensor | float, group: Group) -> None:
        """The step of this layer."""

    @abc.abstractmethod
    def propose_all(self, shards: Shards, group: Group) -> list[Tensor]:
        """``propose`` on lists."""

    @abc.abstractmethod
    def advance_all(self, shards: Shards, proposals: list[Tensor], ratios: list[Tensor] | None, group: Group) -> None:
        """``advance`` on lists; ``ratios`` None means 1 everywhere."""

    def propose_fused(self, shards: Shards, group: Group) -> list[Tensor]:
        """``propose`` on the CPU, in few passes over memory; the gradients are still to be multiplied by ``clip``."""
        return self.propose_all(shards, group)

    def advance_fused(self, shards: Shards, proposals: list[Tensor], ratios: list[Tensor] | None, group: Group) -> None:
        """``advance`` on the CPU, in few passes over memory."""
        self.advance_all(shards, proposals, ratios, group)

    def ratios(self, weight_norms: Tensor, proposal_norms: Tensor, group: Group) -> Tensor:
        """The trust ratios of layers, from the norms of the whole layers."""
        return torch.ones_like(weight_norms)

    def bounded(self, weight_norms: Tensor, proposal_norms: Tensor, group: Group) -> Tensor:
        """Where a bound, not the norms, decided the ratio."""
        return torch.zeros_like(weight_norms, dtype=torch.bool)

    def adapts(self, group: Group) -> bool:
        return group["adapt"]

    def settled(self, group: Group) -> Group:
        """The settings of one step: the group's with its lr as a number, and ``buffer_scale``."""
        scale = group.get("momentum", 0.0) * momentum_correction(group)
        return {**group, "lr": float(group["lr"]), "buffer_scale": scale}

    def buffers_of(self, group: Group) -> tuple[str, ...]:
        return self.BUFFERS

    def counts(self, group: Group) -> bool:
        return self.COUNTED

    def measures(self, group: Group) -> bool:
        return self.adapts(group) or self.max_grad_norm is not None

    def forget_layout(self) -> None:
        self._triton.clear()

    @_disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        which = tuple(id(parameter) for group in self.param_groups for parameter in group["params"])
        made = self._triton.get(which)
        self._measured = {key: kept for key, kept in self._measured.items() if not set(key) & set(which)}
        self._measured[which] = now = []
        if made is not None and self.form in ("auto", "fused") and made.fits():
            now += made.step()
            return loss
        self._triton.pop(which, None)
        work = [
            (self._shards(number, group, parameters), group)
            for number, group in enumerate(self.param_groups)
            if (parameters := [p for p in group["params"] if p.grad is not None])
        ]
        if not work:
            return loss
        form = self._form(work)
        if form == "triton":
            apart = {those: made for those, made in self._triton.items() if not set(those) & set(which)}
            self._triton = {**apart, which: kernels.KernelStep(self, work)}  # it takes the counters over
            self._kept.clear()  # the kernels' tables take its place, and its counters are not the state's any more
            now += self._triton[which].step()
            return loss
        coefficient = self.clip_coefficient([shards for shards, _ in work])
        prepared = []
        for shards, group in work:
            for counter in {id(step): step for step in shards.steps}.values():
                counter.add_(1)
            shards.grads = [g.to(w.dtype) for g, w in zip(shards.grads, shards.weights, strict=True)]
            if coefficient is not None and not (form == "fused" and self.USES_SCRATCH):
                shards.grads = [g * coefficient for g in shards.grads]
            prepared.append((shards, {**self.settled(group), "clip": coefficient}))
        for together in self._rounds(prepared) if form == "fused" else [prepared]:
            now += self._advance_together(together, form)
        for shards, _ in prepared:
            shards.forget_grads()
        return loss

    @property
    def measured(self) -> list[Measured]:
        """What the last step measured, of each adapted group: its settings, layers, and (layers, 2) sums of squares."""
        return [one for kept in self._measured.values() for one in kept]

    def _rounds(self, work: list[Work]) -> list[list[Work]]:
        """A few layers after a few, so that what is proposed stays in the cache; all at once where it is sharded."""
        if not self.USES_SCRATCH or not all(shards.alone for shards, _ in work):
            return [work]
        return [[(piece, group)] for shards, group in work for piece in shards.pieces(CACHED_ELEMENTS)]

    def _advance_together(self, work: list[Work], form: str) -> list[Measured]:
        """Propose, add up, advance: for groups whose layers' sums travel in one all-reduce. What was measured."""
        if self._scratch is not None:
            self._scratch.reset()
        propose, advance = {
            "plain": (self._propose_plain, self._advance_plain),
            "foreach": (self.propose_all, self.advance_all),
            "fused": (self.propose_fused, self.advance_fused),
        }[form]
        proposals = [propose(shards, group) if len(shards) else [] for shards, group in work]
        adapted = [i for i, (_, group) in enumerate(work) if self.adapts(group)]
        sums = add_up(
            [work[i][0].sums(work[i][0].weights, proposals[i]) for i in adapted], [work[i][0].groups for i in adapted]
        )
        ratios: dict[int, Tensor] = {}
        measured: list[Measured] = []
        for i, matrix in zip(adapted, sums, strict=True):
            shards, group = work[i]
            measured.append((group, shards.names, matrix))
            weight_norms, proposal_norms = matrix.sqrt().unbind(1)
            ratios[i] = self.ratios(weight_norms, proposal_norms, group)
        for i, (shards, group) in enumerate(work):
            if not len(shards):
                continue  # this rank holds nothing of these layers, and was needed for their sums alone
            of_parts = None
            if i in ratios:
                of_layers = ratios[i].unbind()
                of_parts = [of_layers[row] for row in shards.rows]
            advance(shards, proposals[i], of_parts, group)
            for weight, rounded in zip(shards.weights, shards.rounded, strict=True):
                if rounded is not None:
                    rounded.copy_(weight)
        return measured

    def _propose_plain(self, shards: Shards, group: Group) -> list[Tensor]:
        return [self.propose(layer, group) for layer in layers(shards)]

    def _advance_plain(
        self, shards: Shards, proposals: list[Tensor], ratios: list[Tensor] | None, group: Group
    ) -> None:
        for i, layer in enumerate(layers(shards)):
            self.advance(layer, proposals[i], ratios[i] if ratios else 1.0, group)

    def _form(self, work: list[Work]) -> str:
        devices = {tensor.device for shards, _ in work for tensor in (*shards.weights, *shards.grads)}
        device = work[0][0].device
        usable = devices <= {device} and self.KERNELS is not None and kernels.usable(device)
        if self.form in ("auto", "fused") and usable:
            return "triton"
        if self.form == "fused" and device.type != "cpu":
            if self.KERNELS is None:
                return "foreach"
            raise UserError(
                f'form = "fused" needs Triton and {type(self).__name__}\'s tensors on one CUDA device; valid here: '
                "auto, plain, foreach"
            )
        if self.form == "auto":
            return "fused" if device.type == "cpu" else "foreach"
        return self.form

    def clip_coefficient(self, everything: list[Shards]) -> Tensor | None:
        """min(1, max_grad_norm / global gradient norm), on the device; None where nothing is to be clipped."""
        if self.max_grad_norm is None:
            return None
        total = add_up([s.sums(s.grads) for s in everything], [s.groups for s in everything])
        norm = torch.cat(total)[:, 0].sum().sqrt()
        return (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)

    def __getstate__(self) -> State:
        return {**super().__getstate__(), "_measured": {}, "_triton": {}, "_scratch": None}


Work = tuple[Shards, Group]
Measured = tuple[Group, list[str], Tensor]


def layers(shards: Shards) -> list[Layer]:
    return [
        Layer(
            weight,
            shards.grads[i],
            {name: tensors[i] for name, tensors in shards.buffers.items()},
            int(shards.steps[i]) if shards.steps else 0,
        )
        for i, weight in enumerate(shards.weights)
    ]


def momentum_correction(group: Group) -> float:
    """Goyal et al. 2017, eq. 10: η_new/η_old for a buffer that has absorbed the lr; 1 when not asked for.

    Where η_old is 0 the buffer holds nothing of that step, and the factor is 1.
    """
    lr = float(group["lr"])
    previous, group["previous_lr"] = float(group.get("previous_lr", lr)), lr
    return lr / previous if group.get("momentum_correction") and previous > 0 else 1.0

"""pytorch_optimizer's Shampoo, ScalableShampoo and SOAP, as a run needs them. To be imported where the package is.

Two things are common to them. A gradient that is not finite makes weights that are none, as it does with every other
optimizer, so that the run says which step it was; the package would end in its decomposition. And states are tensors,
or lists of them, between two steps, since that is what a checkpoint holds.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from pytorch_optimizer.optimizer.shampoo import ScalableShampoo, Shampoo
from pytorch_optimizer.optimizer.soap import SOAP
from torch import Tensor
from torch.utils._pytree import tree_leaves

SEED = 1729


class Soap(SOAP):
    """Products round by how their factors lie in memory, so states lie as they do after a resume."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with diverging_as_others_do(self):
            loss = super().step(closure)
        for weight, state in self.state.items():
            for key in ("exp_avg", "exp_avg_sq"):
                if state[key].stride() != weight.stride():
                    state[key] = torch.empty_like(weight).copy_(state[key])
            state["Q"] = [basis.contiguous() if isinstance(basis, Tensor) else basis for basis in state["Q"]]
        return loss


class GuptaShampoo(Shampoo):
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with diverging_as_others_do(self):
            return super().step(closure)


class AnilShampoo(ScalableShampoo):
    """Its states are objects in the package.

    Its estimate of a largest eigenvalue begins with numbers that are drawn: here the same at every step and on every
    rank, and without a trace in the stream from which a run draws its own, such as dropout.
    """

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, **settings)
        self._parts: dict[Tensor, tuple[Any, Any]] = {}  # the package's preconditioner and graft of each weight

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        device = next(p.device for group in self.param_groups for p in group["params"])
        with diverging_as_others_do(self):
            try:
                with draws_of_its_own(device):
                    return super().step(closure)
            finally:
                self._lay_down()

    def init_group(self, group: dict[str, Any], **kwargs: Any) -> None:
        """The package's objects, with what has been kept of them."""
        group.setdefault("step", 0)
        for weight in group["params"]:
            if weight.grad is None:
                continue
            kept = self.state.pop(weight, None)
            if not kept or weight not in self._parts:
                super().init_group({**group, "params": [weight]})
                made = self.state[weight]
                self._parts[weight] = made["pre_conditioner"], made["graft"]
            if kept:
                self.state[weight] = self._taken_up(weight, kept)

    def _taken_up(self, weight: Tensor, kept: dict[str, Any]) -> dict[str, Any]:
        factors, graft = self._parts[weight]
        factors.statistics, factors.pre_conditioners = kept["statistics"], kept["roots"]
        graft.momentum = kept["graft_momentum"]
        if "graft_squares" in kept:
            graft.statistics = kept["graft_squares"]
        return {"momentum": kept["momentum"], "pre_conditioner": factors, "graft": graft}

    def _lay_down(self) -> None:
        for weight, (factors, graft) in self._parts.items():
            state = self.state[weight]
            if "graft" not in state:
                continue
            squares = getattr(graft, "statistics", None)
            self.state[weight] = {
                "momentum": state["momentum"],
                "statistics": factors.statistics,
                "roots": factors.pre_conditioners,
                "graft_momentum": graft.momentum,
                **({} if squares is None else {"graft_squares": squares}),
            }


@contextlib.contextmanager
def diverging_as_others_do(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, a step that cannot be made for what is not finite leaves weights that are none."""
    try:
        yield
    except torch.linalg.LinAlgError:
        weights = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        held = [*(p.grad for p in weights), *tree_leaves(dict(optimizer.state))]
        if all(tensor.isfinite().all() for tensor in held if isinstance(tensor, Tensor)):
            raise
        for weight in weights:
            weight.fill_(math.nan)


@contextlib.contextmanager
def draws_of_its_own(device: torch.device) -> Iterator[None]:
    """Inside, torch's generators of the CPU and the ``device`` begin at one seed; afterwards they are as before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(SEED)
        yield

"""More than one set of weights: an exponential moving average beside the trained ones, and workers that step alone.

EMA            w_ema ← d·w_ema + (1 − d)·w            after every so many steps; batch-norm statistics as well
post-local     K workers step alone and are averaged every H steps (Lin et al. 2020, 1808.07217), by torch's
               model averaging. A rank holds K / world workers and steps them in turn: the result does not
               depend on how many devices there are
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.algorithms.model_averaging.utils import average_parameters
from torch.distributed.tensor import DTensor

from largebatch.checkpoint import pieces
from largebatch.engines import Engine, states
from largebatch.machine import distributed
from largebatch.optim.shards import local


class Ema:
    """Follows whatever this rank holds of the weights: it is as sharded as they are."""

    def __init__(self, engine: Engine, decay: float, every_steps: int) -> None:
        self.engine, self.decay, self.every_steps = engine, decay, every_steps
        self.statistics = list(engine.statistics().values())
        self.average = [tensor.detach().clone() for tensor in self._live()]

    def _live(self) -> list[Tensor]:
        return [local(parameter).detach() for parameter in self.engine.model.parameters()] + self.statistics

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """``step`` updates are done."""
        if step % self.every_steps == 0:
            self.follow()

    @torch.no_grad()
    def follow(self) -> None:
        torch._foreach_lerp_(self.average, self._live(), 1.0 - self.decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        live = self._live()
        kept = [tensor.clone() for tensor in live]
        torch._foreach_copy_(live, self.average)
        torch._foreach_copy_(self.average, kept)

    def save(self) -> dict[str, Any]:
        named = list(self.engine.model.named_parameters())
        return {
            name: pieces.piece_of_rows(average, tuple(p.shape), p) if isinstance(p, DTensor) else average
            for (name, p), average in zip(named, self.average, strict=False)
        }

    def save_own(self) -> dict[str, Any]:
        of_norms = self.average[len(self.average) - len(self.statistics) :]
        return dict(zip(self.engine.statistics(), of_norms, strict=True))

    @torch.no_grad()
    def load(self, weights: dict[str, Any], statistics_of_ranks: list[dict[str, Any]]) -> None:
        same_world = len(statistics_of_ranks) == distributed.world_size()
        mean = states.mean_statistics(statistics_of_ranks)
        own = statistics_of_ranks[distributed.rank()] if same_world else mean
        with self.applied():
            states.take_weights(self.engine.model, weights)
            for name, buffer in self.engine.statistics().items():
                buffer.copy_(own[name])


class Workers:
    """``count`` sets of weights, statistics and optimizer states, begun as copies of the model's.

    One of this rank's is in the model at a time (:meth:`enter`).
    """

    def __init__(self, engine: Engine, count: int) -> None:
        self.engine = engine
        self.statistics = list(engine.statistics().values())
        self.counters = [buffer for buffer in engine.model.buffers() if not buffer.is_floating_point()]
        self.here = count // distributed.world_size()
        self.inside = 0
        self.kept = [[t.clone() for t in self._everything()] for _ in range(self.here if self.here > 1 else 0)]
        self.states = [copy.deepcopy(engine.optimizer.state_dict()) for _ in self.kept]

    def _live(self) -> list[Tensor]:
        """What is averaged."""
        return [p.detach() for p in self.engine.model.parameters()] + self.statistics

    def _everything(self) -> list[Tensor]:
        """What is averaged, and then what merely counts."""
        return self._live() + self.counters

    @torch.no_grad()
    def enter(self, worker: int) -> None:
        """This rank's ``worker`` is in the model from now on."""
        if worker == self.inside:
            return
        torch._foreach_copy_(self.kept[self.inside], self._everything())
        self.states[self.inside] = self.engine.optimizer.state_dict()
        torch._foreach_copy_(self._everything(), self.kept[worker])
        self.engine.optimizer.load_state_dict(self.states[worker])
        self.inside = worker

    @torch.no_grad()
    def average(self) -> None:
        """Every worker goes on from the mean of all; optimizer states stay their own. Collective."""
        live = self._live()
        self._put_mean_in(live)
        for kept in self.kept:
            torch._foreach_copy_(kept[: len(live)], live)

    def _put_mean_in(self, live: list[Tensor]) -> None:
        if self.kept:
            torch._foreach_copy_(self.kept[self.inside][: len(live)], live)
            for tensor, *of_workers in zip(live, *self.kept, strict=False):
                tensor.copy_(torch.stack(of_workers).mean(dim=0))
        if distributed.world_size() > 1:
            of_ranks: list[Any] = [tensor.clone() for tensor in live]  # torch's averaging gives them other storage
            average_parameters(iter(of_ranks), torch.distributed.group.WORLD)  # pyright: ignore[reportArgumentType]
            torch._foreach_copy_(live, of_ranks)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Inside, the model has the mean of all workers; afterwards everything is as it was. Collective."""
        live = self._live()
        before = [tensor.clone() for tensor in live]
        with torch.no_grad():
            self._put_mean_in(live)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(live, before)

    def save_own(self) -> list[dict[str, Any]]:
        """Copies of this rank's, in order."""
        own = []
        for worker in range(self.here):
            self.enter(worker)
            optimizer = states.held(self.engine.optimizer, self.engine.layout())
            own.append({"tensors": states.copied(self._everything()), "optimizer": states.copied(optimizer)})
        return own

    @torch.no_grad()
    def load(self, saved: list[dict[str, Any]]) -> None:
        """Of all workers, in order."""
        first = distributed.rank() * self.here
        for worker in range(self.here):
            self.enter(worker)
            state = saved[first + worker]
            for tensor, value in zip(self._everything(), state["tensors"], strict=True):
                tensor.copy_(value)
            optimizer, layout = self.engine.optimizer, self.engine.layout()
            optimizer.load_state_dict(states.scattered(optimizer, layout, state["optimizer"]))

"""Several sets of weights, statistics and optimizer states in one engine: workers that step alone and are averaged.

A rank holds K / world of the K workers and steps them in turn, so that the result does not depend on how many devices
there are. The mean over ranks is torch's model averaging.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.algorithms.model_averaging.utils import average_parameters

from largebatch.checkpoint.pieces import State
from largebatch.engines import states
from largebatch.engines.engine import Engine
from largebatch.machine import distributed


class Workers:
    """``count`` sets of weights, statistics and optimizer states, begun as copies of the model's.

    One of this rank's is in the model at a time (:meth:`enter`). After :meth:`average` all are what is in the model,
    whatever is made of that before the next one enters.
    """

    def __init__(self, engine: Engine, count: int) -> None:
        self.engine = engine
        self.statistics = list(engine.statistics().values())
        self.counters = [buffer for buffer in engine.model.buffers() if not buffer.is_floating_point()]
        self.per_rank = count // distributed.world_size()
        self.inside = 0
        self.alike = False  # whether all have the weights that are in the model, and those in ``kept`` are old
        self.kept = [[t.clone() for t in self._everything()] for _ in range(self.per_rank if self.per_rank > 1 else 0)]
        self.states = [copy.deepcopy(engine.optimizer.state_dict()) for _ in self.kept]

    def _live(self) -> list[Tensor]:
        """What is averaged."""
        trained = [p.detach() for p in self.engine.model.parameters() if p.requires_grad]
        return trained + self.statistics

    def _everything(self) -> list[Tensor]:
        """What is averaged, and then what merely counts."""
        return self._live() + self.counters

    @torch.no_grad()
    def enter(self, worker: int) -> None:
        """This rank's ``worker`` is in the model from now on."""
        self._go_apart()
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
        self._put_mean_in(self._live())
        self.alike = True

    def _go_apart(self) -> None:
        """Each has weights of its own from now on."""
        if self.alike:
            live = self._live()
            for kept in self.kept:
                torch._foreach_copy_(kept[: len(live)], live)
        self.alike = False

    def _put_mean_in(self, live: list[Tensor]) -> None:
        self._go_apart()
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

    def save_own(self) -> list[State]:
        """Copies of this rank's, in order."""
        own = []
        for worker in range(self.per_rank):
            self.enter(worker)
            optimizer = states.held(self.engine.optimizer, self.engine.layout())
            own.append({"tensors": states.copied(self._everything()), "optimizer": states.copied(optimizer)})
        return own

    @torch.no_grad()
    def load(self, saved: list[State]) -> None:
        """Of all workers, in order."""
        first = distributed.rank() * self.per_rank
        for worker in range(self.per_rank):
            self.enter(worker)
            state = saved[first + worker]
            for tensor, value in zip(self._everything(), state["tensors"], strict=True):
                tensor.copy_(value)
            optimizer, layout = self.engine.optimizer, self.engine.layout()
            optimizer.load_state_dict(states.scattered(optimizer, layout, state["optimizer"]))

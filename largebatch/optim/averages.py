"""Averages of tensors over the steps.

moving    w_ema ← d·w_ema + (1 − d)·w
latest    w_lawa = the mean of the k latest snapshots    Kaddour 2022 (2209.14981), Sanyal et al. 2023 (2306.03241)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor


class MovingAverage:
    """Follows the tensors that ``live`` gives, and begins as they are; ``decay`` is d in (0, 1)."""

    def __init__(self, live: Callable[[], list[Tensor]], decay: float) -> None:
        self.live, self.decay = live, decay
        self.tensors = [tensor.detach().clone() for tensor in live()]

    @torch.no_grad()
    def follow(self, decay: float | None = None) -> None:
        """By another ``decay`` than usual, if one is given."""
        torch._foreach_lerp_(self.tensors, self.live(), 1.0 - (self.decay if decay is None else decay))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the live tensors hold the average."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        live = self.live()
        kept = [tensor.clone() for tensor in live]
        torch._foreach_copy_(live, self.tensors)
        torch._foreach_copy_(self.tensors, kept)


class LatestAverage:
    """The mean of the latest ``count`` snapshots of the tensors that ``live`` gives (LAWA).

    w_lawa = (w_s + w_{s−n} + … + w_{s−(k−1)n})/k with k = ``count``, or as many as there are. Snapshots lie in host
    memory. Each element is added up by itself, in float64 and from the oldest on: a shard as in the whole.
    """

    def __init__(self, live: Callable[[], list[Tensor]], count: int) -> None:
        self.live, self.count = live, count
        self.snapshots: list[list[Tensor]] = []  # the oldest first

    @torch.no_grad()
    def take(self) -> None:
        """One more; the oldest goes where there are ``count``."""
        into = self.snapshots.pop(0) if len(self.snapshots) == self.count else self.blank()
        for kept, tensor in zip(into, self.live(), strict=True):
            kept.copy_(tensor)
        self.snapshots.append(into)

    def blank(self) -> list[Tensor]:
        """Where a snapshot finds room."""
        return [torch.empty_like(tensor, device="cpu") for tensor in self.live()]

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the live tensors hold the mean; there is a snapshot."""
        live = self.live()
        before = [tensor.clone() for tensor in live]
        with torch.no_grad():
            for tensor, *of_snapshots in zip(live, *self.snapshots, strict=True):
                tensor.copy_(mean_of(of_snapshots))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(live, before)


def mean_of(tensors: Sequence[Tensor]) -> Tensor:
    """In float64, added from the first on."""
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor in tensors:
        total += tensor
    return total / len(tensors)

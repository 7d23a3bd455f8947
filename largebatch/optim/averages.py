"""A moving average of tensors.

w_ema ← d·w_ema + (1 − d)·w
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

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

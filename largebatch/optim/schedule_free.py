"""Schedule-free: no decay of the lr, an average of the weights in its place (Defazio et al. 2024, 2405.15682).

    y_t     = (1 − β)·z_t + β·x_t              where gradients are taken
    z_{t+1} = z_t + (optimizer's step at y_t)  SGD: −γ_t·∇f(y_t); Adam with β1 = 0: −γ_t·∇f(y_t)/(√v̂ + ε)
    x_{t+1} = (1 − c)·x_t + c·z_{t+1}          what is judged; c = γ̂_t²/Σ_{i ≤ t} γ̂_i², γ̂_t the largest γ up to t

β takes the place of momentum; weight decay acts at y. With β = 0 x is the mean of plain SGD's weights (Polyak 1990,
Ruppert 1988), near β = 1 gradients are taken at the mean. Two buffers as large as the weights: x and z.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


class ScheduleFree:
    """Of the tensors that ``live`` gives, which hold y; ``beta`` is β in [0, 1).

    Each element goes by itself: a shard of a tensor, as it would in the whole.
    """

    def __init__(self, live: Callable[[], list[Tensor]], beta: float) -> None:
        if not 0 <= beta < 1:
            raise ValueError(f"beta = {beta} should be at least 0 and below 1")
        self.live, self.beta = live, beta
        self.fast = [tensor.detach().clone() for tensor in live()]  # z
        self.mean = [tensor.clone() for tensor in self.fast]  # x
        self.largest_lr = 0.0  # γ̂
        self.total = 0.0  # Σγ̂²

    @torch.no_grad()
    def follow(self, lr: float) -> None:
        """After the optimizer's step at y with this ``lr``, γ_t: z, x and the next y. Where all lr were 0, x stays."""
        self.largest_lr = max(self.largest_lr, lr)
        weight = self.largest_lr**2
        self.total += weight
        share = weight / self.total if self.total else 0.0
        for tensor, fast, mean in zip(self.live(), self.fast, self.mean, strict=True):
            fast.add_(tensor - self.between(fast, mean))
            mean.lerp_(fast, share)
            tensor.copy_(self.between(fast, mean))

    def between(self, fast: Tensor, mean: Tensor) -> Tensor:
        """y of z and x."""
        return torch.lerp(fast, mean, self.beta)

    @torch.no_grad()
    def take_up(self) -> None:
        """The live tensors hold the y of x and z."""
        for tensor, fast, mean in zip(self.live(), self.fast, self.mean, strict=True):
            tensor.copy_(self.between(fast, mean))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the live tensors hold x; afterwards y again, of the same bits."""
        with torch.no_grad():
            torch._foreach_copy_(self.live(), self.mean)
        try:
            yield
        finally:
            self.take_up()

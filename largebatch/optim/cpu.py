"""Few passes over memory on the CPU, by torch's own fused kernels of SGD and AdamW.

The optimizers here are bound by memory. Elementwise operations one after another read and write each tensor a dozen
times; these kernels, given the right coefficients, do the same algebra in one pass. They walk memory linearly, so they
take tensors that lie in memory alike: :func:`fits` says whether they do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from largebatch.optim.shards import Shards, is_dense


def fits(shards: Shards) -> bool:
    """Whether weights, gradients and states are dense, of one supported type and laid out alike."""
    return shards.laid_out_alike and all(
        grad.dtype == weight.dtype and grad.stride() == weight.stride()
        for grad, weight in zip(shards.grads, shards.weights, strict=True)
    )


def sgd(
    weights: list[Tensor], grads: list[Tensor], momentum_buffers: list[Tensor],
    weight_decay: float, momentum: float, lr: float, dampening: float,
) -> None:  # fmt: skip
    """v ← momentum·v + (1 − dampening)·(g + weight_decay·w), w ← w − lr·v; ``momentum`` is not 0."""
    torch._fused_sgd_(
        weights, grads, momentum_buffers, weight_decay=weight_decay, momentum=momentum, lr=lr, dampening=dampening,
        nesterov=False, maximize=False, is_first_step=False,
    )  # fmt: skip


class Scratch:
    """Memory that is asked for once: new pages at every step would cost more than the step."""

    def __init__(self, elements: int, dtype: torch.dtype) -> None:
        self.memory = torch.empty(elements, dtype=dtype)
        self.used = 0

    def copy_of(self, tensor: Tensor) -> Tensor:
        """In the scratch while there is room since :meth:`reset`, else in memory of its own."""
        end = self.used + tensor.numel()
        if tensor.dtype != self.memory.dtype or end > self.memory.numel() or not is_dense(tensor):
            return tensor.clone(memory_format=torch.preserve_format)
        copy = self.memory[self.used : end].as_strided(tensor.shape, tensor.stride())
        self.used = end
        return copy.copy_(tensor)

    def reset(self) -> None:
        """What was handed out is not needed any more."""
        self.used = 0


def adamw_direction(
    shards: Shards, scratch: Scratch, betas: tuple[float, float], eps: float, weight_decay: float
) -> list[Tensor]:
    """Updates the moments; r + weight_decay·w of each part."""
    directions = [scratch.copy_of(weight) for weight in shards.weights]
    torch._fused_adamw_(
        directions, shards.grads, shards.buffers["first_moment"], shards.buffers["second_moment"], [], shards.steps,
        lr=-1.0, beta1=betas[0], beta2=betas[1], weight_decay=weight_decay - 1.0, eps=eps, amsgrad=False,
        maximize=False,
    )  # fmt: skip
    return directions

"""Shampoo's factors said once more, with numpy in float64: axis by axis, powers by eigenvalues."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from conftest import TINY
from torch import nn

from largebatch.optim import parameter_groups, treatments
from largebatch.optimizers import Surroundings
from largebatch.recipes import config

Array = np.ndarray


class Odd(nn.Module):
    """Matrices, a convolution, an embedding, a norm, biases and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 2)
        self.norm = nn.BatchNorm1d(5)
        self.embedding = nn.Embedding(7, 4)
        self.square = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 5)
        self.scale = nn.Parameter(torch.tensor(1.5))


def odd(seed: int = 0) -> Odd:
    torch.manual_seed(seed)
    return Odd().double()


def built(model: nn.Module, decay: float, lr: float = 0.1, **keys: Any) -> torch.optim.Optimizer:
    """The optimizer of a recipe with these keys, decay on weights alone."""
    run = config.from_dict({"name": "n", **TINY, "optimizer": keys})
    groups = parameter_groups(model, decay, treatments(model, ("norm", "bias"), None))
    return run.optimizer.build(groups, lr, Surroundings("fp64", "ddp", model))


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> Iterator[dict[str, Array]]:
    """After each step its gradients by name, which nobody has changed."""
    for lr in rates:
        given = {name: torch.randn_like(p) for name, p in model.named_parameters()}
        for name, parameter in model.named_parameters():
            parameter.grad = given[name].clone()
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter.grad, given[name]), "gradients are read and not written"
        yield {name: gradient.numpy() for name, gradient in given.items()}


def arrays(model: nn.Module) -> dict[str, Array]:
    return {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}


def is_decayed(name: str) -> bool:
    """As the groups of :func:`built` have it."""
    return name in ("conv.weight", "embedding.weight", "square.weight", "head.weight", "scale")


def statistic(gradient: Array, axis: int) -> Array:
    """G_(i) G_(i)ᵀ, element by element."""
    side = gradient.shape[axis]
    rows = [np.take(gradient, i, axis).reshape(-1) for i in range(side)]
    return np.array([[float(a @ b) for b in rows] for a in rows])


def along(matrix: Array, tensor: Array, axis: int) -> Array:
    """The matrix times the tensor's axis."""
    return np.moveaxis(np.tensordot(matrix, tensor, axes=(1, axis)), 0, axis)


def power(matrix: Array, exponent: float, ridge: float = 0.0) -> Array:
    """Of a symmetric matrix with ``ridge`` times its largest eigenvalue on the diagonal."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * (values + ridge * values[-1]) ** exponent) @ vectors.T


def blocks_of(shape: Sequence[int], size: int) -> list[tuple[slice, ...]]:
    cuts = [[slice(at, min(at + size, side)) for at in range(0, side, size)] for side in shape]
    return list(itertools.product(*cuts))


def quadratic(step: Callable[[nn.Module], torch.optim.Optimizer], count: int = 150) -> float:
    """½ tr(WᵀAWB) after some steps whose lr falls to 0; A and B are rotated and have a condition of 100 each."""
    draws = torch.Generator().manual_seed(3)
    sides = []
    for size in (8, 6):
        turned = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=draws))[0]
        sides.append(turned @ torch.diag(torch.logspace(-2, 0, size, dtype=torch.float64)) @ turned.T)
    model = nn.Linear(6, 8, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(8, 6, dtype=torch.float64, generator=draws))
    optimizer = step(model)
    peak = optimizer.param_groups[0]["lr"]
    for number in range(count):
        gradient = sides[0] @ model.weight.detach() @ sides[1]
        model.weight.grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = peak * (1 - number / count)
        optimizer.step()
    weight = model.weight.detach()
    return 0.5 * float((weight * (sides[0] @ weight @ sides[1])).sum())

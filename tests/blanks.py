"""Blank images for models that are asked alone, as a data set gives them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from largebatch.run import fit
from largebatch.tasks.classification import Classification


def images(count: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return torch.zeros(count, *shape), torch.zeros(count, dtype=torch.int64)


def check(model: nn.Module, name: str, classes: int, shape: tuple[int, ...], examples: int = 2) -> None:
    """:func:`largebatch.run.fit.check` of a classifier of images."""
    fit.check(model, name, Classification(), images(2, shape), classes, examples)

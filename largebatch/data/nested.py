"""A batch of data: any nested tuple, list, dict or named tuple of tensors whose first dimension is the examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path, tree_leaves, tree_map_only

from largebatch.errors import UserError

Batch = Any  # such a nest; those of images are (images (m, C, H, W) normalised, labels (m,) int64)
WANTED = "a batch is made of tensors whose first dimension is the examples"


def mapped(change: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """The same nest of changed tensors; what is no tensor stays."""
    if isinstance(batch, Tensor):
        return change(batch)
    if type(batch) in (tuple, list) and all(isinstance(part, Tensor) for part in batch):  # most are, and a step waits
        return type(batch)(map(change, batch))
    return tree_map_only(Tensor, change, batch)


def tensors_of(batch: Batch) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]


def examples_of(batch: Batch) -> int:
    """How many examples it holds."""
    return len(tensors_of(batch)[0])


def rows_of(batch: Batch, rows: slice | Tensor) -> Batch:
    """Some of the examples; a slice shares memory, numbers in a tensor copy."""
    return mapped(lambda tensor: tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows), batch)


def cast(batch: Any, dtype: torch.dtype) -> Any:
    """Floating tensors in ``dtype``; numbers of classes, tokens and masks are what they are."""
    return mapped(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, batch)


def check(batch: Batch, whose: str) -> None:
    """Refuse what is no batch: every tensor has the examples first, as many as the others."""
    counts: dict[str, int] = {}
    for path, leaf in tree_flatten_with_path(batch)[0]:
        name = "".join(map(str, path)) or "it"
        if not isinstance(leaf, Tensor) or not leaf.dim():
            kind = "a single number" if isinstance(leaf, Tensor) else f"a {type(leaf).__name__}"
            raise UserError(f"{whose}: {name} is {kind}; {WANTED}")
        counts[name] = len(leaf)
    if not counts:
        raise UserError(f"{whose} holds no tensors; {WANTED}")
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise UserError(f"{whose}: its tensors disagree on how many examples it holds ({told} in the first dimension)")

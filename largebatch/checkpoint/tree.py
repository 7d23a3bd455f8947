"""A run's state as a tree in JSON, its tensors by name beside it.

Numbers, words, lists and mappings stand in the tree as they are; a tensor is ``{"$tensor": name, ...}``, a tuple
``{"$tuple": [...]}``, a mapping whose keys are not words ``{"$items": [[key, value], ...]}``. Nothing else can be
saved, so reading one builds tensors and plain containers only.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from largebatch.checkpoint.pieces import Pieces

DTYPES = (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
    "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "complex64",
)  # fmt: skip
Tensors = dict[str, Tensor | Pieces]


class Unsavable(TypeError):
    """A value that is of no kind that a checkpoint holds."""


def flatten(value: Any, name: str, tensors: Tensors) -> Any:
    """The tree of ``value``; every tensor goes into ``tensors`` under its place in the tree, which ``name`` begins."""
    match value:
        case Tensor() | Pieces():
            tensors[name] = value
            dtype = str(value.dtype).removeprefix("torch.")
            return {"$tensor": name, "shape": list(value.shape), "dtype": dtype}
        case dict() if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: flatten(below, f"{name}/{escaped(key)}", tensors) for key, below in value.items()}
        case dict():
            items = enumerate(value.items())
            return {"$items": [[_key(key, name), flatten(below, f"{name}/{i}", tensors)] for i, (key, below) in items]}
        case tuple():
            return {"$tuple": [flatten(below, f"{name}/{i}", tensors) for i, below in enumerate(value)]}
        case list():
            return [flatten(below, f"{name}/{i}", tensors) for i, below in enumerate(value)]
        case None | bool() | int() | float() | str():
            return value
    raise Unsavable(f"{name}: a checkpoint holds no {type(value).__name__}")


def _key(key: Hashable, name: str) -> Any:
    tensors: Tensors = {}
    plain = flatten(key, name, tensors)
    if tensors:
        raise Unsavable(f"{name}: a checkpoint holds no mapping whose keys are tensors")
    return plain


def escaped(key: str) -> str:
    """No two places of a tree have the same name: "/" parts them, "@" begins a piece."""
    return key.replace("%", "%25").replace("/", "%2F").replace("@", "%40")


def restore(tree: Any, tensor: Callable[[str, tuple[int, ...], torch.dtype], Tensor | Pieces]) -> Any:
    """The opposite; ``tensor`` is asked for each by name, shape and type. ValueError where :func:`flatten` has not
    made the tree."""
    match tree:
        case {"$tensor": str(name), "shape": list(shape), "dtype": str(dtype), **rest} if not rest:
            if not all(type(size) is int and size >= 0 for size in shape):
                raise ValueError(f"{shape} is no shape of a tensor")
            return tensor(name, tuple(shape), dtype_of(dtype))
        case {"$tuple": list(items), **rest} if not rest:
            return tuple(restore(item, tensor) for item in items)
        case {"$items": list(items), **rest} if not rest:
            return {restore(key, tensor): restore(below, tensor) for key, below in items}
        case dict():
            if strange := next((key for key in tree if key.startswith("$")), None):
                raise ValueError(f"{strange} is not what it should be")
            return {key: restore(below, tensor) for key, below in tree.items()}
        case list():
            return [restore(below, tensor) for below in tree]
    return tree


def dtype_of(word: str) -> torch.dtype:
    if word not in DTYPES:
        raise ValueError(f"{word} is no type of a tensor that is saved")
    return getattr(torch, word)

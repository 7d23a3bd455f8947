"""A tensor of which every rank holds some: what engines save, checkpoints store, and engines take their part of.

A piece is a range of the tensor's elements laid out row by row. A shard of FSDP2 (some of the rows) and a segment of
ZeRO's flat partition are both such ranges, so one form serves all engines and any world can read it.

What is read is not joined: its pieces lie in the mapped files, and whoever takes a range of it reads that range alone.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

State = dict[str, Any]  # what is saved: tensors, pieces of them, numbers, text, lists and mappings


class Piece(NamedTuple):
    start: int  # of the flattened tensor
    values: Tensor  # contiguous


class Pieces(NamedTuple):
    """When it is saved, this rank's, none possibly; when it is read, all of them, one after another."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    local: tuple[Piece, ...]


def held(tensor: Tensor) -> Tensor | Pieces:
    """Whatever this rank holds of ``tensor``, without communication and without a copy."""
    if not isinstance(tensor, DTensor):
        return tensor
    local = tensor.to_local()
    [placement] = tensor.placements
    if isinstance(placement, Replicate):
        return local
    assert isinstance(placement, Shard)
    return piece_of_rows(local, tensor)


def of_parameter(parameter: Tensor, local: Tensor) -> Tensor | Pieces:
    """What ``local`` is of a tensor of the parameter's shape, cut as the parameter is."""
    return piece_of_rows(local, parameter) if isinstance(parameter, DTensor) else local


def piece_of_rows(local: Tensor, cut_like: DTensor) -> Pieces:
    """``local`` is this rank's part of a tensor of the same shape and cut as ``cut_like``."""
    here = (Piece(begin_of(cut_like), local.contiguous()),) if local.numel() else ()
    return Pieces(tuple(cut_like.shape), local.dtype, here)


def begin_of(tensor: Tensor) -> int:
    """Where in the whole tensor, flattened, this rank's part of it begins."""
    if not isinstance(tensor, DTensor) or tensor.placements == (Replicate(),):
        return 0
    assert tensor.placements == (Shard(0),), "only rows are ranges of the flattened tensor"
    rank, ranks = tensor.device_mesh.get_local_rank(), tensor.device_mesh.size()
    rows = -(-tensor.shape[0] // ranks)
    return min(rank * rows, tensor.shape[0]) * math.prod(tensor.shape[1:])


def fill(into: Tensor, saved: Tensor | Pieces, start: int = 0) -> None:
    """``into``, which is flat, becomes the elements of the flattened ``saved`` from ``start`` on; only they are read.

    Nothing is joined beside it: what is joined and given back leaves holes that the allocator keeps.
    """
    filled = 0
    for piece in saved.local if isinstance(saved, Pieces) else (Piece(0, saved.reshape(-1)),):
        begin, end = max(start, piece.start), min(start + len(into), piece.start + len(piece.values))
        if begin < end:
            into[begin - start : end - start] = piece.values[begin - piece.start : end - piece.start]
            filled += end - begin
    assert filled == len(into), "pieces are missing"


def take(into: Tensor, cut_like: Tensor, saved: Tensor | Pieces) -> Tensor:
    """``into``, what this rank holds of a tensor that is cut as ``cut_like``, becomes its part of ``saved``."""
    if into.is_contiguous():
        fill(into.view(-1), saved, begin_of(cut_like))
        return into
    return into.copy_(whole(saved))  # channels-last, which no engine cuts


def whole(saved: Tensor | Pieces) -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    joined = torch.empty(saved.shape, dtype=saved.dtype)
    fill(joined.view(-1), saved)
    return joined

"""A tensor of which every rank holds some: what engines save and checkpoints store.

A piece is a range of the tensor's elements laid out row by row. A shard of FSDP2 (some of the rows) and a segment of
ZeRO's flat partition are both such ranges, so one form serves all engines and any world can read it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard


class Piece(NamedTuple):
    start: int  # of the flattened tensor
    values: Tensor  # contiguous


class Pieces(NamedTuple):
    """This rank's, none possibly; those of all ranks cover the tensor."""

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
    return piece_of_rows(local, tuple(tensor.shape), tensor)


def of_parameter(parameter: Tensor, local: Tensor) -> Tensor | Pieces:
    """What ``local`` is of a tensor of the parameter's shape, cut as the parameter is."""
    return piece_of_rows(local, tuple(parameter.shape), parameter) if isinstance(parameter, DTensor) else local


def piece_of_rows(local: Tensor, shape: tuple[int, ...], cut_like: Tensor) -> Pieces:
    """``local`` is this rank's part of a tensor of ``shape``, cut along its rows as the DTensor ``cut_like`` is."""
    assert isinstance(cut_like, DTensor)
    assert cut_like.placements == (Shard(0),), "only rows are ranges of the flattened tensor"
    rank, ranks = cut_like.device_mesh.get_local_rank(), cut_like.device_mesh.size()
    rows = -(-shape[0] // ranks)
    start = min(rank * rows, shape[0]) * math.prod(shape[1:])
    here = (Piece(start, local.contiguous()),) if local.numel() else ()
    return Pieces(shape, local.dtype, here)

"""Batch norm over a stated number of examples, and its statistics made anew, in a loop of one's own.

The arithmetic is :mod:`largebatch.models.batch_norm`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from largebatch.data.nested import Batch
from largebatch.engines.ddp import unwrapped
from largebatch.engines.fsdp import unsharded
from largebatch.machine import distributed
from largebatch.models import batch_norm


def convert_batch_norm(
    model: nn.Module, *, bn_batch_size: int, micro_batch_size: int, optimizer: torch.optim.Optimizer | None = None
) -> nn.Module:
    """``model``, whose batch norms see ``bn_batch_size`` examples from now on; in place, before any wrapping.

    Of more examples than a rank's micro-batch, ``bn_batch_size / micro_batch_size`` consecutive ranks normalise
    together. Running statistics move after each step of ``optimizer``; without one, call
    :func:`largebatch.models.batch_norm.commit` after each, and ``discard`` where a step is skipped.
    DistributedDataParallel wants ``broadcast_buffers=False``: each rank's statistics are its own, and their mean is
    that of all.
    """
    ranks = max(1, bn_batch_size // micro_batch_size)
    shared = 1 < ranks < distributed.world_size() and distributed.world_size() % ranks == 0
    group = dist.new_subgroups(ranks)[0] if shared else None
    model = batch_norm.sized(model, bn_batch_size, micro_batch_size, group, ranks)
    if optimizer is not None:
        optimizer.register_step_post_hook(lambda *_: batch_norm.commit(model))
    return model


def recompute_batch_norm(
    model: nn.Module, batches: Iterable[Batch], forward: Callable[[nn.Module, Batch], Any] | None = None
) -> None:
    """Running statistics become those of all examples in ``batches`` of all ranks ("precise batch norm").

    ``batches`` are this rank's alone, in the size that the norms are to see. ``forward`` shows one to the model: the
    first of a tuple, unless given, on the model's device. Collective.
    """
    plain = unwrapped(model)
    with unsharded(plain), batch_norm.recomputed_statistics(plain, distributed.sum_):
        for batch in batches:
            (forward or _first)(plain, batch)


def _first(model: nn.Module, batch: Batch) -> None:
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    model(inputs.to(next(model.parameters()).device))

"""Join, leave, sum, mean, rank zero: torch.distributed, and the identity when alone.

torchrun's variables (RANK, LOCAL_RANK, WORLD_SIZE) decide whether there is a group; gloo carries it on CPU,
NCCL on CUDA.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from largebatch.errors import LocalError, UserError


def joined() -> bool:
    return dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_first() -> bool:
    return rank() == 0


def choose_device(asked: str) -> torch.device:
    """``auto`` is this rank's CUDA device where there is one, else the CPU."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError("device = cuda, but no CUDA device is visible here; valid here: cpu, auto")
    if asked == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank() >= torch.cuda.device_count():
        raise LocalError(
            f"local rank {local_rank()} has no CUDA device: {torch.cuda.device_count()} visible; "
            "start at most one rank per device"
        )
    device = torch.device("cuda", local_rank())
    torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def group(device: torch.device, timeout_minutes: float = 10.0, alone: bool = False) -> Iterator[None]:
    """Join the group the launcher made, and leave it. Without a launcher nothing, or a group of one if ``alone``."""
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if dist.is_initialized() or not (launched or alone):
        yield
        return
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        timeout=datetime.timedelta(minutes=timeout_minutes),
        device_id=device if device.type == "cuda" else None,
        **({} if launched else {"store": dist.HashStore(), "rank": 0, "world_size": 1}),
    )
    try:
        yield
    finally:
        _neighbours.clear()
        gc.collect()  # sharded models hold the group in cycles; one that outlives it aborts the process at its end
        dist.destroy_process_group()


def sum_(tensor: Tensor) -> Tensor:
    """Sum over ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def mean_(tensor: Tensor) -> Tensor:
    """Mean over ranks, in place."""
    return sum_(tensor).div_(world_size()) if world_size() > 1 else tensor


def sum_all_(tensors: list[Tensor]) -> None:
    """Sum each over ranks, in place, in one all-reduce."""
    if world_size() > 1 and tensors:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view(tensor.shape))


def consecutive(ranks: int) -> Any:
    """The process group of this rank and its neighbours, ``ranks`` in a row; made once. Collective."""
    if ranks not in _neighbours:
        _neighbours[ranks], _ = dist.new_subgroups(ranks)
    return _neighbours[ranks]


_neighbours: dict[int, Any] = {}  # while the group lasts


def gather(thing: Any) -> list[Any]:
    """The (picklable) things of all ranks, in rank order, on every rank."""
    if world_size() == 1:
        return [thing]
    things: list[Any] = [None] * world_size()
    dist.all_gather_object(things, thing)
    return things


def gather_to_first(thing: Any) -> list[Any]:
    """The (picklable) things of all ranks on rank zero; nothing on the others."""
    if world_size() == 1:
        return [thing]
    things: list[Any] | None = [None] * world_size() if is_first() else None
    dist.gather_object(thing, things)
    return things or []


class Flag:
    """A number that every rank learns of without waiting: the largest that any rank raised, one call later.

    Each exchange starts one small all-reduce on a gloo group of its own and returns the result of the one before.
    All ranks exchange equally often. Alone it is the number itself, at once.
    """

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo") if world_size() > 1 else None
        self._pending: tuple[Any, Tensor] | None = None

    def __enter__(self) -> Flag:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for the last exchange, unless this rank leaves alone: then the others never come."""
        if self._group is not None and not (kind and issubclass(kind, LocalError)):
            self._settle()
            dist.destroy_process_group(self._group)

    def exchange(self, own: int) -> int:
        if self._group is None:
            return own
        agreed = self._settle()
        raised = torch.tensor([own])
        work = dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = (work, raised)
        return agreed

    def _settle(self) -> int:
        if self._pending is None:
            return 0
        work, raised = self._pending
        self._pending = None
        work.wait()
        return int(raised.item())

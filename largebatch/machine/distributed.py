"""Join, leave, sum, mean, rank zero: torch.distributed, and the identity when alone.

torchrun's variables (RANK, LOCAL_RANK, WORLD_SIZE) decide whether there is a group; gloo carries it on CPU,
NCCL on CUDA. The store in which the ranks found each other stays at hand (:func:`store`), for words between ranks that
do not meet in a collective.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import os
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from largebatch.errors import LocalError, Lost, UserError
from largebatch.machine.launched import number


def joined() -> bool:
    return dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    return number(os.environ, "LOCAL_RANK", 0)


def is_first() -> bool:
    return rank() == 0


def _device_number() -> int:
    """Which of the visible devices is this rank's: srun and mpirun may show each task its own alone."""
    scheduled = os.environ.get("SLURM_LOCALID") or os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK")
    own = scheduled and not os.environ.get("TORCHELASTIC_RUN_ID") and torch.cuda.device_count() == 1
    return 0 if own else local_rank()


def choose_device(asked: str) -> torch.device:
    """``auto`` is this rank's CUDA device where there is one, else the CPU."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError("device = cuda, but no CUDA device is visible here; valid here: cpu, auto")
    if asked == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    own = _device_number()
    if own >= torch.cuda.device_count():
        raise LocalError(
            f"local rank {local_rank()} has no CUDA device: {torch.cuda.device_count()} visible; "
            "start at most one rank per device"
        )
    device = torch.device("cuda", own)
    torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def group(device: torch.device, timeout_minutes: float = 10.0, alone: bool = False) -> Iterator[None]:
    """Join the group the launcher made, and leave it. Without a launcher nothing, or a group of one if ``alone``."""
    global _store, _timeout, _joined
    launched = number(os.environ, "WORLD_SIZE", 1) > 1
    if dist.is_initialized() or not (launched or alone):
        yield
        return
    _timeout = datetime.timedelta(minutes=timeout_minutes)
    with losses_told():
        if launched:
            _store, own_rank, ranks = met(_timeout)
            _store = dist.PrefixStore(f"{attempt()}, group {_joined}", _store)
            _joined += 1
        else:
            _store, own_rank, ranks = dist.HashStore(), 0, 1
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            timeout=_timeout,
            device_id=device if device.type == "cuda" else None,
            store=dist.PrefixStore("collectives", _store),
            rank=own_rank,
            world_size=ranks,
        )
    broken = False  # where this rank leaves alone, to leave the group would wait for the others
    try:
        yield
    except (Lost, LocalError, MemoryError, torch.OutOfMemoryError):
        broken = ranks > 1
        raise
    finally:
        forget_groups()
        _store = None
        gc.collect()  # sharded models hold the group in cycles; one that outlives it aborts the process at its end
        if not broken:
            dist.destroy_process_group()


def met(timeout: datetime.timedelta) -> tuple[Any, int, int]:
    """The store in which the ranks find each other, this rank and how many there are; Lost after ``timeout``.

    torch's own time-out does not hold where another program listens at the port: it takes the connection and never
    answers. So a thread waits, and this one looks at the clock.
    """
    found: list[tuple[Any, int, int]] = []
    problems: list[BaseException] = []

    def meet() -> None:
        try:
            found.append(next(dist.rendezvous("env://", timeout=timeout)))
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=meet, name="rendezvous", daemon=True)
    thread.start()
    thread.join(timeout.total_seconds() + SLACK)
    if found:
        return found[0]
    own, ranks, address, port = (os.environ.get(f) for f in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    reason = problems[0] if problems else f"no answer within {timeout.total_seconds() / 60:g} min (timeout_minutes)"
    if problems and not isinstance(problems[0], RuntimeError):
        raise problems[0]
    raise Lost(
        f"rank {own} of {ranks} has not found the others at {address}, port {port}: {first_sentence(reason)}; rank 0 "
        "is not there, cannot be reached, or another program holds the port: set MASTER_PORT to a free one"
    ) from (problems[0] if problems else None)


def attempt() -> str:
    """What tells this start of the ranks from those before it, which may have used the same store.

    torchrun keeps one store over its restarts, and gloo would look for ranks that are gone at the addresses that they
    left there. On one machine the restarts are counted; machines count each for itself, so for several of them
    ``launch/torchrun.sh`` asks torchrun for a new store each time (TORCH_DISABLE_SHARE_RDZV_TCP_STORE).
    """
    counted = os.environ.get("GROUP_WORLD_SIZE") == "1"
    return f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT') or 0}" if counted else "attempt"


SLACK = 5.0  # seconds: torch's own time-out speaks first, where it holds
_joined = 0  # groups that this process has joined, one after another: each has its own words in the store
_store: Any = None  # while the group lasts
_timeout: datetime.timedelta | None = None  # of its collectives


def store() -> Any:
    """Where the ranks found each other: keys and values that all of them see; None alone."""
    return _store if world_size() > 1 else None


def separate_group() -> Any:
    """A gloo group of all ranks, for a thread of its own; None alone, and where a dry run pretends them. Collective."""
    if world_size() == 1 or dist.get_backend() == "fake":
        return None
    return dist.new_group(backend="gloo", timeout=_timeout)  # which it would not inherit


def leave(group: Any) -> None:
    """The end of a :func:`separate_group`."""
    if group is not None:
        dist.destroy_process_group(group)


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


def mean_all_(tensors: list[Tensor]) -> None:
    """Mean of each over ranks, in place, in one all-reduce."""
    if world_size() > 1 and tensors:
        sum_all_(tensors)
        torch._foreach_div_(tensors, world_size())


def consecutive(ranks: int) -> Any:
    """The process group of this rank and its neighbours, ``ranks`` in a row; made once. Collective."""
    if ranks not in _neighbours:
        _neighbours[ranks], _ = dist.new_subgroups(ranks, timeout=_timeout)
    return _neighbours[ranks]


_neighbours: dict[int, Any] = {}  # while the group lasts


def forget_groups() -> None:
    """Those of :func:`consecutive`, before their whole ends."""
    _neighbours.clear()


def gather(thing: Any) -> list[Any]:
    """The (picklable) things of all ranks, in rank order, on every rank."""
    if world_size() == 1:
        return [thing]
    things: list[Any] = [None] * world_size()
    dist.all_gather_object(things, thing)
    return things


def same_as_on_first(tensors: Iterable[Tensor]) -> None:
    """Rank zero's on every rank, in place; they lie on the CPU."""
    if world_size() > 1:
        group = separate_group()
        for tensor in tensors:
            dist.broadcast(tensor, 0, group=group)
        leave(group)


def gather_to_first(thing: Any, group: Any = None) -> list[Any]:
    """The (picklable) things of all ranks on rank zero; nothing on the others."""
    if world_size() == 1:
        return [thing]
    things: list[Any] | None = [None] * world_size() if is_first() else None
    dist.gather_object(thing, things, group=group)
    return things or []


def from_first(thing: Any, group: Any = None) -> Any:
    """Rank zero's (picklable) thing on every rank."""
    if world_size() == 1:
        return thing
    things = [thing]
    dist.broadcast_object_list(things, group=group)
    return things[0]


@contextlib.contextmanager
def losses_told() -> Iterator[None]:
    """Inside, a collective that fails because another rank is gone raises :class:`~largebatch.errors.Lost`."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        if not isinstance(error, dist.DistError) and not any(word in str(error) for word in BROKEN):
            raise
        own, ranks = (os.environ.get(key, "?") for key in ("RANK", "WORLD_SIZE"))
        raise Lost(
            f"rank {own} of {ranks} has lost the others, or did not find them: {first_sentence(error)}"
        ) from error


def first_sentence(problem: object) -> str:
    """The first sentence of what torch says, without where in torch it was said."""
    return next(iter(str(problem).splitlines()), "").rpartition("] ")[2].partition(". ")[0]


BROKEN = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "Application timeout caused")


class Flag:
    """A number that every rank learns of without waiting: the largest that any rank raised, one call later.

    Each exchange starts one small all-reduce on a gloo group of its own and returns the result of the one before.
    All ranks exchange equally often. Alone it is the number itself, at once.
    """

    def __init__(self) -> None:
        self._group: Any = separate_group()
        self._pending: tuple[Any, Tensor] | None = None

    def __enter__(self) -> Flag:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for the last exchange, unless this rank leaves alone: then the others never come."""
        if self._group is not None and not (kind and issubclass(kind, LocalError)):
            self._settle()
            dist.destroy_process_group(self._group)

    def exchange(self, number: int) -> int:
        if self._group is None:
            return number
        agreed = self._settle()
        raised = torch.tensor([number])
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

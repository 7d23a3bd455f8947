"""What one step does, watched operation by operation while fake tensors go through it.

memory        every storage from its birth to its death, by kind; the largest sum of those that do not stay
collectives   each call with its bytes and, from the modules on the call stack, what it is for

Where the host asks for a number, the answer is 1.
"""

from __future__ import annotations

import collections
import contextlib
import sys
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.fsdp import _fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NAMES = {  # of torch's operations -> the collective
    "allreduce_": "all_reduce", "all_reduce": "all_reduce", "all_reduce_": "all_reduce",
    "allgather_": "all_gather", "_allgather_base_": "all_gather", "all_gather_into_tensor": "all_gather",
    "all_gather_into_tensor_out": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter", "reduce_scatter_": "reduce_scatter",
    "reduce_scatter_tensor": "reduce_scatter", "broadcast_": "broadcast", "broadcast": "broadcast",
    "alltoall_base_": "all_to_all",
}  # fmt: skip
ASKED = (  # in inference mode the latter two come as they are
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.item.default,
    torch.ops.aten.is_nonzero.default,
)
ACTIVATIONS, GATHERED = "activations", "gathered blocks"  # the kinds that pass


class Watched(NamedTuple):
    """A storage that is alive."""

    reference: Any
    kind: str
    bytes: int


class Collective(NamedTuple):
    name: str
    what_for: str
    bytes: int  # of the whole: what is summed, what is gathered, what is summed before it is scattered
    ranks: int
    moment: int  # the number of the micro-batch in progress


class Trace(TorchDispatchMode):
    """Enter it inside the FakeTensorMode. ``moment`` is what the caller says it is.

    ``what_for``: words for what a module, or those of a package, send; the innermost on the call stack counts.
    """

    def __init__(self, what_for: Mapping[ModuleType, str]) -> None:
        super().__init__()
        self.what_for = what_for
        self.collectives: list[Collective] = []
        self.moment = 0
        self.alive: dict[int, Watched] = {}  # storages by their address
        self.now: collections.Counter[str] = collections.Counter()  # bytes by kind
        self.peak: collections.Counter[str] = collections.Counter()  # of the kinds that pass
        self.gradients = 0  # bytes, at most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # what it does with its local tensors comes here in turn
        kwargs = kwargs or {}
        if func in ASKED:
            return 1.0 if args[0].dtype.is_floating_point else args[0].dtype is torch.bool or 1
        if func.namespace in ("c10d", "_c10d_functional") and func._opname in NAMES:
            self._collective(NAMES[func._opname], args)
        result = func(*args, **kwargs)
        new = [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor) and self._born(tensor)]
        if new:
            self._look()
        return result

    def stays(self, kind: str, tensors: Iterable[Tensor | None]) -> int:
        """From now on the storages of ``tensors`` are of this kind and no part of the peak; their bytes now."""
        found = {}
        for tensor in tensors:
            if tensor is not None:
                storage = local(tensor).untyped_storage()
                found[storage._cdata] = storage.nbytes()
                self._is_of(storage, kind)
        return sum(found.values())

    def note_gradient(self, gradient: Tensor | None) -> None:
        """As soon as it lies in ``p.grad``; a whole one of FSDP's is seen when it has been scattered."""
        if gradient is not None and not isinstance(gradient, DTensor):
            self.stays("gradients", [gradient])
            self._look()

    def begin_anew(self) -> None:
        """What has been seen so far was the preparation; storages stay known."""
        self.peak = collections.Counter()
        self.collectives = []
        self.gradients = 0

    def _born(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()
        if storage._cdata in self.alive:
            return False
        self._is_of(storage, GATHERED if any(of(_fully_shard, name) for name in on_the_stack()) else ACTIVATIONS)
        return True

    def _is_of(self, storage: Any, kind: str) -> None:
        key = storage._cdata
        if (known := self.alive.get(key)) is not None:
            self.now[known.kind] -= known.bytes
            reference = known.reference
        else:
            reference = weakref.ref(storage, lambda _: self._died(key))
        self.alive[key] = Watched(reference, kind, storage.nbytes())
        self.now[kind] += storage.nbytes()

    def _died(self, key: int) -> None:
        if (known := self.alive.pop(key, None)) is not None:
            self.now[known.kind] -= known.bytes

    def _look(self) -> None:
        self.gradients = max(self.gradients, self.now["gradients"])
        if self.now[GATHERED]:  # FSDP frees by resizing
            for watched in list(self.alive.values()):
                if watched.kind == GATHERED and (storage := watched.reference()) is not None:
                    self._is_of(storage, GATHERED)
        if self.now[ACTIVATIONS] + self.now[GATHERED] > self.peak.total():
            self.peak = collections.Counter({kind: self.now[kind] for kind in (ACTIVATIONS, GATHERED)})

    def _collective(self, name: str, args: Any) -> None:
        """The largest of its arguments is the whole, be it one tensor or a list of parts."""
        ranks = torch.distributed.get_world_size()
        sizes = [0]
        for argument in args:
            if isinstance(argument, torch.ScriptObject) and "ProcessGroup" in str(argument._type()):
                ranks = torch.distributed.ProcessGroup.unbox(argument).size()
            leaves = [leaf for leaf in tree_leaves(argument) if isinstance(leaf, Tensor)]
            sizes.append(sum(leaf.numel() * leaf.element_size() for leaf in leaves))
        self.collectives.append(Collective(name, self._what_for(name), max(sizes), ranks, self.moment))

    def _what_for(self, name: str) -> str:
        for caller in on_the_stack():
            for module, words in self.what_for.items():
                if of(module, caller):
                    return "weights" if name == "all_gather" and words == "gradients" else words
        return "other"


def on_the_stack() -> Iterator[str]:
    """The modules' names, from the innermost outwards, without this one."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name != __name__:
            yield name
        frame = frame.f_back


def of(module: ModuleType, name: str) -> bool:
    """Whether it is the name of ``module``, or of one in that package."""
    return name == module.__name__ or name.startswith(f"{module.__name__}.")


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextlib.contextmanager
def fake_addresses_allowed() -> Iterator[None]:
    """FSDP compares the addresses of storages, of which fake ones have none; torch warns of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        yield

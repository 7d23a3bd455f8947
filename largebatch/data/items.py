"""Map-style sets, read item by item: order, shares, workers and randomness come from the plan.

A set whose ``__getitem__`` takes a ``generator`` gets one for each example, keyed by :func:`draws.keys_of`. Of any
other it is noticed when reading items has moved a global random state (torch's, numpy's, Python's): then they are read
again, and from then on each with that state set for it. So both draw the same in any world, with any number of workers,
and after a resume; random state that a set keeps to itself is beyond both.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils._pytree import tree_flatten_with_path
from torch.utils.data import Dataset, get_worker_info
from torch.utils.data import default_collate as torch_collate

from largebatch.data import draws, nested
from largebatch.data.nested import Batch
from largebatch.data.processes import Helpers
from largebatch.data.requested import ReadRefusal, RequestedSplit, parts_of
from largebatch.errors import UserError, first_words, in_one_line
from largebatch.plan.batch import BatchPlan

Collate = Callable[[list[Any]], Batch]


class ItemRequest(NamedTuple):
    """One micro-batch to read; ``positions`` in the stream of epochs where it is trained on."""

    indices: np.ndarray
    positions: np.ndarray | None


class Items(Dataset):
    """What a worker holds: request -> batch."""

    def __init__(
        self,
        items: Any,
        part: str,
        columns: tuple[str, ...] | None,
        collate: Collate,
        seed: int,
        classes: int | None = None,
    ) -> None:
        self.items, self.part, self.columns, self.collate, self.seed = items, part, columns, collate, seed
        self.classes = classes  # that labels are of, where it is known
        self.takes_generator = takes_generator(items)
        self.together = None if self.takes_generator else getattr(items, "__getitems__", None)
        self.draws_from: set[str] = set()  # whose global random states, as far as was seen
        self.left_at: draws.GlobalStates | None = None  # in a worker, where nobody else draws in between

    def __getitem__(self, request: ItemRequest) -> Batch | ReadRefusal:
        try:
            return self.read(request)
        except UserError as error:
            return ReadRefusal(str(error))

    def read(self, request: ItemRequest) -> Batch:
        """Raises UserError for items that cannot be read, or are no batch together."""
        if self.takes_generator:
            return self._collated(request, self._by_generators(request))
        before = self.left_at or draws.states()
        try:
            items = self._seeded(request) if self.draws_from else self._plainly(request)
            moved = set(draws.states().differing(before))
        finally:
            if self.draws_from:
                draws.put_back(before)
        if moved <= self.draws_from:
            self.left_at = before if get_worker_info() is not None else None
            return self._collated(request, items)
        draws.put_back(before)
        self.draws_from |= moved
        return self.read(request)

    def _plainly(self, request: ItemRequest) -> list[Any]:
        indices = request.indices.tolist()
        try:
            return [self.items[index] for index in indices] if self.together is None else list(self.together(indices))
        except Exception as error:  # of somebody's code
            if self.together is None:
                return [self._item(index) for index in indices]  # again, to say which
            raise self._unreadable(f"items {_few(request.indices)}", error) from error

    def _seeded(self, request: ItemRequest) -> list[Any]:
        """Each with the global random states set for it."""
        items = []
        for index, key in self._keys(request):
            draws.seed_with(key, self.draws_from)
            items.append(self._item(index))
        return items

    def _by_generators(self, request: ItemRequest) -> list[Any]:
        """Each with a generator of its own."""
        return [self._item(index, generator=torch.Generator().manual_seed(key)) for index, key in self._keys(request)]

    def _keys(self, request: ItemRequest) -> Iterator[tuple[int, int]]:
        keys = draws.keys_of(self.seed, request.positions, request.indices)
        return zip(request.indices.tolist(), keys.tolist(), strict=True)

    def drawn(self, index: int, position: int | None) -> Any:
        """The item alone, drawn as its place says: ``position`` in the stream of epochs, None in an evaluation."""
        key = draws.key_of(self.seed, position, index)
        if self.takes_generator:
            return self._item(index, generator=torch.Generator().manual_seed(key))
        with draws.seeded(key):
            return self._item(index)

    def _item(self, index: int, **generator: torch.Generator) -> Any:
        try:
            return self.items.__getitem__(index, **generator) if generator else self.items[index]
        except Exception as error:
            raise self._unreadable(f"item {index}", error) from error

    def _unreadable(self, which: str, error: Exception) -> UserError:
        return UserError(f"{which} of the {self.part} set cannot be read: {in_one_line(error)}")

    def _collated(self, request: ItemRequest, items: list[Any]) -> Batch:
        try:
            if self.columns is not None:
                items = [tuple(item[column] for column in self.columns) for item in items]
            batch = self.collate(items)
        except Exception as error:
            raise UserError(self._odd(request.indices, items, error)) from error
        tensors = nested.tensors_of(batch)
        if not tensors or len(tensors[0]) != len(items):
            nested.check(batch, f"{len(items)} items of the {self.part} set, collated")
            raise UserError(f"{len(items)} items of the {self.part} set are collated into {len(tensors[0])} examples")
        if self.classes is not None:
            self._check_labels(request, batch, self.classes)
        return batch

    def _check_labels(self, request: ItemRequest, batch: Batch, classes: int) -> None:
        """Torch leaves some that are no class out of its loss, and ends a CUDA device at others."""
        labels = batch[1] if isinstance(batch, (tuple, list)) and len(batch) == 2 else None
        if not isinstance(labels, torch.Tensor) or labels.dtype != torch.int64 or labels.dim() != 1:
            return  # which the task refuses
        if len(wrong := ((labels < 0) | (labels >= classes)).nonzero()):
            row = int(wrong[0])
            raise UserError(
                f"item {request.indices[row]} of the {self.part} set has the label {int(labels[row])}; with outputs = "
                f"{classes} it should be 0 to {classes - 1}"
            )

    def _odd(self, indices: np.ndarray, items: Sequence[Any], error: Exception) -> str:
        """Why items are no batch: which is of another form than the first, or what of them is no number."""
        first = form_of(items[0])
        for index, item in zip(indices[1:], items[1:], strict=True):
            other = form_of(item)
            for at in sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key)):
                return (
                    f"items {indices[0]} and {index} of the {self.part} set are of unequal shapes: {at or 'the first'} "
                    f"is {first.get(at, 'nothing')} there and {other.get(at, 'nothing')} here; make them equal, or "
                    "give lb.Dataset a collate="
                )
        for at, form in first.items():
            if form not in NUMBERS and not form.startswith(("tensor", "array")):
                return (
                    f"item {indices[0]} of the {self.part} set is of the wrong kind: {at or 'it'} is {form}; wanted "
                    "are tensors, arrays, numbers, or tuples and dicts of them: give it a transform, or lb.Dataset a "
                    "collate="
                )
        return f"items {_few(indices)} of the {self.part} set cannot be collated: {first_words(error)}"


NUMBERS = ("bool", "int", "float")


def form_of(item: Any) -> dict[str, str]:
    """``[0]`` -> ``tensor (3, 32, 32)``: what an item is made of, by its place there."""
    forms = {}
    for path, leaf in tree_flatten_with_path(item)[0]:
        if isinstance(leaf, (torch.Tensor, np.ndarray)):
            kind = "tensor" if isinstance(leaf, torch.Tensor) else "array"
            form = f"{kind} {tuple(leaf.shape)}"
        else:
            form = type(leaf).__name__
        forms["".join(map(str, path))] = form
    return forms


def _few(indices: np.ndarray) -> str:
    return ", ".join(map(str, indices[:3])) + (" ..." if len(indices) > 3 else "")


def takes_generator(items: Any) -> bool:
    try:
        return "generator" in inspect.signature(type(items).__getitem__).parameters
    except (AttributeError, ValueError, TypeError):
        return False


class ItemSplit(RequestedSplit):
    """Those of ``items`` that stand in ``rows``, or all; ``part`` is what they are called in sentences."""

    def __init__(
        self,
        items: Any,
        part: str,
        columns: tuple[str, ...] | None = None,
        collate: Collate | None = None,
        workers: int = 0,
        rows: np.ndarray | None = None,
        helpers: Helpers | None = None,
    ) -> None:
        super().__init__(workers, helpers)
        self.items, self.part, self.columns, self.collate = items, part, columns, collate or torch_collate
        self.rows = rows
        self.classes: int | None = None  # that the labels are of, once it is known

    def __len__(self) -> int:
        return len(self.items) if self.rows is None else len(self.rows)

    def reader(self, seed: int = 0) -> Items:
        return Items(self.items, self.part, self.columns, self.collate, seed, self.classes)

    def request(self, indices: np.ndarray, positions: np.ndarray | None = None) -> ItemRequest:
        return ItemRequest(indices if self.rows is None else self.rows[indices], positions)

    def of_step(self, plan: BatchPlan, step: int, rank: int) -> Iterator[ItemRequest]:
        positions, _, indices = plan.examples_of(step, rank)
        for part in parts_of(plan, step):
            yield self.request(indices[part], positions[part])

    def of_evaluation(self, indices: np.ndarray) -> ItemRequest:
        return self.request(indices)

"""``lb.Dataset``: a data set of one's own, and what a run makes of it."""

from __future__ import annotations

import inspect
import io
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import TensorDataset

from largebatch.data import draws, nested
from largebatch.data.contents import Listing, listing_of_numbers
from largebatch.data.dataset import Split, Splits
from largebatch.data.items import Collate, Items, ItemSplit
from largebatch.data.nested import Batch
from largebatch.data.processes import Helpers
from largebatch.data.resident import TensorSplit, held_out
from largebatch.data.sets import Asked, evaluated_on, leaves_some
from largebatch.errors import UserError, first_words
from largebatch.recipes.registry import handed_over

MAP_STYLE = "it takes map-style data sets, with __len__ and __getitem__, or arrays in memory"


@dataclass(frozen=True)
class Dataset:
    """A data set of one's own: what is trained on, and what is evaluated on.

    Args:
        train, test: each a map-style ``torch.utils.data.Dataset``, a Hugging Face ``datasets.Dataset``, a list of
            items, or arrays in memory: a tensor, a numpy array, or a tuple or dict of them whose rows are the examples
            (they are moved to the device once). An item is a tensor, an array, a number, or any nest of these.
            ``__getitem__(index)`` suffices. ``__getitem__(index, generator)`` gets a ``torch.Generator`` for each
            example, keyed by the run's seed and the example's place in the run.
        task: what the set is for, where a recipe does not say: a task's name, or a :class:`largebatch.Task`.
        outputs: the numbers that a model is to give for an example: classes, targets. Where it is left out it is what
            the set says (``classes``, features of Hugging Face, whole-number labels of arrays), or not known.
        name: what the set is called in records; else its class's name, or ``arrays``.
        columns: keys of an item that become a tuple, for tasks of (inputs, targets): ``("image", "label")``.
        collate: items -> batch; else torch's ``default_collate``.

    Order, shares of ranks, exact resume and exact evaluation come from the batch plan: every example of an epoch is
    trained on once, in an order that depends on the seed alone, and an evaluation sees each once, in any world.
    ``data.workers`` processes read items (unset: none, the trainer itself reads); ``data.hold_out`` works as for sets
    of the package.
    """

    train: Any
    test: Any
    task: Any = "classification"
    outputs: int | None = None
    name: str | None = None
    columns: tuple[str, ...] | None = None
    collate: Collate | None = None

    @property
    def called(self) -> str:
        return self.name or ("arrays" if in_memory(self.train) else type(self.train).__name__)

    def opened(self, asked: Asked) -> Splits:
        """Ready to be read, its first items looked at."""
        train, test = self._part("train"), self._part("test")
        helpers = Helpers()
        rows: tuple[np.ndarray | None, np.ndarray | None] = (None, None)
        labels = labels_of(train, self.columns)
        if asked.hold_out:
            leaves_some(asked.hold_out, _length(train))
            mask = held_out(np.zeros(_length(train), np.int64) if labels is None else labels, asked.hold_out)
            rows, test = (np.flatnonzero(~mask), np.flatnonzero(mask)), train
        splits = (
            self._split(train, "training", asked, rows[0], helpers),
            self._split(test, "test", asked, rows[1], helpers),
        )
        example, facts = _looked_at(splits)
        outputs = self.outputs or outputs_of(train, example, labels, self.columns)
        if self.task == "classification" and outputs is not None:
            _check_labels(splits, (labels, labels_of(test, self.columns)), outputs)
        listed = {part: listing_of(items, self.columns) for part, items in (("train", train), ("test", test))}
        return Splits(
            name=asked.name,
            example=example,
            outputs=outputs,
            train=splits[0],
            test=splits[1],
            source="arrays" if in_memory(train) else f"{type(train).__module__}.{type(train).__qualname__}",
            task=self.task if isinstance(self.task, str) else handed_over(self.task),
            classes=classes_of(train, self.columns),
            facts={"evaluated on": evaluated_on(asked), **facts},
            pixels="as the data set gives them",
            preparation={"prepared_by": "the data set itself"},
            contents=lambda: listed,
            helpers=helpers,
        )

    def _part(self, which: str) -> Any:
        """As it was given; tensors where it lies in memory."""
        part = getattr(self, which)
        if type(part) is TensorDataset:
            part = part.tensors
        if in_memory(part):
            try:
                part = tree_map(_as_tensor, part)
            except TypeError as error:
                raise UserError(f"lb.Dataset: {which} holds an array that is none of numbers: {error}") from None
            nested.check(part, f"lb.Dataset: {which}")
            if not nested.examples_of(part):
                raise UserError(f"lb.Dataset: {which} holds no examples; {MAP_STYLE}")
            return part
        if not hasattr(part, "__getitem__") or isinstance(part, (str, bytes)):
            raise UserError(f"lb.Dataset: {which} is a {type(part).__name__} without __getitem__; {MAP_STYLE}")
        try:
            length = len(part)
        except Exception:  # of somebody's code
            raise UserError(f"lb.Dataset: {which} is a {type(part).__name__} without length; {MAP_STYLE}") from None
        if not length:
            raise UserError(f"lb.Dataset: {which} holds no examples; {MAP_STYLE}")
        return part

    def _split(self, part: Any, called: str, asked: Asked, rows: np.ndarray | None, helpers: Helpers) -> Split:
        if in_memory(part):
            if self.columns is not None and isinstance(part, Mapping):
                part = tuple(part[column] for column in self.columns)
            return TensorSplit(part if rows is None else nested.rows_of(part, torch.from_numpy(rows)))
        workers = asked.workers or 0
        if workers:
            _check_importable(part, self.collate, workers)
        return ItemSplit(part, called, self.columns, self.collate, workers, rows, helpers)


def _as_tensor(array: Tensor | np.ndarray) -> Tensor:
    """Of the same memory where torch can have it: its order is forward."""
    if isinstance(array, Tensor):
        return array.detach()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writ")  # nobody writes to it
        return torch.from_numpy(array if all(step >= 0 for step in array.strides) else array.copy())


def in_memory(part: Any) -> bool:
    """Whether it is a nest of arrays, whose rows are the examples."""
    if isinstance(part, (Tensor, np.ndarray)):
        return True
    leaves = tree_leaves(part) if isinstance(part, (tuple, dict)) else []
    return bool(leaves) and all(isinstance(leaf, (Tensor, np.ndarray)) for leaf in leaves)


def _length(part: Any) -> int:
    return nested.examples_of(part) if in_memory(part) else len(part)


def _looked_at(splits: tuple[Split, Split]) -> tuple[Batch, dict[str, str]]:
    """One example of the test set, and what is said of how examples are read. Random states stay as they are."""
    read_by_item = [split for split in splits if isinstance(split, ItemSplit)]
    facts = {"read": "from memory"}
    example = nested.rows_of(splits[1].tensors, slice(0, 1)) if isinstance(splits[1], TensorSplit) else None
    for split in read_by_item:
        reader = split.reader()
        before = draws.states()
        items = reader.read(split.request(np.arange(min(2, len(split)))))
        draws.put_back(before)
        nested.check(items, f"an item of the {split.part} set")
        if split is splits[1]:
            example = nested.rows_of(items, slice(0, 1))
        if words := _random_in_words(reader):
            facts["random"] = words
        beside = f"by {split.workers} processes of each rank"
        facts["read"] = beside if split.workers else "by the trainer (data.workers reads beside it)"
    return example, facts


def _random_in_words(reader: Items) -> str | None:
    if reader.takes_generator:
        return "by a generator for each example"
    whose = ", ".join(sorted(reader.draws_from))
    return f"from global random state ({whose}), set for each example" if whose else None


def _check_importable(part: Any, collate: Any, workers: int) -> None:
    """Refuse what other processes cannot import: what was typed into a session, or has no name of its own."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    leave = f"put it into a file, or set data.workers = 0 (it is {workers})"
    if file is not None and not Path(file).is_file():
        raise UserError(f"processes that read data import this program, and {file[:60]} is no file; {leave}")
    try:
        Sent(io.BytesIO(), typed=file is None).dump((part, collate))
    except TypedIn as error:
        raise UserError(
            f"processes that read data cannot import {error}, which was typed into a session; {leave}"
        ) from None
    except RuntimeError:  # what may be sent only while a process is started, such as its locks
        return
    except Exception as error:  # of somebody's code
        raise UserError(
            f"the data set cannot be sent to processes that read it: {first_words(error)}; {leave}"
        ) from None


class TypedIn(Exception):
    """What was typed into a session."""


class Sent(ForkingPickler):
    """What starting a process would send but for arrays, which meets what other processes cannot import."""

    def __init__(self, file: io.BytesIO, typed: bool) -> None:
        super().__init__(file)
        self.typed = typed

    def persistent_id(self, obj: Any) -> str | None:
        if isinstance(obj, (Tensor, np.ndarray)):
            return "array"
        if self.typed and (inspect.isclass(obj) or inspect.isfunction(obj)) and obj.__module__ == "__main__":
            raise TypedIn(obj.__qualname__)
        return None


def _check_labels(splits: tuple[Split, Split], known: tuple[np.ndarray | None, ...], outputs: int) -> None:
    """Now those that are known, of the others each when it is read."""
    for split, labels in zip(splits, known, strict=True):
        if isinstance(split, ItemSplit):
            split.classes = outputs
        for label in () if labels is None else (labels.min(), labels.max()):
            if not 0 <= label < outputs:
                raise UserError(f"lb.Dataset: a label is {label}; outputs = {outputs} makes it 0 to {outputs - 1}")


def _target(part: Any, columns: tuple[str, ...] | None) -> Any:
    """Of arrays the last, which belong to the others; None where there is none."""
    if columns is not None and isinstance(part, Mapping):
        return part[columns[-1]]
    return part[-1] if isinstance(part, tuple) and len(part) > 1 else None


def labels_of(part: Any, columns: tuple[str, ...] | None) -> np.ndarray | None:
    """Whole numbers, one for each example, as far as a set says them without reading its items."""
    found = _target(part, columns) if in_memory(part) else getattr(part, "targets", getattr(part, "labels", None))
    try:
        labels = np.asarray(found)
    except (ValueError, TypeError):
        return None
    whole = labels.ndim == 1 and labels.dtype.kind in "iu" and len(labels) == _length(part)
    return labels.astype(np.int64) if whole else None


def classes_of(part: Any, columns: tuple[str, ...] | None) -> list[str]:
    """The names of classes, as torchvision's and Hugging Face's sets say them."""
    features = getattr(part, "features", None)
    if columns is not None and isinstance(features, Mapping) and columns[-1] in features:
        return list(getattr(features[columns[-1]], "names", None) or ())
    classes = getattr(part, "classes", None)
    return [str(one) for one in classes] if isinstance(classes, (list, tuple)) else []


def outputs_of(part: Any, example: Batch, labels: np.ndarray | None, columns: tuple[str, ...] | None) -> int | None:
    """How many numbers a model is to give for an example; None where nobody says."""
    if classes := classes_of(part, columns):
        return len(classes)
    if labels is not None and in_memory(part):
        return int(labels.max()) + 1
    pair = isinstance(example, (tuple, list)) and len(example) == 2 and isinstance(example[1], Tensor)
    return example[1].shape[1] if pair and example[1].dim() == 2 else None


def listing_of(part: Any, columns: tuple[str, ...] | None) -> Listing:
    """The numbers themselves where they lie in memory; else how many there are, and the labels that are known."""
    classes = tuple(classes_of(part, columns))
    if in_memory(part):
        arrays = [leaf.cpu().numpy() for leaf in nested.tensors_of(part)]
        return listing_of_numbers(classes, arrays)
    labels = labels_of(part, columns)
    fingerprint = getattr(part, "_fingerprint", None)  # of Hugging Face: of the files and of what was done to them
    numbers = fingerprint if isinstance(fingerprint, str) else None
    return Listing(classes, np.zeros(len(part), np.int64) if labels is None else labels, numbers=numbers)

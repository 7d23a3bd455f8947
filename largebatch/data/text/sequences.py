"""Sequences of a token pack, masked, by their number: the documents laid end to end and cut, or pairs of segments.

    sequence i = [CLS] + stream[i·(L − 1) : (i + 1)·(L − 1)]        each document closed by [SEP]; the rest is left out

Nothing of the pack is read but the tokens of the sequences asked for. In every phase an epoch goes over the sequences
of that phase's length, of which a pack has as many as its tokens give; those of the split's own length are what the
plan counts in epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from largebatch.data import draws
from largebatch.data.nested import Batch
from largebatch.data.processes import Helpers
from largebatch.data.requested import ReadRefusal, RequestedSplit, parts_of
from largebatch.data.sizes import Sizes
from largebatch.data.text import masks, pairs
from largebatch.data.text.pack import TextPack, open_pack
from largebatch.plan import order
from largebatch.plan.batch import BatchPlan


class Stream(NamedTuple):
    """Documents laid end to end, as a pack holds them."""

    tokens: np.ndarray
    documents: np.ndarray  # offsets: where each begins, and where the last ends
    segments: np.ndarray  # where each begins

    def documents_before(self, token: int) -> tuple[Stream, Stream]:
        """Those that end at or before it, and the others."""
        count = int(np.searchsorted(self.documents, token, side="right")) - 1
        cut = int(self.documents[count])
        of_rest = int(np.searchsorted(self.segments, cut))
        return (
            Stream(self.tokens[:cut], self.documents[: count + 1], self.segments[:of_rest]),
            Stream(self.tokens[cut:], self.documents[count:] - cut, self.segments[of_rest:] - cut),
        )


class SequenceForm(NamedTuple):
    """What is made of a pack's tokens."""

    mask_share: float
    next_sentence: bool
    held_tokens: int = 0  # so many at the end of the training part, to whole documents, are held out


class SequenceRequest(NamedTuple):
    """One micro-batch to read; ``positions`` in the stream of epochs where it is trained on."""

    indices: np.ndarray
    positions: np.ndarray | None
    length: int
    most: int  # predictions in a sequence


class Sequences(Dataset):
    """What a worker holds: request -> batch. Opened anew where it is sent to: a mapped file would travel whole."""

    def __init__(self, folder: Path, part: str, form: SequenceForm, seed: int) -> None:
        self.folder, self.part, self.form, self.seed = folder, part, form, seed
        self.pack: TextPack = open_pack(folder)
        self.stream = stream_of(self.pack, part, form.held_tokens)
        self._passages: dict[int, pairs.Passages] = {}

    def __getstate__(self) -> tuple[Any, ...]:
        return self.folder, self.part, self.form, self.seed

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.__init__(*state)

    def count(self, length: int) -> int:
        """How many sequences of this length there are."""
        return len(self.passages(length)) if self.form.next_sentence else len(self.stream.tokens) // (length - 1)

    def passages(self, length: int) -> pairs.Passages:
        if length not in self._passages:
            self._passages[length] = pairs.Passages(self.stream.documents, length - 3)
        return self._passages[length]

    def __getitem__(self, request: SequenceRequest) -> Batch | ReadRefusal:
        keys = draws.keys_of(self.seed, request.positions, request.indices)
        batch = self._pairs(request, keys) if self.form.next_sentence else {"tokens": self._cut(request)}
        tokens, special = batch["tokens"], self.pack.special
        if (largest := int(tokens.max())) >= self.pack.vocabulary_size:
            return ReadRefusal(
                f"{self.folder} holds a token {largest}, beyond its vocabulary of {self.pack.vocabulary_size}: it was "
                f"changed after it was written; `largebatch data verify {self.folder}` says where"
            )
        maskable = ~np.isin(tokens, [special[name] for name in ("[CLS]", "[SEP]", "[PAD]")])
        read, positions, labels = masks.masked(
            tokens, maskable, keys, self.form.mask_share, request.most, special, self.pack.vocabulary_size
        )
        batch |= {"tokens": read, "positions": positions, "labels": labels}
        return {key: torch.from_numpy(array) for key, array in batch.items()}

    def _cut(self, request: SequenceRequest) -> np.ndarray:
        begin = request.indices * (request.length - 1)
        rows = np.empty((len(begin), request.length), np.int64)
        rows[:, 0] = self.pack.special["[CLS]"]
        rows[:, 1:] = self.stream.tokens[begin[:, None] + np.arange(request.length - 1)]
        return rows

    def _pairs(self, request: SequenceRequest, keys: np.ndarray) -> dict[str, np.ndarray]:
        passages, room = self.passages(request.length), request.length - 3
        drawn = [
            pairs.pair_of(passages.at(index), self.stream, key, room)
            for index, key in zip(request.indices.tolist(), keys.tolist(), strict=True)
        ]
        names = ("tokens", "segments", "attended", "is_random")
        return dict(zip(names, pairs.laid(drawn, self.stream.tokens, request.length, self.pack.special), strict=True))


def stream_of(pack: TextPack, part: str, held_tokens: int) -> Stream:
    """Of ``train`` or ``test``, or what is ``held_out`` of the former."""
    read = pack.test if part == "test" else pack.train
    whole = Stream(read.tokens, read.documents, read.segments)
    if part == "test" or not held_tokens:
        return whole
    kept, held = whole.documents_before(max(0, len(whole.tokens) - held_tokens))
    return held if part == "held_out" else kept


class SequenceSplit(RequestedSplit):
    """A part of a pack; ``length`` is that of its own sequences, ``lengths`` and ``most`` those of a run's phases."""

    def __init__(
        self,
        reader: Callable[[int], Sequences],
        length: int,
        lengths: Sizes,
        most: Callable[[int], int],
        at_most: int | None = None,
        workers: int = 0,
        helpers: Helpers | None = None,
    ) -> None:
        super().__init__(workers, helpers)
        self.made, self.length, self.lengths, self.most = reader, length, lengths, most
        self.sequences, self.at_most = reader(0), at_most

    def __len__(self) -> int:
        count = self.sequences.count(self.length)
        return count if self.at_most is None else min(count, self.at_most)

    def reader(self, seed: int) -> Sequences:
        return self.made(seed)

    def of_step(self, plan: BatchPlan, step: int, rank: int) -> Iterator[SequenceRequest]:
        length, stage = self.lengths.at(step, plan), plan.number_at(step)
        positions, _, indices = plan.examples_of(step, rank)
        if length != self.length:  # an order of its own from the phase's first example on
            begin = int(positions[0]) - plan.stages[stage].first_example
            count = self.sequences.count(length)
            _, indices = order.of_stream(count, plan.seed, begin, len(positions), first=(stage + 1) << 32)
        for part in parts_of(plan, step):
            yield SequenceRequest(indices[part], positions[part], length, self.most(stage))

    def of_evaluation(self, indices: np.ndarray) -> SequenceRequest:
        return SequenceRequest(indices, None, self.length, self.most(-1))

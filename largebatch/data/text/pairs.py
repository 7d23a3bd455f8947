"""Pairs of segments for next-sentence prediction (Devlin et al. 2018, arXiv:1810.04805, appendix A.2).

    [CLS] A [SEP] B [SEP]        at most ``length`` tokens, filled up with [PAD]

Every document is cut into passages of ``length`` − 3 tokens. A is a passage's beginning, up to one of the segments
that begin in it, drawn alike, or to its middle where none does. One time in two B is the rest of the passage; else it
is what begins with a segment drawn alike from a document drawn alike, another than the passage's where there is one.

The original packs whole segments, uses what a random B left again, and makes a tenth of the sequences short: it writes
its pairs to files, and here any pair can be read by its number alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from largebatch.errors import UserError
from largebatch.plan.order import mixed, numbered

BLOCK = 512  # documents whose passages are counted together: one number of each is kept
CHUNK = 1 << 20  # documents whose lengths are looked at together


class Passage(NamedTuple):
    document: int
    begin: int  # in the stream of tokens
    end: int


class Passages:
    """Those of a part of a pack, by number; in memory are one in ``BLOCK`` of the documents' counts."""

    def __init__(self, documents: np.ndarray, room: int) -> None:
        self.documents, self.room = documents, room
        before, total = [0], 0
        for start in range(0, len(documents) - 1, CHUNK):
            end = min(start + CHUNK, len(documents) - 1)
            if documents[start] < 0 or np.diff(documents[start : end + 1]).min() < 1:
                raise UserError(
                    f"documents {start:,} to {end:,} of the token pack do not follow one another: it was changed after "
                    "it was written; `largebatch data verify` says where"
                )
            counts = self._counts(start, end)
            sums = np.add.reduceat(counts, range(0, len(counts), BLOCK))
            before.extend((total + np.cumsum(sums)).tolist())
            total = before[-1]
        self.before = np.array(before)  # passages before each block of documents

    def _counts(self, first: int, end: int) -> np.ndarray:
        """Of documents ``first`` to ``end``: a [SEP] closes each, and belongs to none of its passages."""
        lengths = np.diff(np.asarray(self.documents[first : end + 1])) - 1
        return -(-lengths // self.room)

    def __len__(self) -> int:
        return int(self.before[-1])

    def at(self, number: int) -> Passage:
        block = int(np.searchsorted(self.before, number, side="right")) - 1
        first = block * BLOCK
        ends = np.cumsum(self._counts(first, min(first + BLOCK, len(self.documents) - 1)))
        left = number - int(self.before[block])
        place = int(np.searchsorted(ends, left, side="right"))
        document, within = first + place, left - (int(ends[place - 1]) if place else 0)
        begin, end = int(self.documents[document]) + within * self.room, int(self.documents[document + 1]) - 1
        return Passage(document, begin, min(begin + self.room, end))


class Pair(NamedTuple):
    first: tuple[int, int]  # A: from, to in the stream of tokens
    second: tuple[int, int]  # B
    is_random: bool


def pair_of(passage: Passage, part: Any, key: int, room: int) -> Pair:
    """``part``: tokens, documents and segments of a pack.

    Words 0 to 3 of the key's stream say where A ends, whether B is from elsewhere, and from where.
    """
    words = numbered(mixed(np.array([key], dtype=np.uint64)), np.arange(4)).tolist()
    first, last = np.searchsorted(part.segments, (passage.begin + 1, passage.end)).tolist()
    if last > first:
        cut = int(part.segments[first + words[0] % (last - first)])
    else:
        cut = (passage.begin + passage.end + 1) // 2
    if words[1] >> 63 == 0 and cut < passage.end:
        return Pair((passage.begin, cut), (cut, passage.end), False)
    others = len(part.documents) - 2
    document = passage.document
    if others > 0:
        document = words[2] % others
        document += document >= passage.document
    begin, end = int(part.documents[document]), int(part.documents[document + 1]) - 1
    first, last = np.searchsorted(part.segments, (begin, end)).tolist()
    start = int(part.segments[first + words[3] % (last - first)])
    return Pair((passage.begin, cut), (start, min(end, start + room - (cut - passage.begin))), True)


def laid(pairs: list[Pair], tokens: np.ndarray, length: int, special: Mapping[str, int]) -> tuple[np.ndarray, ...]:
    """``(tokens, segments, attended, is_random)`` of sequences of ``length``."""
    rows = np.full((len(pairs), length), special["[PAD]"], np.int64)
    segments, attended = np.zeros((len(pairs), length), np.int64), np.zeros((len(pairs), length), bool)
    for row, ((begin, cut), (start, end), _) in enumerate(pairs):
        first, whole = cut - begin + 2, cut - begin + end - start + 3
        rows[row, 0], rows[row, first - 1], rows[row, whole - 1] = special["[CLS]"], special["[SEP]"], special["[SEP]"]
        rows[row, 1 : first - 1], rows[row, first : whole - 1] = tokens[begin:cut], tokens[start:end]
        segments[row, first:whole], attended[row, :whole] = 1, True
    return rows, segments, attended, np.array([pair.is_random for pair in pairs], dtype=np.int64)

"""Which tokens of a sequence are to be predicted, and what stands there instead.

Devlin et al. 2018 (arXiv:1810.04805), §3.1 and appendix A.1: of a sequence with c tokens that are no special ones,

    n = min(P, max(1, round(share · c)))        are drawn without replacement, in any order alike;
    of these 80 % become [MASK], 10 % a token of the vocabulary, all alike, and 10 % stay as they are.

What is drawn for a sequence is a function of its key alone: place j gets word j of splitmix64's stream of that key, the
n smallest are drawn, and further words say what becomes of them. So masks are the same in any world and after a resume,
and new ones in every epoch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from largebatch.plan.order import mixed, numbered

IGNORED = -100  # the label where a sequence has fewer predictions than there is room for
MASKED, RANDOM = 0.8, 0.1  # the rest stays


def predictions(length: int, share: float) -> int:
    """The room for predictions in a sequence of ``length``, where nobody says: 20 of 128, 77 of 512 at 15 %."""
    return max(1, int(np.ceil(share * length - 1e-9)))


def masked(
    tokens: np.ndarray,
    maskable: np.ndarray,
    keys: np.ndarray,
    share: float,
    most: int,
    special: Mapping[str, int],
    vocabulary_size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(what the model reads (m, L), positions (m, P), labels (m, P))`` of ``tokens`` (m, L), P = ``most``.

    ``maskable`` (m, L): which may be drawn; ``keys`` (m,) uint64, one for each sequence.
    """
    count, length = tokens.shape
    begun = mixed(keys.astype(np.uint64))[:, None]
    drawn = np.where(maskable, numbered(begun, np.arange(length)) >> np.uint64(1), np.uint64(2**64 - 1))
    room = min(most, length)
    smallest = np.argpartition(drawn, room - 1, axis=1)[:, :room]
    rank = np.argsort(np.take_along_axis(drawn, smallest, axis=1), axis=1)
    ordered = np.take_along_axis(smallest, rank, axis=1)
    there = maskable.sum(axis=1)
    due = np.minimum(np.minimum(most, np.maximum(1, np.rint(share * there))), there)
    places = np.sort(np.where(np.arange(room) < due[:, None], ordered, length), axis=1)
    is_due = places < length
    at = np.where(is_due, places, 0)
    stood = np.take_along_axis(tokens, at, axis=1)
    fate = (numbered(begun, length + at) >> np.uint64(11)) * 2.0**-53
    other = (numbered(begun, 2 * length + at) % np.uint64(vocabulary_size)).astype(np.int64)
    becomes = np.where(fate < MASKED, special["[MASK]"], np.where(fate < MASKED + RANDOM, other, stood))
    read = tokens.copy()
    rows = np.broadcast_to(np.arange(count)[:, None], at.shape)
    read[rows[is_due], at[is_due]] = becomes[is_due]
    positions, labels = np.zeros((count, most), np.int64), np.full((count, most), IGNORED, np.int64)
    positions[:, :room], labels[:, :room] = at, np.where(is_due, stood, IGNORED)
    return read, positions, labels

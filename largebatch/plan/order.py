"""The order of an epoch: a seeded permutation of all examples, which of a very large set is not kept but computed.

Up to ``LARGEST_KEPT`` examples it is NumPy's shuffle (PCG64 keyed by seed and epoch), an array. Beyond, it is a keyed
permutation of which any place is asked for alone, in memory that does not grow with the set: a Feistel network of the
index's bits with splitmix64's finalizer as its round function, walked until it is an index again (Black, Rogaway 2002,
"Ciphers with arbitrary finite domains", cycle walking).

    (l, r) ← (r, l ⊕ mix(r + key_i))        i = 1 ... 8; l and r: the halves of as many bits as N − 1 has
"""

from __future__ import annotations

import functools

import numpy as np

LARGEST_KEPT = 1 << 24  # examples: 128 MiB of order
ROUNDS = 8  # an even number, so that the halves end as wide as they began
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class KeyedOrder:
    """The permutation of ``range(length)`` that a key says; ``order[places]`` for a slice or an array of places."""

    def __init__(self, length: int, key: tuple[int, ...]) -> None:
        self.length = length
        bits = max(2, (length - 1).bit_length())
        self.widths = (np.uint64(bits - bits // 2), np.uint64(bits // 2))
        self.keys = np.random.Generator(np.random.PCG64(key)).integers(0, 2**64, ROUNDS, dtype=np.uint64)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray:
        if isinstance(places, slice):
            places = np.arange(*places.indices(self.length), dtype=np.int64)
        words = self._permuted(places.astype(np.uint64))
        while len(outside := np.flatnonzero(words >= np.uint64(self.length))):
            words[outside] = self._permuted(words[outside])
        return words.astype(np.int64)

    def _permuted(self, words: np.ndarray) -> np.ndarray:
        """Of all words of so many bits."""
        (left_bits, right_bits), one = self.widths, np.uint64(1)
        left, right = words >> right_bits, words & ((one << right_bits) - one)
        for key in self.keys:
            left, right = right, left ^ (mixed(right + key) & ((one << left_bits) - one))
            left_bits, right_bits = right_bits, left_bits
        return (left << right_bits) | right


def mixed(words: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer (Steele, Lea, Flood 2014), of uint64 elements: a permutation without any pattern."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def numbered(begun: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Words of splitmix64's streams by their numbers from 0: mix(begun + (number + 1) · golden)."""
    return mixed(begun + (numbers.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


@functools.lru_cache(maxsize=3)
def epoch_order(dataset_size: int, seed: int, epoch: int) -> np.ndarray | KeyedOrder:
    """The permutation of ``range(dataset_size)`` that is epoch ``epoch`` of a run with ``seed``."""
    if dataset_size > LARGEST_KEPT:
        return KeyedOrder(dataset_size, (seed, epoch))
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(dataset_size)
    order.setflags(write=False)
    return order


def of_stream(dataset_size: int, seed: int, start: int, count: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(epochs, indices) of ``count`` places from ``start`` on, where epochs lie end to end; they are numbered from
    ``first``."""
    epoch, place = divmod(start, dataset_size)
    if place + count <= dataset_size:  # nearly always: no epoch ends in it
        order = epoch_order(dataset_size, seed, first + epoch)
        return np.full(count, epoch, dtype=np.int64), np.array(order[place : place + count])
    epochs, places = np.divmod(np.arange(start, start + count, dtype=np.int64), dataset_size)
    indices = np.empty(count, dtype=np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        here = epochs == epoch
        indices[here] = epoch_order(dataset_size, seed, first + epoch)[places[here]]
    return epochs, indices

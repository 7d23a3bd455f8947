"""Which examples a data set holds: their classes, names and sizes, by which a resume knows them again.

No image is read. Forms of one set know it by the same names as far as they can: a pack knows those of what it was
packed from, and no sizes where it holds pixels. So names and sizes are compared between listings of one ``naming``
alone; the labels in their order are compared always, for they say which example is which.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from largebatch.records import names
from largebatch.records.files import whole

FOLDER, SHARDS, PARQUET = "image folder", "WebDataset shards", "parquet folder"  # namings
KNOWN = ("names", "sizes", "numbers")  # where the form of a set knows them
NAMED = 2  # of each kind of change, in a message
Digests = dict[str, dict[str, Any]]  # by split


class Listing(NamedTuple):
    """The examples of a split, in order."""

    classes: tuple[str, ...]
    labels: np.ndarray
    naming: str = ""  # whose names they are: FOLDER's, SHARDS' or PARQUET's, also in a pack of one
    names: np.ndarray | None = None  # bytes; of a folder's images those below their class
    sizes: np.ndarray | None = None  # bytes of each encoded image, -1 where it cannot be found
    numbers: str | None = None  # SHA-256 of the examples themselves, where they are few

    @property
    def digests(self) -> dict[str, Any]:
        """What two listings are compared by, and a checkpoint's manifest keeps."""
        return {
            "examples": len(self.labels),
            "classes": len(self.classes),
            "naming": self.naming,
            "names_of_classes": _sha256(json.dumps(self.classes).encode()),
            "labels": _digest(self.labels),
            "names": None if self.names is None else _sha256(b"\n".join(self.names.tolist())),
            "sizes": None if self.sizes is None else _digest(self.sizes),
            "numbers": self.numbers,
        }


Contents = Mapping[str, Listing]  # by split


def listing_of_numbers(outputs: tuple[str, ...], arrays: Sequence[np.ndarray]) -> Listing:
    """Of examples that are rows of ``arrays``, the targets last, which are called ``outputs``."""
    return Listing(outputs, arrays[-1], numbers=_sha256("".join(map(_digest, arrays)).encode()))


def digests_of(contents: Contents) -> Digests:
    return {split: listing.digests for split, listing in contents.items()}


def changed(before: Digests, now: Digests) -> list[str]:
    """The splits that hold other examples now, as far as both know them."""
    return [split for split in sorted({*before, *now}) if not _same(before.get(split), now.get(split))]


def _same(before: dict[str, Any] | None, now: dict[str, Any] | None) -> bool:
    if before is None or now is None:
        return False
    keys = ["examples", "classes", "labels"]
    if before["naming"] == now["naming"]:
        keys += ["names_of_classes", *(key for key in KNOWN if None not in (before.get(key), now.get(key)))]
    return all(before[key] == now[key] for key in keys)


def words_of_changes(before: Digests, listed: Contents, now: Contents) -> str:
    """What changed, by name where the listing ``listed`` is that of ``before``, else by numbers."""
    told = []
    for split in changed(before, digests_of(now)):
        there, here = before.get(split), now.get(split)
        old = listed.get(split)
        if there is None or here is None:
            words = f"there is {'one' if there is None else 'none'} now"
        elif old is not None and old.digests == there and old.naming == here.naming and here.names is not None:
            words = _by_name(old, here)
        else:
            words = _by_number(there, here)
        told.append(f"{split}: {words}")
    return "; ".join(told)


def _by_name(before: Listing, now: Listing) -> str:
    old, new = _sizes(before), _sizes(now)
    gone, come = old.keys() - new.keys(), new.keys() - old.keys()
    moved_from = {name: of_class for of_class, name in sorted(gone)}
    moved = {key for key in come if key[1] in moved_from and old[moved_from[key[1]], key[1]] in (new[key], None)}
    gone -= {(moved_from[name], name) for _, name in moved}
    kinds = {
        "added": come - moved,
        "removed": gone,
        "moved to another class": moved,
        "of another size": {
            key for key in old.keys() & new.keys() if None not in (old[key], new[key]) and old[key] != new[key]
        },
    }
    words = [f"{len(keys):,} {kind} ({_few(keys)})" for kind, keys in kinds.items() if keys]
    return ", ".join(words) or "the same images in another order"


def _differ(before: int | None, now: int | None) -> bool:
    return None not in (before, now) and before != now


def _sizes(listing: Listing) -> dict[tuple[str, bytes], int | None]:
    """By class and name."""
    assert listing.names is not None
    sizes: list[int | None] = [None] * len(listing.labels) if listing.sizes is None else listing.sizes.tolist()
    keys = zip((listing.classes[label] for label in listing.labels.tolist()), listing.names.tolist(), strict=True)
    return dict(zip(keys, sizes, strict=True))


def _few(keys: set[tuple[str, bytes]]) -> str:
    named = [f"{of_class}/{os.fsdecode(name)}" for of_class, name in sorted(keys)[:NAMED]]
    return ", ".join(named + (["..."] if len(keys) > NAMED else []))


def _by_number(before: dict[str, Any], now: Listing) -> str:
    here = now.digests
    was, are = ((one["examples"], one["classes"]) for one in (before, here))
    if was != are:
        return f"{are[0]:,} examples of {are[1]:,} classes, it was {was[0]:,} of {was[1]:,}"
    if before["labels"] != here["labels"]:
        return "as many examples with other labels, or in another order"
    key = next((key for key in KNOWN if before.get(key) != here[key]), "names of classes")
    return f"as many examples with other {key}"


def keep(folder: Path, contents: Contents) -> None:
    """Leave the listings in a run directory, whole or not at all."""
    arrays: dict[str, Any] = {}
    for split, listing in contents.items():
        arrays[f"{split}.classes"] = np.array(listing.classes, dtype=np.str_)
        arrays[f"{split}.naming"] = np.array(listing.naming)
        fields = {"labels": listing.labels, "names": listing.names, "sizes": listing.sizes}
        arrays |= {f"{split}.{field}": array for field, array in fields.items() if array is not None}
    with whole(folder / names.DATA) as unfinished, open(unfinished, "wb") as file:
        np.savez_compressed(file, **arrays)


def kept(folder: Path) -> Contents:
    """Nothing where there is none that can be read: then changes are told by numbers."""
    try:
        with open(folder / names.DATA, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {
                split: Listing(
                    tuple(arrays[f"{split}.classes"].tolist()),
                    arrays[f"{split}.labels"],
                    str(arrays[f"{split}.naming"]),
                    *(arrays.get(f"{split}.{field}") for field in ("names", "sizes")),
                )
                for split in {key.partition(".")[0] for key in arrays}
            }
    except Exception:  # of numpy, about a file that may hold anything
        return {}


def _digest(array: np.ndarray) -> str:
    """The same for any width and order of the numbers' bytes."""
    return _sha256(array.astype("<f8" if array.dtype.kind == "f" else "<i8").tobytes())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

"""What lies among the images and is none of them: passed over wherever it is met, counted, and said.

Hidden is what a file manager or an archiver leaves beside its files: ``.DS_Store``, ``._1.jpg``, ``.thumbs/``,
``__MACOSX/``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HIDDEN = "hidden"
LOOP = "loop of links"
AGAIN = "linked again"
SPECIAL = "pipe, socket or device"
LINK = "link in an archive"


def is_hidden(name: str) -> bool:
    """Of a file, a folder or one part of an archive's path."""
    return name == "__MACOSX" or (name.startswith(".") and name not in (".", ".."))


class PassedOver:
    """How many of each kind, and the first of them."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, kind: str, name: str) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self._first.setdefault(kind, name)

    def join(self, other: PassedOver) -> None:
        for kind, count in other._counts.items():
            self._counts[kind] = self._counts.get(kind, 0) + count
            self._first.setdefault(kind, other._first[kind])

    def __str__(self) -> str:
        """``hidden (2): a/._1.jpg, ...; loop of links (1): a/up``; empty where there was nothing."""
        return "; ".join(
            f"{kind} ({count:,}): {self._first[kind]}{', ...' if count > 1 else ''}"
            for kind, count in sorted(self._counts.items())
        )


def told_of(splits: Mapping[str, Any]) -> str:
    """What the sources of ``splits`` passed over, in words; empty where it was nothing."""
    told = {split: getattr(source, "passed_over", "") for split, source in splits.items()}
    return "; ".join(f"in {split}: {text}" for split, text in told.items() if text)

"""The form of what was seen: one dictionary of plain values for each rank, ``ranks`` in a dictionary of all."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

GIB = 2**30

Examined = dict[str, Any]


def by_host(ranks: list[Examined]) -> dict[str, list[Examined]]:
    hosts: dict[str, list[Examined]] = {}
    for rank in ranks:
        hosts.setdefault(rank["host"], []).append(rank)
    return hosts


def size(count: float | None) -> str:
    """``1.5 GiB``."""
    if count is None:
        return "unknown"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if count < 1000 else f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def spans(numbers: list[int]) -> str:
    """``0-3, 8``: neighbours drawn together."""
    numbers = sorted(numbers)
    starts = [numbers[0], *(after for before, after in pairwise(numbers) if after != before + 1)]
    ends = [*(before for before, after in pairwise(numbers) if after != before + 1), numbers[-1]]
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))

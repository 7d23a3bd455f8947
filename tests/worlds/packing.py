"""A pack made in a process of its own."""

from __future__ import annotations

from pathlib import Path

from packs import packed, slow_files


def pack(images: str, dest: str) -> None:
    """Three images to a file; who reads one beside which a ``.wait`` lies waits."""
    slow_files()
    packed(images, Path(dest), per_file=3)

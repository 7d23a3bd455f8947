"""A pack made in a process of its own."""

from __future__ import annotations

from pathlib import Path

from packs import packed


def pack(images: str, dest: str) -> None:
    """Three images to a file."""
    packed(images, Path(dest), per_file=3)

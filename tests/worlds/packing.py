"""Packs made in a process of its own."""

from __future__ import annotations

from pathlib import Path

from packs import packed, slow_files
from texts import tokenized


def pack(images: str, dest: str) -> None:
    """Three images to a file; who reads one beside which a ``.wait`` lies waits."""
    slow_files()
    packed(images, Path(dest), per_file=3)


def text_pack(source: str, dest: str) -> None:
    """Small shards by two processes."""
    tokenized(Path(source), Path(dest), workers=2, shard_bytes=8000)

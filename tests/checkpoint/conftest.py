"""Checkpoints made by hand, by as many ranks as a test likes; every checksum fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from largebatch.checkpoint import manifest, tree, writer

Forge = Callable[..., Path]


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    def forged(
        state: dict[str, Any] | None = None,
        named: int = 10,
        contents: list[dict[str, Tensor]] | None = None,
        **other: Any,
    ) -> Path:
        """``contents`` of its files; without them the state is written whole. ``other`` facts replace the usual."""
        path = manifest.path_of(tmp_path, named)
        path.mkdir(parents=True)
        tensors: tree.Tensors = {}
        whole = {"state": tree.flatten(state or {}, "state", tensors), "ranks": []}
        about = {}
        for number, content in enumerate([tensors] if contents is None else contents):
            about |= writer.write_tensors(path / f"rank-{number:05d}.safetensors", content)  # type: ignore[arg-type]
        manifest.write(path, {"step": named, "files": about, "tree": whole, **other})
        return path

    return forged

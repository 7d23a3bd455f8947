"""Tiny data sets in the public formats, written by the tests themselves."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from largebatch.data import Placement

CPU = Placement(torch.device("cpu"), torch.float64)


def pixels(count: int, side: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return (0x0800 + array.ndim).to_bytes(4, "big") + sizes + array.tobytes()


def write_idx(folder: Path, images: np.ndarray, labels: np.ndarray, kind: str, packed: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in ((f"{kind}-images-idx3-ubyte", images), (f"{kind}-labels-idx1-ubyte", labels)):
        raw = idx_bytes(array)
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(raw) if packed else raw)


@pytest.fixture
def mnist_like(tmp_path: Path) -> Path:
    """A root with forty training and ten test images."""
    root = tmp_path / "mnist"
    write_idx(root, pixels(40, 28, 1)[..., 0], np.arange(40, dtype=np.uint8) % 10, "train", packed=True)
    write_idx(root, pixels(10, 28, 1, seed=1)[..., 0], np.arange(10, dtype=np.uint8), "t10k")
    return root


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    """train: 13 cats and 12 dogs of various shapes and kinds; val: 4 and 3."""
    root = tmp_path / "images"
    rng = np.random.default_rng(0)
    for split, counts in (("train", {"cat": 13, "dog": 12}), ("val", {"cat": 4, "dog": 3})):
        for label, count in counts.items():
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                shape = (int(rng.integers(20, 60)), int(rng.integers(20, 60)))
                if number % 3:
                    shape = (*shape, 3)
                image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
                suffix = "png" if number % 2 else "JPEG"
                image.save(root / split / label / f"{number:02d}.{suffix}")
    return root

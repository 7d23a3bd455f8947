"""A folder as ImageNet's for `make gpu-check`: a thousand classes of a few photographs.

The photographs are $LARGEBATCH_DATA/imagenet_samples where they are, else made of noise that looks like one to a
decoder: large shapes, edges and grain, about 100 KB at 500 × 375.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 1000  # ImageNet's
QUALITY = 95  # of JPEG


def samples() -> tuple[list[Path], str] | None:
    """The sample photographs beside the data sets, and a word for them."""
    folder = os.environ.get("LARGEBATCH_DATA")
    found = sorted((Path(folder) / "imagenet_samples").glob("*.JPEG")) if folder else []
    return (found, f"{len(found)} sample photographs") if found else None


def made(into: Path, count: int, width: int, height: int) -> tuple[list[Path], str]:
    into.mkdir(parents=True)
    files = []
    for number in range(count):
        files.append(into / f"made_{number:03d}.JPEG")
        Image.fromarray(photograph(np.random.default_rng(number), width, height)).save(files[-1], quality=QUALITY)
    return files, f"{count} made-up photographs of {width}x{height}"


def photograph(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """uint8 (height, width, 3): noise at every scale, the coarser the stronger, as photographs have it."""
    total = np.zeros((height, width, 3))
    for cells in (3, 12, 48, 192):
        coarse = rng.integers(0, 256, (max(2, cells * height // width), cells, 3), np.uint8)
        layer = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(layer, dtype=float) * (1 / cells) ** 0.5
    total += rng.normal(0, 0.05 * np.ptp(total), total.shape)
    total -= total.min()
    return (total * (255 / total.max())).astype(np.uint8)


def imagenet_like(root: Path, files: list[Path], per_class: int) -> None:
    """``root``/train with so many photographs in each class folder, and val with one.

    One that is taken again is a hard link to its first copy: those are files of their own to who reads a folder.
    """
    copies: dict[Path, Path] = {}
    for label in range(CLASSES):
        for split, count in (("train", per_class), ("val", 1)):
            folder = root / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for number in range(count):
                file, name = files[(label + number) % len(files)], folder / f"{number}.JPEG"
                if file in copies:
                    name.hardlink_to(copies[file])
                else:
                    copies[file] = Path(shutil.copyfile(file, name))

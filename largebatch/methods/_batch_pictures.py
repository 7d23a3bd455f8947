"""Examples of a batch -> pixels that people can look at, with their labels in words."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from largebatch.data.dataset import Splits
from largebatch.data.preparation import prepared
from largebatch.records import names
from largebatch.records.facts import write_json
from largebatch.records.files import write_bytes
from largebatch.records.looking import PicturesRecord
from largebatch.records.typed import content
from largebatch.report import batch_picture
from largebatch.tasks.task import Task

SEVERAL = 3  # labels that are told of one example


def write(
    directory: Path, step: int, inputs: Tensor, labels: Tensor | None, dataset: Splits, task: Task
) -> tuple[PicturesRecord, np.ndarray]:
    """The picture and its record; what was drawn, (height, width, 3) uint8."""
    pixels, levels = shown(inputs, dataset)
    words = labels_in_words(labels, len(inputs), list(dataset.classes), task.answers)
    record = PicturesRecord(
        step=step,
        file=f"step-{step}.png",
        examples=len(inputs),
        channels=pixels.shape[3],
        height=pixels.shape[1],
        width=pixels.shape[2],
        labels=words,
        levels=levels,
    )
    drawn = batch_picture.grid(pixels, words)
    (directory / names.PICTURES).mkdir(parents=True, exist_ok=True)
    write_bytes(directory / at(record), drawn)
    write_json((directory / at(record)).with_suffix(".json"), content(record))
    with Image.open(io.BytesIO(drawn)) as opened:
        return record, np.asarray(opened.convert("RGB"))


def at(record: PicturesRecord) -> Path:
    """Where it lies in a run directory."""
    return Path(names.PICTURES) / record.file


def shown(inputs: Tensor, dataset: Splits) -> tuple[np.ndarray, str]:
    """``inputs`` (m, C, H, W) as uint8 (m, H, W, C), and in words how.

    x·std + mean per channel where the data set says by which it normalised; else numbers from 0 to 1 as they are, whole
    numbers over 255, and others between their lowest and highest.
    """
    if not inputs.is_floating_point():
        images, how = inputs.double() / 255, "as they are, levels 0 to 255"
    elif (mean := prepared(dataset).get("mean")) is not None:
        std = prepared(dataset)["std"]
        shift, scale = (torch.tensor(numbers, dtype=torch.float64).view(1, -1, 1, 1) for numbers in (mean, std))
        images, how = inputs.double() * scale + shift, "the normalisation is undone"
    else:
        images, how = inputs.double(), "as they are, levels 0 to 1"
        low, high = float(images.min()), float(images.max())
        if low < 0 or high > 1:
            images = (images - low) / max(high - low, 1e-12)
            how = f"stretched from {low:.3g} (black) to {high:.3g}: the data set does not say how it normalises"
    levels = (images.nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().numpy(), how


def labels_in_words(labels: Tensor | None, count: int, classes: list[str], answers: str | None) -> list[str]:
    """Of each example: its class; the shares of mixed classes, the largest first; the labels that are there, with their
    shares where those are mixed; the numbers that it is to give; nothing where a batch has no labels of these forms."""
    if labels is None or labels.dim() not in (1, 2):
        return [""] * count

    def name(number: int) -> str:
        return classes[number] if 0 <= number < len(classes) else str(number)

    if labels.dim() == 1 and not labels.is_floating_point():
        return [name(int(label)) for label in labels]
    if answers in ("classes", "labels") and labels.dim() == 2:
        return [_shares(row, name) for row in labels.double().tolist()]
    rows = labels.double().reshape(count, -1).tolist()
    return [", ".join(f"{number:.4g}" for number in row[:SEVERAL]) + " …" * (len(row) > SEVERAL) for row in rows]


def _shares(row: list[float], name: Any) -> str:
    """Those above nothing, the largest first; a share of one is not told."""
    there = sorted(((share, number) for number, share in enumerate(row) if share > 5e-4), key=lambda p: (-p[0], p[1]))
    told = [name(number) if share > 0.9995 else f"{name(number)} {share:.2f}" for share, number in there[:SEVERAL]]
    return ", ".join(told) + " …" * (len(there) > SEVERAL)

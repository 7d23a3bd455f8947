"""A small data set the way tutorials read it: torch's DataLoader over single examples with torchvision's transforms.

Each example becomes an image, is transformed by itself, and examples are collated into a batch, in this process or by
workers. The loop that takes them is the bare one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.utils.data import DataLoader
from torchvision import transforms

from largebatch.data import Placement, fork_server
from largebatch.data.resident import ResidentSplit
from largebatch.studies.bench.throughput.bare_loop import Batches


class TransformedExamples(torch.utils.data.Dataset):
    """As torchvision's own classes for MNIST and CIFAR do it."""

    def __init__(self, split: ResidentSplit) -> None:
        images, labels = split.resident(torch.device("cpu"))
        self.images: np.ndarray = images.numpy()
        self.labels = labels.tolist() if labels.dim() == 1 else labels  # a row of several is collated as it is
        side, window = self.images.shape[1:3], split.window
        edge = "reflect" if window.fill == "reflect" else "constant"
        crop = transforms.RandomCrop(side, padding=window.padding, padding_mode=edge)
        self.transform = transforms.Compose([
            *([crop] if split.augment.startswith("crop") else []),
            *([transforms.RandomHorizontalFlip()] if split.augment.endswith("flip") else []),
            transforms.ToTensor(),
            transforms.Normalize(*split.statistics),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        pixels = self.images[index]
        image = PIL.Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        return self.transform(image), self.labels[index]


def loader(split: ResidentSplit, micro_batch_size: int, workers: int, placement: Placement) -> DataLoader[Any]:
    return DataLoader(
        TransformedExamples(split),
        batch_size=micro_batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=placement.device.type == "cuda",
        persistent_workers=workers > 0,
        multiprocessing_context=fork_server.running() if workers else None,
    )


def loaded(source: DataLoader[Any], steps: int, accumulation_steps: int, placement: Placement) -> Iterator[Batches]:
    """So many steps, epoch after epoch, where the model wants them."""
    endless = itertools.chain.from_iterable(itertools.repeat(source))
    for _ in range(steps):
        yield (placement.placed(batch) for batch in itertools.islice(endless, accumulation_steps))

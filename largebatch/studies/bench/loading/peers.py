"""The loaders that others use, each as its own documentation sets it up: the peers of ``bench data``.

All make the same view, a random window of 8 % to 100 % of the area, resized bilinearly with antialiasing, mirrored
with probability 1/2. ``timm, its default`` is what timm's training script does when nothing is said, with
interpolation drawn among two and colour jitter of 0.4; the ratios are to ``timm``, which does the same work as ours.
"""

from __future__ import annotations

import importlib
import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from largebatch.studies.bench.loading.ways import Candidate, PhotoFolder, Way

TIMM = "timm"  # what the ratios are to
TORCHVISION = "torchvision"


def peers(sample: PhotoFolder) -> list[Candidate]:
    return [
        Candidate("timm", lambda: timm_way(sample)),
        Candidate("timm, its default", lambda: _timm_default(sample)),
        Candidate(TORCHVISION, lambda: _torchvision(sample, as_float=False)),
        Candidate("torchvision, ToTensor", lambda: _torchvision(sample, as_float=True)),
        Candidate("torchvision v2", lambda: _torchvision_v2(sample)),
        Candidate("WebDataset", lambda: _webdataset(sample)),
        Candidate("DALI", lambda: _dali(sample)),
    ]


def timm_way(sample: PhotoFolder, workers: int = 0) -> Way:
    same = {"interpolation": "bilinear", "color_jitter": None}
    how = "its ImageFolder reader and PIL, create_loader with bilinear interpolation and no jitter, fast_collate"
    return Way(TIMM, "peer", "uint8", how, _endless(lambda: _timm_loader(sample, workers, same)))


def _timm_default(sample: PhotoFolder) -> Way:
    default = {"interpolation": "random", "color_jitter": 0.4}
    return Way(
        "timm, its default", "peer", "uint8", "the same with interpolation drawn anew for each image, jitter 0.4",
        _endless(lambda: _timm_loader(sample, 0, default)),
    )  # fmt: skip


def _timm_loader(sample: PhotoFolder, workers: int, transform: dict[str, Any]) -> DataLoader:
    """What its prefetcher reads from; the prefetcher itself normalises on the device."""
    from timm.data import create_dataset, create_loader

    dataset: Any = create_dataset("", root=str(sample.folder), split="train", is_training=True)
    prefetcher: Any = create_loader(
        dataset, input_size=(3, sample.size, sample.size), batch_size=sample.batch, is_training=True,
        num_workers=workers, persistent_workers=False, device=torch.device("cpu"), **transform,
    )  # fmt: skip
    return prefetcher.loader


def torchvision_set(sample: PhotoFolder, as_float: bool = False) -> Any:
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    last = transforms.ToTensor() if as_float else transforms.PILToTensor()
    view = transforms.Compose([transforms.RandomResizedCrop(sample.size), transforms.RandomHorizontalFlip(), last])
    return ImageFolder(sample.folder / "train", view)


def _torchvision(sample: PhotoFolder, as_float: bool) -> Way:
    def open_loader() -> DataLoader:
        return _loader(torchvision_set(sample, as_float), sample)

    how = "ImageFolder and PIL, RandomResizedCrop, RandomHorizontalFlip"
    if as_float:
        return Way("torchvision, ToTensor", "peer", "float32", f"{how}, ToTensor", _endless(open_loader))
    return Way(TORCHVISION, "peer", "uint8", f"{how}, PILToTensor", _endless(open_loader))


def _torchvision_v2(sample: PhotoFolder) -> Way:
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import v2

    def read(path: str) -> Any:
        return decode_jpeg(read_file(path), mode=ImageReadMode.RGB)

    view = v2.Compose([v2.RandomResizedCrop(sample.size, antialias=True), v2.RandomHorizontalFlip()])

    def open_loader() -> DataLoader:
        return _loader(ImageFolder(sample.folder / "train", view, loader=read), sample)

    return Way(
        "torchvision v2",
        "peer",
        "uint8",
        "ImageFolder, decode_jpeg and v2's transforms on tensors",
        _endless(open_loader),
    )


def _webdataset(sample: PhotoFolder) -> Way:
    from torchvision import transforms

    wds: Any = importlib.import_module("webdataset")
    shard = sample.folder.parent / "peer.tar"
    if not shard.exists():
        _write_shard(sorted((sample.folder / "train").rglob("*.jpg")), shard)
    view = transforms.Compose(
        [transforms.RandomResizedCrop(sample.size), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    )

    def open_loader() -> Iterable[Any]:
        shards = wds.WebDataset(str(shard), shardshuffle=False, empty_check=False).shuffle(1000).decode("pil")
        dataset = shards.to_tuple("jpg", "cls").map_tuple(view, int).batched(sample.batch, partial=False)
        return wds.WebLoader(dataset, batch_size=None, num_workers=0)

    return Way(
        "WebDataset",
        "peer",
        "uint8",
        "one shard, shuffle(1000), decode('pil'), torchvision's transforms",
        _endless(open_loader),
    )


def _write_shard(files: list[Path], shard: Path) -> None:
    with tarfile.open(shard, "w", dereference=True) as tar:  # a photograph that is repeated is written again
        for file in files:
            tar.add(file.resolve(), f"{file.stem}.jpg")
            label = tarfile.TarInfo(f"{file.stem}.cls")
            label.size = 1
            tar.addfile(label, io.BytesIO(b"0"))


def _dali(sample: PhotoFolder) -> Way:
    dali: Any = importlib.import_module("nvidia.dali")
    fn: Any = importlib.import_module("nvidia.dali.fn")
    types: Any = importlib.import_module("nvidia.dali.types")

    @dali.pipeline_def(batch_size=sample.batch, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def pipeline() -> Any:
        encoded, labels = fn.readers.file(file_root=str(sample.folder / "train"), random_shuffle=True)
        window = fn.decoders.image_random_crop(
            encoded, device="cpu", output_type=types.RGB, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        resized = fn.resize(window, size=[sample.size, sample.size], interp_type=types.INTERP_LINEAR)
        return fn.flip(resized, horizontal=fn.random.coin_flip()), labels

    def batches() -> Iterator[int]:
        running = pipeline()
        running.build()
        while True:
            images, _ = running.run()
            yield len(images)

    return Way("DALI", "peer", "uint8", "its CPU pipeline with one thread: image_random_crop, resize, flip", batches)


def _loader(dataset: Any, sample: PhotoFolder) -> DataLoader:
    return DataLoader(dataset, sample.batch, shuffle=True, drop_last=True)


def _endless(open_loader: Callable[[], Iterable[Any]]) -> Callable[[], Iterator[int]]:
    """Over the epochs of a loader whose batches begin with the images."""

    def batches() -> Iterator[int]:
        loader = open_loader()
        while True:
            for batch in loader:
                yield len(batch[0])

    return batches

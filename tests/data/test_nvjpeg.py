"""The path of nvJPEG: on the CPU with torchvision's decoder there, and on a GPU where there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from largebatch.data import Placement, nvjpeg
from largebatch.data.decode import training_window
from largebatch.data.encoded import Encoded, Undecoded
from largebatch.data.nvjpeg import NvjpegSplit
from largebatch.data.sizes import Sizes, constant
from largebatch.data.statistics import IMAGENET
from largebatch.data.unreadable import Unreadable
from largebatch.data.workers import WorkerSplit
from largebatch.errors import LocalError, UserError
from largebatch.plan.batch import BatchPlan, resolve
from tests.data.conftest import CPU
from tests.data.test_decode import encoded, photograph
from tests.data.test_workers import read, same, split_of, wait_until_gone

LEVELS = 255 * torch.tensor(IMAGENET.std, dtype=torch.float64).view(3, 1, 1)
ON_CPU = torch.device("cpu")


def write_photographs(root: Path) -> Path:
    """train: 12 and 12 images of two classes; some a worker has to decode: PNG, CMYK, something behind the end."""
    for label in ("cat", "dog"):
        (root / "train" / label).mkdir(parents=True)
        for number in range(12):
            width, height = 60 + 7 * number, 95 - 4 * number
            mode = {3: "L", 5: "CMYK"}.get(number, "RGB")
            form, suffix = ("PNG", "png") if number in (2, 9) else ("JPEG", "JPEG")
            data = encoded(photograph(width, height, mode), form, **({"progressive": True} if number == 7 else {}))
            data += b"\0" * (number == 4)  # behind the end marker
            (root / "train" / label / f"{number:02d}.{suffix}").write_bytes(data)
    return root


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "images")


def plan_of(world: int = 1, micro: int = 4, steps: int = 6) -> BatchPlan:
    return resolve(dataset_size=24, global_batch_size=8, world_size=world, micro_batch_size=micro, steps=steps, seed=3)


def on_cpu(root: Path, **given: object) -> NvjpegSplit:
    return split_of(root, NvjpegSplit, "nvjpeg", **{"decoder": ON_CPU, **given})


def pillow(root: Path, **given: object) -> WorkerSplit:
    return split_of(root, WorkerSplit, "pillow", **given)


def assert_close(found: list[tuple], expected: list[tuple], levels: float) -> None:
    assert len(found) == len(expected)
    for (images, labels), (others, same_labels) in zip(found, expected, strict=True):
        assert labels.equal(same_labels)
        assert ((images - others).abs() * LEVELS).max() <= levels + 1e-6


@pytest.mark.parametrize("augment", ["none", "flip", "resized_crop_flip"])
def test_the_same_examples_windows_and_flips(photographs: Path, augment: str):
    found, expected = (make(photographs, augment=augment) for make in (on_cpu, pillow))
    assert_close(read(found, plan_of()), read(expected, plan_of()), levels=2)
    assert_close(list(found.batches(0, 1, 5, CPU)), list(expected.batches(0, 1, 5, CPU)), levels=2)


def test_sides_colours_and_an_order_of_its_own(photographs: Path):
    given = {
        "sizes": Sizes(16, 32, evaluate=24, multiple_of=8), "color_jitter": 0.4,
        "epoch_order": lambda seed, epoch: np.roll(np.arange(24), seed + epoch),
    }  # fmt: skip
    found, expected = (read(make(photographs, **given), plan_of()) for make in (on_cpu, pillow))
    assert len({images.shape for images, _ in found}) > 1
    assert_close(found, expected, levels=6)  # factors of up to 1.4, three times


@pytest.mark.worlds
def test_any_world_any_workers_any_resume_point(photographs: Path):
    whole = read(on_cpu(photographs), plan_of(micro=8))
    ranks = [read(on_cpu(photographs), plan_of(world=2, micro=1), rank=rank) for rank in range(2)]
    together = [
        tuple(torch.cat([b[part] for rank in ranks for b in rank[4 * step : 4 * step + 4]]) for part in range(2))
        for step in range(6)
    ]
    assert same(whole, together)
    assert same(whole[2:], read(on_cpu(photographs), plan_of(micro=8), first=2))
    assert same(read(on_cpu(photographs), plan_of()), read(on_cpu(photographs, workers=2), plan_of()))
    wait_until_gone()


def test_what_travels_as_a_file_and_what_as_a_view(photographs: Path):
    files = sorted((photographs / "train" / "cat").iterdir())
    batch = Undecoded(12, 16)
    for row, file in enumerate(files):
        batch.take(row, file.read_bytes(), lambda w, h: training_window(w, h, 16, "none", np.random.default_rng(0)))
    found = batch.whole()
    assert isinstance(found, Encoded)
    assert found.rows.tolist() == [2, 4, 5, 9]
    assert found.views.shape == (4, 16, 16, 3)
    travelling = {row: bytes(data) for row, data, _ in found.files()}
    assert travelling == {row: files[row].read_bytes() for row in range(12) if row not in (2, 4, 5, 9)}


@pytest.mark.worlds
def test_a_set_without_a_jpeg(photographs: Path):
    for path in photographs.glob("train/*/*.JPEG"):
        path.unlink()
    split = on_cpu(photographs, workers=1)
    batches = list(split.batches(0, 1, 3, CPU))
    assert same(batches, list(pillow(photographs).batches(0, 1, 3, CPU)))
    wait_until_gone()


def broken(root: Path) -> list[str]:
    """A header that is none, a body cut short, and a body that only a decoder finds to be none."""
    train = root / "train"
    (train / "cat" / "00.JPEG").write_bytes(b"\xff\xd8\xff\xe0 not a header \xff\xd9")
    whole = (train / "cat" / "01.JPEG").read_bytes()
    (train / "cat" / "01.JPEG").write_bytes(whole[: len(whole) // 2])
    (train / "dog" / "06.JPEG").write_bytes(only_a_header(root))
    return ["cat/00.JPEG", "cat/01.JPEG", "dog/06.JPEG"]


def only_a_header(root: Path) -> bytes:
    """Everything before the scan, and the end marker."""
    data = (root / "train" / "dog" / "06.JPEG").read_bytes()
    return data[: data.index(b"\xff\xda")] + b"\xff\xd9"


@pytest.mark.worlds
@pytest.mark.parametrize("workers", [0, 2])
def test_broken_files_follow_the_rule_of_unreadable_ones(photographs: Path, workers: int):
    names = broken(photographs)
    mine, theirs = Unreadable(24, 0.2), Unreadable(24, 0.2)
    found = read(on_cpu(photographs, workers=workers, unreadable=mine), plan_of())
    expected = read(pillow(photographs, unreadable=theirs), plan_of())
    assert_close(found, expected, levels=2)
    assert sorted("/".join(Path(file).parts[-2:]) for file in mine.met) == names
    assert mine.met.keys() == theirs.met.keys()
    wait_until_gone()


def test_a_body_that_the_device_refuses_is_named(photographs: Path):
    (photographs / "train" / "dog" / "06.JPEG").write_bytes(only_a_header(photographs))
    with pytest.raises(LocalError, match="dog/06.JPEG cannot be read as an image: .*data.unreadable_share = 0 allows"):
        read(on_cpu(photographs, unreadable=Unreadable(24, 0)), plan_of())
    with pytest.raises(LocalError, match="dog/06.JPEG cannot be read as an image: [^;]*$"):
        list(on_cpu(photographs).batches(0, 1, 5, CPU))


def test_a_file_that_the_device_alone_refuses_is_decoded_by_the_cpu(photographs: Path, monkeypatch: pytest.MonkeyPatch):
    original, refused = nvjpeg.decode_jpeg, []

    def decode(files: list[torch.Tensor], *given: object, **named: object) -> list[torch.Tensor]:
        if any(len(file) % 3 == 0 for file in files):
            refused.append(len(files))
            raise RuntimeError("nvJPEG knows no such thing")
        return original(files, *given, **named)

    monkeypatch.setattr(nvjpeg, "decode_jpeg", decode)
    split = on_cpu(photographs, color_jitter=0.4)
    assert_close(read(split, plan_of()), read(pillow(photographs, color_jitter=0.4), plan_of()), levels=6)
    assert 1 in refused
    assert max(refused) > 1


def test_a_full_device_is_not_the_images_fault(photographs: Path, monkeypatch: pytest.MonkeyPatch):
    def decode(*given: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(nvjpeg, "decode_jpeg", decode)
    with pytest.raises(torch.OutOfMemoryError):
        read(on_cpu(photographs, unreadable=Unreadable(24, 0.9)), plan_of())


def test_without_cuda(photographs: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="^data.decode = nvjpeg needs a CUDA device, and torch finds none; turbo"):
        split_of(photographs, NvjpegSplit, "nvjpeg")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="^data.decode = nvjpeg needs a CUDA device, and this run is on cpu$"):
        read(split_of(photographs, NvjpegSplit, "nvjpeg"), plan_of())


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_on_cuda(photographs: Path, workers: int):
    """nvJPEG's transform and its upsampling of colours are its own: close in the mean, and the same examples."""
    names = broken(photographs)
    mine, theirs = Unreadable(24, 0.2), Unreadable(24, 0.2)
    split = split_of(photographs, NvjpegSplit, "nvjpeg", workers=workers, color_jitter=0.4, unreadable=mine)
    there = Placement(torch.device("cuda"), torch.float64)
    found = [batch for step in split.steps(plan_of(), 0, 0, there, 5) for batch in step]
    expected = read(pillow(photographs, color_jitter=0.4, unreadable=theirs), plan_of())
    for (images, labels), (others, same_labels) in zip(found, expected, strict=True):
        assert images.is_cuda
        assert labels.cpu().equal(same_labels)
        assert ((images.cpu() - others).abs() * LEVELS).mean() < 6
    assert sorted("/".join(Path(file).parts[-2:]) for file in mine.met) == names
    wait_until_gone()


@pytest.mark.gpu
def test_on_cuda_greys_are_decoded_as_on_the_cpu(tmp_path: Path):
    """Without colours to upsample only the transform may round otherwise."""
    for label in ("cat", "dog"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for number in range(12):
            image = photograph(60 + 7 * number, 95 - 4 * number, "L")
            (tmp_path / "train" / label / f"{number:02d}.JPEG").write_bytes(encoded(image))
    split = split_of(tmp_path, NvjpegSplit, "nvjpeg", sizes=constant(32))
    found = list(split.batches(0, 1, 24, Placement(torch.device("cuda"), torch.float64)))
    expected = list(pillow(tmp_path, sizes=constant(32)).batches(0, 1, 24, CPU))
    assert_close([(images.cpu(), labels.cpu()) for images, labels in found], expected, levels=3)

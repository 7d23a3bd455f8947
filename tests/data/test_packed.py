"""Packed pixels as the trainer gets them, beside a loop over images with torchvision."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from largebatch.data import Placement
from largebatch.data.ahead import begun
from largebatch.data.augment import step_views
from largebatch.data.dataset import Split
from largebatch.data.packs.origins import origins
from largebatch.data.packs.pack import PixelPack, open_pack
from largebatch.data.packs.packing import pack
from largebatch.data.packs.split import AHEAD, PackedSplit, _Gathered
from largebatch.data.sizes import Sizes, constant
from largebatch.data.statistics import IMAGENET
from largebatch.data.views import centre_box
from largebatch.errors import LocalError
from largebatch.plan.batch import BatchPlan, resolve
from tests.data.conftest import CPU, pixels

SIDE, SIZE = 32, 28


class InMemory:
    """A pack without files; every image's label is its own number."""

    def __init__(self, count: int, side: int = SIDE) -> None:
        self.images, self.labels, self.size = pixels(count, side, 3), np.arange(count), side
        self.gathered: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        self.gathered.append(indices.tolist())
        return np.take(self.images, indices, axis=0, out=out)


class Reversed(InMemory):
    """The first twenty of another, backwards."""

    def __init__(self, whole: InMemory) -> None:
        self.images, self.labels, self.size = whole.images[19::-1], whole.labels[19::-1], whole.size
        self.gathered = []


class Vanishing(InMemory):
    """Whose file is gone at the fourth micro-batch."""

    def __init__(self, count: int, failure: Exception) -> None:
        super().__init__(count)
        self.failure = failure

    def gather(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        if len(self.gathered) == 3:
            raise self.failure
        return super().gather(indices, out)


def packed(count: int = 20, augment: str = "resized_crop_flip", color_jitter: float = 0.0, sizes: Sizes | None = None):
    return PackedSplit(InMemory(count), sizes or constant(SIZE), augment, color_jitter)


def plan_of(size: int = 20, batch: int = 8, world: int = 1, micro: int | None = None, steps: int = 5) -> BatchPlan:
    return resolve(
        dataset_size=size, global_batch_size=batch, world_size=world, micro_batch_size=micro, steps=steps, seed=3
    )


def global_batches(split: Split, plan: BatchPlan, first: int = 0, seed: int = 9, placement: Placement = CPU):
    """[(images, labels)] per step, the ranks' micro-batches end to end."""
    ranks = [split.steps(plan, rank, first, placement, seed) for rank in range(plan.world_size)]
    steps = []
    for shares in zip(*ranks, strict=True):
        micro = [batch for share in shares for batch in share]
        assert [len(labels) for _, labels in micro] == [plan.micro_batch_size] * (
            plan.accumulation_steps * plan.world_size
        )
        images, labels = zip(*micro, strict=True)
        steps.append((torch.cat(images), torch.cat(labels)))
    return steps


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("largebatch-ahead")]


@pytest.fixture(autouse=True)
def no_thread_outlives() -> Iterator[None]:
    yield
    assert not threads()


def looped(split: PackedSplit, plan: BatchPlan, step: int, seed: int = 9) -> tuple[np.ndarray, list[int]]:
    """The whole global batch of ``step``, one image at a time, normalised in float64."""
    pack, size = split.pack, split.sizes.at(step, plan)
    assert isinstance(pack, InMemory)
    count = plan.global_batch_size
    views = step_views(split.augment, split.color_jitter, seed, step, count, pack.size, centre_box(pack.size))
    change = [functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation]
    indices = np.concatenate([plan.examples_of(step, rank).indices for rank in range(plan.world_size)])
    images = []
    for row, index in enumerate(indices):
        left, upper, right, lower = views.boxes[row].tolist()
        planar = torch.from_numpy(pack.images[index]).permute(2, 0, 1)
        view = functional.resized_crop(planar, upper, left, lower - upper, right - left, [size, size], antialias=True)
        view = functional.horizontal_flip(view) if views.flip[row] else view
        view = view.double() / 255
        for kind in views.orders[row]:
            view = change[kind](view, float(views.factors[row, kind]))
        images.append((view.numpy().transpose(1, 2, 0) - IMAGENET.mean) / IMAGENET.std)
    return np.array(images).transpose(0, 3, 1, 2), indices.tolist()


@pytest.mark.parametrize("color_jitter", [0.0, 0.4])
@pytest.mark.parametrize("augment", ["none", "flip", "resized_crop_flip"])
def test_steps_are_what_a_loop_over_images_gives(augment: str, color_jitter: float):
    split, plan = packed(20, augment, color_jitter), plan_of(micro=4)
    steps = global_batches(split, plan)
    assert len(steps) == plan.steps
    for step, (images, labels) in enumerate(steps):
        expected, indices = looped(split, plan, step)
        assert labels.dtype == torch.int64
        assert labels.tolist() == indices
        worst = abs(images.numpy() - expected) * np.array(IMAGENET.std).reshape(-1, 1, 1) * 255
        assert worst.max() < (1.001 if augment == "resized_crop_flip" else 1e-9)


@pytest.mark.parametrize(("world", "micro"), [(1, 2), (2, 4), (2, 1), (4, 2)])
@pytest.mark.parametrize("color_jitter", [0.0, 0.4])
def test_an_example_looks_the_same_in_any_world(color_jitter: float, world: int, micro: int):
    split = packed(color_jitter=color_jitter)
    whole, parts = (global_batches(split, plan) for plan in (plan_of(micro=8), plan_of(world=world, micro=micro)))
    for (images, labels), (other_images, other_labels) in zip(whole, parts, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def test_resuming_gives_what_would_have_come():
    split, plan = packed(color_jitter=0.4), plan_of(micro=4)
    whole, resumed = global_batches(split, plan), global_batches(split, plan, first=3)
    assert len(resumed) == plan.steps - 3
    for (images, labels), (again, labels_again) in zip(whole[3:], resumed, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, labels_again)
    other = global_batches(split, plan, seed=10)
    assert not any(torch.equal(images, another) for (images, _), (another, _) in zip(whole, other, strict=True))


def test_every_example_once_per_epoch():
    split, plan = packed(21), plan_of(21, 7, micro=7, steps=6)
    labels = torch.cat([labels for _, labels in global_batches(split, plan)]).tolist()
    assert sorted(labels[:21]) == sorted(labels[21:]) == list(range(21))
    assert labels[:21] != labels[21:]


def test_a_batch_that_grows():
    split = packed()
    plan = resolve(dataset_size=20, global_batch_size=4, micro_batch_size=2, epochs=2, seed=3, growth=((1.0, 10),))
    steps = [[labels.tolist() for _, labels in step] for step in split.steps(plan, 0, 0, CPU, 9)]
    assert [len(step) for step in steps] == [2] * 5 + [5] * 2
    assert [list(itertools.chain(*step)) for step in steps] == [
        plan.examples_of(step).indices.tolist() for step in range(plan.steps)
    ]


def test_sizes_by_step():
    sizes = Sizes(first=8, last=24, evaluate=28, multiple_of=8)
    split, plan = packed(sizes=sizes), plan_of(micro=4, steps=6)
    seen = []
    for step, (images, _) in enumerate(global_batches(split, plan)):
        seen.append(images.shape[-1])
        assert images.shape == (8, 3, sizes.at(step, plan), sizes.at(step, plan))
        expected, _ = looped(split, plan, step)
        worst = abs(images.numpy() - expected) * np.array(IMAGENET.std).reshape(-1, 1, 1) * 255
        assert worst.max() < 1.001
    assert seen == sorted(seen)
    assert len(set(seen)) > 1
    for images, _ in split.batches(0, 1, 6, CPU):
        assert images.shape[2:] == (28, 28)


@pytest.mark.parametrize(("world", "batch"), [(1, 4), (1, 100), (3, 2), (4, 3), (11, 5), (15, 5)])
def test_evaluation_sees_the_centre_of_every_example_once(world: int, batch: int):
    split = packed(11, color_jitter=0.4)
    shares = [list(split.batches(rank, world, batch, CPU)) for rank in range(world)]
    counts = [sum(len(labels) for _, labels in share) for share in shares]
    assert max(counts) - min(counts) <= 1
    images, labels = (torch.cat(each).numpy() for each in zip(*itertools.chain(*shares), strict=True))
    assert labels.tolist() == list(range(11))
    expected = (split.pack.images[:, 2:30, 2:30] / 255 - IMAGENET.mean) / IMAGENET.std  # type: ignore[attr-defined]
    np.testing.assert_allclose(images.transpose(0, 2, 3, 1), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("color_jitter", [0.0, 0.4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_placement_is_kept(dtype: torch.dtype, color_jitter: float, channels_last: bool):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    placement = Placement(torch.device("cpu"), dtype, channels_last)
    split, plan = packed(color_jitter=color_jitter), plan_of(micro=4)
    for (images, _), (exact, _) in zip(
        global_batches(split, plan, placement=placement), global_batches(split, plan), strict=True
    ):
        assert images.dtype == dtype
        assert images.is_contiguous(memory_format=layout)
        assert abs(images - exact).max() < (0.05 if dtype == torch.bfloat16 else 1e-5)


def test_a_step_left_half_read_does_not_shift_the_next():
    split, plan = packed(), plan_of(micro=2)
    for number, step in enumerate(split.steps(plan, 0, 0, CPU, 5)):
        _, labels = next(iter(step))
        assert labels.tolist() == plan.examples_of(number).indices[:2].tolist()


def test_the_thread_is_some_micro_batches_ahead_and_no_more():
    split, plan = packed(200), plan_of(200, 8, micro=2, steps=10)
    pack = split.pack
    assert isinstance(pack, InMemory)
    taken = 0
    for step in split.steps(plan, 0, 0, CPU, 0):
        for _ in step:
            taken += 1
            deadline = time.monotonic() + 20
            expected = min(taken + AHEAD, 40)
            while len(pack.gathered) < expected and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.002)  # time to go too far
            assert len(pack.gathered) == expected
    assert pack.gathered == [plan.examples_of(n // 4).indices[n % 4 * 2 :][:2].tolist() for n in range(40)]


@pytest.mark.worlds
def test_the_thread_ends_with_its_stream():
    split, plan = packed(), plan_of(micro=2, steps=50)
    for step in split.steps(plan, 0, 0, CPU, 0):  # left
        next(iter(step))
        assert len(threads()) == 1
        break
    gc.collect()
    assert not threads()
    stream = split.steps(plan, 0, 0, CPU, 0)
    list(next(stream))
    assert len(threads()) == 1
    stream.close()  # type: ignore[attr-defined]
    assert not threads()
    batches = split.batches(0, 1, 3, CPU)
    next(batches)
    assert len(threads()) == 1
    list(batches)
    assert not threads()
    assert list(split.batches(20, 21, 3, CPU)) != []
    unread = split.batches(0, 1, 3, CPU)
    del unread
    assert not threads()


def test_a_file_that_vanished_is_told():
    split = PackedSplit(Vanishing(20, OSError(5, "Input/output error", "train-00003.npy")), constant(SIZE), "flip")
    seen = []
    with pytest.raises(LocalError, match=r"the packed images cannot be read: .*Input/output error: 'train-00003.npy'"):
        seen += (labels for step in split.steps(plan_of(micro=2, steps=50), 0, 0, CPU, 0) for _, labels in step)
    assert len(seen) == 3
    assert not threads()


def test_a_failure_of_ours_is_not_hidden():
    split = PackedSplit(Vanishing(20, ZeroDivisionError("ours")), constant(SIZE), "flip")
    with pytest.raises(ZeroDivisionError, match="ours"):
        list(split.batches(0, 1, 2, CPU))
    assert not threads()


def test_the_runs_generator_and_threads_are_left_alone():
    torch.manual_seed(0)
    before, count = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        stream = packed(color_jitter=0.4).steps(plan_of(micro=4), 0, 0, CPU, 0)
        list(next(stream))
        assert torch.get_num_threads() == 2
        found: list[int] = []
        other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert found == [2]
        stream.close()  # type: ignore[attr-defined]
    finally:
        torch.set_num_threads(count)
    assert torch.equal(before, torch.get_rng_state())


def test_work_that_was_begun_comes_in_order_in_a_thread_of_one():
    jobs = [lambda n=n: (n, torch.get_num_threads(), threading.current_thread().name) for n in range(20)]
    results = [future.result() for future in begun(jobs, 4)]
    assert [number for number, _, _ in results] == list(range(20))
    assert {count for _, count, _ in results} == {1}
    assert threading.current_thread().name not in {name for _, _, name in results}
    assert list(begun([], 4)) == []


@pytest.mark.worlds
def test_a_pack_on_disk_gives_what_its_images_in_memory_give(image_root: Path, tmp_path: Path):
    pack(origins(str(image_root)), tmp_path / "pack", size=SIDE, per_file=4, workers=1)
    on_disk = open_pack(tmp_path / "pack").splits["train"]
    assert isinstance(on_disk, PixelPack)
    in_memory = InMemory(len(on_disk))
    in_memory.images, in_memory.labels = on_disk.gather(np.arange(len(on_disk))), on_disk.labels
    parts = (on_disk, in_memory), (on_disk.part(np.arange(20)[::-1]), Reversed(in_memory))
    for pixels_on_disk, pixels_in_memory in parts:
        plan = plan_of(len(pixels_on_disk), 8, micro=4)
        splits = [PackedSplit(each, constant(SIZE), "resized_crop_flip") for each in (pixels_on_disk, pixels_in_memory)]
        pairs = [
            *zip(*(global_batches(split, plan) for split in splits), strict=True),
            *zip(*(split.batches(0, 1, 7, CPU) for split in splits), strict=True),
        ]
        assert len(pairs) > plan.steps
        for (images, labels), (others, known) in pairs:
            assert torch.equal(images, others)
            assert torch.equal(labels, known)


@pytest.mark.parametrize("color_jitter", [0.0, 0.4])
def test_the_form_for_devices_on_the_processor(color_jitter: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    split, plan = packed(50, color_jitter=color_jitter), plan_of(50, 40, micro=40, steps=2)
    for step, request in enumerate(split._training_requests(plan, 0, 0, 9)):
        raw = torch.from_numpy(split.pack.gather(request.indices))
        images, labels = split._on_cuda(_Gathered(request, raw), CPU)
        expected, indices = looped(split, plan, step)
        assert labels.dtype == torch.int64
        assert labels.tolist() == indices
        levels = abs(images.numpy() - expected) * np.array(IMAGENET.std).reshape(-1, 1, 1) * 255
        assert levels.max() < (1.001 if color_jitter == 0 else 5.0)
        assert levels.mean() < 0.4


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("color_jitter", "channels_last"), [(0.0, True), (0.4, False), (0.4, True)])
def test_the_device_gives_what_the_processor_gives(dtype: torch.dtype, color_jitter: float, channels_last: bool):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    device = torch.device("cuda:0")
    split = packed(200, color_jitter=color_jitter, sizes=Sizes(16, 28, 28, multiple_of=4))
    plan = plan_of(200, 40, micro=20, steps=6)
    there = Placement(device, dtype, channels_last)
    pairs = [
        *zip(global_batches(split, plan, placement=there), global_batches(split, plan), strict=True),
        *zip(split.batches(0, 1, 30, there), split.batches(0, 1, 30, CPU), strict=True),
    ]
    for (images, labels), (expected, known) in pairs:
        assert images.device == labels.device == device
        assert images.dtype == dtype
        assert images.is_contiguous(memory_format=layout)
        assert labels.tolist() == known.tolist()
        levels = abs(images.cpu().double() - expected) * torch.tensor(IMAGENET.std).view(-1, 1, 1) * 255
        one_level = 1.001 if color_jitter == 0 else 5.0  # a level is drawn apart by factors up to 1.4, three times
        assert levels.max() < one_level + (2 if dtype == torch.bfloat16 else 0)
        assert levels.mean() < (1.0 if dtype == torch.bfloat16 else 0.4)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_no_step_makes_the_host_wait():
    split, plan = packed(200, color_jitter=0.4), plan_of(200, 40, micro=20, steps=12)
    placement = Placement(torch.device("cuda:0"), torch.float32, True)
    try:
        for number, step in enumerate(split.steps(plan, 0, 0, placement, 9)):
            for images, labels in step:
                images.mul_(2).sum().add_(labels.sum())
            torch.cuda.set_sync_debug_mode("error" if number > 1 else "default")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("slow", ["host", "device", "neither"])
def test_what_overlaps_is_not_corrupted(slow: str):
    """Memory that was handed over too early, or taken back, would show as other pixels than the processor's."""
    split, plan = packed(400), plan_of(400, 40, micro=10, steps=40)
    placement = Placement(torch.device("cuda:0"), torch.float32)
    sums, labels = [], []
    busy = torch.randn(2048, 2048, device="cuda:0")
    for step in split.steps(plan, 0, 0, placement, 9):
        for images, numbers in step:
            if slow == "host":
                time.sleep(0.003)
            if slow == "device":
                for _ in range(20):
                    busy = torch.tanh(busy @ busy)
            sums.append(images.double().sum((1, 2, 3)))
            labels.append(numbers.clone())
            images.fill_(torch.nan)
            numbers.fill_(-1)
            del images, numbers
    expected = global_batches(split, plan)
    assert torch.cat(labels).tolist() == torch.cat([known for _, known in expected]).tolist()
    known = torch.cat([images.sum((1, 2, 3)) for images, _ in expected])
    per_pixel = abs(torch.cat(sums).cpu() - known) / (3 * SIZE * SIZE)
    assert per_pixel.max() < 0.01  # a level is 0.017, and few are off by one

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from largebatch.batch import BatchPlan, resolve
from largebatch.data import Dataset, build
from largebatch.data.augment import example_generator, resized_crop_box
from largebatch.data.facts import IMAGENET
from largebatch.data.folder import FolderSplit, evaluation_view, training_view
from largebatch.errors import UserError
from tests.data.conftest import CPU


def build_folder(root: Path, **arguments: object) -> Dataset:
    return build("folder", root=str(root), image_size=16, **({"workers": 0} | arguments))  # type: ignore[arg-type]


def plan_of(dataset: Dataset, world: int = 1, micro: int = 2, steps: int = 4) -> BatchPlan:
    size = len(dataset.train)
    return resolve(
        dataset_size=size, global_batch_size=8, world_size=world, micro_batch_size=micro, steps=steps, seed=3
    )


def collected(dataset: Dataset, plan: BatchPlan, first: int = 0, seed: int = 5) -> list[tuple]:
    ranks = [dataset.train.steps(plan, rank, first, CPU, seed) for rank in range(plan.world_size)]
    steps = []
    for shares in zip(*ranks, strict=True):
        images, labels = zip(*[batch for share in shares for batch in share], strict=True)
        assert len(images) == plan.accumulation_steps * plan.world_size
        steps.append((torch.cat(images), torch.cat(labels)))
    return steps


def same(steps: list[tuple], others: list[tuple]) -> bool:
    pairs = list(zip(steps, others, strict=True))
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


def files_of(dataset: Dataset, split: str = "train") -> list[str]:
    part = getattr(dataset, split)
    assert isinstance(part, FolderSplit)
    return [part.files.path(index) for index in range(len(part))]


def workers() -> list:
    return multiprocessing.active_children()


def wait_until_gone() -> None:
    for process in workers():
        process.join(10)
    assert not workers()


def test_what_a_folder_holds(image_root: Path):
    (image_root / "train" / "cat" / "notes.txt").write_text("not an image")
    (image_root / "train" / ".hidden").mkdir()
    dataset = build_folder(image_root)
    assert dataset.classes == ["cat", "dog"]
    assert (len(dataset.train), len(dataset.test)) == (25, 7)
    assert dataset.image_shape == (3, 16, 16)
    assert files_of(dataset) == sorted(
        str(path) for path in image_root.glob("train/*/*") if path.suffix in (".png", ".JPEG")
    )
    assert build("folder", root=str(image_root)).image_shape == (3, 224, 224)


def test_steps_in_order_augmented_by_position(image_root: Path):
    dataset = build_folder(image_root)
    plan = plan_of(dataset)
    paths = files_of(dataset)
    for step, (images, labels) in enumerate(collected(dataset, plan)):
        positions, _, indices = plan.examples_of(step, 0)
        assert labels.tolist() == [int(index >= 13) for index in indices]
        for row, (position, index) in enumerate(zip(positions, indices, strict=True)):
            rng = example_generator(5, int(position))
            view = training_view(Image.open(paths[index]).convert("RGB"), 16, "resized_crop_flip", rng)
            expected = (view / 255 - IMAGENET.mean) / IMAGENET.std
            np.testing.assert_allclose(images[row].permute(1, 2, 0).numpy(), expected, rtol=0, atol=1e-12)


def test_any_world_any_workers_any_resume_point(image_root: Path):
    dataset = build_folder(image_root)
    whole = collected(dataset, plan_of(dataset, micro=8))
    assert same(whole, collected(dataset, plan_of(dataset, world=4, micro=1)))
    assert same(whole[2:], collected(dataset, plan_of(dataset, micro=4), first=2))
    assert not same(whole, collected(dataset, plan_of(dataset, micro=8), seed=6))
    with_workers = build_folder(image_root, workers=2)
    assert same(whole, collected(with_workers, plan_of(dataset, micro=2)))
    evaluated = [list(each.test.batches(0, 1, 3, CPU)) for each in (dataset, with_workers)]
    assert same(*evaluated)
    wait_until_gone()


def test_the_runs_own_generator_is_left_alone(image_root: Path):
    dataset = build_folder(image_root, workers=1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(dataset.test.batches(0, 1, 4, CPU))
    collected(dataset, plan_of(dataset, steps=1))
    assert torch.equal(before, torch.get_rng_state())


def test_leaving_early_ends_the_workers(image_root: Path):
    dataset = build_folder(image_root, workers=2)
    for step in dataset.train.steps(plan_of(dataset, steps=50), 0, 0, CPU, 0):
        for _ in step:
            break
        assert len(workers()) == 2
        break
    for _ in dataset.test.batches(0, 1, 2, CPU):
        break
    wait_until_gone()


def test_a_step_left_half_read_does_not_shift_the_next(image_root: Path):
    dataset = build_folder(image_root)
    plan = plan_of(dataset)
    for number, step in enumerate(dataset.train.steps(plan, 0, 0, CPU, 5)):
        _, labels = next(iter(step))
        assert labels.tolist() == [int(index >= 13) for index in plan.examples_of(number).indices[:2]]


def test_signals_to_the_group_do_not_reach_workers(image_root: Path):
    dataset = build_folder(image_root, workers=2)
    stream = dataset.train.steps(plan_of(dataset, steps=30), 0, 0, CPU, 0)
    list(next(stream))
    pids = [process.pid for process in workers()]
    deadline = time.monotonic() + 20
    while any(os.getpgid(pid) != pid for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(os.getpgid(pid) == pid for pid in pids)
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    from multiprocessing.forkserver import _forkserver

    os.kill(_forkserver._forkserver_pid, signal.SIGTERM)  # type: ignore[attr-defined]
    assert sum(1 for step in stream for _ in step) == 29 * 4
    wait_until_gone()


TRAINER = """
import multiprocessing, sys, time
if __name__ == "__main__":
    import torch
    from largebatch.data import Placement, build
    split = build("folder", root=sys.argv[1], workers=2).train
    batches = split.batches(0, 1, 1, Placement(torch.device("cpu")))
    next(batches)
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


def test_workers_of_a_killed_trainer_end(image_root: Path, tmp_path: Path):
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    found = os.pathsep.join(filter(None, sys.path))
    trainer = subprocess.Popen(
        [sys.executable, str(script), str(image_root)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": found},
    )
    with trainer:
        assert trainer.stdout is not None
        pids = [int(pid) for pid in trainer.stdout.readline().split()]
        trainer.kill()
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in pids)


def is_running(pid: int) -> bool:
    """Whether the process exists and is more than a zombie that nobody has fetched."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize(("world", "batch"), [(1, 3), (2, 100), (9, 2)])
def test_evaluation_sees_every_image_once(image_root: Path, world: int, batch: int):
    dataset = build_folder(image_root)
    parts = [list(dataset.test.batches(rank, world, batch, CPU)) for rank in range(world)]
    images = torch.cat([images for part in parts for images, _ in part])
    labels = [label for part in parts for _, batch in part for label in batch.tolist()]
    assert labels == [0, 0, 0, 0, 1, 1, 1]
    for row, path in enumerate(files_of(dataset, "test")):
        view = evaluation_view(Image.open(path).convert("RGB"), 16)
        expected = (view / 255 - IMAGENET.mean) / IMAGENET.std
        np.testing.assert_allclose(images[row].permute(1, 2, 0).numpy(), expected, rtol=0, atol=1e-12)


def test_hold_out_replaces_the_test_set(image_root: Path):
    shutil.rmtree(image_root / "val")
    dataset = build_folder(image_root, hold_out=6)
    held, kept = set(files_of(dataset, "test")), set(files_of(dataset))
    assert (len(held), len(kept), len(held & kept)) == (6, 19, 0)
    assert held == set(files_of(build_folder(image_root, hold_out=6, seed=7), "test"))
    collected(dataset, plan_of(dataset))


def test_the_evaluation_view_is_the_centre():
    image = Image.fromarray(np.full((64, 128, 3), 255, np.uint8))
    marked = np.array(image)
    marked[:, :32] = marked[:, 96:] = 0
    view = evaluation_view(Image.fromarray(marked), 28)  # resized to 32 x 64, columns 18 to 46 remain
    assert view.shape == (28, 28, 3)
    assert (view == 255).all()
    assert evaluation_view(Image.fromarray(marked[:3]), 28).shape == (28, 28, 3)


def test_plain_and_mirrored_training_views():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    plain = evaluation_view(image, 16)
    assert np.array_equal(training_view(image, 16, "none", example_generator(0, 0)), plain)
    views = [training_view(image, 16, "flip", example_generator(0, position)) for position in range(40)]
    mirrored = [np.array_equal(view, plain[:, ::-1]) for view in views]
    assert 0 < sum(mirrored) < 40
    assert all(flipped or np.array_equal(view, plain) for flipped, view in zip(mirrored, views, strict=True))


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (64, 64)])
def test_resized_crops_have_the_stated_areas_and_ratios(width: int, height: int):
    areas, ratios = [], []
    for position in range(2000):
        left, upper, right, lower = resized_crop_box(width, height, example_generator(1, position))
        assert 0 <= left < right <= width
        assert 0 <= upper < lower <= height
        areas.append((right - left) * (lower - upper) / (width * height))
        ratios.append((right - left) / (lower - upper))
    assert 0.07 < min(areas) < 0.1
    assert 0.95 < max(areas) <= 1
    assert 3 / 4 - 0.05 < min(ratios) < 0.78
    assert 1.3 < max(ratios) < 4 / 3 + 0.05
    assert abs(np.mean(np.log(ratios))) < 0.25 * math.log(4 / 3)


@pytest.mark.parametrize(("width", "height", "box"), [(1000, 10, (494, 0, 507, 10)), (10, 1000, (0, 494, 10, 507))])
def test_an_image_too_long_for_any_window_gives_its_centre(width: int, height: int, box: tuple[int, ...]):
    rng = example_generator(0, 0)
    found = resized_crop_box(width, height, rng)
    assert (found[2] - found[0], found[3] - found[1]) == (box[2] - box[0], box[3] - box[1])
    assert all(abs(a - b) <= 1 for a, b in zip(found, box, strict=True))


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("content", [b"", b"not an image", "half"])
def test_an_unreadable_image_is_named(image_root: Path, content: bytes | str, count: int):
    broken = image_root / "train" / "dog" / "03.png"
    broken.write_bytes(broken.read_bytes()[:200] if isinstance(content, str) else content)
    dataset = build_folder(image_root, workers=count)
    with pytest.raises(UserError, match=r"dog/03.png cannot be read as an image") as error:
        collected(dataset, plan_of(dataset))
    assert "\n" not in str(error.value)
    wait_until_gone()


def test_an_image_that_vanished_is_named(image_root: Path):
    dataset = build_folder(image_root)
    (image_root / "val" / "cat" / "00.JPEG").unlink()
    with pytest.raises(UserError, match="cannot be read as an image: No such file"):
        list(dataset.test.batches(0, 1, 4, CPU))


def test_folders_that_are_not_data_sets(image_root: Path):
    with pytest.raises(UserError, match="class folders; imagenet needs 1000"):
        build("imagenet", root=str(image_root))
    with pytest.raises(UserError, match=r"data.hold_out = 25 leaves nothing to train on; at most 24"):
        build_folder(image_root, hold_out=25)
    (image_root / "val" / "bird").mkdir()
    with pytest.raises(UserError, match="val/bird holds no images"):
        build_folder(image_root)
    shutil.copy(image_root / "val" / "cat" / "00.JPEG", image_root / "val" / "bird")
    with pytest.raises(UserError, match="differ in class 'bird'"):
        build_folder(image_root)
    shutil.rmtree(image_root / "val")
    with pytest.raises(UserError, match="has no val or test folder"):
        build_folder(image_root)
    shutil.rmtree(image_root / "train")
    with pytest.raises(UserError, match=r"data set folder not found in .*; data.root should be a folder with"):
        build_folder(image_root)
    (image_root / "train").mkdir()
    with pytest.raises(UserError, match="train has no class folders"):
        build_folder(image_root)


def test_imagenet_needs_and_takes_a_thousand_classes(tmp_path: Path):
    image = tmp_path / "image.JPEG"
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(image)
    for number in range(1000):
        for split in ("train", "val"):
            (tmp_path / split / f"n{number:08d}").mkdir(parents=True)
            os.link(image, tmp_path / split / f"n{number:08d}" / "a.JPEG")
    dataset = build("imagenet", root=str(tmp_path))
    assert (dataset.num_classes, dataset.image_shape, len(dataset.train)) == (1000, (3, 224, 224), 1000)
    assert dataset.facts["augment"] == "resized_crop_flip"

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pool
import pytest
import torch

from largebatch.data import Placement, Splits, build, fork_server, processes
from largebatch.data import views as viewing
from largebatch.data.augment import color_draws, example_generator
from largebatch.data.decode import evaluation_window, training_window, view
from largebatch.data.folder import scan
from largebatch.data.sizes import Sizes, constant
from largebatch.data.statistics import IMAGENET
from largebatch.data.workers import Decoded, WorkerSplit
from largebatch.errors import Lost, UserError
from largebatch.plan.batch import BatchPlan, resolve
from tests.data.conftest import CPU


def build_folder(root: Path, **arguments: object) -> Splits:
    return build("folder", root=str(root), image_size=16, **({"workers": 0} | arguments))  # type: ignore[arg-type]


def plan_of(dataset: Splits, world: int = 1, micro: int = 2, steps: int = 4) -> BatchPlan:
    size = len(dataset.train)
    return resolve(
        dataset_size=size, global_batch_size=8, world_size=world, micro_batch_size=micro, steps=steps, seed=3
    )


def collected(dataset: Splits, plan: BatchPlan, first: int = 0, seed: int = 5) -> list[tuple]:
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


def files_of(dataset: Splits, split: str = "train") -> list[str]:
    part = getattr(dataset, split)
    assert isinstance(part, WorkerSplit)
    return [part.source.name(index) for index in range(len(part))]


def training_pixels(path: str, position: int) -> np.ndarray:
    """What of the file is seen at ``position`` of a run with seed 5."""
    rng = example_generator(5, position)
    draw = functools.partial(training_window, size=16, augment="resized_crop_flip", rng=rng)
    return view(Path(path).read_bytes(), 16, draw, "turbo").numpy()


def workers() -> list:
    return multiprocessing.active_children()


def wait_until_gone() -> None:
    for process in workers():
        process.join(10)
    assert not workers()


def test_steps_in_order_augmented_by_position(image_root: Path):
    dataset = build_folder(image_root)
    plan = plan_of(dataset)
    paths = files_of(dataset)
    for step, (images, labels) in enumerate(collected(dataset, plan)):
        positions, _, indices = plan.examples_of(step, 0)
        assert labels.tolist() == [int(index >= 13) for index in indices]
        for row, (position, index) in enumerate(zip(positions, indices, strict=True)):
            expected = (training_pixels(paths[index], int(position)) / 255 - IMAGENET.mean) / IMAGENET.std
            np.testing.assert_allclose(images[row].permute(1, 2, 0).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.worlds
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


@pytest.mark.worlds
def test_the_runs_own_generator_is_left_alone(image_root: Path):
    dataset = build_folder(image_root, workers=1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(dataset.test.batches(0, 1, 4, CPU))
    collected(dataset, plan_of(dataset, steps=1))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.worlds
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


@pytest.mark.worlds
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
    os.kill(fork_server._server._forkserver_pid, signal.SIGTERM)
    assert sum(1 for step in stream for _ in step) == 29 * 4
    wait_until_gone()


@pytest.mark.slow
def test_workers_of_a_killed_trainer_end(image_root: Path):
    trainer = pool.start("worlds.workers:train_on", image_root)
    deadline = time.monotonic() + 60
    while not trainer.stdout.endswith("\n") and time.monotonic() < deadline:
        time.sleep(0.05)
    pids = [int(pid) for pid in trainer.stdout.split()]
    trainer.kill()
    assert len(pids) == 2, trainer.stderr
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
        pixels = view(Path(path).read_bytes(), 16, functools.partial(evaluation_window, size=16), "turbo").numpy()
        expected = (pixels / 255 - IMAGENET.mean) / IMAGENET.std
        np.testing.assert_allclose(images[row].permute(1, 2, 0).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [0, pytest.param(2, marks=pytest.mark.worlds)])
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


def split_of(root: Path, kind: type = WorkerSplit, decode: str = "turbo", sizes: Sizes | None = None, **given: object):
    """A training split; ``build`` makes the same."""
    arguments = {"augment": "resized_crop_flip", "color_jitter": 0.0, "decode": decode, "workers": 0, **given}
    return kind(scan(root / "train"), sizes or constant(16), **arguments)


def read(split: WorkerSplit, plan: BatchPlan, first: int = 0, rank: int = 0) -> list[tuple]:
    return [batch for step in split.steps(plan, rank, first, CPU, 5) for batch in step]


@pytest.mark.worlds
def test_colours_are_drawn_after_the_window_and_applied_as_on_packed_pixels(image_root: Path):
    plain, jittered = split_of(image_root), split_of(image_root, color_jitter=0.4)
    plan = resolve(dataset_size=25, global_batch_size=8, micro_batch_size=4, steps=2, seed=3)
    places = np.concatenate([plan.examples_of(step).positions for step in range(2)])
    sources = np.concatenate([plan.examples_of(step).indices for step in range(2)])
    images = torch.cat([images for images, _ in read(jittered, plan)])
    for row, (position, index) in enumerate(zip(places, sources, strict=True)):
        rng = example_generator(5, int(position))
        draw = functools.partial(training_window, size=16, augment="resized_crop_flip", rng=rng)
        pixels = view(plain.source.read(int(index)), 16, draw, "turbo")
        factors, orders = map(torch.from_numpy, color_draws(0.4, 1, rng))
        coloured = viewing.coloured(pixels.permute(2, 0, 1)[None], factors, orders, torch.float64)[0]
        expected = (coloured.permute(1, 2, 0).numpy() / 255 - IMAGENET.mean) / IMAGENET.std
        np.testing.assert_allclose(images[row].permute(1, 2, 0).numpy(), expected, rtol=0, atol=1e-12)
    with_workers = split_of(image_root, color_jitter=0.4, workers=2)
    assert same(read(jittered, plan), read(with_workers, plan))
    wait_until_gone()
    evaluated = [list(each.batches(0, 1, 9, CPU)) for each in (plain, jittered)]
    assert same(*evaluated), "an evaluation draws no colours"


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.worlds)])
def test_sides_follow_the_step(image_root: Path, workers: int):
    sizes = Sizes(16, 32, evaluate=24, multiple_of=8)
    split = split_of(image_root, sizes=sizes, workers=workers)
    plan = plan_of_split(steps=6)
    sides = [{images.shape[2:] for images, _ in step} for step in split.steps(plan, 0, 0, CPU, 5)]
    assert sides == [{(sizes.at(step, plan),) * 2} for step in range(6)]
    assert len({*map(tuple, sides)}) > 1
    assert same(read(split, plan)[4 * 3 :], read(split, plan, first=3))
    assert {images.shape[2:] for images, _ in split.batches(0, 1, 4, CPU)} == {(24, 24)}
    wait_until_gone()


def plan_of_split(world: int = 1, steps: int = 4) -> BatchPlan:
    return resolve(dataset_size=25, global_batch_size=8, world_size=world, micro_batch_size=2, steps=steps, seed=3)


def test_a_source_may_have_an_order_of_its_own(image_root: Path):
    """Every epoch backwards, from example ``epoch`` on; the windows stay those of the positions."""

    def order(seed: int, epoch: int) -> np.ndarray:
        assert seed == 3, "the plan's"
        return np.roll(np.arange(25)[::-1], epoch)

    told: list[tuple[int, int | None]] = []
    split = split_of(image_root, epoch_order=order, ahead=lambda position, seed: told.append((position, seed)))
    labels = torch.cat([labels for _, labels in read(split, plan_of_split(steps=7))])
    wanted = np.concatenate([order(3, epoch) for epoch in range(3)])[: 7 * 8]
    assert labels.tolist() == (wanted >= 13).astype(int).tolist()
    assert told == [(position, 3) for position in range(0, 7 * 8, 2)]
    ranks = [read(split, plan_of_split(2, steps=7), rank=rank) for rank in range(2)]
    together = torch.cat([labels for step in range(7) for rank in ranks for _, labels in rank[2 * step : 2 * step + 2]])
    assert together.equal(labels)
    told.clear()
    list(split.batches(1, 2, 5, CPU))
    assert told == [(12, None), (17, None), (22, None)]


@pytest.mark.worlds
def test_workers_have_one_thread_and_share_their_batches(image_root: Path):
    """The views lie in shared memory, in one piece, before anything is sent."""
    split = split_of(image_root, workers=1)
    reader = Told(split.source)
    answers = processes.answered(reader, iter([0]), 1, pin_memory=False)
    assert next(answers) == (1, True)
    del answers
    wait_until_gone()


class Numbers(torch.utils.data.Dataset):
    """Each request twice itself."""

    def __getitem__(self, request: int) -> torch.Tensor:
        return torch.tensor(2 * request)


@pytest.mark.worlds
def test_what_a_worker_was_to_read_when_it_was_killed_is_read_here():
    helpers = processes.Helpers()
    helpers.watched = True
    answers = processes.answered(Numbers(), iter(range(40)), 2, pin_memory=False, helpers=helpers)
    found = [int(next(answers)) for _ in range(5)]
    assert helpers.lost is None
    workers()[0].kill()
    found += map(int, answers)
    assert found == list(range(0, 80, 2))
    assert helpers.lost == (
        "one of 2 processes that read the data was killed, as the system does when memory is short; fewer of them need "
        "less: data.workers=1"
    )
    wait_until_gone()


@pytest.mark.worlds
def test_where_nobody_watches_a_death_is_lost():
    answers = processes.answered(Numbers(), iter(range(40)), 2, pin_memory=False)
    next(answers)
    workers()[1].kill()
    with pytest.raises(Lost, match="one of 2 processes that read the data was killed"):
        list(answers)
    wait_until_gone()


class Ended(NamedTuple):
    """A process that is not there any more."""

    exitcode: int
    sentinel: int = 0

    def is_alive(self) -> bool:
        return self.exitcode == 0


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (
            -signal.SIGKILL,
            "one of 2 processes that read the data was killed, as the system does when memory is short; ",
        ),
        (-signal.SIGBUS, "one of 2 processes that read the data found no room in shared memory (/dev/shm); fewer of "),
        (-signal.SIGSEGV, "one of 2 processes that read the data ended unexpectedly, by SIGSEGV; for want of memory "),
        (1, "one of 2 processes that read the data ended unexpectedly, with exit code 1; for want of memory perhaps"),
    ],
)
def test_how_a_death_is_told(code, told):
    sentence = processes._of_a_death([Ended(0), Ended(code)], RuntimeError("DataLoader worker exited"))  # type: ignore[list-item]
    assert sentence is not None
    assert sentence.startswith(told)
    assert processes._of_a_death([Ended(0), Ended(0)], RuntimeError("something of the reader's")) is None  # type: ignore[list-item]


class Told(torch.utils.data.Dataset):
    def __init__(self, source: object) -> None:
        self.source = source

    def __getitem__(self, request: int) -> tuple[int, bool]:
        return torch.get_num_threads(), Decoded(2, 8).whole().is_shared()


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.worlds)])
def test_on_cuda_as_on_the_cpu(image_root: Path, workers: int):
    split = split_of(image_root, color_jitter=0.4, workers=workers)
    plan = plan_of_split()
    there = Placement(torch.device("cuda"), torch.float64)
    found = [batch for step in split.steps(plan, 0, 0, there, 5) for batch in step]
    for (images, labels), (expected, same_labels) in zip(found, read(split, plan), strict=True):
        assert images.is_cuda
        assert labels.is_cuda
        torch.testing.assert_close(images.cpu(), expected, rtol=0, atol=1e-6)
        assert labels.cpu().equal(same_labels)
    wait_until_gone()


def _blocked() -> list[int]:
    return sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


@pytest.mark.worlds
def test_whoever_shares_multiprocessings_fork_server_has_it_as_it_was():
    before = _blocked()
    with fork_server.running().Pool(1, initializer=processes.begin_worker) as pool_of_ours:
        assert {signal.SIGINT, signal.SIGUSR1} <= set(pool_of_ours.apply(_blocked))
    with multiprocessing.get_context("forkserver").Pool(1) as pool_of_others:
        assert pool_of_others.apply(_blocked) == before
    assert _blocked() == before

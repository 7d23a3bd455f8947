"""The data bench gives every way the same work, counts it right and says what it could not measure; nothing here says
how fast."""

from __future__ import annotations

import io
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rich.console
import torch
from PIL import Image
from programs import largebatch

from largebatch.errors import UserError
from largebatch.studies.bench.loading import measure as loading
from largebatch.studies.bench.loading import ours as loading_ours
from largebatch.studies.bench.loading import peers as loading_peers
from largebatch.studies.bench.loading.ways import Candidate, PhotoFolder, Way, decoders, sample_of

MEASURED_ANYWHERE = {
    "simplejpeg", "Pillow", "torchvision.io",
    "workers, pillow", "workers, turbo", "JPEG pack, turbo", "pixel pack, CPU crops", "pixel pack, gathering",
    "timm", "timm, its default", "torchvision", "torchvision, ToTensor", "torchvision v2",
}  # fmt: skip


def write_images(folder: Path, count: int, side: int = 48) -> list[Path]:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(count)
    for number in range(count):
        pixels = rng.integers(0, 256, (side, side + number, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return sorted(folder.iterdir())


@pytest.fixture
def sample(tmp_path: Path) -> PhotoFolder:
    write_images(tmp_path / "photographs", 3)
    return sample_of(tmp_path / "photographs", tmp_path, images=8, size=32)


def counts(way: Way, batches: int) -> list[int]:
    stream = way.batches()
    found = list(itertools.islice(stream, batches))
    getattr(stream, "close", lambda: None)()
    return found


# ---- the sample ----


def test_a_small_sample_is_repeated(sample, tmp_path):
    files = sorted((sample.folder / "train").glob("*/*.jpg"))
    photographs = {file.read_bytes(): file.name for file in (tmp_path / "photographs").iterdir()}
    names = [photographs[file.read_bytes()] for file in files]
    assert names == ["0.jpg", "1.jpg", "2.jpg"] * 2 + ["0.jpg", "1.jpg"]
    assert len({file.stat().st_ino for file in files}) == 3, "no more room than the photographs take"
    assert [file.name for file in sample.distinct] == ["0.jpg", "1.jpg", "2.jpg"]
    assert sample.megabytes == pytest.approx(sum(file.stat().st_size for file in files) / 1e6)
    assert (sample.images, sample.batch) == (8, 8)


def test_of_a_large_source_evenly_spread_images_are_taken(tmp_path):
    for label in "ab":
        write_images(tmp_path / "set" / "train" / label, 5, 8)
    made = sample_of(tmp_path / "set", tmp_path, images=5, size=8)
    files = sorted((made.folder / "train").glob("*/*.jpg"))
    assert [file.parent.name for file in files] == ["a", "a", "a", "b", "b"]
    assert len(set(made.distinct)) == 5


def test_a_batch_is_no_larger_than_128(tmp_path):
    write_images(tmp_path / "set", 1, 8)
    assert sample_of(tmp_path / "set", tmp_path, images=300, size=8).batch == 128


@pytest.mark.parametrize(("make", "sentence"), [(False, "is not a folder of images"), (True, "holds no images")])
def test_a_source_without_images(tmp_path, make, sentence):
    if make:
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "notes.txt").touch()
    with pytest.raises(UserError, match=f"{tmp_path}/set {sentence}"):
        sample_of(tmp_path / "set", tmp_path, images=4, size=8)


def test_without_a_source_the_samples_must_be_there(tmp_path, monkeypatch):
    monkeypatch.setenv("LARGEBATCH_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"imagenet_samples is missing: name a folder of JPEG images"):
        loading.default_source()


# ---- the ways ----


def candidates(sample: PhotoFolder) -> dict[str, Candidate]:
    found = [*decoders(sample), *loading_ours.ours(sample), *loading_peers.peers(sample)]
    return {candidate.name: candidate for candidate in found}


@pytest.mark.worlds
@pytest.mark.filterwarnings("ignore")  # the peers' own
@pytest.mark.parametrize("name", sorted(MEASURED_ANYWHERE))
def test_every_way_gives_whole_batches_without_an_end(sample, name):
    """More than two epochs of a sample that is one batch."""
    way = candidates(sample)[name].opened()
    assert way.name == name
    assert counts(way, 3) == [sample.batch] * 3


@pytest.mark.filterwarnings("ignore")  # the peers' own
@pytest.mark.parametrize(("name", "package"), [("WebDataset", "webdataset"), ("DALI", "nvidia.dali")])
def test_a_peer_that_is_installed_does_too(sample, name, package):
    pytest.importorskip(package)
    assert counts(candidates(sample)[name].opened(), 3) == [sample.batch] * 3


@pytest.mark.filterwarnings("ignore")  # timm's own
def test_timm_gives_bytes_of_the_asked_side(sample):
    """Its prefetcher, which would move and normalise them, is not in the way."""
    loader = loading_peers._timm_loader(sample, 0, {"interpolation": "bilinear", "color_jitter": None})
    images, _ = next(iter(loader))
    assert (images.dtype, tuple(images.shape)) == (torch.uint8, (8, 3, 32, 32))
    words = str(loader.dataset.transform)
    assert "RandomResizedCrop" in words
    assert "ColorJitter" not in words


def test_ours_reads_what_a_run_would(sample):
    """An epoch of the plan is every image once."""
    drawn = itertools.islice(loading_ours._drawn(sample, 8), 3)
    for step, (positions, indices) in enumerate(drawn):
        assert positions.tolist() == list(range(8 * step, 8 * step + 8))
        assert sorted(indices.tolist()) == list(range(8))


# ---- the measurement ----


def made_up(name: str, seconds: float, kind: str = "ours", wanted: float | None = None) -> Candidate:
    """A way that works for so long per batch of ten."""

    def batches() -> Iterator[int]:
        while True:
            until = time.process_time() + seconds
            while time.process_time() < until:
                pass
            yield 10

    return Candidate(name, lambda: Way(name, kind, "uint8", "made up", batches, wanted))


def broken(reason: Exception) -> Candidate:
    def opened() -> Way:
        raise reason

    return Candidate("broken", opened)


@pytest.mark.worlds
def test_images_per_second_are_of_the_processor_s_time():
    """A way that waits is no slower per core; one that works twice as long is twice as slow."""

    def waits() -> Iterator[int]:
        while True:
            time.sleep(0.05)
            yield 1

    window = loading._window(Way("waits", "ours", "uint8", "", waits), 0.2)
    assert window.processor_seconds < window.wall_seconds / 2
    assert window.by_the_clock == pytest.approx(window.images / window.wall_seconds)


@pytest.mark.worlds
def test_ratios_are_to_timm_within_each_round(sample, one_thread):
    ways = [made_up("ours", 0.002, wanted=1.5), made_up("timm", 0.01, "peer"), broken(ImportError("no such package"))]
    threads = torch.get_num_threads()
    facts = loading.measure(sample, 0.09, 3, "the command", only=ways)
    assert torch.get_num_threads() == threads
    ours, timm = facts["ways"]
    assert timm["over_timm"] == [1.0] * 3
    for ratio, one, other in zip(
        ours["over_timm"], ours["images_per_second_per_core"], timm["images_per_second_per_core"], strict=True
    ):
        assert ratio == pytest.approx(one / other)
    assert ours["over_timm_median"] == sorted(ours["over_timm"])[1]
    assert facts["left_out"] == ["broken was not measured: no such package"]
    (wanted,) = facts["wanted"]
    assert wanted == {
        "what": "ours: times timm's images/s per core", "measured": ours["over_timm_median"], "at_least": 1.5
    }  # fmt: skip


@pytest.mark.worlds
def test_without_timm_there_are_no_ratios(sample):
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="--seconds .* leave nothing to time"):
            loading.measure(sample, seconds, 1, "", only=[])
    facts = loading.measure(sample, 0.01, 1, "", only=[made_up("ours", 0.001, wanted=8.0)])
    assert facts["wanted"] == []
    assert "over_timm" not in facts["ways"][0]
    assert "–" in printed(facts)


@pytest.mark.worlds
def test_the_order_is_reversed_every_other_round():
    order: list[str] = []

    def way(name: str) -> Way:
        def batches() -> Iterator[int]:
            order.append(name)
            while True:
                yield 1

        return Way(name, "ours", "uint8", "", batches)

    loading._rounds([way("a"), way("b")], 0.0, 3)
    assert "".join(order) == "abbaab"


def test_under_a_launcher_it_refuses(sample, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start it without a launcher"):
        loading.measure(sample, 0.1, 1, "", only=[])


def printed(facts: dict) -> str:
    console = rich.console.Console(file=io.StringIO(), width=120)
    for table in loading.tables(facts):
        console.print(table)
    return console.file.getvalue()  # type: ignore[union-attr]


# ---- the command ----


@pytest.mark.worlds
def test_the_command_measures_every_way(tmp_path):
    write_images(tmp_path / "set", 3)
    file = tmp_path / "data.json"
    ended = largebatch(
        "bench", "data", tmp_path / "set", "--size", 32, "--images", 6, "--seconds", 0.02, "--repeats", 2,
        "--workers", 1, "--json", file, COLUMNS="120",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    facts = json.loads(file.read_text())
    rows = {row["name"]: row for row in facts["ways"]}
    assert set(rows) >= MEASURED_ANYWHERE
    assert (facts["photographs"], facts["images"], facts["batch"], facts["image_size"]) == (3, 6, 6, 32)
    assert all(len(row["images_per_second_per_core"]) == 2 for row in rows.values())
    own = {"lb.Dataset, torchvision's", "lb.Dataset, small items", "torchvision", "small items, DataLoader"}
    assert {row["name"] for row in facts["with_workers"]} == {"workers, turbo", "timm", *own}
    assert {row["at_least"] for row in facts["wanted"]} == {8.0, 1.4, 1.0}
    for row in rows.values():
        assert f"{row['name']}: {row['how']}" in ended.stdout
    for sentence in facts["left_out"]:
        assert sentence in ended.stdout
    assert all(name not in facts["left_out"] for name in MEASURED_ANYWHERE)


@pytest.mark.worlds
def test_a_missing_source_is_a_sentence(tmp_path):
    ended = largebatch("bench", "data", tmp_path / "nowhere")
    assert ended.returncode == 2
    assert ended.stderr.strip() == f"largebatch: {tmp_path}/nowhere is not a folder of images"

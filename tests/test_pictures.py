"""``record.pictures``: the examples that are trained on, as they are: in the run directory, TensorBoard, the page."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pool
import pytest
import torch
from packs import packed
from PIL import Image
from programs import Killed, killed_at, weights_at_end
from small_runs import recipe_of

import largebatch as lb
from largebatch.data import nested
from largebatch.data.statistics import IMAGENET
from largebatch.errors import UserError
from largebatch.methods import _batch_pictures as drawing
from largebatch.recipes import config
from largebatch.records.looking import PicturesRecord
from largebatch.records.typed import read
from largebatch.report import batch_picture, write
from largebatch.run.assemble import assemble
from largebatch.run.train import train

CPU = torch.device("cpu")
MIXED: dict[str, Any] = {"mixup": 0.8, "cutmix": 1.0, "per": "pair"}


def run_of(folder: Path, pictures: int, tensorboard: bool = False, **keys: Any) -> config.Run:
    written = recipe_of(folder, **{"model": {"name": "tiny_cnn"}, "steps": 4, "epochs": None, **keys})
    written["record"] |= {"pictures": pictures, "to": ["tensorboard"] if tensorboard else []}
    return config.from_dict(written)


def trained(folder: Path, pictures: int, **keys: Any) -> Path:
    ended = train(run_of(folder, pictures, **keys), quiet=True)
    assert ended.status == "finished", ended.reason
    return folder


def record_of(folder: Path, step: int = 1) -> PicturesRecord:
    file = folder / "pictures" / f"step-{step}.json"
    return read(PicturesRecord, json.loads(file.read_text()), file)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, list[str]]]:
    """What is drawn: images, and the words under them."""
    made: list[Any] = []
    draw = batch_picture.grid

    def note(pixels: Any, labels: Any) -> bytes:
        made.append((pixels, list(labels)))
        return draw(pixels, labels)

    monkeypatch.setattr(batch_picture, "grid", note)
    return made


def first_batch(run: config.Run) -> Any:
    """The examples of the first step, from the data set itself."""
    job = assemble(run, CPU, quiet=True)
    steps = job.dataset.train.steps(job.plan, 0, 0, job.placement, job.decided.seed)
    batches = [nested.mapped(torch.clone, batch) for batch in next(steps)]
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


@pytest.mark.worlds
@pytest.mark.parametrize("data", [
    {"name": "digits"},
    {"name": "digits", "augment": "crop_flip", "erase": {"probability": 0.5}, "mix": MIXED},
])  # fmt: skip
def test_a_run_with_pictures_is_the_same_to_the_last_bit(tmp_path, data):
    runs = [trained(tmp_path / f"run-{count}", count, data=data) for count in (0, 9)]
    one, other = map(weights_at_end, runs)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not (runs[0] / "pictures").exists()


@pytest.mark.worlds
def test_what_is_shown_are_the_pixels_of_the_set(tmp_path, drawn):
    """Without augmentation: the raw levels of the examples that the plan puts first, and their labels."""
    run = run_of(tmp_path / "run", 12, batch={"global_batch_size": 100, "micro_batch_size": 5})
    train(run, quiet=True)
    [(pixels, labels)] = drawn
    job = assemble(run, CPU, quiet=True)
    _, _, indices = job.plan.examples_of(0, 0)
    images, classes = (tensor[torch.as_tensor(indices[:12])] for tensor in job.dataset.train.tensors)
    assert np.array_equal(pixels, images.numpy())
    assert labels == [str(int(one)) for one in classes]
    record = record_of(tmp_path / "run")
    assert (record.step, record.examples, record.channels, record.height, record.width) == (1, 12, 1, 8, 8)
    assert record.labels == labels
    with Image.open(tmp_path / "run" / "pictures" / record.file) as opened:
        grid = np.asarray(opened.convert("L")).astype(int)
    assert grid.shape[0] > 3 * 200  # three rows of images
    assert grid.min() < 10


@pytest.mark.worlds
def test_and_after_all_that_is_done_to_them(tmp_path, drawn):
    """Crop, erasing and mixing as they reach the network; the second statement undoes the normalisation in numpy."""
    data = {"name": "digits", "augment": "crop_flip", "erase": {"probability": 0.5}, "mix": MIXED}
    run = run_of(tmp_path / "run", 10, data=data)
    train(run, quiet=True)
    [(pixels, labels)] = drawn
    inputs, shares = first_batch(run)
    statistics = assemble(run, CPU, quiet=True).dataset.test.statistics
    raw = inputs[:10].numpy().astype(np.float64) * statistics.std[0] + statistics.mean[0]
    wanted = np.clip(np.rint(np.clip(raw, 0, 1) * 255), 0, 255).transpose(0, 2, 3, 1)
    assert np.abs(pixels.astype(int) - wanted).max() <= 1
    for words, row in zip(labels, shares[:10].tolist(), strict=True):
        there = {number: share for number, share in enumerate(row) if share > 5e-4}
        parts = words.split(", ")
        assert len(parts) == len(there)
        for part in parts:
            name, _, share = part.partition(" ")
            assert there[int(name)] == pytest.approx(float(share) if share else 1.0, abs=0.006)
    assert any(" " in words for words in labels)  # some are mixed


@pytest.mark.worlds
def test_those_that_there_are_where_more_are_asked_for(tmp_path, drawn):
    folder = trained(tmp_path / "run", 64, batch={"global_batch_size": 20})
    assert len(drawn[0][0]) == 20
    assert "20 examples as the network sees them, all that rank 0 has in step 1" in (folder / "train.log").read_text()


@pytest.mark.worlds
def test_several_labels_in_words(tmp_path, drawn):
    trained(tmp_path / "run", 4, data={"name": "digit_pairs"})
    pixels, labels = drawn[0]
    assert pixels.shape == (4, 8, 16, 1)
    assert all(1 <= len(words.split(", ")) <= 2 for words in labels)


@pytest.mark.parametrize(
    ("labels", "answers", "words"),
    [
        (torch.tensor([1, 9]), "classes", ["b", "9"]),  # of which no name is known
        (torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0]]), "classes", ["a 0.70, b 0.30", "b"]),
        (torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]), "classes", ["a 0.50, b 0.50", "c 0.50, b 0.30, a 0.20"]),
        (torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), "labels", ["a, c", ""]),
        (torch.tensor([[1.5, -2.0], [0.0, 1e-9]]), "numbers", ["1.5, -2", "0, 1e-09"]),
        (torch.tensor([1.5, -2.0]), "numbers", ["1.5", "-2"]),
        (torch.zeros(2, 3, 3), None, ["", ""]),
        (None, None, ["", ""]),
    ],
)
def test_labels_in_words(labels, answers, words):
    assert drawing.labels_in_words(labels, 2, ["a", "b", "c"], answers) == words


@pytest.mark.worlds
@pytest.mark.parametrize(
    ("scale", "shift", "how"),
    [
        (1.0, 0.0, "as they are, levels 0 to 1"),
        (4.0, -2.0, "stretched from -2 (black) to 2"),
        (0, 0, "levels 0 to 255"),
    ],
)
def test_a_set_of_ones_own_that_says_not_how_it_normalises(tmp_path, drawn, scale, shift, how):
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (40, 3, 6, 6)).astype(np.uint8)
    levels[:, 0, 0, 0], levels[:, 0, 0, 1] = 0, 255
    images = levels if not scale else (levels / 255 * scale + shift).astype(np.float32)
    classes = rng.integers(0, 2, 40)
    net = torch.nn.Sequential(Floats(), torch.nn.Flatten(), torch.nn.Linear(108, 2))
    keys = {"batch.global_batch_size": 10, "steps": 2, "optimizer.name": "sgd", "lr.base": 0.01, "device": "cpu",
            "record.pictures": 5, "record.to": [], "record.dir": str(tmp_path / "run")}  # fmt: skip
    ended = lb.train(keys, model=net, dataset=lb.Dataset((images, classes), (images, classes), outputs=2))
    assert ended.status == "finished"
    pixels, labels = drawn[0]
    indices = [next(i for i in range(40) if np.array_equal(levels[i], one.transpose(2, 0, 1))) for one in pixels]
    assert labels == [str(classes[i]) for i in indices]
    assert how in (record_of(tmp_path / "run").levels or "")


class Floats(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float()


@pytest.mark.parametrize(("data", "inputs"), [("diabetes", "10")])
def test_what_are_no_images_is_refused(tmp_path, data, inputs):
    words = rf"record\.pictures = 3 shows images of 1 or 3 channels, and data\.name = {data} has inputs of {inputs}"
    keys = {"data": {"name": data}, "model": {"name": "mlp"}, "batch": {"global_batch_size": 10}}
    with pytest.raises(UserError, match=words):
        assemble(run_of(tmp_path / "run", 3, **keys), CPU, quiet=True)


@pytest.mark.parametrize("count", [-1, 65, 1.5, True, "many"])
def test_a_slip_is_one_sentence(tmp_path, count):
    with pytest.raises(UserError, match=r"record\.pictures"):
        run_of(tmp_path / "run", count)


@pytest.mark.worlds
def test_a_run_that_goes_on_keeps_its_picture(tmp_path, drawn):
    run = run_of(tmp_path / "run", 4, steps=None, epochs=2)
    with pytest.raises(Killed), killed_at(17):
        train(run, quiet=True)
    assert len(drawn) == 1
    train(run, quiet=True)
    assert len(drawn) == 1
    assert [file.name for file in (tmp_path / "run" / "pictures").glob("*.json")] == ["step-1.json"]


@pytest.mark.worlds
def test_and_one_that_has_none_shows_its_first_batch_now(tmp_path, drawn):
    with pytest.raises(Killed), killed_at(17):
        train(run_of(tmp_path / "run", 0, steps=None, epochs=2), quiet=True)
    trained(tmp_path / "run", 4, steps=None, epochs=2)
    assert record_of(tmp_path / "run", 16).step == 16


@pytest.mark.worlds
def test_rank_zero_shows_its_own(tmp_path, drawn):
    keys = {"batch": {"global_batch_size": 40, "micro_batch_size": 5}, "engine": {"name": "ddp"}}
    trained(tmp_path / "one", 25, **keys)
    recipe = tmp_path / "two.yaml"
    recipe.write_text(json.dumps(run_of(tmp_path / "two", 25, **keys).as_set()))
    ended = pool.ranks(2, "-m", "largebatch", "train", recipe)
    assert ended.returncode == 0, ended.stderr
    record = record_of(tmp_path / "two")
    assert record.examples == 20  # its share of the step
    assert record.labels == drawn[0][1][:20]


@pytest.mark.worlds
@pytest.mark.parametrize("workers", [0, 2])
def test_of_a_folder_read_by_workers(tmp_path, drawn, workers):
    for part, count in (("train", 12), ("val", 2)):
        for number, name in enumerate(("blue", "red")):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for index in range(count):
                colour = (255, 0, 0) if number else (0, 0, 255)
                Image.new("RGB", (40, 36), colour).save(tmp_path / "images" / part / name / f"{index}.png")
    data = {"name": "folder", "root": str(tmp_path / "images"), "workers": workers}
    data |= {"image_size": {"from": 32, "to": 32}}
    trained(tmp_path / "run", 6, data=data, batch={"global_batch_size": 8})
    pixels, labels = drawn[0]
    assert pixels.shape == (6, 32, 32, 3)
    for image, label in zip(pixels, labels, strict=True):
        wanted = (255, 0, 0) if label == "red" else (0, 0, 255)
        assert np.abs(image.astype(int) - wanted).max() <= 2
    assert record_of(tmp_path / "run").levels == "the normalisation is undone"


@pytest.mark.worlds
@pytest.mark.parametrize("keys", [
    {},  # a thread cuts windows out of the mapped pixels
    {"workers": 1, "policy": "rand_augment"},  # workers do
    {"erase": {"probability": 1.0}, "mix": {"mixup": 0.8, "per": "pair"}},
])  # fmt: skip
def test_of_packed_pixels(tmp_path, drawn, keys):
    """The batch that is trained on, whoever cuts it out of the pack, with the normalisation undone; ImageNet's."""
    for part, count in (("train", 24), ("val", 4)):
        for name in ("blue", "red"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for index in range(count):
                image = np.random.default_rng([index, name == "red"]).integers(0, 80, (40, 36, 3)).astype(np.uint8)
                image[:, :, 0 if name == "red" else 2] += 150
                Image.fromarray(image).save(tmp_path / "images" / part / name / f"{index}.png")
    packed(tmp_path / "images", tmp_path / "pack", size=32)
    data = {"name": "folder", "root": str(tmp_path / "pack"), "image_size": 32, **keys}
    run = run_of(tmp_path / "run", 6, data=data, batch={"global_batch_size": 8})
    ended = train(run, quiet=True)
    assert ended.status == "finished", ended.reason
    [(pixels, labels)] = drawn
    inputs, targets = first_batch(run)
    raw = inputs[:6].double().numpy() * np.reshape(IMAGENET.std, (3, 1, 1)) + np.reshape(IMAGENET.mean, (3, 1, 1))
    wanted = np.clip(np.rint(np.clip(raw, 0, 1) * 255), 0, 255).transpose(0, 2, 3, 1)
    assert pixels.shape == (6, 32, 32, 3)
    assert np.abs(pixels.astype(int) - wanted).max() <= 1
    assert pixels.std() > 20  # pictures, no grey
    for words, target in zip(labels, targets[:6], strict=True):
        shares = target.tolist() if target.dim() else [float(int(target) == 0), float(int(target) == 1)]
        assert {part.split(" ")[0] for part in words.split(", ")} == {
            name for name, share in zip(("blue", "red"), shares, strict=True) if share > 5e-4
        }
    assert record_of(tmp_path / "run").levels == "the normalisation is undone"
    without = trained(tmp_path / "without", 0, data=data, batch={"global_batch_size": 8})
    one, other = weights_at_end(tmp_path / "run"), weights_at_end(without)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.worlds
@pytest.mark.filterwarnings("ignore")  # tensorboard's own
def test_it_is_in_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = trained(tmp_path / "run", 4, tensorboard=True)
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["batch/training"]
    [shown] = events.Images("batch/training")
    assert shown.step == 1
    with Image.open(folder / "pictures" / "step-1.png") as opened:
        assert (shown.width, shown.height) == opened.size


@pytest.mark.worlds
def test_it_is_on_the_page(tmp_path):
    folder = trained(tmp_path / "run", 4)
    page = write([folder], tmp_path / "out").html.read_text()
    begin = page.index("<svg", page.index("A training batch"))
    element = ElementTree.fromstring(page[begin : page.index("</svg>", begin) + 6])
    assert element.findtext("title") == "The first 4 examples of step 1"
    assert element.findtext("desc") == "; ".join(record_of(folder).labels)
    image = element.find("image")
    assert image is not None
    assert image.attrib["href"].startswith("data:image/png;base64,")
    (folder / "pictures" / "step-1.png").write_bytes(b"no picture")
    assert "A training batch" not in write([folder], tmp_path / "out").html.read_text()


@pytest.mark.worlds
def test_a_picture_that_cannot_be_written_ends_no_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "pictures").write_text("a file where the folder should be")
    folder = trained(tmp_path / "run", 4)
    assert "the picture cannot be written" in (folder / "train.log").read_text()


@pytest.mark.parametrize("shape", [(1, 8, 8, 1), (7, 8, 16, 1), (10, 300, 200, 3), (64, 3, 90, 3)])
def test_a_grid_of_any_shape(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    drawn = batch_picture.grid(pixels, ["a rather long name of a class 0.51, b 0.49"] * shape[0])
    assert drawn[:8] == b"\x89PNG\r\n\x1a\n"

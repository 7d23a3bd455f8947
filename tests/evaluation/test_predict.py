"""``largebatch predict``: what an evaluation answered to the same images, without the data set; and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import packs
import pytest
from PIL import Image
from small_runs import arrays, trained
from typer.testing import CliRunner

import largebatch as lb
from largebatch.cli import app
from largebatch.data import sets
from largebatch.data.sets import Asked
from largebatch.errors import UserError


def command(*words: object) -> str:
    ended = CliRunner().invoke(app, ["predict", *map(str, words)], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.output


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on a folder of photographs' kin, and that folder: three classes, sizes that differ."""
    root = tmp_path_factory.mktemp("predict")
    for split, count in (("train", 8), ("val", 3)):
        for number, name in enumerate(("daisy", "rose", "tulip")):
            (root / "images" / split / name).mkdir(parents=True)
            for place in range(count):
                file = root / "images" / split / name / f"{place}.jpg"
                file.write_bytes(packs.encoded(40 + 3 * place, 36 + number, seed=100 * number + place))
    run = trained(
        root / "run",
        model={"name": "tiny_cnn"},
        data={"name": "folder", "root": str(root / "images"), "image_size": 16, "workers": 0},
        batch={"global_batch_size": 8},
        ema={"decay": 0.5},
        lawa={"latest": 2, "every_steps": 2},
    )
    return run, root / "images"


@pytest.mark.worlds
def test_the_crop_the_loss_and_mirror_images_are_those_of_the_run(flowers, tmp_path):
    """Every way to see a test image that is not the usual one; and the folder seen again as other data."""
    _, images = flowers
    run = trained(
        tmp_path / "run",
        model={"name": "tiny_cnn"},
        data={"name": "folder", "root": str(images), "image_size": 16, "workers": 0, "crop": 0.5},
        batch={"global_batch_size": 8},
        loss={"name": "bce"},
        evaluate={"flips": True},
    )
    lb.evaluate(run, predictions=tmp_path / "own.npz")
    lb.evaluate(run, data=images, predictions=tmp_path / "other.npz")
    own, other = arrays(tmp_path / "own.npz"), arrays(tmp_path / "other.npz")
    found = lb.predict(run, images / "val", top=3)
    answered = np.array([[one["probability"] for one in image["answers"]] for image in found])
    for judged in (own, other):
        columns = np.stack([judged[f"probability_{place}"] for place in (1, 2, 3)], 1)
        np.testing.assert_allclose(answered, columns, rtol=1e-6)
    assert not np.allclose(answered.sum(1), 1), "each class is judged for itself"


@pytest.mark.worlds
@pytest.mark.parametrize("average", [[], ["--weights", "ema"], ["--weights", "lawa"]])
def test_it_answers_as_an_evaluation_did(flowers, tmp_path, average):
    run, images = flowers
    ended = CliRunner().invoke(
        app, ["evaluate", str(run), *average, "--predictions", str(tmp_path / "e.npz")], catch_exceptions=False
    )
    assert ended.exit_code == 0, ended.output
    moved = Path(shutil.copytree(images / "val", tmp_path / "moved"))  # the run's own data are not looked for
    said = command(run, moved, *average, "--predictions", tmp_path / "p.npz", "--json", tmp_path / "p.json")
    judged, answered = arrays(tmp_path / "e.npz"), arrays(tmp_path / "p.npz")
    for column in ("prediction", "prediction_name", "top_1", "top_2", "top_3"):
        assert answered[column].tolist() == judged[column].tolist()
    np.testing.assert_allclose(answered["probability_1"], judged["probability_1"], rtol=1e-6)
    assert answered["image"].tolist() == [str(one) for one in sorted(moved.rglob("*.jpg"))]
    facts = json.loads((tmp_path / "p.json").read_text())["images"]
    assert [one["answers"][0]["name"] for one in facts] == judged["prediction_name"].tolist()
    assert sum(one["probability"] for one in facts[0]["answers"]) == pytest.approx(1)
    assert f"{facts[0]['answers'][0]['name']} {100 * facts[0]['answers'][0]['probability']:.1f} %" in said


@pytest.mark.worlds
def test_small_images_are_seen_as_the_set_has_them(tmp_path):
    run = trained(tmp_path / "run")
    raw = sets.known("digits").load(Asked("digits"))[0]("test")[0]  # type: ignore[attr-defined]
    (tmp_path / "images").mkdir()
    for place, image in enumerate(raw[:20]):
        Image.fromarray(image[:, :, 0]).save(tmp_path / "images" / f"{place:03d}.png")
    lb.evaluate(run, predictions=tmp_path / "e.npz")
    found = lb.predict(run, tmp_path / "images", top=2)
    judged = arrays(tmp_path / "e.npz")
    assert [one["answers"][0]["class"] for one in found] == judged["prediction"][:20].tolist()
    probabilities = [one["answers"][0]["probability"] for one in found]
    np.testing.assert_allclose(probabilities, judged["probability_1"][:20], rtol=1e-6)
    assert {len(one["answers"]) for one in found} == {2}
    [one] = lb.predict(run, Image.fromarray(raw[3][:, :, 0]))
    assert one["image"] == "image 0"
    assert one["answers"][0]["class"] == judged["prediction"][3]
    larger = Image.fromarray(raw[3][:, :, 0]).resize((40, 40), Image.Resampling.BILINEAR).convert("RGB")
    assert lb.predict(run, larger)[0]["answers"][0]["class"] == judged["prediction"][3]


@pytest.mark.worlds
def test_what_cannot_be_read_is_told_and_the_rest_is_answered(flowers, tmp_path):
    run, images = flowers
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no more")
    good = images / "val" / "rose" / "0.jpg"
    said = command(run, tmp_path / "broken.jpg", good, "--predictions", tmp_path / "p.csv")
    assert f"{tmp_path / 'broken.jpg'} cannot be read as an image" in said.replace("\n", " ")
    [row] = csv.DictReader((tmp_path / "p.csv").read_text().splitlines())
    assert row["image"] == str(good)
    for images_asked, sentence in (
        ([tmp_path / "broken.jpg"], "broken.jpg cannot be read as an image: "),
        ([tmp_path / "nothing.jpg"], "nothing.jpg: there is no such image or folder"),
        ([tmp_path / "empty"], "empty holds no images"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=sentence):
            command(run, *images_asked)


@pytest.mark.worlds
def test_a_run_that_learned_no_classes_of_images_is_refused(tmp_path):
    run = trained(tmp_path / "run", data={"name": "diabetes"}, batch={"global_batch_size": 20}, lr={"base": 0.01})
    with pytest.raises(UserError, match=r"learned regression on diabetes; predict asks models of images for classes"):
        command(run, tmp_path)
    with pytest.raises(UserError, match="--device tpu is not known; valid: auto, cpu, cuda"):
        command(run, tmp_path, "--device", "tpu")

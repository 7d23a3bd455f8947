"""One set in four forms: the same examples in the same steps, and each refused where it does not fit."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from largebatch.data import Sizes, Splits, build
from largebatch.data.packs.origins import origins
from largebatch.data.packs.packing import pack
from largebatch.errors import UserError
from largebatch.plan.batch import resolve
from largebatch.recipes import config
from largebatch.run.train import train
from tests.data.conftest import CPU

SIDE = 24


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Thirty images to train and eight to test, the label in the colour; as folder, packs and shards."""
    top = tmp_path_factory.mktemp("forms")
    folder, shards = top / "folder", top / "shards"
    shards.mkdir()
    rng = np.random.default_rng(0)
    for split, each in (("train", 15), ("val", 4)):
        with tarfile.open(shards / f"{split}-000000.tar", "w") as archive:
            for number, label in enumerate(("cat", "dog")):
                (folder / split / label).mkdir(parents=True)
                for which in range(each):
                    image = rng.integers(0, 60, (40, 50, 3), dtype=np.uint8)
                    image[..., number] += 150
                    file = folder / split / label / f"{which:02d}.jpg"
                    Image.fromarray(image).save(file, quality=95)
                    text = top / "label.cls"
                    text.write_text(label)
                    archive.add(file, f"{label}{which:02d}.jpg")
                    archive.add(text, f"{label}{which:02d}.cls")
    pack(origins(str(folder)), top / "pixels", size=32, workers=1)
    pack(origins(str(folder)), top / "jpeg", size=None, workers=1)
    return {"folder": folder, "shards": shards, "pixels": top / "pixels", "jpeg": top / "jpeg"}


FORMS = ["folder", "shards", "pixels", "jpeg"]


def built(root: Path | str, **arguments: Any) -> Splits:
    return build("folder", root=str(root), **{"image_size": SIDE, "workers": 0, **arguments})


def labels_of(dataset: Splits) -> list[list[int]]:
    plan = resolve(dataset_size=len(dataset.train), global_batch_size=7, epochs=2, seed=3)
    return [
        [int(label) for _, labels in micro for label in labels] for micro in dataset.train.steps(plan, 0, 0, CPU, 5)
    ]


@pytest.mark.worlds
def test_every_form_gives_the_same_examples_in_the_same_steps(forms):
    found = {form: labels_of(built(forms[form])) for form in FORMS}
    assert len(found["folder"]) == 9
    assert all(steps == found["folder"] for steps in found.values())


@pytest.mark.worlds
@pytest.mark.parametrize("form", FORMS)
def test_images_belong_to_their_labels(forms, form):
    dataset = built(forms[form], color_jitter=0.1)
    assert dataset.classes == ["cat", "dog"]
    assert dataset.input_shape == (3, SIDE, SIDE)
    plan = resolve(dataset_size=30, global_batch_size=10, epochs=1)
    seen = [batch for micro in dataset.train.steps(plan, 0, 0, CPU, 1) for batch in micro]
    seen += list(dataset.test.batches(0, 1, 3, CPU))
    assert sum(len(labels) for _, labels in seen) == 38
    for images, labels in seen:
        assert images.shape[1:] == (3, SIDE, SIDE)
        assert torch.equal(images.mean(dim=(2, 3))[:, :2].argmax(dim=1), labels)


@pytest.mark.worlds
@pytest.mark.parametrize("form", FORMS)
def test_the_side_grows_and_tests_have_their_own(forms, form):
    dataset = built(forms[form], image_size=Sizes(16, 24, evaluate=32, multiple_of=4, until_epoch=1.5))
    plan = resolve(dataset_size=30, global_batch_size=10, epochs=2)
    sides = [next(iter(micro))[0].shape[-1] for micro in dataset.train.steps(plan, 0, 0, CPU, 1)]
    assert sides == [16, 16, 20, 20, 24, 24]
    assert next(iter(dataset.test.batches(0, 1, 8, CPU)))[0].shape == (8, 3, 32, 32)
    assert dataset.largest(1)[0].shape[1:] == (3, 24, 24)


@pytest.mark.worlds
@pytest.mark.parametrize("form", FORMS)
def test_held_out_examples_are_the_same_in_every_form(forms, form):
    wanted, found = (built(forms[one], hold_out=6, augment="none") for one in ("folder", form))
    assert (len(found.train), len(found.test)) == (24, 6)
    labels = [torch.cat([labels for _, labels in one.test.batches(0, 1, 4, CPU)]) for one in (wanted, found)]
    assert torch.equal(*labels)


@pytest.mark.worlds
@pytest.mark.parametrize("form", FORMS)
def test_a_file_address_is_a_folder(forms, form):
    assert labels_of(built(f"file://{forms[form]}")) == labels_of(built(forms[form]))


@pytest.mark.worlds
@pytest.mark.parametrize("form", FORMS)
def test_a_run_trains_on_every_form(forms, form, recipe):
    data = {"name": "folder", "root": str(forms[form]), "image_size": SIDE, "workers": 0}
    path = recipe(form, model={"name": "resnet20"}, data=data, batch={"global_batch_size": 10}, epochs=1)
    result = train(config.load(path), quiet=True)
    assert result.status == "finished"
    assert result.numbers["steps"] == 3


@pytest.mark.worlds
def test_a_run_with_growing_images_resumes_at_the_side_it_had(forms, recipe):
    from programs import Killed, killed_at, weights_at_end

    data = {"name": "folder", "root": str(forms["pixels"]), "image_size": {"from": 16, "to": 32, "multiple_of": 4}}
    changes = {
        "model": {"name": "resnet20"}, "data": data, "batch": {"global_batch_size": 10}, "epochs": 4,
        "checkpoint": {"every_epochs": 1, "asynchronous": False},
    }  # fmt: skip
    whole, cut = (config.load(recipe(name, **changes)) for name in ("whole", "cut"))
    train(whole, quiet=True)
    with pytest.raises(Killed), killed_at(8):
        train(cut, quiet=True)
    assert train(cut, quiet=True).status == "finished"
    ours, theirs = weights_at_end(whole.directory), weights_at_end(cut.directory)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.worlds
def test_a_resume_from_another_form_is_told(forms, recipe):
    """The same examples in the same steps, but a crop of a packed image is not one of the photograph."""
    from programs import Killed, killed_at

    data = {"name": "folder", "root": str(forms["jpeg"]), "image_size": SIDE, "workers": 0}
    changes = {"batch": {"global_batch_size": 10}, "checkpoint": {"every_epochs": 1, "asynchronous": False}}
    path = recipe(model={"name": "resnet20"}, data=data, epochs=2, **changes)
    with pytest.raises(Killed), killed_at(4):
        train(config.load(path), quiet=True)
    run = config.load(path, [f"data.root={forms['pixels']}"])
    assert train(run, quiet=True).status == "finished"
    log = (run.directory / "train.log").read_text()
    assert "pixels is packed at 32 a side, it was decoded by turbo" in log


@pytest.mark.parametrize(
    "method",
    [
        {"lr": {"base": 0.1, "scaling": "adascale", "reference_batch_size": 5}},
        {
            "averaging": {
                "name": "swap",
                "stop_at_train_accuracy": 90,
                "workers": 2,
                "worker_batch_size": 5,
                "epochs": 1,
                "lr": {"base": 0.1},
            }
        },
    ],
)
@pytest.mark.worlds
def test_growing_images_follow_one_plan(forms, recipe, method):
    data = {"name": "folder", "root": str(forms["pixels"]), "image_size": {"from": 16, "to": 32}}
    path = recipe(model={"name": "resnet20"}, data=data, batch={"global_batch_size": 10}, **method)
    with pytest.raises(UserError, match="data.image_size that grows follows the examples of one plan"):
        train(config.load(path), quiet=True)


@pytest.mark.worlds
def test_more_sides_than_torch_compiles_are_refused(forms, recipe):
    data = {"name": "folder", "root": str(forms["folder"]), "image_size": {"from": 16, "to": 96, "multiple_of": 1}}
    path = recipe(model={"name": "resnet20"}, data=data, batch={"global_batch_size": 10}, compile=True)
    with pytest.raises(UserError, match="data.image_size has 81 sides, and compile = true takes at most 64"):
        train(config.load(path), quiet=True)


@pytest.mark.worlds
def test_an_unfinished_pack_is_told(forms, tmp_path):
    (tmp_path / "packing.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="not finished|unfinished|same command"):
        built(tmp_path)


@pytest.mark.worlds
def test_test_images_that_a_pack_must_enlarge_are_told(forms):
    assert built(forms["pixels"], image_size=Sizes(16, 24, evaluate=32)).facts["tests"] == "enlarged from 28"
    assert "tests" not in built(forms["pixels"]).facts


REFUSED = [
    ("pixels", {"image_size": 40}, "data.image_size = 40 is larger than the images of .*pixels, which have 32 pixels"),
    ("pixels", {"image_size": Sizes(16, 24, evaluate=48)}, "data.image_size = 48 is larger than the images of"),
    ("pixels", {"decode": "pillow"}, "data.decode = pillow has no effect: .* is a pack of pixels"),
    ("pixels", {"unreadable_share": 0.1}, "data.unreadable_share = 0.1 has no effect: .* is a pack of pixels"),
    ("jpeg", {"decode": "torbo"}, "data.decode = 'torbo' is not a decoder; did you mean turbo"),
    ("folder", {"hold_out": 30}, "data.hold_out = 30 leaves nothing to train on; at most 29"),
    ("shards", {"augment": "crop_flip"}, "data.augment = 'crop_flip' does not suit data set folder"),
]


@pytest.mark.worlds
@pytest.mark.parametrize(("form", "arguments", "sentence"), REFUSED)
def test_what_does_not_fit_is_one_sentence(forms, form, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        built(forms[form], **arguments)


@pytest.mark.worlds
def test_imagenet_is_its_thousand_classes_in_any_form(forms):
    for form in FORMS:
        with pytest.raises(UserError, match=r"2 class.*; imagenet needs 1000"):
            build("imagenet", root=str(forms[form]))


@pytest.mark.parametrize("arguments", [{"decode": "dali"}, {"color_jitter": 0.4}, {"unreadable_share": 0.1}])
def test_small_sets_have_nothing_to_decode(arguments):
    (key,) = arguments
    with pytest.raises(UserError, match=f"data.{key} is for folder and imagenet only; data set digits"):
        build("digits", **arguments)


@pytest.mark.worlds
def test_a_pack_without_a_test_set_needs_a_part_held_out(forms, tmp_path):
    source = tmp_path / "only" / "train"
    source.parent.mkdir()
    source.symlink_to(forms["folder"] / "train")
    pack(origins(str(source.parent)), tmp_path / "packed", size=32, workers=1)
    with pytest.raises(UserError, match=r"is a pack without a test set; set data.hold_out"):
        built(tmp_path / "packed")
    assert len(built(tmp_path / "packed", hold_out=5).test) == 5

"""What a data set holds, as a resume knows it again: the same in every form of a set, and what changed by name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from packs import as_shards, encoded, folder_sources, packed

from largebatch import checkpoint
from largebatch.checkpoint import manifest
from largebatch.data import build, contents
from largebatch.data.contents import Contents, Listing, changed, digests_of, words_of_changes
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.records import names
from largebatch.run.train import train


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """train: three images of each of two classes; val: one."""
    for split, count in (("train", 3), ("val", 1)):
        for label in ("cat", "dog"):
            (tmp_path / "images" / split / label).mkdir(parents=True)
            for number in range(count):
                side = 20 + number
                (tmp_path / "images" / split / label / f"{number}.jpg").write_bytes(encoded(side, side, number))
    return tmp_path / "images"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def held(root: Path, **arguments: int) -> Contents:
    return build("folder", root=str(root), image_size=8, workers=0, **arguments).contents()  # type: ignore[arg-type]


def moved(source: str, target: str) -> Callable[[Path], object]:
    return lambda train: (train / source).rename(train / target)


CHANGES: dict[str, Callable[[Path], object]] = {
    "train: 1 added (cat/9.jpg)": lambda train: shutil.copy(train / "cat" / "0.jpg", train / "cat" / "9.jpg"),
    "train: 1 removed (dog/1.jpg)": lambda train: (train / "dog" / "1.jpg").unlink(),
    "train: 1 moved to another class (dog/8.jpg)": moved("cat/8.jpg", "dog/8.jpg"),
    "train: 1 of another size (cat/2.jpg)": lambda train: (train / "cat" / "2.jpg").write_bytes(b"short"),
    "train: 1 added (cat/x.jpg), 1 removed (cat/0.jpg)": moved("cat/0.jpg", "cat/x.jpg"),
    "train: 2 removed (dog/0.jpg, dog/1.jpg)": lambda train: [(train / "dog" / f"{n}.jpg").unlink() for n in (0, 1)],
    "test: 1 of another size (cat/0.jpg)": lambda train: (train.parent / "val/cat/0.jpg").write_bytes(b"short"),
    "test: 3 added (cat/1.jpg, cat/2.jpg, ...)": lambda train: [
        shutil.copy(train / "cat" / "0.jpg", train.parent / "val" / "cat" / f"{n}.jpg") for n in (1, 2, 3)
    ],
}


@pytest.mark.parametrize("words", CHANGES)
def test_what_changed_is_told_by_name(root, tmp_path, words):
    if "moved" in words:
        shutil.copy(root / "train" / "cat" / "0.jpg", root / "train" / "cat" / "8.jpg")
    before = held(root)
    contents.keep(tmp_path, before)
    assert not changed(digests_of(before), digests_of(held(root)))
    CHANGES[words](root / "train")
    now = held(root)
    assert changed(digests_of(before), digests_of(now)) == [words.partition(":")[0]]
    assert words_of_changes(digests_of(before), contents.kept(tmp_path), now) == words
    by_number = words_of_changes(digests_of(before), {}, now)
    assert by_number.startswith(f"{words.partition(':')[0]}: ")
    assert "jpg" not in by_number


def test_where_the_folder_lies_and_who_touched_it_changes_nothing(root, tmp_path):
    before = digests_of(held(root))
    for file in root.rglob("*.jpg"):
        os.utime(file, (0, 0))
    (root / "train" / "cat" / "._0.jpg").touch()
    (root / "val").rename(root / "test")
    shutil.move(root, tmp_path / "elsewhere")
    assert digests_of(held(tmp_path / "elsewhere")) == before


def test_held_out_images_are_among_the_others(root):
    before = held(root, hold_out=2)
    assert list(before) == ["train"]
    shutil.copy(root / "train" / "cat" / "0.jpg", root / "train" / "cat" / "9.jpg")
    now = held(root, hold_out=2)
    assert words_of_changes(digests_of(before), before, now) == "train: 1 added (cat/9.jpg)"


@pytest.mark.worlds
def test_forms_of_one_set_are_the_same_as_far_as_they_know(root, tmp_path):
    as_shards(folder_sources(root), tmp_path / "shards", per_shard=2)
    forms = {"folder": root, "shards": tmp_path / "shards"}
    for kind in ("folder", "shards"):
        for size in (16, None):
            forms[f"{kind}, packed at {size}"] = tmp_path / f"{kind}-{size}"
            packed(forms[kind], tmp_path / f"{kind}-{size}", size=size)
    digests = {form: digests_of(held(place)) for form, place in forms.items()}
    for one in digests.values():
        for other in digests.values():
            assert changed(one, other) == []
    for kind in ("folder", "shards"):
        for split in ("train", "test"):
            plain, jpegs, pixels = (
                digests[form][split] for form in (kind, f"{kind}, packed at None", f"{kind}, packed at 16")
            )
            assert plain == jpegs
            assert pixels == plain | {"sizes": None}
    (root / "train" / "dog" / "1.jpg").rename(root / "train" / "cat" / "1b.jpg")
    for form in digests:
        assert changed(digests[form], digests_of(held(root))) == ["train"], form


def test_sets_in_one_piece_are_known_by_their_labels():
    digits = build("digits").contents()
    assert [len(listing.labels) for listing in digits.values()] == [1500, 297]
    assert digests_of(build("digits", hold_out=100).contents()) == {"train": digests_of(digits)["train"]}
    synthetic = [digests_of(build("synthetic", examples=50, seed=seed).contents()) for seed in (0, 0, 1)]
    assert changed(synthetic[0], synthetic[1]) == []
    assert words_of_changes(synthetic[0], {}, build("synthetic", examples=50, seed=1).contents()) == (
        "test: as many examples with other labels, or in another order; "
        "train: as many examples with other labels, or in another order"
    )


def test_a_listing_that_is_damaged_leaves_the_numbers(root, tmp_path):
    before = held(root)
    contents.keep(tmp_path, before)
    whole = (tmp_path / names.DATA).read_bytes()
    (root / "train" / "dog" / "1.jpg").unlink()
    now = held(root)
    for damaged in (b"", whole[: len(whole) // 2], b"no archive", None):
        (tmp_path / names.DATA).unlink()
        if damaged is not None:
            (tmp_path / names.DATA).write_bytes(damaged)
        words = words_of_changes(digests_of(before), contents.kept(tmp_path), now)
        assert words == "train: 5 examples of 2 classes, it was 6 of 2"
        (tmp_path / names.DATA).touch()


def test_names_that_are_no_text_are_kept():
    listing = Listing(("a\udcff", "b"), np.array([0, 1]), contents.FOLDER, np.array([b"\xff.jpg", b"1.jpg"]), None)
    assert listing.digests == Listing(*listing).digests
    assert listing.digests["names"] != listing._replace(names=np.array([b"\xfe.jpg", b"1.jpg"])).digests["names"]


# --- a run -----------------------------------------------------------------------------------------------------------


def run_of(recipe: Callable[..., Path], root: Path, steps: int, *overrides: str) -> config.Run:
    written = recipe(data={"name": "folder", "root": str(root), "image_size": 8, "workers": 0}, epochs=None)
    sizes = ["batch.global_batch_size=3", f"steps={steps}", f"record.dir={root.parent}/run", "evaluate.train=no"]
    return config.load(written, [*sizes, *overrides])


def half_way(recipe: Callable[..., Path], root: Path) -> Path:
    """A run directory with a checkpoint after two of four steps."""
    assert train(run_of(recipe, root, 4), quiet=True).status == "finished"
    directory = root.parent / "run"
    (directory / "result.json").unlink()
    for path in manifest.existing(directory / "checkpoints")[:-1]:
        shutil.rmtree(path)
    return directory


@pytest.mark.worlds
def test_a_run_refuses_other_data_or_accepts_them_by_a_key(recipe, root):
    directory = half_way(recipe, root)
    newest = manifest.existing(directory / "checkpoints")[0]
    assert checkpoint.step_of(newest) < 4
    kept = json.loads((newest / "manifest.json").read_text())["data"]
    assert kept == digests_of(held(root))
    shutil.copy(root / "train" / "cat" / "0.jpg", root / "train" / "cat" / "9.jpg")
    with pytest.raises(UserError) as refused:
        train(run_of(recipe, root, 4), quiet=True)
    assert str(refused.value) == (
        f"record.dir = {directory} was trained on other data (train: 1 added (cat/9.jpg)); data.if_changed=accept goes "
        "on with what there is now, another record.dir leaves it"
    )
    assert train(run_of(recipe, root, 4, "data.if_changed=accept"), quiet=True).status == "finished"
    log = (directory / "train.log").read_text()
    assert "the data changed, which data.if_changed = accept allows: train: 1 added (cat/9.jpg)" in log
    newest = manifest.existing(directory / "checkpoints")[0]
    assert json.loads((newest / "manifest.json").read_text())["data"] == digests_of(held(root))


def test_another_number_of_classes_is_never_accepted(recipe, root):
    half_way(recipe, root)
    for split in ("train", "val"):
        shutil.copytree(root / split / "dog", root / split / "eel")
    with pytest.raises(
        UserError, match=r"was trained on 2 classes, and there are 3 now \(test: 1 added \(eel/0.jpg\); "
    ):
        train(run_of(recipe, root, 4, "data.if_changed=accept"), quiet=True)


def test_a_checkpoint_of_before_says_nothing_of_its_data(recipe, root):
    directory = half_way(recipe, root)
    newest = manifest.existing(directory / "checkpoints")[0]
    facts = manifest.read(newest)
    del facts["data"]
    manifest.write(newest, facts)
    (directory / names.DATA).unlink()
    (root / "train" / "dog" / "1.jpg").unlink()
    assert train(run_of(recipe, root, 4), quiet=True).status == "finished"
    assert contents.kept(directory)["train"].digests == held(root)["train"].digests

"""One file for each data set: whoever adds one can name it in a recipe, and nothing else is touched."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from largebatch import tasks
from largebatch.data import Asked, build, contents, sets
from largebatch.data.preparation import prepared
from largebatch.data.resident import TensorSplit
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.run.train import train
from largebatch.studies import reading as recipes
from largebatch.studies.dry_run import Cluster, dry_run
from largebatch.studies.dry_run.job import dataset_of

HERE = sorted(path.stem for path in Path(sets.__path__[0]).glob("[!_]*.py"))
TOY_SET = '''
"""Two numbers of each example, and which is the larger: a dict."""

from largebatch.data.sets import DataSet


class Pairs(DataSet):
    name = "pairs"
    task = "larger"

    def build(self, asked):
        import torch

        from largebatch.data import Splits
        from largebatch.data.resident import TensorSplit

        def split(count):
            numbers = torch.randn(count, 2, generator=torch.Generator().manual_seed(count))
            return TensorSplit({"numbers": numbers, "larger": numbers.argmax(1)})

        blank = {"numbers": torch.zeros(1, 2), "larger": torch.zeros(1, dtype=torch.int64)}
        return Splits(self.name, blank, 2, split(200), split(50), "drawn", self.task)
'''
TOY_TASK = '''
"""Cross-entropy of batches that are dicts."""

import torch.nn.functional as F

from largebatch.plan.score import Score
from largebatch.tasks.task import Task


class Larger(Task):
    score = Score("found_percent", "found", unit="%", more_is_better=True, tolerance=1.0)

    def forward(self, model, batch):
        return model(batch["numbers"])

    def loss(self, outputs, batch):
        return F.cross_entropy(outputs, batch["larger"], reduction="sum")

    def tally(self, outputs, batch):
        right = (outputs.argmax(1) == batch["larger"]).sum()
        return {"loss": self.loss(outputs, batch), "right": right}

    def numbers(self, sums):
        count = float(sums["examples"])
        return {"loss": float(sums["loss"]) / count, "found_percent": 100 * float(sums["right"]) / count}


TASK = Larger
'''


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In folders of their own, which the packages know from now on."""
    for package, name, text in ((sets, "pairs", TOY_SET), (tasks, "larger", TOY_TASK)):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / f"{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}", raising=False)


@pytest.mark.usefixtures("toys")
def test_a_toy_is_trained_by_its_name(recipe):
    path = recipe(data={"name": "pairs"}, lr={"base": 0.5}, batch={"global_batch_size": 50, "micro_batch_size": 25})
    run = config.load(path)
    assert train(run, quiet=True).status == "finished"
    result = json.loads((run.directory / "result.json").read_text())
    assert result["test_found_percent"] > 80


@pytest.mark.usefixtures("toys")
def test_a_toy_is_read_aloud_and_dry_run(recipe):
    path = recipe(data={"name": "pairs"}, batch={"global_batch_size": 50})
    with pytest.raises(UserError, match="pairs holds examples that its file does not count; say how many: --examples"):
        recipes.derived(path, [])
    assert recipes.derived(path, [], examples=200)["steps"] == 8
    facts = dry_run(config.load(path), Cluster(2, "cpu"))
    assert facts["steps"] == 8
    assert facts["memory_per_rank_mib"]["examples on the device"] == 250 * (2 * 4 + 8) / 2**20


@pytest.mark.usefixtures("toys")
def test_what_a_toy_does_not_take_is_refused():
    assert "pairs" in sets.names()
    for keys, words in {
        ("augment", "flip"): "data.augment is for images; data set pairs has none",
        ("color_jitter", 0.5): "data.color_jitter is for folder and imagenet only; data set pairs is read as a whole",
        ("examples", 5): "data.examples is for synthetic only; data set pairs has its own",
        ("root", "/x"): "data.root = '/x' is not used: data set pairs has no files",
    }.items():
        with pytest.raises(UserError, match=words):
            build("pairs", **dict([keys]))
    assert build("pairs", augment="none").outputs == 2


def test_every_file_holds_its_set():
    assert sets.names() == HERE
    assert [known.name for known in sets.table().values()] == HERE


def test_a_file_without_its_set_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "__path__", [*sets.__path__, str(tmp_path)])
    (tmp_path / "nothing_there.py").touch()
    with pytest.raises(UserError, match='nothing_there.py holds no DataSet with name = "nothing_there"'):
        build("nothing_there")


def test_only_a_folder_and_text_do_not_know_how_many_they_hold():
    assert [name for name, known in sets.table().items() if known.counts(Asked(name))[0] is None] == ["folder", "text"]


@pytest.mark.parametrize("name", ["diabetes", "digit_pairs", "digits", "synthetic"])
def test_what_is_known_without_reading_is_what_is_read(name, recipe):
    """Counts, shapes, bytes on the device, words: of a dry run's data set and of the one that is trained on."""
    asked, known = Asked(name), sets.known(name)
    real, dry = build(name), dataset_of(config.load(recipe(data={"name": name})), Cluster())
    assert known.counts(asked) == (len(real.train), len(real.test)) == (len(dry.train), len(dry.test))
    assert known.outputs(asked) == real.outputs == dry.outputs
    assert known.shape(asked) == real.input_shape
    assert known.task == real.task == dry.task
    for tensor, other in zip(real.example, dry.example, strict=True):
        assert (tensor.shape, tensor.dtype) == (other.shape, other.dtype)
    assert (real.classes, real.facts) == (dry.classes, dry.facts)
    assert isinstance(real.train, TensorSplit)
    resident = sum(tensor.nbytes for tensor in real.train.tensors)
    assert dry.train.bytes_on_device == resident == len(real.train) * known.resident_bytes(asked)


def test_who_uses_the_weights_learns_how_numbers_were_scaled():
    import sklearn.datasets

    dataset = build("diabetes")
    told = prepared(dataset)
    assert (told["classes"], told["input_size"]) == (["progression"], [10])
    inputs, targets = sklearn.datasets.load_diabetes(return_X_y=True, scaled=False)
    assert isinstance(dataset.test, TensorSplit)
    ours = [part.double().numpy() for part in dataset.test.tensors]
    raw = [ours[0] * told["std"] + told["mean"], (ours[1] * told["target_std"] + told["target_mean"])[:, 0]]
    order = np.random.Generator(np.random.PCG64(442)).permutation(442)[342:]
    for found, wanted in zip(raw, (inputs, targets), strict=True):
        np.testing.assert_allclose(found, wanted[order], rtol=1e-5)


def test_other_numbers_are_noticed(monkeypatch):
    """Of a set without names: inputs that changed where the targets did not, and the other way round."""
    import sklearn.datasets

    before = build("diabetes").contents()
    assert [len(listing.labels) for listing in before.values()] == [342, 100]
    assert contents.digests_of(build("diabetes", hold_out=42).contents()) == {"train": before["train"].digests}
    inputs, targets = sklearn.datasets.load_diabetes(return_X_y=True, scaled=False)
    for column, words in ((0, "as many examples with other numbers"), (None, "as many examples with other labels")):
        changed_inputs, changed_targets = inputs.copy(), targets.copy()
        (changed_targets if column is None else changed_inputs[:, column])[:] += np.arange(442)
        monkeypatch.setattr(sklearn.datasets, "load_diabetes", lambda x=changed_inputs, y=changed_targets, **_: (x, y))
        now = build("diabetes").contents()
        told = contents.words_of_changes(contents.digests_of(before), before, now)
        assert told.count(words) == 2, told

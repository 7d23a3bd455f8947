"""``largebatch evaluate``: what the run recorded again, of any checkpoint and split; answers; and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from programs import largebatch, torchrun
from small_runs import arrays, recorded, trained
from typer.testing import CliRunner

import largebatch as lb
from largebatch import data, models
from largebatch.checkpoint import existing, named, step_of
from largebatch.cli import app
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.records.evaluation import EvaluationRecord
from largebatch.studies.evaluation import measure, restored

CPU = torch.device("cpu")


def command(*words: object) -> str:
    ended = CliRunner().invoke(app, ["evaluate", *map(str, words)], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.output


def evaluated(run: Path, at: str = "last", **keys: Any) -> EvaluationRecord:
    return measure.measure(named.named(f"{run}@{at}"), CPU, **keys).record


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With batch norm, both averages of the weights, examples held out, and checkpoints of two epochs."""
    return trained(
        tmp_path_factory.mktemp("evaluate") / "run",
        model={"name": "tiny_cnn"},
        data={"name": "digits", "hold_out": 300},
        ema={"decay": 0.9},
        lawa={"latest": 3, "every_steps": 5},
    )


@pytest.mark.worlds
@pytest.mark.parametrize(("at", "step"), [("last", 24), ("24", 24), ("12", 12)])
@pytest.mark.parametrize("which", ["trained", "ema", "lawa"])
def test_it_is_what_the_run_recorded_at_that_checkpoint(run, at, step, which):
    found = evaluated(run, at, which=which)
    assert dict(found.numbers) == recorded(run, step, "held_out" if which == "trained" else which)
    assert found.recorded == found.numbers["accuracy_percent"]
    assert (found.step, found.split, found.examples, found.weights) == (step, "held_out", 300, which)


@pytest.mark.worlds
def test_statistics_that_no_evaluation_left_are_recomputed(tmp_path):
    """The same run twice: in the one nobody looked at the mean that was saved, in the other it was evaluated there."""
    keys = {"model": {"name": "tiny_cnn"}, "lawa": {"latest": 2, "every_steps": 4}, "batch_norm": {"examples": 500}}
    keys |= {"checkpoint": {"every_epochs": 0.6, "keep": 9}}
    often = trained(tmp_path / "often", evaluate={"every_epochs": 0.6}, **keys)
    rarely = trained(tmp_path / "rarely", evaluate={"every_epochs": 9}, **keys)
    found = evaluated(rarely, "9", which="lawa")
    assert dict(found.numbers) == recorded(often, 9, "lawa") != recorded(often, 18, "lawa")
    assert (found.recorded, evaluated(often, "9", which="lawa").recorded) == (None, found.numbers["accuracy_percent"])
    with pytest.raises(UserError, match="--weights lawa: .*step-00000009 has no batch norm statistics of the mean"):
        restored.weights_of(named.named(f"{rarely}@9"), "lawa", with_statistics=True)


@pytest.mark.worlds
def test_the_average_of_workers_that_went_on_alone_is_what_the_run_reached(tmp_path):
    swap = {"name": "swap", "stop_at_train_accuracy": 90, "workers": 2, "worker_batch_size": 50, "epochs": 0.5}
    keys = {"averaging": {**swap, "lr": {"base": 0.01}}, "model": {"name": "tiny_cnn"}, "lr": {"base": 0.05}}
    run = trained(tmp_path / "swap", evaluate={"train": True}, checkpoint={"keep": 9}, **keys)
    reached = json.loads((run / "result.json").read_text())
    for split in ("test", "train"):
        found = evaluated(run, split=split)
        assert dict(found.numbers) == {key: reached[f"{split}_{key}"] for key in ("loss", "accuracy_percent")}
        assert found.recorded == reached[f"{split}_accuracy_percent"]
    assert "accuracy as the run recorded it: the same" in command(run)
    before = [step for step in sorted(map(step_of, existing(run / "checkpoints"))) if step < found.step]
    assert evaluated(run, str(before[-1])).recorded is None, (
        "the weights in the midst of the workers were not evaluated"
    )


@pytest.mark.worlds
def test_the_training_set_too_and_the_test_set_that_the_run_never_saw(run):
    assert dict(evaluated(run, split="train").numbers) == recorded(run, 24, "train")
    test = evaluated(run, split="test")
    assert (test.examples, test.recorded) == (297, None)
    assert test.numbers["accuracy_percent"] > 50


@pytest.mark.worlds
def test_recomputed_statistics_are_recomputed(tmp_path):
    run = trained(
        tmp_path / "precise", model={"name": "tiny_cnn"}, ema={"decay": 0.9}, batch_norm={"statistics": "precise"}
    )
    for step in (15, 30):
        for which in ("trained", "ema"):
            found = evaluated(run, str(step), which=which)
            assert dict(found.numbers) == recorded(run, step, "test" if which == "trained" else which)


@pytest.mark.worlds
def test_of_schedule_free_training_the_average_is_evaluated_with_its_own_statistics(tmp_path):
    run = trained(
        tmp_path / "free",
        model={"name": "tiny_cnn"},
        optimizer={"name": "sgd", "momentum": 0},
        lr={"base": 0.5},
        schedule_free=True,
    )
    for step in (15, 30):
        assert dict(evaluated(run, str(step)).numbers) == recorded(run, step, "test")
    assert recorded(run, 30, "test")["accuracy_percent"] > 50


@pytest.mark.worlds
def test_mirror_images_are_looked_at_as_in_the_run(tmp_path):
    run = trained(tmp_path / "flips", model={"name": "tiny_cnn"}, evaluate={"flips": True})
    numbers = dict(evaluated(run).numbers)
    assert numbers == recorded(run, 30, "test")
    loaded = named.named(f"{run}@last")
    weights = restored.weights_of(loaded)
    model = restored.filled(models.build("tiny_cnn", 10, (1, 8, 8), 0), weights).eval()
    images, labels = next(iter(data.build("digits").test.batches(0, 1, 2_000, data.Placement(CPU, torch.float32))))
    with torch.no_grad():
        right = (model(images) + model(images.flip(3))).argmax(1) == labels
        alone = model(images).argmax(1) == labels
    assert numbers["accuracy_percent"] == pytest.approx(100 * right.double().mean().item())
    assert right.sum() != alone.sum(), "mirror images make no difference here"


@pytest.mark.worlds
def test_best_is_that_of_the_highest_score(tmp_path):
    run = trained(tmp_path / "run", epochs=3, checkpoint={"keep": 3})
    scores = {step: recorded(run, step, "test")["accuracy_percent"] for step in (15, 30, 45)}
    best = evaluated(run, "best")
    assert best.numbers["accuracy_percent"] == max(scores.values())
    assert best.step == max(scores, key=lambda step: (scores[step], step))


@pytest.mark.worlds
def test_classes_add_up_and_are_those_of_the_answers(run, tmp_path):
    said = command(run, "--json", tmp_path / "e.json", "--predictions", tmp_path / "p.csv")
    assert "accuracy as the run recorded it: the same" in said
    facts = json.loads((tmp_path / "e.json").read_text())
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert [int(row["index"]) for row in rows] == list(range(300))
    confusion = np.array(facts["confusion"])
    by_hand = np.zeros((10, 10), dtype=int)
    for row in rows:
        by_hand[int(row["label"]), int(row["prediction"])] += 1
        likely = [float(row[f"probability_{place}"]) for place in range(1, 6)]
        assert likely == sorted(likely, reverse=True)
        assert row["prediction_name"] == row["top_1"]
    assert (confusion == by_hand).all()
    assert 100 * confusion.trace() / 300 == pytest.approx(facts["accuracy_percent"])
    for number, one in enumerate(facts["classes"]):
        assert one["name"] == str(number)
        assert (one["examples"], one["right"]) == (confusion[number].sum(), confusion[number, number])
    right = [row["label"] == row["prediction"] for row in rows]
    assert sum(one["examples"] for one in facts["calibration"]["bins"]) == 300
    top = [float(row["probability_1"]) for row in rows]
    gap = sum(
        abs(sum(right[i] - top[i] for i in range(300) if low < 15 * top[i] <= low + 1)) / 300 for low in range(15)
    )
    assert facts["calibration"]["expected_error_percent"] == pytest.approx(100 * gap, rel=1e-9)


@pytest.mark.worlds
def test_one_rank_and_two_give_the_same_answers(run, tmp_path):
    for ranks in (1, 2):
        words = ("evaluate", run, "--json", tmp_path / f"{ranks}.json", "--predictions", tmp_path / f"{ranks}.npz")
        ended = largebatch(*words) if ranks == 1 else torchrun(2, "-m", "largebatch", *map(str, words))
        assert ended.returncode == 0, ended.stderr
    one, two = (arrays(tmp_path / f"{ranks}.npz") for ranks in (1, 2))
    assert set(one) == set(two)
    for column in one:
        if column.startswith("probability"):
            np.testing.assert_allclose(one[column], two[column], rtol=1e-5)
        else:
            assert (one[column] == two[column]).all(), column
    first, second = (json.loads((tmp_path / f"{ranks}.json").read_text()) for ranks in (1, 2))
    assert first["confusion"] == second["confusion"]
    assert first["accuracy_percent"] == second["accuracy_percent"]
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-6)
    assert (first["ranks"], second["ranks"]) == (1, 2)


@pytest.mark.worlds
def test_a_regression_has_its_own_numbers_and_answers(tmp_path):
    run = trained(tmp_path / "run", data={"name": "diabetes"}, batch={"global_batch_size": 20}, lr={"base": 0.01})
    found = evaluated(run)
    assert dict(found.numbers) == recorded(run, found.step, "test")
    assert set(found.numbers) == {"loss", "squared_error", "r2"}
    assert found.classes is None
    said = command(run, "--predictions", tmp_path / "p.parquet")
    assert "squared error" in said
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pydict()
    index, label, prediction = table
    assert (index, label.partition("_")[0], prediction.partition("_")[0]) == ("index", "label", "prediction")
    error = np.mean((np.array(table[label]) - np.array(table[prediction])) ** 2)
    assert error == pytest.approx(found.numbers["squared_error"], rel=1e-6)


@pytest.mark.worlds
def test_the_library_says_the_same(run, tmp_path):
    found = lb.evaluate(run)
    assert found["accuracy_percent"] == recorded(run, 24, "held_out")["accuracy_percent"]
    assert found["examples"] == 300
    assert found.record is not None
    assert found.record.classes is not None
    averaged = lb.evaluate(f"{run}@12", weights="ema", predictions=tmp_path / "p.npz")
    assert averaged["loss"] == recorded(run, 12, "ema")["loss"]
    assert len(arrays(tmp_path / "p.npz")["prediction"]) == 300
    recipe = config.load(run / "run.yaml")
    assert lb.evaluate(recipe, checkpoint=12)["loss"] == recorded(run, 12, "held_out")["loss"]


@pytest.mark.worlds
def test_other_data_from_a_recipe_file(run, tmp_path):
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"data": {"name": "digits"}}))
    found = evaluated(run, where=str(tmp_path / "other.yaml"))
    assert (found.split, found.examples, found.notes) == ("other", 297, [])
    assert dict(found.numbers) == dict(evaluated(run, split="test").numbers)


@pytest.mark.worlds
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["@7"], "has no checkpoint '7'; valid: last, best, 12, 24"),
        (["@best", "--split", "validation"], "--split validation is not known; valid: test, held_out, train"),
        (["", "lr.base=3"], "lr.base=3: lr.base belongs to the training; valid: device, precision"),
        (["", "--data", "nowhere"], "--data nowhere: there is no such file or folder; give a recipe file"),
        (["", "--predictions", "p.txt"], "--predictions p.txt should end in .csv, .npz or .parquet"),
        (["", "--predictions", "no/p.csv"], "--predictions no/p.csv: the folder no does not exist"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(run, words, sentence):
    with pytest.raises(UserError) as refused:
        command(f"{run}{words[0]}", *words[1:])
    assert sentence in str(refused.value)


@pytest.mark.worlds
def test_a_folder_without_a_run_and_a_run_without_what_is_asked(run, tmp_path):
    with pytest.raises(UserError, match=r"is no run: it has no run\.yaml; name a run directory"):
        named.named(tmp_path)
    bare = trained(tmp_path / "bare", checkpoint={"every_epochs": 0})
    with pytest.raises(UserError, match="has no checkpoint; train it with checkpoint.every_epochs above 0"):
        named.named(bare)
    plain = trained(tmp_path / "plain")
    for which, said in (
        ("ema", "--weights ema: .* holds no moving average, which takes a recipe with ema; valid there: trained"),
        ("lawa", "--weights lawa: .* holds no snapshots, which take a recipe with lawa, and a step after one; valid"),
        ("swa", "--weights swa is not known; valid: trained, ema, lawa"),
    ):
        with pytest.raises(UserError, match=said):
            evaluated(plain, which=which)
    with pytest.raises(UserError, match=r"--split held_out: the run held nothing out \(data.hold_out = 0\)"):
        evaluated(plain, split="held_out")


@pytest.mark.worlds
@pytest.mark.real_data
def test_data_with_other_classes_are_refused(run, tmp_path):
    for section, sentence in (
        ({"name": "synthetic", "num_classes": 7, "image_shape": [1, 8, 8], "examples": 50}, "has 7 classes, and the "),
        ({"name": "digit_pairs"}, "digit_pairs is for multilabel, and .* learned classification"),
        ({"name": "mnist"}, r"the model of .* does not take inputs of 1×28×28"),
        ({"name": "fashion_mnist"}, "has other classes than the model of .*: number 0 is 'T-shirt/top' there and '0'"),
    ):
        (tmp_path / "other.yaml").write_text(yaml.safe_dump({"data": section}))
        with pytest.raises(UserError, match=sentence):
            evaluated(run, where=str(tmp_path / "other.yaml"))


@pytest.mark.worlds
def test_a_damaged_checkpoint_is_told(run, tmp_path):
    from programs import damage, saved

    copied = Path(shutil.copytree(run, tmp_path / "run"))
    damage(saved(copied)[-1])
    found = evaluated(copied)
    assert found.step == 12
    assert "step-00000024 cannot be read" in found.notes[0]
    with pytest.raises(UserError, match="cannot be read: .*; name another checkpoint with @"):
        evaluated(copied, "24")


def test_a_name_is_parted_at_its_last_sign(tmp_path):
    assert named.parted("runs/a@best") == (Path("runs/a"), "best")
    assert named.parted("runs/a") == (Path("runs/a"), "last")
    assert named.parted("runs/a@") == (Path("runs/a"), "last")
    (tmp_path / "a@b").mkdir()
    assert named.parted(str(tmp_path / "a@b")) == (tmp_path / "a@b", "last")
    assert named.parted(str(tmp_path / "a@b@3")) == (tmp_path / "a@b", "3")

"""``largebatch diagnose critical``: branches are what the run would be, are trained once, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pool
import pytest
import torch
from programs import joined, state_at_end

from largebatch.cli import app
from largebatch.errors import UserError
from largebatch.plan.batch import resolve
from largebatch.recipes import config
from largebatch.records.diagnoses import BranchRecord, CriticalRecord
from largebatch.records.typed import content, read
from largebatch.run.train import train
from largebatch.studies.diagnose import critical
from largebatch.studies.diagnose.branches import Trunk, built, kept_or_trained, losses_of, trunks
from largebatch.studies.diagnose.opened import recipe_of

CPU = torch.device("cpu")
RECIPE: dict[str, Any] = {
    "name": "small",
    "seed": 3,
    "model": {"name": "mlp", "width": 8, "depth": 1},
    "data": {"name": "digits"},
    "batch": {"global_batch_size": 50},
    "optimizer": {"name": "sgd", "momentum": 0.9},
    "lr": {"base": 0.05},
    "steps": 12,
    "checkpoint": {"every_epochs": 0.2, "keep": {"last": 9}},  # of 30 steps
}
KINDS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "dropout and norm": {"model": {"name": "mlp", "width": 8, "depth": 1, "norm": True, "dropout": 0.3}},
    "adamw": {
        "optimizer": {"name": "adamw", "beta2_half_life": {"reference_batch_size": 25}}, "lr": {"base": 0.01},
        "ema": {"decay": 0.9}, "record": {"directions_every_steps": 2},
        "evaluate": {"every_epochs": 0.1, "stop_at": {"score": 100}},
        "search": {"lr.warmup.epochs": {"linear": [0, 1]}},
    },
    "adam_sqrt": {
        "optimizer": {"name": "adamw"},
        "lr": {"base": 0.01, "reference_batch_size": 100, "scaling": "adam_sqrt"},
    },
    "lamb and SAM": {"optimizer": {"name": "lamb"}, "sam": {"rho": 0.05}, "lr": {"base": 0.01}},
}  # fmt: skip


def trained(folder: Path, **keys: Any) -> Path:
    record = {"to": [], "dir": str(folder), "every_steps": 1, **keys.pop("record", {})}
    run = config.from_dict({**RECIPE, **keys, "record": record})
    assert train(run, quiet=True).status == "finished"
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("critical") / "run")


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("diagnostics")))


def measured(directory: Path, **options: Any) -> CriticalRecord:
    asked = {"factors": (0.5, 1, 2), "steps": (6,), "window": 300, "orders": 2, "noise_scale": False}
    return critical.measure(directory, CPU, **{**asked, **options})


def trunk_of(directory: Path, step: int = 6) -> Trunk:
    return trunks(directory, recipe_of(directory), [step], CPU)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_branch_at_the_runs_batch_in_its_order_is_the_run(tmp_path, kind):
    """Bit by bit: the loss of every step, and the weights and the optimizer's state at the end."""
    directory = trained(tmp_path / "run", **KINDS[kind])
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["event"] == "train"]
    trunk = trunk_of(directory)
    job, parts = built(trunk, trunk.branch(1.0, 0, "linear", 300))
    assert losses_of(job, parts, 6) == losses[6:]
    end, state = state_at_end(directory), joined(job.engine.save())
    for name, value in end["model"].items():
        assert torch.equal(state["model"][name], value), name
    layers = end["optimizer"]["layers"]
    assert layers
    for layer, states in layers.items():
        for key, value in states.items():
            assert torch.equal(*(torch.as_tensor(one) for one in (state["optimizer"]["layers"][layer][key], value)))


def test_all_of_an_order_see_the_same_examples_in_the_same_order(run):
    trunk = trunk_of(run)
    own = resolve(dataset_size=1500, global_batch_size=50, steps=12, seed=3)
    of_run = np.concatenate([own.examples_of(step).indices for step in range(6, 12)])
    for order in (0, 1, 2):
        seen = []
        for factor in (0.5, 1.0, 2.0):
            plan = trunk.plan(trunk.branch(factor, order, "linear", 300))
            seen.append(np.concatenate([plan.examples_of(step).indices for step in range(6, plan.steps)]))
            assert np.array_equal(seen[-1], seen[0])
            assert np.array_equal(seen[-1], of_run) == (order == 0)
            assert plan.examples_before(6) == 300
            assert plan.at(6).global_batch_size == 50 * factor


@pytest.mark.parametrize(
    ("kind", "rule", "lr", "betas"),
    [
        ("sgd", None, 0.1, None),
        ("sgd", "sqrt", 0.05 * math.sqrt(2), None),
        ("sgd", "none", 0.05, None),
        ("adamw", None, 0.01 * math.sqrt(2), (0.9, 0.999**4)),  # β2 holds at 25
        ("adam_sqrt", None, 0.01, (0.9, 0.999)),  # at batch 100 the recipe's own; its lr at 50 is 0.01/√2
    ],
)
def test_the_rate_is_held_times_the_rule_and_betas_are_those_of_the_batch(tmp_path, kind, rule, lr, betas):
    directory = trained(tmp_path / "run", **KINDS[kind])
    trunk = trunk_of(directory)
    job, parts = built(trunk, trunk.branch(2.0, 0, rule or trunk.run.optimizer.LR_RULE, 300))
    losses_of(job, parts, 6)
    for group in job.engine.optimizer.param_groups:
        assert group["lr"] == pytest.approx(lr)
        assert betas is None or tuple(group["betas"]) == pytest.approx(betas)


def test_a_schedule_stands_still_where_the_branches_begin(tmp_path):
    directory = trained(tmp_path / "run", lr={"base": 0.05, "decay": {"name": "cosine"}})
    record = measured(directory, steps=())
    assert [point.step for point in record.points] == [6], "at the end, at 12, the lr has come to 0"
    (point,) = record.points
    assert point.lr == pytest.approx(0.025)
    assert [row.lr for row in point.branches] == pytest.approx([0.0125, 0.025, 0.05])
    with pytest.raises(UserError, match="--steps 12: the lr is 0 there"):
        measured(directory, steps=(12,))


def test_it_goes_on_where_it_was_interrupted_and_trains_nothing_twice(copy, monkeypatch):
    told: list[str] = []

    def interrupted(text: str) -> None:
        told.append(text)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(copy, progress=interrupted)
    told.clear()
    record = measured(copy, progress=told.append)
    assert [text.endswith("(kept)") for text in told] == [True] * 3 + [False] * 3
    told.clear()
    ema = measured(copy, judge="ema", tolerance=0.01, progress=told.append)
    assert all(text.endswith("(kept)") for text in told)
    (row, *_), (smooth, *_) = record.points[0].branches, ema.points[0].branches
    branch = branch_at(copy, "k0.5-order0")
    assert len(branch.losses) == row.steps == 12
    assert row.losses[0] == pytest.approx(sum(branch.losses[-4:]) / 4), "the last 100 of 300 examples"
    assert smooth.losses[0] == pytest.approx(critical.critical.smoothed(branch.losses))
    undisturbed = measured(copy.parent / "copy", window=300)
    assert undisturbed.points == record.points


def branch_at(directory: Path, name: str) -> BranchRecord:
    file = directory / "diagnostics/critical/step-6/300-linear" / f"{name}.json"
    return read(BranchRecord, json.loads(file.read_text()), file)


def test_branches_are_kept_for_what_they_were_made_of(copy):
    trunk = trunk_of(copy)
    branch = trunk.branch(2.0, 1, "linear", 300)
    made, anew = kept_or_trained(trunk, branch, False, "")
    assert anew
    assert kept_or_trained(trunk, branch, False, "") == (made, False)
    held_out, anew = kept_or_trained(trunk, branch, True, "")
    assert anew
    assert held_out.held_out_loss > 0
    assert held_out.losses == made.losses, "an evaluation changes nothing, and a branch is the same again"
    assert kept_or_trained(trunk, branch, True, "")[1] is False
    assert kept_or_trained(trunk, branch._replace(lr=0.2), True, "")[1], "another rate at this checkpoint"
    file = copy / "diagnostics/critical/step-6/300-linear/k2-order1.json"
    for text in ("", "[]", file.read_text()[:-40]):
        file.write_text(text)
        assert kept_or_trained(trunk, branch, False, "")[0].losses == made.losses
    manifest = next((copy / "checkpoints").glob("step-*6")) / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(UserError, match="cannot be read"):
        measured(copy)


def test_a_branch_that_diverges_loses(copy):
    record = measured(copy)
    design = critical.designed(trunk_of(copy), (0.5, 1, 2), 300, 2, None, "last", 0.0)
    branch = branch_at(copy, "k2-order0")
    assert design.judged(dataclasses.replace(branch, losses=[*branch.losses[:-1], None])) == math.inf
    assert math.isfinite(design.judged(branch))
    assert design.gained([branch, dataclasses.replace(branch, losses=[None] * 3)]) == design.gained([branch])
    assert record.points[0].gained == pytest.approx(
        sum(
            sum(losses[:2]) / 2 - sum(losses[-2:]) / 2
            for losses in (branch_at(copy, f"k1-order{order}").losses for order in (0, 1))
        )
        / 2
    )


@pytest.mark.worlds
def test_the_command_prints_and_leaves_numbers_and_a_picture(copy, tmp_path, monkeypatch, capsys):
    numbers = tmp_path / "numbers.json"
    words = ["diagnose", "critical", str(copy), "--factors", "1,2", "--steps", "6,12", "--window", "300"]
    monkeypatch.setattr(sys, "argv", ["largebatch", *words, "--orders", "2", "--json", str(numbers)])
    app(sys.argv[1:], standalone_mode=False)
    facts = json.loads(numbers.read_text())
    assert facts == json.loads((copy / "diagnostics/critical.json").read_text())
    assert facts == content(read(CriticalRecord, facts, numbers))
    assert [point["step"] for point in facts["points"]] == [6, 12]
    assert all(point["noise_scale_low"] is not None for point in facts["points"])
    assert not (copy / "diagnostics/noise.json").exists(), "that is another measurement's"
    assert "<svg" in (copy / "diagnostics/critical.svg").read_text()
    printed = " ".join(capsys.readouterr().out.split())
    for words in ("step 6, k = 2, order 1: loss", "step 12: ", "diagnostics/critical.json", "noise scale"):
        assert words in printed


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"factors": (2, 4)}, "--factors 2,4 has no 1, the run's own batch; add it"),
        ({"factors": (1,)}, "should be two or more different multiples"),
        ({"factors": (1, 2, 2)}, "should be two or more different multiples"),
        ({"factors": (0, 1)}, "should be two or more different multiples"),
        ({"factors": (1, math.nan)}, "should be two or more different multiples"),
        ({"factors": (0.25, 1)}, "--factors 0.25 times the run's batch 50 is 12.5, which is no number of examples"),
        ({"factors": (1, 40), "window": None}, "--window 2000 should be whole steps of all batches"),
        ({"window": 250}, r"--window 250 should be whole steps of all batches \(25, 50, 100\).*: 200 or 300"),
        ({"window": 1600}, "--window 1600 should be .* at most the 1500 examples of an epoch.*: .*"),
        ({"window": 0}, "--window 0 should be whole steps"),
        ({"steps": (7,)}, "--steps 7: .* has no checkpoint of this step; there are 6, 12 "),
        ({"orders": 1}, "--orders 1 leaves nothing to test; at least 2"),
        ({"lr_rule": "cubic"}, "--lr-rule cubic is not known; valid: linear, sqrt, none"),
        ({"judge": "first"}, "--judge first is not known; valid: last, ema, held_out"),
        ({"tolerance": -0.1}, "--tolerance -0.1 should be a loss, 0 or above"),
        ({"tolerance": math.inf}, "--tolerance inf should be a loss, 0 or above"),
    ],
)
def test_what_cannot_be_asked_is_told_in_a_sentence(run, options, sentence):
    with pytest.raises(UserError, match=sentence) as told:
        measured(run, **options)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"phases": [{"steps": 6}, {"lr.base": 0.1}]}, "and phases makes several runs of it"),
        ({"steps": None, "epochs": 1, "batch": {"global_batch_size": 50, "ramp": {"at_epochs": [0.5], "factor": 2}}},
         "and batch.ramp makes several runs of it"),
        ({"steps": None, "epochs": 1, "regime_adaptation": {"reference_batch_size": 25}},
         "and regime_adaptation makes several runs"),
        ({"averaging": {"name": "post_local_sgd", "workers": 2, "period": 2, "from_epoch": 0.1}},
         "averaging.name = post_local_sgd lets workers go alone"),
        ({"lr": {"base": 0.05, "scaling": "adascale", "reference_batch_size": 25}},
         "sets the lr of each batch, and lr.scaling"),
        ({"optimizer": {"name": "muon"}},
         "optimizer.name = muon does not say how its lr follows the batch; state --lr-rule: linear, sqrt, none"),
        ({"batch": {"global_batch_size": 50, "micro_batch_size": 50}},
         "0.5 times the batch, 25, at step 6: batch.global_batch_size = 25 does not factor into 1 rank"),
        ({"checkpoint": {"every_epochs": 0}}, "has no checkpoint to branch from"),
    ],
)  # fmt: skip
def test_runs_of_which_it_cannot_be_asked(run, tmp_path, keys, sentence):
    """Whatever trained them: it is their recipe that is looked at."""
    written = {**recipe_of(run).as_set(), **keys}
    recipe = config.from_dict({key: value for key, value in written.items() if value is not None})
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.yaml").write_text(json.dumps(recipe.as_written()))
    if "checkpoint" not in keys:
        shutil.copytree(run / "checkpoints", folder / "checkpoints")
    with pytest.raises(UserError, match=sentence):
        measured(folder)


@pytest.mark.worlds
def test_one_rank_and_two_find_the_same(tmp_path):
    """In float64; micro-batches are halves there."""
    alone = trained(tmp_path / "alone", precision="fp64")
    both = Path(shutil.copytree(alone, tmp_path / "both"))
    here = measured(alone, factors=(1, 2), judge="held_out")
    ended = pool.ranks(2, "worlds.diagnose:critical_of", str(both))
    assert ended.returncode == 0, ended.stderr
    there = read(CriticalRecord, json.loads((both / "diagnostics/critical.json").read_text()), both)
    assert (here.ranks, there.ranks) == (1, 2)
    for one, other in zip(here.points, there.points, strict=True):
        assert (one.verdict, one.factor, one.lr) == (other.verdict, other.factor, other.lr)
        for row, of_two in zip(one.branches, other.branches, strict=True):
            assert row.losses == pytest.approx(of_two.losses, rel=1e-9)

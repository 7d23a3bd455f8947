"""A run that begins with another run's weights: of which checkpoint, with or without states, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pool
import pytest
import torch
import yaml
from programs import Killed, killed_at, saved, weights_at_end
from small_runs import recipe_of, trained

import largebatch as lb
from largebatch import checkpoint
from largebatch.checkpoint import manifest
from largebatch.cli.runs import start_of
from largebatch.engines.states import whole_model
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.recipes.config.start import Start
from largebatch.run.assemble import assemble
from largebatch.run.older import moving_average
from largebatch.run.train import train

CPU = torch.device("cpu")
KEYS: dict[str, Any] = {"model": {"name": "tiny_cnn"}, "ema": {"decay": 0.9}, "optimizer": {"name": "lamb"}}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of LAMB, with a moving average, and a checkpoint of each epoch."""
    return trained(tmp_path_factory.mktemp("start") / "source", **KEYS)


def begun(folder: Path, start: Any, **keys: Any) -> Any:
    """The job as it is before its first step."""
    return assemble(config.from_dict(recipe_of(folder, **{**KEYS, "start": start, **keys})), CPU, quiet=True)


def state_of(run: Path, step: int) -> dict[str, Any]:
    path = manifest.path_of(run / "checkpoints", step)
    return checkpoint.state_of(path, manifest.read(path))


@pytest.mark.worlds
@pytest.mark.parametrize(("at", "step"), [("", 30), ("@15", 15), ("@last", 30)])
def test_it_begins_with_the_weights_of_that_checkpoint(source, tmp_path, at, step):
    job = begun(tmp_path / "run", f"{source}{at}")
    wanted = whole_model(state_of(source, step))
    for name, tensor in job.engine.model.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    assert not job.engine.optimizer.state  # LAMB begins anew


@pytest.mark.worlds
def test_or_with_their_average(source, tmp_path):
    job = begun(tmp_path / "run", {"run": str(source), "weights": "ema"})
    wanted = whole_model(state_of(source, 30)) | (moving_average(state_of(source, 30)) or {})
    for name, tensor in job.engine.model.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


@pytest.mark.worlds
def test_with_states_it_takes_the_step_that_the_other_run_would_have_taken(source, tmp_path):
    """By hand: the run goes on with its states at this recipe's lr, over the examples of a first step."""
    keys = {"lr": {"base": 0.02}, "steps": 1, "epochs": None, "seed": 5}
    job = begun(tmp_path / "run", {"run": str(source), "optimizer": True}, **keys)
    before = state_of(source, 30)["optimizer"]
    for name, parameter in job.engine.model.named_parameters():
        for key, value in job.engine.optimizer.state[parameter].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(before["layers"][name][key])), (name, key)
    assert {group["lr"] for group in job.engine.optimizer.param_groups} == {0.02}
    for optimizer in (False, True):
        start = {"run": str(source), "optimizer": optimizer}
        written = recipe_of(tmp_path / f"taken-{optimizer}", **{**KEYS, **keys, "start": start})
        assert train(config.from_dict(written), quiet=True).status == "finished"
    warm, cold = (weights_at_end(tmp_path / f"taken-{optimizer}") for optimizer in (True, False))
    assert not torch.equal(warm["0.weight"], cold["0.weight"])


@pytest.mark.worlds
def test_a_new_head_is_that_of_the_seed_and_the_rest_is_taken(source, tmp_path):
    keys = {"data": {"name": "synthetic", "num_classes": 7, "image_shape": [1, 8, 8], "examples": 300}}
    job = begun(tmp_path / "run", {"run": str(source), "head": "fresh", "optimizer": True}, **keys)
    fresh = assemble(config.from_dict(recipe_of(tmp_path / "x", **{**KEYS, **keys})), CPU, quiet=True)
    wanted = whole_model(state_of(source, 30))
    [head] = job.starting_point.fresh
    for name, tensor in job.engine.model.state_dict().items():
        from_there = not name.startswith(head)
        assert torch.equal(tensor, wanted[name] if from_there else fresh.engine.model.state_dict()[name]), name
    for name, parameter in job.engine.model.named_parameters():
        assert (parameter in job.engine.optimizer.state) == (not name.startswith(head))
    assert trained(tmp_path / "trained", **{**KEYS, **keys, "start": {"run": str(source), "head": "fresh"}})


@pytest.mark.worlds
def test_a_resume_repeats_nothing_and_needs_no_source(source, tmp_path):
    copied = Path(shutil.copytree(source, tmp_path / "copied"))
    start = {"run": str(copied), "optimizer": True}
    whole = trained(tmp_path / "whole", **{**KEYS, "start": start})
    written = config.from_dict(recipe_of(tmp_path / "run", **{**KEYS, "start": start}))
    with pytest.raises(Killed), killed_at(20):
        train(written, quiet=True)
    shutil.rmtree(copied)
    assert train(written, quiet=True).status == "finished"
    one, two = weights_at_end(tmp_path / "run"), weights_at_end(whole)
    assert all(torch.equal(one[name], two[name]) for name in two)
    told = [manifest.read(path)["began_with"] for path in saved(tmp_path / "run")]
    assert told[0] == told[-1]
    assert told[0]["file"].endswith("copied/checkpoints/step-00000030/manifest.json")
    with pytest.raises(UserError, match="belongs to another config .start.*; choose another record.dir"):
        train(config.from_dict(recipe_of(tmp_path / "run", **KEYS)), quiet=True)


@pytest.mark.worlds
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_ranks_of_any_engine_begin_alike(source, tmp_path, engine):
    """In float64 both worlds add up to the same step."""
    keys = {**KEYS, "precision": "fp64", "batch": {"global_batch_size": 100, "bn_batch_size": 50}, "epochs": 1}
    start = {"run": str(source), "optimizer": True}
    one = trained(tmp_path / "one", **{**keys, "start": start})
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(recipe_of(tmp_path / "two", **keys)))
    words = ("train", str(tmp_path / "two.yaml"), f"engine.name={engine}", "--from", str(source), "--with-optimizer")
    ended = pool.ranks(2, "-m", "largebatch", *words)
    assert ended.returncode == 0, ended.stderr
    assert f"the trained weights and the optimizer's states of {source}@last, step 30" in ended.stdout.replace("\n", "")
    alone, both = weights_at_end(one), weights_at_end(tmp_path / "two")
    for name in alone:
        torch.testing.assert_close(both[name], alone[name], rtol=1e-9, atol=1e-11)


@pytest.mark.worlds
def test_the_library_takes_it_as_an_argument(source, tmp_path):
    result = lb.train(recipe_of(tmp_path / "run", **{**KEYS, "epochs": 1}), from_=f"{source}@15", with_optimizer=True)
    assert result.status == "finished"
    start = config.load(tmp_path / "run" / "run.yaml").start
    assert start == Start(run=str(source), checkpoint=15, optimizer=True)


@pytest.mark.worlds
def test_what_does_not_fit_is_named(source, tmp_path):
    for keys, start, said in (
        (
            {"model": {"name": "mlp", "width": 8, "depth": 1}},
            {},
            r"another model \(model.name: tiny_cnn there, mlp here",
        ),
        ({}, {"checkpoint": 7}, "has no checkpoint '7'; valid: last, best, 15, 30"),
        (
            {"optimizer": {"name": "sgd"}},
            {"optimizer": True},
            "saved by Lamb, this run uses SGD; start.optimizer",
        ),
        (
            {"model": {"name": "tiny_cnn", "weights": "w.safetensors"}},
            {},
            "start.run and model.weights are both",
        ),
        (
            {"data": {"name": "synthetic", "num_classes": 7, "image_shape": [1, 8, 8], "examples": 300}},
            {},
            r"\(model.num_classes: 10 there, 7 here\): .* is \(10.* in the model; start.head = fresh takes all but the",
        ),
    ):
        with pytest.raises(UserError, match=said):
            begun(tmp_path / "run", {"run": str(source), **start}, **keys)
    with pytest.raises(UserError, match=r"start.run = nowhere is no run: it has no run.yaml"):
        begun(tmp_path / "run", "nowhere")
    plain = trained(tmp_path / "plain", epochs=1)
    with pytest.raises(UserError, match="start.weights = ema: .* holds no moving average; valid there: trained"):
        begun(tmp_path / "run", {"run": str(plain), "weights": "ema"}, model={"name": "mlp", "width": 16, "depth": 1})


def test_a_text_stands_for_run_and_checkpoint(tmp_path):
    for written, wanted in (
        ("runs/a", Start(run="runs/a")),
        ("runs/a@120", Start(run="runs/a", checkpoint=120)),
        ("runs/a@b@best", Start(run="runs/a@b", checkpoint="best")),
        ({"run": "runs/a", "optimizer": True}, Start(run="runs/a", optimizer=True)),
    ):
        assert config.from_dict(recipe_of(tmp_path / "x", start=written)).start == wanted
    run = config.from_dict(recipe_of(tmp_path / "x", start="runs/a@120"))
    assert config.from_dict(run.as_written()) == run
    assert start_of("runs/a b@7", True) == ["start.run=runs/a b", "start.checkpoint='7'", "start.optimizer=true"]
    for written, said in (
        ({"checkpoint": 3}, "start.run is missing"),
        (
            {"run": "a", "checkpoint": "first"},
            "start.checkpoint = 'first' is no checkpoint; valid: last, best or a step",
        ),
        ({"run": "a", "weights": "swa"}, "start.weights = '?swa'? is not known; valid: trained"),
        (7, r"start = 7 should be a run directory or {run: DIRECTORY, checkpoint: best}"),
    ):
        with pytest.raises(UserError, match=said):
            config.from_dict(recipe_of(tmp_path / "x", start=written))

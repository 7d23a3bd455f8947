"""A run that begins with another run's weights: of which checkpoint, with or without states, and what is refused."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any, get_args

import pool
import pytest
import torch
import yaml
from programs import Killed, killed_at, saved, weights_at_end
from small_runs import recipe_of, trained
from typer.testing import CliRunner

import largebatch as lb
from largebatch import checkpoint
from largebatch.checkpoint import manifest
from largebatch.checkpoint.pieces import whole
from largebatch.cli import app
from largebatch.cli.runs import start_of
from largebatch.engines.states import whole_model
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.recipes.config.start import Start, Weights
from largebatch.run.assemble import assemble
from largebatch.run.chosen import WEIGHTS
from largebatch.run.older import moving_average
from largebatch.run.train import train
from largebatch.studies.dry_run import Cluster, dry_run

CPU = torch.device("cpu")
ZERO = ["deepspeed 1", "deepspeed 2"] if importlib.util.find_spec("deepspeed") else []
KEYS: dict[str, Any] = {"model": {"name": "tiny_cnn"}, "ema": {"decay": 0.9}, "optimizer": {"name": "lamb"}}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of LAMB, with a moving average, and a checkpoint of each epoch."""
    return trained(tmp_path_factory.mktemp("start") / "source", **KEYS)


def started(folder: Path, start: Any, **keys: Any) -> config.Run:
    return config.from_dict(recipe_of(folder, **{**KEYS, "start": start, **keys}))


def begun(folder: Path, start: Any, **keys: Any) -> Any:
    """The job as it is before its first step."""
    return assemble(started(folder, start, **keys), CPU, quiet=True)


def engine_of(name: str) -> list[str]:
    """As the command line has it."""
    kind, _, stage = name.partition(" ")
    return [f"engine.name={kind}", *([f"engine.zero={stage}"] if stage else [])]


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
def test_or_with_the_mean_of_their_latest_snapshots(tmp_path):
    keys = {"model": {"name": "tiny_cnn"}, "epochs": 1, "checkpoint": {"every_epochs": 0.4, "keep": 9}}
    source = trained(tmp_path / "source", lawa={"latest": 2, "every_steps": 5}, **keys)
    part = state_of(source, 15)["parts"]["lawa"]
    job = begun(tmp_path / "run", {"run": f"{source}@last", "weights": "lawa"}, ema=None)
    for name, tensor in job.engine.model.named_parameters():
        two = [whole(snapshot[name]).double() for snapshot in part["snapshots"]]
        assert torch.equal(tensor, ((two[0] + two[1]) / 2).float()), name
    for name, buffer in job.engine.statistics().items():
        assert torch.equal(buffer, part["statistics"][name]), name
    assert job.starting_point.words == f"the mean of the latest snapshots of {source}@last, step 15"
    for checkpoint_at, said in ((6, "has no batch norm statistics of the mean, which"), (15, None)):
        start = {"run": str(source), "checkpoint": checkpoint_at, "weights": "lawa"}
        if said is None:
            assert begun(tmp_path / "run", start).starting_point is not None
            continue
        with pytest.raises(UserError, match=f"start.weights = lawa: .* {said}"):
            begun(tmp_path / "run", start)


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
@pytest.mark.parametrize("engine", ["ddp", "fsdp", *ZERO])
def test_two_ranks_of_any_engine_begin_alike(source, tmp_path, engine):
    """In float64 both worlds add up to the same step; ZeRO, which has none, over few steps in float32."""
    keys = {**KEYS, "precision": "fp64", "batch": {"global_batch_size": 100, "bn_batch_size": 50}, "epochs": 1}
    if zero := engine in ZERO:
        keys |= {"precision": "fp32", "epochs": None, "steps": 4}
    start = {"run": str(source), "optimizer": True}
    one = trained(tmp_path / "one", **{**keys, "start": start})
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(recipe_of(tmp_path / "two", **keys)))
    words = ("train", str(tmp_path / "two.yaml"), *engine_of(engine), "--from", str(source), "--with-optimizer")
    ended = pool.ranks(2, "-m", "largebatch", *words)
    assert ended.returncode == 0, ended.stderr
    assert f"the trained weights and the optimizer's states of {source}@last, step 30" in ended.stdout.replace("\n", "")
    alone, both = weights_at_end(one), weights_at_end(tmp_path / "two")
    for name in alone:
        torch.testing.assert_close(both[name], alone[name], rtol=1e-4 if zero else 1e-9, atol=1e-6 if zero else 1e-11)


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
        with pytest.raises(UserError, match=said) as refused:
            begun(tmp_path / "run", {"run": str(source), **start}, **keys)
        for world in (1, 2):
            with pytest.raises(UserError) as dry:
                dry_run(started(tmp_path / "run", {"run": str(source), **start}, **keys), Cluster(world, "cpu"))
            assert str(dry.value) == str(refused.value)
    with pytest.raises(UserError, match=r"start.run = nowhere is no run: it has no run.yaml"):
        begun(tmp_path / "run", "nowhere")
    plain = trained(tmp_path / "plain", epochs=1)
    with pytest.raises(UserError, match="start.weights = ema: .* holds no moving average, .*; valid there: trained"):
        begun(tmp_path / "run", {"run": str(plain), "weights": "ema"}, model={"name": "mlp", "width": 16, "depth": 1})


@pytest.mark.worlds
@pytest.mark.parametrize("engine", ["ddp", "fsdp", "deepspeed 1"])
def test_a_dry_run_says_what_would_be_taken(source, tmp_path, engine):
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(recipe_of(tmp_path / "run", **KEYS)))
    words = (
        "train",
        tmp_path / "t.yaml",
        *engine_of(engine),
        "--dry-run",
        "--from",
        f"{source}@15",
        "--with-optimizer",
    )
    for world in (1, 2):
        ended = CliRunner().invoke(app, [*map(str, words), "--world", str(world), "--device", "cpu"])
        assert ended.exit_code == 0, ended.output
        said = f"weights  the trained weights and the optimizer's states of {source}@15, step 15"
        assert said in ended.output.replace("\n", "")
    assert not (tmp_path / "run").exists()


@pytest.mark.worlds
def test_a_dry_run_of_a_run_that_has_begun_looks_at_the_source_no_more(source, tmp_path):
    copied = Path(shutil.copytree(source, tmp_path / "copied"))
    run = started(tmp_path / "run", str(copied), epochs=1)
    assert train(run, quiet=True).status == "finished"
    shutil.rmtree(copied)
    assert "weights" not in dry_run(run, Cluster(1, "cpu"))["decisions"]
    with pytest.raises(UserError, match="start.run = .* is no run"):
        dry_run(started(tmp_path / "new", str(copied), epochs=1), Cluster(1, "cpu"))


def test_one_grammar_wherever_a_run_is_named(tmp_path, monkeypatch):
    """`--from`, `start` and `start.run` name the same run and checkpoint by the same text, and refuse the same."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd@7").mkdir()
    (tmp_path / "runs").mkdir()
    for text, wanted in (
        ("runs/a", Start(run="runs/a")),
        ("runs/a@last", Start(run="runs/a")),
        ("runs/a@", Start(run="runs/a")),
        ("runs/a@best", Start(run="runs/a", checkpoint="best")),
        ("runs/a@120", Start(run="runs/a", checkpoint=120)),
        ("odd@7", Start(run="odd@7")),
        ("odd@7@3", Start(run="odd@7", checkpoint=3)),
    ):
        file = tmp_path / "t.yaml"
        file.write_text(yaml.safe_dump(recipe_of(tmp_path / "x")))
        for overrides in (
            start_of(text, False),
            [f"start={text}"],
            [f"start.run={text}"],
            [f"start={{run: '{text}'}}"],
        ):
            assert config.load(file, overrides).start == wanted, overrides
    for overrides in (start_of("runs/a@first", False), ["start=runs/a@first"], ["start.run=runs/a@first"]):
        with pytest.raises(
            UserError, match="start.checkpoint = '?first'? is no checkpoint; valid: last, best or a step"
        ):
            config.load(file, overrides)
    with pytest.raises(
        UserError, match="start.run = '?runs@3'? names a checkpoint, and so does start.checkpoint = '?best"
    ):
        config.load(file, ["start={run: runs@3, checkpoint: best}"])
    for empty in (start_of("", False), ["start=''"], ["start.run=''"]):
        with pytest.raises(UserError, match="start.run is empty"):
            config.load(file, empty)


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


def test_what_a_recipe_may_begin_with_is_what_a_checkpoint_may_hold():
    assert get_args(Weights) == WEIGHTS

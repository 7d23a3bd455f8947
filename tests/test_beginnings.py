"""What a run begins with, and what a resume tells of what has changed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from programs import Killed, killed_at, saved, weights_at_end
from safetensors.torch import save_file
from typer.testing import CliRunner

from largebatch import models
from largebatch.checkpoint import manifest
from largebatch.cli.checkpoint import app
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.records.files import sha256_of
from largebatch.run.assemble import assemble
from largebatch.run.beforehand import decisions
from largebatch.run.train import train
from largebatch.studies.dry_run import Cluster, dry_run

CPU = torch.device("cpu")


def log_of(run: config.Run) -> str:
    return (run.directory / "train.log").read_text()


def killed_after(step: int, run: config.Run) -> None:
    with pytest.raises(Killed), killed_at(step):
        train(run, quiet=True)


@pytest.mark.worlds
def test_a_run_begins_with_the_weights_of_a_file_and_goes_on_with_its_own(recipe, tmp_path):
    first = config.load(recipe("first"))
    train(first, quiet=True)
    weights = weights_at_end(first.directory)
    file = tmp_path / "weights.safetensors"
    save_file({name: tensor.clone() for name, tensor in weights.items()}, file)
    second = config.load(recipe("second", model={"name": "mlp", "width": 16, "depth": 1, "weights": str(file)}, seed=3))
    begun = assemble(second, CPU).engine.model.state_dict()
    assert all(torch.equal(begun[name], weights[name]) for name in weights)
    killed_after(20, second)
    facts = manifest.read(second.directory / "checkpoints" / "step-00000015")
    assert facts["began_with"] == {"file": str(file), "sha256": sha256_of(file)}
    assert facts["model"] == {"name": "mlp", "width": 16, "depth": 1, "num_classes": 10}
    save_file({name: torch.zeros_like(tensor) for name, tensor in weights.items()}, file)
    killed_after(22, second)
    assert f"model.weights = {file} is not the file any more that the run began with" in log_of(second)
    file.unlink()
    assert train(second, quiet=True).status == "finished"
    whole = config.load(recipe("whole", model={"name": "mlp", "width": 16, "depth": 1, "weights": str(file)}, seed=3))
    with pytest.raises(UserError, match="there is no such file"):
        train(whole, quiet=True)
    with pytest.raises(UserError, match="there is no such file"):
        dry_run(whole, Cluster(device="cpu"))
    save_file({name: tensor.clone() for name, tensor in weights.items()}, file)
    assert train(whole, quiet=True).status == "finished"
    expected, found = weights_at_end(whole.directory), weights_at_end(second.directory)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.worlds
def test_an_exported_run_is_fine_tuned_on_other_classes(recipe, tmp_path):
    shape = {"name": "mlp", "width": 16, "depth": 1, "norm": True}
    first = config.load(recipe("first", model=shape))
    train(first, quiet=True)
    assert CliRunner().invoke(app, ["export", str(first.directory)]).exit_code == 0
    file = first.directory / "weights.safetensors"
    weights, head = weights_at_end(first.directory), ["5.weight", "5.bias"]
    data = {"name": "synthetic", "num_classes": 3, "image_shape": [1, 8, 8], "examples": 400}

    def tuned(name: str, **model: Any) -> config.Run:
        return config.load(recipe(name, model={**shape, **model}, data=data, lr={"base": 0.01}))

    with pytest.raises(UserError, match=re.escape("5.bias is (10,) there and (3,) in the model; model.weights.head")):
        train(tuned("strict", weights=str(file)), quiet=True)
    second = tuned("second", weights={"file": str(file), "head": "fresh"}, frozen=["1", "2"])
    begun, fresh = assemble(second, CPU), assemble(tuned("fresh"), CPU).engine.model.state_dict()
    for name, tensor in begun.engine.model.state_dict().items():
        assert torch.equal(tensor, (fresh if name in head else weights)[name])
    assert decisions(begun, second.directory)["weights"] == f"{file}; fresh: {', '.join(head)}"
    assert train(second, quiet=True).status == "finished"
    found = weights_at_end(second.directory)
    assert {name for name in weights if torch.equal(found[name], weights[name])} == set(weights) - set(head)
    facts = manifest.read(saved(second.directory)[-1])
    assert facts["began_with"] == {"file": str(file), "sha256": sha256_of(file)}
    assert facts["model"] == {**shape, "num_classes": 3}
    with pytest.raises(UserError, match="model.frozen"):
        train(tuned("second", weights={"file": str(file), "head": "fresh"}), quiet=True)


@pytest.mark.worlds
def test_a_run_begins_with_pretrained_weights_that_are_at_hand_and_goes_on_without(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    model = {"name": "timm/resnet18", "weights": {"pretrained": "a1_in1k", "head": "fresh"}, "frozen": ["[!f]*"]}
    data = {"name": "synthetic", "num_classes": 3, "image_shape": [3, 32, 32], "examples": 64}
    steps = {"batch": {"global_batch_size": 16}, "epochs": 1, "checkpoint": {"every_epochs": 0.25}}
    run = config.load(recipe("tuned", model=model, data=data, **steps))
    for begin in (lambda: train(run, quiet=True), lambda: dry_run(run, Cluster(device="cpu"))):
        with pytest.raises(UserError, match="model.safetensors of timm/resnet18.a1_in1k is not in"):
            begin()
    below = tmp_path / "hub" / "models--timm--resnet18.a1_in1k" / "snapshots" / "main"
    below.mkdir(parents=True)
    save_file(models.build("timm/resnet18", 1000, (3, 32, 32), 5).state_dict(), below / "model.safetensors")
    digest = sha256_of(below / "model.safetensors")
    killed_after(3, run)
    (below / "model.safetensors").unlink()
    assert train(run, quiet=True).status == "finished"
    facts = manifest.read(saved(run.directory)[-1])
    assert facts["began_with"] == {"file": str(below / "model.safetensors"), "sha256": digest}


@pytest.mark.worlds
def test_another_number_of_threads_is_told(recipe):
    run = config.load(recipe())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        killed_after(20, run)
        torch.set_num_threads(2)
        train(run, quiet=True)
    finally:
        torch.set_num_threads(before)
    assert "threads per rank is 2, it was 1" in log_of(run)
    assert manifest.read(run.directory / "checkpoints" / "step-00000030")["machine"]["threads_per_rank"] == 2


@pytest.mark.worlds
@pytest.mark.parametrize(
    ("model", "changes", "sentence"),
    [
        ({"name": "mlp", "width": 8, "norm": True}, {"batch__global_batch_size": 1}, "would see one example of 1×8×8"),
        ({"name": "mlp", "width": 8, "norm": True}, {"batch__micro_batch_size": 1}, "would see one example of 1×8×8"),
        ({"name": "mlp", "width": 8, "norm": True}, {"batch__bn_batch_size": 1}, "would see one example of 1×8×8"),
        ({"name": "timm/resnet18", "drop_rate": [1]}, {}, "resnet18 "),
        ({"name": "timm/vit_tiny_patch16_224"}, {}, "does not take images of 1×8×8"),
    ],
)
def test_what_torch_would_refuse_later_is_refused_first_and_in_a_dry_run(recipe, model, changes, sentence):
    run = config.load(recipe(model=model, **changes))
    with pytest.raises(UserError, match=re.escape(sentence)) as trained:
        train(run, quiet=True)
    with pytest.raises(UserError, match=re.escape(sentence)) as dry:
        dry_run(run, Cluster(device="cpu"))
    assert str(trained.value) == str(dry.value)
    assert not Path(run.directory).exists()

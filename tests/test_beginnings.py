"""What a run begins with, and what a resume tells of what has changed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from programs import Killed, killed_at, weights_at_end
from safetensors.torch import save_file

from largebatch.checkpoint import manifest
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.records.files import sha256_of
from largebatch.run.assemble import assemble
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

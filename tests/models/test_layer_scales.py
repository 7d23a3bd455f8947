"""A learning rate for each layer, against timm's own groups, and what a step makes of it."""

from __future__ import annotations

import importlib.util
import re

import pool
import pytest
import timm
import torch
import yaml
from programs import weights_at_end
from timm.optim import param_groups_layer_decay

from largebatch import models
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.run.assemble import assemble
from largebatch.run.train import train

VIT = {
    "name": "timm/vit_tiny_patch16_224", "img_size": 8, "patch_size": 4, "depth": 3, "embed_dim": 12, "num_heads": 2,
}  # fmt: skip
RECIPE = {
    "name": "layers", "model": VIT, "data": {"name": "digits"}, "batch": {"global_batch_size": 100}, "steps": 1,
    "optimizer": {"name": "sgd", "momentum": 0}, "lr": {"base": 0.1}, "precision": "fp64", "device": "cpu",
    "checkpoint": {"every_epochs": 1}, "record": {"to": []},
}  # fmt: skip


@pytest.mark.parametrize(("name", "keys"), [("vit_tiny_patch16_224", {"depth": 3, "embed_dim": 12}), ("resnet18", {})])
def test_scales_are_timms(name, keys):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=10, **keys)
    named = {id(parameter): tensor for tensor, parameter in model.named_parameters()}
    theirs = {
        named[id(parameter)]: group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.65)
        for parameter in group["params"]
    }
    assert models.layer_scales(model, name, 0.65) == pytest.approx(theirs, rel=1e-14)
    assert min(theirs.values()) < 0.65**3


@pytest.mark.worlds
@pytest.mark.parametrize("optimizer", ["sgd", "lamb", "lars"])
def test_a_step_of_a_tensor_is_as_much_shorter(tmp_path, optimizer):
    """The first step of the same gradient."""
    found = {}
    for decay in (None, 0.5):
        folder = tmp_path / str(decay)
        keys = {"name": optimizer, "momentum": 0} if optimizer == "sgd" else {"name": optimizer}
        lr = {"base": 0.1} if decay is None else {"base": 0.1, "layer_decay": decay}
        run = config.from_dict({**RECIPE, "optimizer": keys, "lr": lr, "record": {"dir": str(folder), "to": []}})
        begun = {n: p.detach().clone() for n, p in assemble(run, torch.device("cpu")).engine.model.named_parameters()}
        train(run, quiet=True)
        ended = weights_at_end(folder)
        found[decay] = {name: ended[name] - tensor for name, tensor in begun.items()}
    keys = {key: value for key, value in VIT.items() if key != "name"}
    scales = models.layer_scales(timm.create_model("vit_tiny_patch16_224", **keys), "vit", 0.5)
    assert sorted(set(scales.values())) == [0.5**4, 0.5**3, 0.5**2, 0.5, 1.0]
    for name, step in found[None].items():
        torch.testing.assert_close(found[0.5][name], scales[name] * step, rtol=1e-9, atol=1e-15)
    assert any(step.abs().max() > 0 for step in found[None].values())


ENGINES = {
    "ddp": {"precision": "fp64"},
    "fsdp": {"precision": "fp64"},
    **{f"deepspeed {stage}": {"precision": "fp32"} for stage in (1, 2) if importlib.util.find_spec("deepspeed")},
}


@pytest.mark.worlds
@pytest.mark.parametrize("optimizer", ["sgd", "lamb"])
@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_of_any_engine_step_as_one_process(tmp_path, engine, optimizer):
    """Each of the many groups has its lr, whatever cuts their tensors; ZeRO has no float64."""
    kind, _, stage = engine.partition(" ")
    keys = {"name": "sgd", "momentum": 0.9} if optimizer == "sgd" else {"name": optimizer}
    written = {**RECIPE, **ENGINES[engine], "optimizer": keys, "steps": 4, "lr": {"base": 0.05, "layer_decay": 0.5}}
    ends = {}
    for name, engine_keys in (
        ("one", {"name": "ddp"}),
        ("two", {"name": kind, **({"zero": int(stage)} if stage else {})}),
    ):
        folder = tmp_path / name
        recipe = {**written, "engine": engine_keys, "record": {"dir": str(folder), "tensorboard": False}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        ended = pool.ranks(1 if name == "one" else 2, "-m", "largebatch", "train", str(tmp_path / f"{name}.yaml"))
        assert ended.returncode == 0, ended.stderr
        ends[name] = weights_at_end(folder)
    exact = ENGINES[engine]["precision"] == "fp64"
    for name, tensor in ends["one"].items():
        torch.testing.assert_close(
            ends["two"][name], tensor, rtol=1e-9 if exact else 1e-4, atol=1e-12 if exact else 1e-6, msg=name
        )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"model": {"name": "mlp"}},
            "lr.layer_decay = 0.7 needs a model that says its layers, as timm's do, and model",
        ),
        ({"optimizer": {"name": "muon"}}, "lr.layer_decay = 0.7 does not go with optimizer.name = muon"),
        (
            {"phases": [{"steps": 1, "lr.layer_decay": 0.5}, {}], "steps": 3},
            "lr.layer_decay holds for the whole run, and phases change it; write it outside of them",
        ),
        ({"lr": {"base": 0.1, "layer_decay": 1.5}}, "lr.layer_decay"),
    ],
)
def test_what_has_no_layers_is_one_sentence(changes, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        assemble(config.from_dict({**RECIPE, "lr": {"base": 0.1, "layer_decay": 0.7}, **changes}), torch.device("cpu"))

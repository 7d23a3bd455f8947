"""engine.activation_checkpointing in runs: the same run in every engine and world; what a dry run says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pool
import pytest
import torch
import yaml
from method_recipes import PLAIN
from programs import weights_at_end
from test_dry_run import of

from largebatch import models
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.run.assemble import assemble
from largebatch.run.train import train
from largebatch.studies.dry_run import MIB

pytestmark = pytest.mark.usefixtures("one_thread")
NET = {"name": "wide_resnet", "depth": 10, "width": 1, "dropout": 0.3}
SMALL: dict[str, Any] = {
    **PLAIN, "model": NET, "batch": {"global_batch_size": 24, "micro_batch_size": 6}, "epochs": None, "steps": 4,
    "data": {"name": "synthetic", "image_shape": [3, 8, 8], "num_classes": 4, "examples": 96},
    "lr": {"base": 0.05}, "checkpoint": {"every_epochs": 0.5}, "evaluate": {"every_epochs": 1000},
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "batch norm": {},
    "ghost": {"batch": {"global_batch_size": 24, "micro_batch_size": 6, "bn_batch_size": 3}},
    "sam": {"sam": {"rho": 0.1}},
    "sam of examples": {"sam": {"rho": 0.1, "m": 6}},
    "frozen": {"model": {**NET, "frozen": ["1", "2"]}},
}


def recipe(folder: Path, again: object, **changes: Any) -> dict[str, Any]:
    written = {**SMALL, "name": folder.name, **changes, "record": {"tensorboard": False, "dir": str(folder)}}
    return {**written, "engine": {**changes.get("engine", {}), "activation_checkpointing": again}}


def weights(folder: Path, again: object, **changes: Any) -> dict[str, torch.Tensor]:
    assert train(config.from_dict(recipe(folder, again, **changes)), quiet=True).status == "finished"
    return weights_at_end(folder)


def same(these: dict[str, torch.Tensor], those: dict[str, torch.Tensor]) -> bool:
    return these.keys() == those.keys() and all(torch.equal(these[name], those[name]) for name in these)


@pytest.mark.parametrize("case", CASES)
def test_a_run_with_it_is_the_run_without(tmp_path, case):
    changes = CASES[case]
    without = weights(tmp_path / "without", "none", **changes)
    assert same(without, weights(tmp_path / "with", "blocks", **changes))
    tracked = [tensor for name, tensor in without.items() if name.endswith("num_batches_tracked")]
    assert max(map(int, tracked)) == (4 if case == "ghost" else 16)


def test_a_run_goes_on_with_it_and_back(tmp_path):
    whole = weights(tmp_path / "whole", "none")
    for first, then in (("none", "blocks"), ("blocks", {"every": 2})):
        folder = tmp_path / f"from {first}"
        weights(folder, first, steps=2)
        assert same(whole, weights(folder, then, steps=4)), first


def test_it_is_told_and_recorded(tmp_path):
    run = config.from_dict(recipe(tmp_path / "run", ["4", "6"]))
    assert train(run, quiet=True).status == "finished"
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["activation_checkpointing"] == (
        "activations inside of 2 modules (BatchNorm2d, AdaptiveAvgPool2d) are computed again"
    )
    written = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert written["engine"]["activation_checkpointing"] == ["4", "6"]
    assert "activation_checkpointing" not in json.dumps(run.science())


@pytest.mark.parametrize(
    ("written", "again"),
    [
        (None, None), ("none", None), ("blocks", "blocks"), ({}, "blocks"), ({"every": 1}, "blocks"),
        (["a", "b.*"], ["a", "b.*"]), ({"modules": ["a"], "every": 3}, {"modules": ["a"], "every": 3}),
        ({"every": 2}, {"every": 2}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("engine", ["ddp", "fsdp", "deepspeed"])
def test_every_way_to_write_it_is_read_back(tmp_path, written, again, engine):
    run = config.from_dict(recipe(tmp_path, written, engine={"name": engine}))
    assert run.as_written()["engine"]["activation_checkpointing"] == again
    assert config.from_dict(run.as_written()) == run


@pytest.mark.parametrize(
    ("engine", "sentence"),
    [
        (
            {"activation_checkpointing": True},
            "activation_checkpointing = True is not known; valid: none, blocks, a list",
        ),
        ({"activation_checkpointing": "all"}, "activation_checkpointing = 'all' is not known; valid: none, blocks"),
        ({"activation_checkpointing": []}, r"activation_checkpointing.modules = \[\] .* at least 1 item"),
        ({"activation_checkpointing": {"each": 2}}, "unknown key engine.activation_checkpointing.each"),
        ({"activation_checkpointing": {"every": 0}}, r"activation_checkpointing.every = 0 should be greater than 0"),
        ({"activation_checkpointing": ["99"]}, "no module of model.name = wide_resnet has a name like '99'"),
        (
            {"activation_checkpointing": "blocks", "cuda_graphs": True},
            "engine.cuda_graphs = true does not go with engine.activation_checkpointing",
        ),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, engine, sentence):
    with pytest.raises(UserError, match=sentence):
        assemble(config.from_dict({**SMALL, "name": "wrong", "engine": engine}), torch.device("cpu"))


def test_a_model_without_blocks_is_refused(tmp_path):
    with pytest.raises(UserError, match="model.name = mlp has no blocks"):
        assemble(config.from_dict(recipe(tmp_path, "blocks", model={"name": "mlp"})), torch.device("cpu"))


class Normed(torch.nn.Module):
    """A model of one's own whose block has a buffer that every pass moves."""

    def __init__(self) -> None:
        super().__init__()
        norm = torch.nn.utils.parametrizations.spectral_norm
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(norm(torch.nn.Linear(192, 192)), torch.nn.ReLU()) for _ in range(2)
        )
        self.head = torch.nn.Linear(192, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.flatten(1)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_a_block_whose_buffers_move_is_refused(tmp_path):
    with models.REGISTRY.holding("own/Normed", Normed):
        written = recipe(tmp_path, ["blocks.*"], model={"name": "own/Normed"})
        with pytest.raises(UserError, match=r"blocks\.0\.0\.parametrizations\.weight\.0\._[uv] of .* moves with every"):
            assemble(config.from_dict(written), torch.device("cpu"))


# What a dry run says


@pytest.mark.worlds
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "model", [NET, {"name": "timm/test_vit", "img_size": 32, "drop_path_rate": 0.1}], ids=["resnet", "vit"]
)
def test_a_dry_run_has_fewer_activations_and_more_operations(recipe, model, device):
    photos = {"name": "synthetic", "image_shape": [3, 32, 32], "examples": 1000, "num_classes": 10}
    path = recipe(model=model, data=photos, batch={"global_batch_size": 64})
    found = [of(path, device=device, overrides=(f"engine.activation_checkpointing={kind}",)) for kind in KINDS]
    activations = [facts["memory_per_rank_mib"]["activations"] for facts in found]
    flops = [facts["flops_per_step_and_rank"] for facts in found]
    assert activations[0] > activations[1] > activations[2]
    assert flops[0] < flops[1] < flops[2] < 1.4 * flops[0], "at most one more forward pass of three, or nearly"
    for part in ("weights", "gradients", "optimizer states", "buffers"):
        assert len({facts["memory_per_rank_mib"][part] for facts in found}) == 1
    assert "computed again" in found[2]["decisions"]["memory"]
    assert "memory" not in found[0]["decisions"]


KINDS = ("none", "{every: 2}", "blocks")


@pytest.mark.worlds
def test_a_dry_run_counts_what_a_real_step_allocates(recipe):
    photos = {"name": "synthetic", "image_shape": [3, 16, 16], "examples": 1000, "num_classes": 10}
    path = recipe(
        model={**NET, "dropout": 0.0}, data=photos, batch={"global_batch_size": 64}, optimizer={"name": "sgd"}
    )
    for kind in ("none", "blocks"):
        overrides = [f"engine.activation_checkpointing={kind}"]
        facts = of(path, overrides=tuple(overrides))["memory_per_rank_mib"]
        most = peak_of(config.load(path, overrides)) / MIB
        assert 0.9 * facts["activations"] <= most <= 1.15 * (facts["activations"] + facts["gradients"]), kind


def peak_of(run: config.Run) -> int:
    """Bytes that a real step holds at most, by torch's own record."""
    job = assemble(run, torch.device("cpu"))
    batch = job.placement.placed(job.dataset.blank(job.plan.micro_batch_size))
    watched: dict[str, Any] = {
        "activities": [torch.profiler.ProfilerActivity.CPU], "profile_memory": True, "acc_events": True,
    }  # fmt: skip
    job.engine.model.train()
    with torch.profiler.profile(**watched) as profile:
        loss = job.task.loss(job.engine.forward(job.task, batch), batch)
        loss.backward()
        del loss
    now = most = 0
    recorded: Any = profile.profiler
    for event in recorded.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


# Engines and worlds


@pytest.mark.worlds
def test_two_ranks_of_every_engine_are_bit_for_bit_those_without(tmp_path):
    ended = pool.ranks(2, "worlds.memory:recomputed", tmp_path)
    assert ended.returncode == 0, ended.stderr[-3000:]
    told = json.loads((tmp_path / "told.json").read_text())
    assert len(told) >= 7
    assert not [(case, names) for case, names in told.items() if names]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("norm", ["batch norm", "ghost"])
def test_a_compiled_model_moves_statistics_once(tmp_path, norm):
    import torch._dynamo

    changes = {**CASES[norm], "model": {**NET, "dropout": 0.0}, "compile": True}
    torch._dynamo.reset()
    try:
        without, again = (weights(tmp_path / kind, kind, **changes) for kind in ("none", "blocks"))
    finally:
        torch._dynamo.reset()
    for name in without:
        torch.testing.assert_close(again[name], without[name], rtol=1e-10, atol=1e-10)

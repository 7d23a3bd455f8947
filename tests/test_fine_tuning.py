"""Fine-tuning with frozen layers: they stay what they were, whatever trains the rest."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pool
import pytest
import torch
import yaml
from method_recipes import METHODS, NORM, PLAIN
from programs import Killed, killed_at, saved, state_at_end, weights_at_end
from safetensors.torch import save_file
from torch import nn

import largebatch as lb
from largebatch import models
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.run.assemble import assemble
from largebatch.run.train import train
from largebatch.studies.dry_run import Cluster, dry_run

pytestmark = pytest.mark.worlds
FROZEN, STILL = ["[01]", "[34].*"], ("0.", "1.", "3.", "4.")
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None


def zero(stage: int) -> dict[str, Any]:
    return {"engine": {"name": "deepspeed", "zero": stage}, "precision": "fp32"}


METHODS_HERE = ("adascale", "sam", "post_local_sgd", "swap")
CASES: dict[str, dict[str, Any]] = {  # what is unlike the plain run, in a world of one and of two
    "plain": {},
    "lars": {"optimizer": {"name": "lars", "trust_coefficient": 0.01}, "record": {"layers_every_steps": 5}},
    "lamb": {"optimizer": {"name": "lamb"}, "max_grad_norm": 1.0},
    "precise": {"batch_norm": {"statistics": "precise", "examples": 500}, "ema": {"decay": 0.9}},
    **{name: {key: value for key, value in METHODS[name].items() if key != "model"} for name in METHODS_HERE},
    "workers": {"averaging": {"name": "post_local_sgd", "workers": 6, "period": 2, "from_epoch": 0.2}},
    "noise": {"record": {"noise_scale": {"every_steps": 3, "small_batch_size": 20}}, "batch": {"micro_batch_size": 20}},
}
OTHERWISE: dict[str, tuple[int, str, dict[str, Any]]] = {  # the world, the run that it equals, and what is unlike that
    "micro_batches": (1, "plain", {"batch": {"micro_batch_size": 20}}),
    "fsdp": (2, "plain", {"engine": {"name": "fsdp"}}),
    "fsdp_lamb": (2, "lamb", {"engine": {"name": "fsdp"}}),
    "fsdp_lars": (2, "lars", {"engine": {"name": "fsdp"}, "batch": {"micro_batch_size": 20}}),
    **({f"zero_{stage}": (2, "plain", zero(stage)) for stage in (0, 1, 2)} if HAS_DEEPSPEED else {}),
    **({"zero_lamb": (2, "lamb", zero(1))} if HAS_DEEPSPEED else {}),
}


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Section by section; one that says a name takes the other's place."""
    both = [key for key in one.keys() & other.keys() if isinstance(one[key], dict) and "name" not in other[key]]
    return {**one, **other, **{key: merged(one[key], other[key]) for key in both}}


def begun(file: Path) -> dict[str, torch.Tensor]:
    """The weights of a model that tells five classes apart, with running statistics of its own."""
    model = models.build("tiny_cnn", 5, (1, 8, 8), 3, {key: NORM[key] for key in ("channels", "norm")})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(5):
            model.train()(torch.randn(30, 1, 8, 8))
    save_file(model.state_dict(), file)
    return model.state_dict()


def recipe_of(name: str, file: Path, more: dict[str, Any]) -> dict[str, Any]:
    base = merged(PLAIN, {"model": {**NORM, "weights": {"file": str(file), "head": "fresh"}, "frozen": FROZEN}})
    base = merged(base, {"batch": {"bn_batch_size": 20}, "epochs": 1, "seed": 3})
    return {"name": name, **merged(base, more)}


def runs_of(folder: Path, file: Path, world: int) -> None:
    """Where ranks train them, beside ``recipes.json``."""
    folder.mkdir()
    cases = dict(CASES)
    cases |= {name: merged(CASES[like], more) for name, (where, like, more) in OTHERWISE.items() if where == world}
    files = {name: folder / f"{name}.yaml" for name in cases}
    for name, path in files.items():
        path.write_text(yaml.safe_dump(recipe_of(name, file, cases[name])))
    recipes = {name: (str(path), [f"record.dir={folder / 'runs' / name}"]) for name, path in files.items()}
    (folder / "recipes.json").write_text(json.dumps(recipes))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """Every case in both worlds, one start each; and what they began with."""
    folder = tmp_path_factory.mktemp("frozen")
    beginning = begun(folder / "begun.safetensors")
    programs = []
    for world in (1, 2):
        runs_of(folder / str(world), folder / "begun.safetensors", world)
        programs += pool.start_ranks(world, "worlds.recipes:train_all", folder / str(world))
    ended = pool.all_ended(programs)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return folder, beginning


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float(((one[key] - other[key]).abs() / (1 + other[key].abs())).max()) for key in one)


@pytest.mark.parametrize("name", [*CASES, *OTHERWISE])
def test_a_frozen_run_is_the_same_in_any_world_and_engine(worlds, name):
    folder, beginning = worlds
    world, like, more = OTHERWISE.get(name, (2, name, {}))
    ends = json.loads((folder / str(world) / "ends.json").read_text())
    assert ends[name]["status"] == "finished", ends[name]
    found, alone = (weights_at_end(folder / where / "runs" / run) for where, run in ((str(world), name), ("1", like)))
    assert difference(found, alone) < (2e-6 if more.get("precision") == "fp32" else 1e-12)
    assert difference(alone, {**alone, "6.weight": beginning["6.weight"]}) > 1e-3, "what is not frozen moved"
    for key, value in beginning.items():
        if key.startswith(STILL):
            assert torch.equal(found[key], value.to(found[key].dtype)), f"{key} is frozen"
    assert found["11.weight"].shape[0] == 10


@pytest.mark.parametrize(("world", "name"), [(1, "plain"), (2, "fsdp"), (2, "lamb")])
def test_the_optimizer_has_no_states_of_what_is_frozen(worlds, world, name):
    folder, _ = worlds
    state = state_at_end(folder / str(world) / "runs" / name)
    assert set(state["optimizer"]["layers"]) == {"6.weight", "7.weight", "7.bias", "11.weight", "11.bias"}
    assert {key for rank in state["ranks"] for key in rank["statistics"]} == {"7.running_mean", "7.running_var"}


@pytest.fixture(scope="module")
def resumed(worlds: tuple[Path, dict[str, torch.Tensor]]) -> Path:
    """Runs of two ranks that go on from their first checkpoint: as they began, or with another engine."""
    folder, _ = worlds
    recipes = {}
    for name, more in {"plain": [], "precise": [], "fsdp": [], "to_fsdp": ["engine.name=fsdp"]}.items():
        directory, of = folder / "resumed" / name, "plain" if name == "to_fsdp" else name
        shutil.copytree(folder / "2" / "runs" / of, directory)
        for path in saved(directory)[1:]:
            shutil.rmtree(path)
        (directory / "result.json").unlink()
        recipes[name] = (str(folder / "2" / f"{of}.yaml"), [f"record.dir={directory}", *more])
    (folder / "resumed" / "recipes.json").write_text(json.dumps(recipes))
    ended = pool.ranks(2, "worlds.recipes:train_all", folder / "resumed")
    assert ended.returncode == 0, ended.stderr[-4000:]
    return folder


@pytest.mark.parametrize(("name", "bits"), [("plain", True), ("precise", True), ("fsdp", True), ("to_fsdp", False)])
def test_two_ranks_go_on_with_what_is_frozen(resumed, name, bits):
    assert "resumed at step 7 of 13" in (resumed / "resumed" / name / "train.log").read_text()
    found = weights_at_end(resumed / "resumed" / name)
    whole = weights_at_end(resumed / "2" / "runs" / ("plain" if name == "to_fsdp" else name))
    assert difference(found, whole) <= (0 if bits else 1e-12)


@pytest.mark.parametrize("name", ["lars", "precise", "sam"])
def test_a_frozen_run_goes_on_bit_for_bit(tmp_path, one_thread, name):
    begun(tmp_path / "begun.safetensors")
    ends = []
    for kind in ("whole", "killed"):
        recipe = recipe_of(name, tmp_path / "begun.safetensors", CASES[name])
        run = config.from_dict(merged(recipe, {"record": {"dir": str(tmp_path / kind)}}))
        if kind == "killed":
            with pytest.raises(Killed), killed_at(9):
                train(run, quiet=True)
        assert train(run, quiet=True).status == "finished"
        ends.append(state_at_end(tmp_path / kind))
    whole, killed = ends
    assert all(torch.equal(killed["model"][key], whole["model"][key]) for key in whole["model"])
    log = (tmp_path / "killed" / "train.log").read_text()
    assert "0.weight (4, 1, 3, 3): frozen" in log
    assert "1.running_var (4,): frozen" in log


def facts_of(name: str, file: Path, world: int, more: dict[str, Any]) -> dict[str, Any]:
    return dry_run(config.from_dict(recipe_of(name, file, more)), Cluster(world, "cpu"))


@pytest.mark.parametrize("engine", ["ddp", "fsdp", "deepspeed"])
def test_a_dry_run_counts_gradients_and_states_of_what_is_trained(tmp_path, engine):
    file = tmp_path / "begun.safetensors"
    tensors = begun(file)
    sizes = {key: 4 * value.numel() for key, value in tensors.items() if key.endswith(("weight", "bias"))}
    sizes |= {"11.weight": 4 * 80, "11.bias": 4 * 10}
    moving = sum(size for key, size in sizes.items() if not key.startswith(STILL))
    facts = facts_of("plain", file, 2, {"engine": {"name": engine}, "precision": "fp32", "optimizer": {"name": "lamb"}})
    bytes_of = {part: round(mib * 2**20) for part, mib in facts["memory_per_rank_mib"].items()}
    if engine == "ddp":
        assert bytes_of["weights"] == sum(sizes.values())
        assert bytes_of["optimizer states"] == 2 * bytes_of["gradients"] == 2 * moving
    if engine == "fsdp":
        assert bytes_of["optimizer states"] == 2 * bytes_of["gradients"] == moving
    if engine == "deepspeed":
        padded = moving + 8  # two groups, each to a multiple of four numbers
        assert bytes_of["weights"] == sum(sizes.values()) - moving + padded
        assert bytes_of["master weights"] == bytes_of["optimizer states"] // 2 == padded // 2
    assert facts["decisions"]["frozen"].startswith("6 weights of 272 numbers; 2 norms by running statistics")
    assert facts["decisions"]["weights"] == f"{file}; fresh: 11.weight, 11.bias"


WITH_FROZEN = {
    "cuda_graphs = true does not go with model.frozen": {
        "engine": {"name": "ddp", "cuda_graphs": True},
        "batch": {"bn_batch_size": None},
    },
    "model.frozen does not go with engine.weights = bf16": {
        "engine": {"name": "deepspeed", "weights": "bf16"},
        "precision": "bf16",
    },
    "has no batch norm that is not frozen": {"model": {"name": "mlp", "norm": True, "depth": 1, "frozen": ["2"]}},
}


@pytest.mark.parametrize("sentence", WITH_FROZEN)
def test_what_does_not_go_with_frozen_layers_is_a_sentence(tmp_path, sentence):
    run = config.from_dict(recipe_of("refused", tmp_path / "begun.safetensors", WITH_FROZEN[sentence]))
    with pytest.raises(UserError, match=sentence):
        assemble(run, torch.device("cpu"))


class Two(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8))
        self.head = nn.Linear(8, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(images).relu())


def test_a_module_that_is_handed_over_is_fine_tuned_and_stays_what_it_is(tmp_path):
    source, model = Two(4), Two(10)
    save_file(source.state_dict(), tmp_path / "begun.safetensors")
    fresh = model.head.weight.detach().clone()
    weights = {"file": str(tmp_path / "begun.safetensors"), "head": "fresh"}
    recipe = {key: PLAIN[key] for key in ("data", "batch", "optimizer", "lr")} | {"name": "own", "epochs": 1}
    recipe |= {"model": {"weights": weights, "frozen": ["stem"]}, "record": {"dir": str(tmp_path / "run")}}
    assert lb.train(recipe, model=model).status == "finished"
    for name, value in source.stem.state_dict().items():
        assert torch.equal(model.stem.state_dict()[name], value)
    assert not torch.equal(model.head.weight, fresh)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert type(model.stem[2]) is nn.BatchNorm1d

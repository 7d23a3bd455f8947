"""Runs of Shampoo and SOAP: alike on all ranks, counted beforehand, told in a recipe's words."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pool
import pytest
import torch
import yaml
from ends import different, leaves
from method_recipes import NORM, recipe_of
from programs import Killed, killed_at, state_at_end
from small_runs import recorded, trained

from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.run.assemble import assemble
from largebatch.run.train import train
from largebatch.studies.doctor.recipe import checkpoint_bytes
from largebatch.studies.dry_run import MIB, Cluster, dry_run

SECTIONS: dict[str, dict[str, Any]] = {
    "shampoo": {"name": "shampoo"},
    "shampoo of 2018": {"name": "shampoo", "variant": "gupta2018"},
    "shampoo in blocks": {"name": "shampoo", "grafting": "rmsprop", "block_size": 4, "max_preconditioner_dim": 9},
    "soap": {"name": "soap"},
    "soap with vectors": {"name": "soap", "precondition_1d": True, "max_preconditioner_dim": 6},
}


def written(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    options = {"optimizer": SECTIONS[name], "lr": {"base": 0.01}, "epochs": 0.5, "precision": "fp32", **more}
    recipe = {**recipe_of("shampoo", **options), "name": name.replace(" ", "-")}
    return {**recipe, "record": {"dir": str(folder / "run"), "to": []}}


@pytest.mark.worlds
def test_all_ranks_end_alike_to_the_last_bit(tmp_path):
    """With dropout, which every rank draws for itself, and float32: DDP sums gradients and never looks at weights."""
    for name in SECTIONS:
        recipe = written(tmp_path, name, model={**NORM, "dropout": 0.3}, data={"name": "digits"})
        (tmp_path / f"{recipe['name']}.yaml").write_text(yaml.safe_dump(recipe))
    ended = pool.ranks(2, "worlds.alike:train_all", tmp_path)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == len(SECTIONS)
    for name, (first, second) in found.items():
        assert len(first) > 30
        assert first == second, name


@pytest.mark.worlds
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", SECTIONS)
def test_a_dry_run_counts_the_factors_that_a_step_makes(tmp_path, name):
    recipe = written(tmp_path, name, checkpoint={"every_epochs": 0.5}, model=NORM)
    run = config.from_dict(recipe)
    facts = dry_run(run, Cluster(2, "cpu"))
    shapes = [tuple(p.shape) for p in assemble(run, torch.device("cpu")).engine.model.parameters()]
    kept = sum(map(run.optimizer.kept, shapes))
    assert kept > 2 * sum(map(math.prod, shapes)), "more than Adam would keep"
    assert facts["memory_per_rank_mib"]["optimizer states"] * MIB == 4 * kept
    assert train(run, quiet=True).status == "finished"
    state = state_at_end(tmp_path / "run")
    found = leaves(state["optimizer"]["layers"]).values()
    assert sum(leaf.numel() for leaf in found if isinstance(leaf, torch.Tensor)) == kept
    assert checkpoint_bytes(run, shapes) == 4 * (kept + sum(map(math.prod, shapes)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("shampoo", ["shampoo, variant anil2020", "grafting sgd", "roots newton", "precondition_frequency 1"]),
        ("shampoo of 2018", ["shampoo, variant gupta2018", "matrix_eps 1e-06"]),
        ("soap", ["soap", "precondition_frequency 10", "beta1 0.95, beta2 0.95"]),
    ],
)
def test_recipe_show_has_its_keys(tmp_path, front_door, name, words):
    (path := tmp_path / "recipe.yaml").write_text(yaml.safe_dump(written(tmp_path, name)))
    code, printed, complaint = front_door("recipe", "show", path)
    assert code == 0, complaint
    flat = " ".join(printed.split())
    for word in words:
        assert word in flat
    assert ("grafting" in printed) == (words[0] == "shampoo, variant anil2020")


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [("soap", "beta2", 0.9), ("soap", "precondition_frequency", 5), ("shampoo", "block_size", 7),
     ("shampoo", "beta2", 0.9), ("shampoo_of_2018", "matrix_eps", 0.1)],
)  # fmt: skip
def test_what_the_package_reads_once_no_phase_changes(method, key, value):
    phases = [{"until_share": 0.5}, {f"optimizer.{key}": value}]
    with pytest.raises(UserError, match=f"optimizer.{key}"):
        config.from_dict({**recipe_of(method), "phases": phases})
    phases[1] = {"weight_decay.value": 0.1, **({} if method == "shampoo_of_2018" else {"optimizer.beta1": 0.5})}
    config.from_dict({**recipe_of(method), "phases": phases})


LEARNS = {"shampoo": 0.1, "shampoo of 2018": 0.1, "shampoo in blocks": 0.001, "soap": 0.01, "soap with vectors": 0.01}


@pytest.mark.worlds
@pytest.mark.parametrize("name", SECTIONS)
def test_it_learns_the_digits(tmp_path, name):
    keys = {"optimizer": SECTIONS[name], "lr": {"base": LEARNS[name]}, "epochs": 4}
    assert recorded(trained(tmp_path / "run", **keys), 60, "test")["accuracy_percent"] > 80


@pytest.mark.worlds
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", SECTIONS)
def test_stopped_between_two_bases_and_resumed_it_is_never_stopped(tmp_path, name):
    """Convolutions in channels-last and the paper's own iteration; the matrix of kills has the rest."""
    optimizer = {**SECTIONS[name], "precondition_frequency": 4}
    more = {"optimizer": optimizer, "model": NORM, "epochs": 2, "checkpoint": {"every_epochs": 0.5, "keep": 9}}
    whole, parts = (config.from_dict(written(tmp_path / part, name, **more)) for part in ("whole", "parts"))
    assert train(whole, quiet=True).status == "finished"
    with killed_at(18), pytest.raises(Killed):
        train(parts, quiet=True)
    assert train(parts, quiet=True).status == "finished"
    assert re.search("resumed at step 1[0-7]", (tmp_path / "parts" / "run" / "train.log").read_text())
    assert different(tmp_path / "whole" / "run", tmp_path / "parts" / "run") == []

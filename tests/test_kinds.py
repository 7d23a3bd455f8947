"""One file for each kind: whoever adds it to the folder can name it in a recipe, and nothing else is touched."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from programs import REPOSITORY, environment, state_at_end

from largebatch import optimizers
from largebatch.errors import UserError
from largebatch.recipes import decays, kinds
from largebatch.recipes import optimizers as optimizers_of_a_recipe
from largebatch.recipes.decays import constant

PACKAGE = REPOSITORY / "largebatch"
TOYS = {
    "optimizers/signs.py": '''
"""w <- w - lr * share * sign(m), m <- momentum * m + g."""

from typing import ClassVar, Literal

from largebatch.recipes.keys import Fraction
from largebatch.optimizers import Optimizer


class Signed(Optimizer):
    STATES: ClassVar[int] = 1
    SHARD_SAFE: ClassVar[bool] = True

    name: Literal["signs"]
    momentum: Fraction = 0.5

    def settings_at(self, epoch):
        return {"share": 1.0 if epoch < 1 else 0.5}

    def build(self, groups, lr, around):
        import torch

        class Signs(torch.optim.Optimizer):
            @torch.no_grad()
            def step(self, closure=None):
                for group in self.param_groups:
                    for weight in group["params"]:
                        m = self.state[weight].setdefault("m", torch.zeros_like(weight))
                        m.mul_(group["momentum"]).add_(weight.grad)
                        weight.sub_(m.sign(), alpha=group["lr"] * group["share"])

        return Signs(groups, {"lr": lr, "momentum": self.momentum, "share": 1.0})
''',
    "decays/hyperbolic.py": '''
"""lr = peak / (1 + steepness * t)."""

from typing import Literal

from largebatch.recipes.decays import Decay
from largebatch.recipes.keys import PositiveFloat


class HyperbolicDecay(Decay):
    name: Literal["hyperbolic"]
    steepness: PositiveFloat

    def lr(self, peak, progress, passed):
        return peak / (1 + self.steepness * progress)

    def words(self, epochs):
        return f"hyperbolic, {self.steepness:g} steep"
''',
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in TOYS.items():
        file = tmp_path / "toys" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "toys"


def with_toys(folder: Path, *words: object) -> subprocess.CompletedProcess:
    """In a new interpreter: those of pool.py know the recipe already, and with it all kinds that it may name."""
    command = [sys.executable, "-m", "worlds.kinds", str(folder), *map(str, words)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)


@pytest.mark.worlds
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_a_toy_of_each_kind_is_read_and_trained(recipe, folder, tmp_path, engine):
    path = recipe(
        optimizer={"name": "signs"}, engine={"name": engine}, record__every_steps=1,
        lr={"base": 0.01, "decay": {"name": "hyperbolic", "steepness": 3}},
    )  # fmt: skip
    ended = with_toys(folder, "train", path)
    assert ended.returncode == 0, ended.stderr
    run = tmp_path / "runs" / "tiny"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["lr"] for line in lines if line["event"] == "train"}
    assert rates == pytest.approx({step: 0.01 / (1 + 3 * (step - 1) / 30) for step in range(1, 31)})
    assert json.loads((run / "plan.json").read_text())["lr"]["decay"] == "hyperbolic, 3 steep"
    assert "signs; weight decay" in ended.stdout + ended.stderr
    result = json.loads((run / "result.json").read_text())
    assert result["test_accuracy_percent"] > 40
    optimizer = state_at_end(run)["optimizer"]
    assert optimizer["optimizer"] == "Signs"
    assert {group["share"] for group in optimizer["groups"]} == {0.5}
    assert all(set(state) == {"m"} for state in optimizer["layers"].values())


@pytest.fixture
def method_of_the_page(tmp_path: Path) -> Path:
    """The one that CONTRIBUTING.md shows, as a file."""
    [text] = re.findall("## A method\n\n```python\n(.*?)```", (REPOSITORY / "CONTRIBUTING.md").read_text(), re.DOTALL)
    file = tmp_path / "toys" / "methods" / "gradient_noise.py"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return tmp_path / "toys"


@pytest.mark.worlds
def test_the_method_of_the_page_is_read_and_trained(recipe, method_of_the_page, tmp_path):
    """Two steps of plain SGD: beside the same run without noise every weight lies lr · (both draws) away."""
    changes = {
        "optimizer": {"name": "sgd", "momentum": 0.0},
        "precision": "fp64",
        "epochs": None,
        "steps": 2,
        "lr": {"base": 0.1},
    }
    weights = {}
    for name, eta in (("still", 1e-30), ("noisy", 0.3)):
        path = recipe(name, gradient_noise={"eta": eta}, **changes)
        ended = with_toys(method_of_the_page, "train", path)
        assert ended.returncode == 0, ended.stderr
        weights[name] = torch.cat([t.flatten() for t in state_at_end(tmp_path / "runs" / name)["model"].values()])
    moved = (weights["noisy"] - weights["still"]).norm() / len(weights["still"]) ** 0.5
    expected = 0.1 * (0.3 + 0.3 / 2**0.55) ** 0.5  # of each element, where two draws are independent
    assert moved == pytest.approx(expected, rel=0.2)
    refused = with_toys(method_of_the_page, "train", path, "engine={name: fsdp}")
    assert refused.returncode == 2
    assert "gradient_noise needs engine.name = ddp" in refused.stderr


@pytest.mark.worlds
def test_a_slip_in_a_toys_keys_is_one_sentence(recipe, folder):
    path = recipe(optimizer={"name": "signs"})
    ended = with_toys(folder, "recipe", "show", path, "optimizer.momentun=0.1")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "unknown key optimizer.momentun; did you mean momentum?" in ended.stderr


def test_every_kind_has_its_file_and_the_tables_are_in_the_order_of_names():
    for package, table in ((optimizers, optimizers_of_a_recipe.of_package), (decays, decays.table)):
        files = {path.stem for path in Path(package.__path__[0]).glob("[!_]*.py")}
        assert list(table()) == sorted(files)


def test_a_file_without_its_kind_is_named():
    with pytest.raises(UserError, match=r'constant.py holds no Decay with name: Literal\["noise"\], as the file is'):
        kinds.kind_in(constant, "noise", decays.Decay)


def test_a_kind_that_is_there_twice_is_named(tmp_path):
    (tmp_path / "cosine.py").touch()
    with pytest.raises(
        UserError,
        match=f"cosine is the name of two files of largebatch.recipes.decays, in .* and {re.escape(str(tmp_path))}",
    ):
        kinds.sections_by_name("largebatch.recipes.decays", [*decays.__path__, str(tmp_path)], decays.Decay)


def test_two_kinds_alone_are_known_outside_their_folder():
    """A recipe that states no decay has the constant one, and a batch that grows no further turns into steps."""
    known = {
        (str(file.relative_to(PACKAGE)), *found)
        for file in PACKAGE.rglob("*.py")
        for found in re.findall(r"largebatch\.(?:recipes\.)?(optimizers|decays)\.([a-z]\w*)", file.read_text())
        if file.parent.name != found[0]
    }
    assert known == {
        ("recipes/config/learning_rate.py", "decays", "constant"),
        ("recipes/derive.py", "decays", "steps"),
    }

"""The loops of ``examples/``: other people's trainers with the pieces of use alone have the weights of our own."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pool
import pytest
import torch
from programs import REPOSITORY, weights_at_end

from largebatch.recipes import config
from largebatch.run.train import train

pytestmark = pytest.mark.worlds
EXAMPLES = REPOSITORY / "examples"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of what the examples train, as a recipe says it."""
    spec = importlib.util.spec_from_file_location("digits_of_the_examples", EXAMPLES / "digits.py")
    assert spec is not None
    assert spec.loader is not None
    digits = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(digits)
    directory = tmp_path_factory.mktemp("ours") / "run"
    recipe = {
        "name": "ours",
        "model": {"name": "mlp", "width": 32, "depth": 1},
        "data": {"name": "digits"},
        "batch": {"global_batch_size": digits.BATCH, "micro_batch_size": digits.MICRO_BATCH},
        "epochs": digits.EPOCHS,
        "precision": "fp64",
        "optimizer": {"name": "lamb"},
        "weight_decay": {"value": 0.01},
        "lr": digits.SCHEDULE,
        "record": {"to": [], "dir": str(directory)},
    }
    train(config.from_dict(recipe), quiet=True)
    return directory


def check(ours: Path, file: Path, told: str = "") -> None:
    """The same weights to 1e-12 and, where it was told, the same evaluation."""
    wanted, found = weights_at_end(ours), torch.load(file)
    assert found.keys() == wanted.keys()
    for name, weight in found.items():
        assert weight.dtype == torch.float64
        torch.testing.assert_close(weight, wanted[name], rtol=1e-12, atol=1e-12)
    if told:
        numbers = json.loads((ours / "result.json").read_text())
        assert f"loss {numbers['test_loss']:.4f}, {numbers['test_accuracy_percent']:.2f} % of 297 right" in told


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_loop(ours, tmp_path, ranks, workers):
    program, file = EXAMPLES / "plain_loop.py", tmp_path / "weights.pt"
    if ranks == 1:
        ended = pool.run(program, file, env=pool.environment(WORKERS=str(workers)))
    else:
        ended = pool.ranks(ranks, program, file, WORKERS=str(workers))
    assert ended.returncode == 0, ended.stderr
    check(ours, file, ended.stdout)


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 2)])
def test_fsdp2_is_saved_and_gone_on_with_by_dcp(ours, tmp_path, before, after):
    file = tmp_path / "weights.pt"
    for ranks in (before, after):
        assert not file.exists()
        words = (EXAMPLES / "fsdp2_dcp.py", tmp_path / "checkpoints", file)
        ended = pool.run(*words) if ranks == 1 else pool.ranks(ranks, *words)
        assert ended.returncode == 0, ended.stderr
    check(ours, file, ended.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("package", "example"),
    [("accelerate", "with_accelerate.py"), ("transformers", "transformers_trainer.py")],
)
def test_the_trainers_of_hugging_face(ours, tmp_path, package, example, ranks):
    pytest.importorskip(package)
    file = tmp_path / "weights.pt"
    ended = pool.run(EXAMPLES / example, file) if ranks == 1 else pool.ranks(ranks, EXAMPLES / example, file)
    assert ended.returncode == 0, ended.stderr
    check(ours, file, ended.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_lightning(ours, tmp_path, processes):
    """It starts its second process itself, by the name of the program."""
    pytest.importorskip("lightning")
    file = tmp_path / "weights.pt"
    command = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, *sys.argv[1:]]).returncode)"
    ended = pool.run("-c", command, EXAMPLES / "with_lightning.py", file, processes)
    assert ended.returncode == 0, ended.stderr
    check(ours, file, ended.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("package", ["lightning", "transformers"])
def test_other_trainers_go_on_from_their_own_checkpoints(ours, tmp_path, package):
    pytest.importorskip(package)
    environment = pool.environment(PYTHONPATH=os.pathsep.join(map(str, (EXAMPLES, REPOSITORY, REPOSITORY / "tests"))))
    ended = pool.run(f"worlds.resumed_loops:of_{package}", tmp_path, env=environment)
    assert ended.returncode == 0, ended.stderr
    check(ours, tmp_path / "weights.pt")


def test_a_plain_loop_is_as_long_as_they_say():
    lines = (EXAMPLES / "plain_loop.py").read_text().partition("def main")[2].partition("if __name__")[0].splitlines()
    assert len([line for line in lines if line.strip()]) <= 40

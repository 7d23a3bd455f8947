"""Checkpoints know neither engine nor world: saved by one, continued by another, with the same examples."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from programs import environment, largebatch, saved, state_at_end, torchrun

from largebatch import config
from largebatch.assemble import assemble
from largebatch.engines.engine import check_exact
from largebatch.errors import UserError

needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
MODEL = {"name": "tiny_cnn", "channels": [4, 6], "norm": False}
DIES = """
import os, sys
from largebatch import config, distributed, train
import torch
one_step = train.Loop.one_step
def dies(self, micros, measure):
    if self.step == 20:
        os._exit(9)
    one_step(self, micros, measure)
if sys.argv[2] == "dies":
    train.Loop.one_step = dies
seen = []
run = config.load(sys.argv[1], sys.argv[3:])
with distributed.group(torch.device("cpu"), alone=run.engine.name != "ddp"):
    train.train(run, quiet=True)
"""


def end_of(path: Path) -> dict[str, Any]:
    folder = Path(yaml.safe_load(path.read_text())["record"]["dir"])
    return {**state_at_end(folder), "log": (folder / "train.log").read_text()}


def assert_close(these: dict[str, Any], those: dict[str, Any], tolerance: float) -> None:
    tensors = {**these["model"]}, {**those["model"]}
    for name, states in those["optimizer"]["layers"].items():
        for key, value in states.items():
            tensors[0][f"{name} {key}"] = these["optimizer"]["layers"][name][key]
            tensors[1][f"{name} {key}"] = value
    for name, value in tensors[1].items():
        assert float((tensors[0][name].double() - value.double()).norm()) <= tolerance * float(value.double().norm())


LARS, LAMB = {"name": "lars", "momentum_correction": True}, {"name": "lamb"}
ZERO = "engine.name=deepspeed"
CHAINS = [
    pytest.param(LARS, [(2, [ZERO, "engine.zero=1"]), (1, [])], id="zero1-2-to-ddp-1", marks=needs_deepspeed),
    pytest.param(LAMB, [(1, []), (2, [ZERO, "engine.zero=2"])], id="ddp-1-to-zero2-2", marks=needs_deepspeed),
    pytest.param(LAMB, [(2, ["engine.name=fsdp"]), (2, []), (1, ["engine.name=fsdp"])], id="fsdp-2-to-ddp-2-to-fsdp-1"),
]


@pytest.mark.parametrize(("optimizer", "chain"), CHAINS)
def test_a_run_goes_on_in_another_engine_and_world(recipe, optimizer, chain):
    """Killed in the middle; momentum included, and the same examples: else the weights would differ."""
    changes = {
        "model": MODEL,
        "epochs": 3,
        "checkpoint": {"every_epochs": 1, "asynchronous": False},
        "optimizer": optimizer,
    }
    changes |= {"lr__warmup": {"epochs": 1}, "weight_decay": {"value": 0.01}, "max_grad_norm": 1.0}
    changes |= {"lr__base": 0.05 if optimizer is LAMB else 5.0}
    whole, parts = recipe("whole", **changes), recipe("parts", **changes)
    assert largebatch("train", whole).returncode == 0
    script = whole.parent / "work.py"
    script.write_text(DIES)
    for number, (world, overrides) in enumerate(chain):
        last = number == len(chain) - 1
        ended = torchrun(world, script, parts, "dies" if not last and number == 0 else "lives", *overrides)
        assert (ended.returncode == 0) == (last or number > 0), ended.stderr[-3000:]
        if number > 0 and not last:  # finished: take the last checkpoint away, so that the next goes on, too
            folder = Path(yaml.safe_load(parts.read_text())["record"]["dir"])
            shutil.rmtree(saved(folder)[-1])
            (folder / "result.json").unlink()
    end = end_of(parts)
    assert "resumed at step 15 of 45" in end["log"]
    assert_close(end, end_of(whole), 1e-5)


@needs_deepspeed
def test_adamw_counts_its_steps_across_engines(recipe):
    end = continued(recipe, {"name": "adamw"}, 0.002, 2, "engine.name=deepspeed")
    assert {float(state["step"]) for state in end["optimizer"]["layers"].values()} == {30.0}


def test_sgd_goes_on_where_weights_lie_otherwise_in_memory(recipe):
    """Contiguous under FSDP2, channels-last under DDP: torch's fused kernels walk memory and would not notice."""
    continued(recipe, {"name": "sgd"}, 0.1, 1, "engine.name=fsdp")


def continued(recipe: Any, optimizer: dict[str, Any], lr: float, ranks: int, engine: str) -> dict[str, Any]:
    """Killed in ``engine`` on so many ranks, finished by DDP alone: as if DDP had done it all."""
    changes = {
        "model": MODEL,
        "epochs": 2,
        "optimizer": optimizer,
        "lr__base": lr,
        "checkpoint": {"asynchronous": False},
    }
    whole, parts = recipe("whole", **changes), recipe("parts", **changes)
    assert largebatch("train", whole).returncode == 0
    script = whole.parent / "work.py"
    script.write_text(DIES)
    died = torchrun(ranks, script, parts, "dies", engine)
    assert "Error" not in died.stderr.partition("torch/distributed/run.py")[0], died.stderr[-3000:]
    ended = torchrun(1, script, parts, "lives")
    assert ended.returncode == 0, ended.stderr[-3000:]
    end = end_of(parts)
    assert "resumed at step 15 of 30" in end["log"]
    assert_close(end, end_of(whole), 1e-5)
    return end


@needs_deepspeed
def test_deepspeeds_own_launcher_starts_it(recipe, tmp_path):
    """``deepspeed --module largebatch``, with the --local_rank that it appends."""
    path = recipe("launched", model=MODEL, epochs=1)
    ended = subprocess.run(
        [
            sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", "29713",
            "--module", "largebatch", "train", path, "engine.name=deepspeed", "engine.zero=2",
        ],
        capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment(PATH=os.environ["PATH"]),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "engine deepspeed, ZeRO stage 2" in ended.stdout
    plan = json.loads((path.parent / "runs" / "launched" / "plan.json").read_text())
    assert (plan["world_size"], plan["engine"]) == (2, "deepspeed")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["engine.name=deepspeed", "precision=fp64"], "precision = fp64 runs on engine.name = ddp or fsdp"),
        (["engine.name=deepspeed", "engine.weights=bf16"], "engine.weights = bf16 needs precision = bf16"),
        (["engine.name=deepspeed", "engine.zero=3"], "engine.zero = 3 is not known; valid: 0, 1 or 2"),
        (["engine.name=horovod"], "engine.name = horovod is not known"),
        (["engine.zero=1"], "engine.name is missing; engine.zero belongs to engine.name = deepspeed"),
    ],
)
def test_what_an_engine_cannot_run_is_one_sentence(recipe, overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        assemble(config.load(recipe(), overrides), torch.device("cpu"))


@pytest.mark.parametrize("name", ["fsdp", "deepspeed with engine.zero = 1"])
def test_an_optimizer_that_shards_would_change_is_refused(name):
    from timm.optim.lamb import Lamb

    with pytest.raises(UserError, match=f"engine.name = {name} cuts layers into shards, and timm.optim.lamb.Lamb"):
        check_exact(Lamb([torch.nn.Parameter(torch.ones(2))]), name)

"""What an engine cannot run is one sentence; and DeepSpeed's own launcher. Resumes are in test_kill_and_resume.py."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from pool import environment, free_port

from largebatch.engines.engine import check_exact
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.run.assemble import assemble

needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
MODEL = {"name": "tiny_cnn", "channels": [4, 6], "norm": False}


@pytest.mark.slow
@needs_deepspeed
def test_deepspeeds_own_launcher_starts_it(recipe, tmp_path):
    """``deepspeed --module largebatch``, with the --local_rank that it appends."""
    path = recipe("launched", model=MODEL, epochs=1)
    ended = subprocess.run(
        [
            sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", str(free_port()),
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

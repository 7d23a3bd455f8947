"""The machine never changes the result: the same recipe on one process and on several."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from programs import REPOSITORY, largebatch, saved, state_at_end, torchrun, weights_at_end

from largebatch.engines.states import whole_model

RECIPES = sorted((REPOSITORY / "configs" / "quickstart").glob("*.yaml"))
WORK = """
import json, sys
from pathlib import Path

import numpy as np
import torch

from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from largebatch import config, data, distributed, evaluate
from largebatch.assemble import assemble, dataset_of, plan_of
from largebatch.engines import ddp
from largebatch.train import train

directory, device = Path(sys.argv[1]), torch.device("cpu")
with distributed.group(device):
    world, rank = distributed.world_size(), distributed.rank()
    end = {}
    for file in sorted((directory / "recipes").glob("*.yaml")):
        run = config.load(file, [f"record.dir={directory}/world{world}/{file.stem}"])
        result = train(run, quiet=True)
        end[file.stem] = result.numbers
        plan = plan_of(run, len(dataset_of(run).train), (1, 8, 8), device)
        mine = [plan.examples_of(step, rank).indices for step in range(plan.steps)]
        joined = [np.concatenate(parts).tolist() for parts in zip(*distributed.gather(mine))]
        end[file.stem]["examples"] = joined
    # exact evaluation of ragged shares, a batch larger than the split included
    split = data.build("digits").test
    for batch_size in (1, 7, 1000):
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        torch.manual_seed(0)
        torch.nn.init.normal_(model[1].weight)
        torch.nn.init.zeros_(model[1].bias)
        placement = data.Placement(device, torch.float32, False)
        found = evaluate.evaluate(model, model, split.batches(rank, world, batch_size, placement), device)
        end[f"evaluate {batch_size}"] = found._asdict()
    # how often the engine communicates: once per step, whatever the accumulation
    if world > 1:
        run = config.load(directory / "recipes" / "sgd.yaml", ["batch.micro_batch_size=10", "record.dir=/nowhere"])
        job = assemble(run, device)
        buckets = []
        hook = allreduce_hook
        job.engine.parallel.register_comm_hook(None, lambda _, bucket: buckets.append(1) or hook(None, bucket))
        micros = next(iter(job.dataset.train.steps(job.plan, rank, 0, job.placement, 0)))
        for number, (images, labels) in enumerate(micros, start=1):
            last = number == job.plan.accumulation_steps
            loss = torch.nn.functional.cross_entropy(job.engine.forward(images, last), labels, reduction="sum")
            job.engine.backward(loss / 120)
        end["all-reduced buckets"] = [len(buckets), job.plan.accumulation_steps]
    if distributed.is_first():
        (directory / f"world{world}.json").write_text(json.dumps(end))
"""
OPTIMIZERS = {
    "sgd": {"name": "sgd", "nesterov": True},
    "heavy_ball": {"name": "heavy_ball", "momentum_correction": True},
    "lars": {"name": "lars", "trust_coefficient": 0.01},
    "lamb": {"name": "lamb"},
    "adamw": {"name": "adamw"},
}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> tuple[Path, dict[int, dict]]:
    """The same work in worlds of 1, 2 and 3, one start each."""
    directory = tmp_path_factory.mktemp("worlds")
    (directory / "recipes").mkdir()
    for name, optimizer in OPTIMIZERS.items():
        recipe = {
            "model": {"name": "tiny_cnn", "channels": [4, 8], "norm": False},
            "data": {"name": "digits", "augment": "crop_flip"},
            "batch": {"global_batch_size": 120},
            "precision": "fp64",
            "epochs": 2,
            "optimizer": optimizer,
            "weight_decay": {"value": 0.01, "skip": ["bias"]},
            "max_grad_norm": 1.0,
            "loss": {"label_smoothing": 0.1},
            "lr": {"base": 0.05, "warmup": {"epochs": 0.5}, "decay": {"name": "cosine"}},
            "record": {"tensorboard": False},
        }
        (directory / "recipes" / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    (directory / "work.py").write_text(WORK)
    ends = {}
    for world in (1, 2, 3):
        ended = torchrun(world, directory / "work.py", directory)
        assert ended.returncode == 0, ended.stderr
        ends[world] = json.loads((directory / f"world{world}.json").read_text())
    return directory, ends


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return weights_at_end(directory)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("world", [2, 3])
def test_weights_are_those_of_one_process_to_1e_12(worlds, name, world):
    directory, ends = worlds
    alone, many = (weights(directory / f"world{w}" / name) for w in (1, world))
    for key in alone:
        assert alone[key].dtype == torch.float64
        torch.testing.assert_close(many[key], alone[key], rtol=1e-12, atol=1e-12)
    assert ends[world][name]["examples"] == ends[1][name]["examples"], "the same examples in every step"
    for number in ("test_loss", "train_loss", "test_accuracy_percent", "steps"):
        assert ends[world][name][number] == pytest.approx(ends[1][name][number], rel=1e-11)


@pytest.mark.parametrize("world", [2, 3])
def test_the_recorded_losses_are_means_over_the_global_batch(worlds, world):
    directory, _ = worlds
    recorded = []
    for w in (1, world):
        lines = map(json.loads, (directory / f"world{w}" / "lars" / "metrics.jsonl").read_text().splitlines())
        recorded.append([(x["loss"], x["grad_norm"], x["lr"]) for x in lines if x["event"] == "train"])
    assert len(recorded[0]) > 3
    for one, many in zip(*recorded, strict=True):
        assert many == pytest.approx(one, rel=1e-10)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
@pytest.mark.parametrize("world", [2, 3])
def test_evaluation_counts_every_example_once(worlds, batch_size, world):
    _, ends = worlds
    alone, many = (ends[w][f"evaluate {batch_size}"] for w in (1, world))
    assert many["examples"] == alone["examples"] == 297
    assert many["accuracy_percent"] == alone["accuracy_percent"]
    assert many["loss"] == pytest.approx(alone["loss"], rel=1e-6)


@pytest.mark.parametrize("world", [2, 3])
def test_one_all_reduce_per_step_whatever_the_accumulation(worlds, world):
    _, ends = worlds
    buckets, accumulation = ends[world]["all-reduced buckets"]
    assert buckets == 1
    assert accumulation > 1


def test_a_run_killed_on_two_ranks_goes_on_alone_with_the_same_examples(recipe):
    """Another world after the resume: the same examples at the same lr, equal weights to rounding."""
    changes = {"precision": "fp64", "epochs": 3, "checkpoint": {"every_epochs": 1, "asynchronous": False}, "seed": 5}
    whole, half = recipe("whole", **changes), recipe("half", **changes)
    assert largebatch("train", whole).returncode == 0
    code = (
        "import sys\nfrom largebatch import config, distributed, train\nimport torch\n"
        "one_step = train.Loop.one_step\n"
        "def dies(self, micros, measure):\n"
        "    if self.step == 20:\n        import os; os._exit(9)\n"
        "    one_step(self, micros, measure)\n"
        "train.Loop.one_step = dies\n"
        "with distributed.group(torch.device('cpu')):\n    train.train(config.load(sys.argv[1]), quiet=True)\n"
    )
    script = half.parent / "dies.py"
    script.write_text(code)
    assert torchrun(2, script, half).returncode != 0
    second = largebatch("train", half)
    assert second.returncode == 0, second.stderr
    assert "resumed at step 15 of 45" in second.stdout
    directories = [Path(yaml.safe_load(path.read_text())["record"]["dir"]) for path in (whole, half)]
    one, other = (weights(directory) for directory in directories)
    for key in one:
        torch.testing.assert_close(other[key], one[key], rtol=1e-12, atol=1e-12)


def test_statistics_of_batch_norm_are_averaged_and_survive_a_resume_bitwise(recipe):
    """Two ranks with batch norm: stopped after an epoch and resumed equals never stopped, buffers included."""
    changes = {"model": {"name": "tiny_cnn", "channels": [4]}, "epochs": 2}
    whole, parts = recipe("whole", **changes), recipe("parts", **changes)
    script = whole.parent / "train.py"
    script.write_text(
        "import sys\nfrom largebatch import config, distributed, train\nimport torch\n"
        "if len(sys.argv) > 2:\n"
        "    one_step = train.Loop.one_step\n"
        "    def ends(self, micros, measure):\n"
        "        if self.step == 17: sys.exit(3)\n"
        "        one_step(self, micros, measure)\n"
        "    train.Loop.one_step = ends\n"
        "with distributed.group(torch.device('cpu')):\n    train.train(config.load(sys.argv[1]), quiet=True)\n"
    )
    assert torchrun(2, script, whole).returncode == 0
    assert torchrun(2, script, parts, "end").returncode != 0
    assert torchrun(2, script, parts).returncode == 0
    states = []
    for path in (whole, parts):
        folder = Path(yaml.safe_load(path.read_text())["record"]["dir"])
        states.append(state_at_end(folder))
    assert "resumed" in (folder / "train.log").read_text()
    for key, tensor in whole_model(states[0]).items():
        assert torch.equal(tensor, whole_model(states[1])[key]), key
    own = [kept["statistics"] for kept in states[0]["ranks"]]
    name = "1.running_mean"
    assert not torch.equal(own[0][name], own[1][name]), "each rank saw other images"
    torch.testing.assert_close(weights(folder)[name], (own[0][name] + own[1][name]) / 2)


def test_a_batch_that_two_ranks_cannot_share_is_one_sentence(recipe):
    ended = torchrun(2, "-m", "largebatch", "train", recipe("odd", batch={"global_batch_size": 101}))
    assert ended.returncode != 0
    told = [line for line in ended.stderr.splitlines() if line.startswith("largebatch: ")]
    assert told == [
        "largebatch: batch.global_batch_size = 101 does not factor into 2 ranks; nearest that do: 100 or 102"
    ]


def test_a_signal_to_one_rank_stops_both_at_the_same_step(recipe):
    path = recipe("signalled", epochs=40)
    script = path.parent / "signalled.py"
    script.write_text(
        "import os, signal, sys\nfrom largebatch import config, distributed, train\nimport torch\n"
        "one_step = train.Loop.one_step\n"
        "def signalled(self, micros, measure):\n"
        "    if self.step == 22 and distributed.rank() == 1:\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    one_step(self, micros, measure)\n"
        "train.Loop.one_step = signalled\n"
        "with distributed.group(torch.device('cpu')):\n"
        "    result = train.train(config.load(sys.argv[1]), quiet=True)\n"
        "    os.write(1, f'END {result.status} {result.numbers[\"steps\"]} {result.signal}\\n'.encode())\n"
    )
    ended = torchrun(2, script, path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("END stopped 24 15") == 2, ended.stdout  # noticed in step 23, agreed one later
    folder = Path(yaml.safe_load(path.read_text())["record"]["dir"])
    assert saved(folder)[-1].name == "step-00000024"


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["goyal2017", "lamb2019"])
def test_a_quickstart_recipe_on_two_ranks_is_the_one_on_one(tmp_path, name):
    """As the README starts it, made short; without batch norm, in float64."""
    path = REPOSITORY / "configs" / "quickstart" / f"{name}.yaml"
    short = ["epochs=0.1", "lr.warmup.epochs=0.05", "model.norm=false", "precision=fp64", "data.name=mnist"]
    directories = [tmp_path / "one", tmp_path / "two"]
    assert largebatch("train", path, *short, f"record.dir={directories[0]}").returncode == 0
    two = torchrun(2, "-m", "largebatch", "train", path, *short, f"record.dir={directories[1]}")
    assert two.returncode == 0, two.stderr
    one, other = (weights(directory) for directory in directories)
    for key in one:
        torch.testing.assert_close(other[key], one[key], rtol=1e-12, atol=1e-12)

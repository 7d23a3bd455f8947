"""Auxiliary classifiers in a run: trained with their weight by every engine, unseen wherever a model is judged."""

from __future__ import annotations

from typing import Any

import blanks
import pytest
import torch
import torch.nn.functional as F
from programs import weights_at_end
from torch import Tensor, nn
from torchvision.models import GoogLeNetOutputs

from largebatch import models
from largebatch.machine import distributed
from largebatch.recipes import config
from largebatch.run.assemble import assemble
from largebatch.run.train import train
from largebatch.studies.bench.throughput import flops
from largebatch.studies.dry_run import Cluster, dry_run
from largebatch.tasks.classification import Classification

SMALL = (1, 8, 8)


class Toy(nn.Module):
    """Two auxiliary classifiers, as GoogLeNet has them."""

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(image_shape[1] * image_shape[2], 8), nn.ReLU())
        self.head, self.first, self.second = (nn.Linear(8, num_classes) for _ in range(3))

    def forward(self, images: Tensor) -> Any:
        seen = self.body(images)
        if not self.training:
            return self.head(seen)
        return GoogLeNetOutputs(self.head(seen), self.second(seen), self.first(seen))


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(models.SMALL, "toy", Toy)


@pytest.mark.worlds
def test_a_step_is_that_of_the_weighted_sum(recipe):
    changes = {"model": {"name": "toy"}, "steps": 1, "epochs": None, "precision": "fp64"}
    changes |= {"optimizer": {"name": "sgd", "momentum": 0}, "lr": {"base": 0.5}, "batch__micro_batch_size": 50}
    changes |= {"loss": {"label_smoothing": 0.1}}
    run = config.load(recipe(**changes))
    job = assemble(run, torch.device("cpu"))
    net = models.build("toy", 10, SMALL).double().train()
    [step] = job.dataset.train.steps(job.plan, 0, 0, job.placement, run.seed)
    for images, labels in step:
        logits, second, first = net(images)
        parts = [F.cross_entropy(one, labels, label_smoothing=0.1, reduction="sum") for one in (logits, second, first)]
        ((parts[0] + 0.3 * (parts[1] + parts[2])) / 100).backward()
    result = train(run, quiet=True)
    assert result.status == "finished"
    found = weights_at_end(run.directory)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(found[name], (parameter - 0.5 * parameter.grad).detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.worlds
@pytest.mark.parametrize("more", [{}, {"sam": {}}, {"ema": {"decay": 0.9}}, {"batch_norm": {"statistics": "precise"}}])
def test_methods_go_with_it(recipe, more):
    if "batch_norm" in more:
        more = {
            **more,
            "model": {"name": "googlenet", "aux_logits": True},
            "data": {"name": "synthetic", "examples": 4},
        }
        more |= {"batch__global_batch_size": 4, "epochs": None, "steps": 1, "evaluate": {"train": False}}
    run = config.load(recipe(**{"model": {"name": "toy"}, "epochs": 1, **more}))
    assert train(run, quiet=True).status == "finished"


@pytest.mark.worlds
@pytest.mark.parametrize("engine", [{"name": "ddp"}, {"name": "fsdp"}, {"name": "deepspeed", "zero": 2}])
def test_a_dry_run_of_every_engine_traces_it(recipe, engine):
    run = config.load(recipe(model={"name": "toy"}, engine=engine))
    facts = dry_run(run, Cluster(world_size=2, device="cpu"))
    heads = 2 * 100 // 2 * 8 * 10  # multiply-adds of one of the three, forward, on a rank
    assert facts["flops_per_step_and_rank"] >= 9 * heads  # forward, and backward by inputs and weights


def test_its_arithmetic_is_counted():
    assert flops.of_one_example(Toy(10, SMALL), Classification(), blanks.images(2, SMALL)).forward == 2 * (
        64 * 8 + 3 * 8 * 10
    )


@pytest.mark.worlds
def test_fsdp_trains_it_as_ddp_does(recipe):
    whole = config.load(recipe("ddp", model={"name": "toy"}, epochs=1))
    cut = config.load(recipe("fsdp", model={"name": "toy"}, epochs=1, engine={"name": "fsdp"}))
    train(whole, quiet=True)
    with distributed.group(torch.device("cpu"), alone=True):
        train(cut, quiet=True)
    expected, found = weights_at_end(whole.directory), weights_at_end(cut.directory)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])

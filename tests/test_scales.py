"""A learning rate of some tensors' own: its factor, its end, an even weight decay; against steps written out."""

from __future__ import annotations

import re
from typing import Any

import pool
import pytest
import torch
import yaml
from beside import stepped, steps_of
from programs import weights_at_end

from largebatch import models
from largebatch.errors import UserError
from largebatch.optim import TensorRate, parameter_groups, tensor_rates, treatments
from largebatch.optim.groups import rate_of
from largebatch.recipes import config
from largebatch.run.assemble import assemble
from largebatch.run.train import train

RECIPE: dict[str, Any] = {
    "name": "scales", "model": {"name": "tiny_cnn", "channels": [4, 6]}, "data": {"name": "digits"},
    "batch": {"global_batch_size": 100, "bn_batch_size": 50}, "steps": 12, "precision": "fp64", "device": "cpu",
    "optimizer": {"name": "sgd", "momentum": 0.85, "nesterov": True}, "weight_decay": {"value": 0.01, "skip": []},
    "lr": {"base": 0.05}, "record": {"to": []}, "checkpoint": {"every_epochs": 0.4},
}  # fmt: skip
SCALES = {"norm": 8, "0.weight": {"factor": 0.5, "until_epoch": 5 * 100 / 1500}}


def recipe(**keys: Any) -> config.Run:
    return config.from_dict({**RECIPE, **keys})


@pytest.mark.parametrize("even", [False, True])
def test_torchs_sgd_with_groups_by_hand(even):
    """Norms at eight times the lr, the first layer at half for five steps; L2 over the factor where it is even."""
    run = recipe(lr={"base": 0.05, "scales": SCALES}, weight_decay={**RECIPE["weight_decay"], "even": even})
    job = assemble(run, torch.device("cpu"))
    steps = steps_of(job)
    assert len(job.dataset.train) == 1500
    theirs = models.build("tiny_cnn", 10, (1, 8, 8), 0, {"channels": [4, 6]}).double()
    parts: dict[float, list[torch.nn.Parameter]] = {8.0: [], 0.5: [], 1.0: []}
    for name, parameter in theirs.named_parameters():
        factor = 8.0 if name.startswith(("1.", "4.")) else 0.5 if name == "0.weight" else 1.0
        parts[factor].append(parameter)
    groups = [
        {"params": those, "lr": 0.05 * factor, "weight_decay": 0.01 / (factor if even else 1)}
        for factor, those in parts.items()
    ]
    sgd = torch.optim.SGD(groups, momentum=0.85, nesterov=True)
    for number, micros in enumerate(job.dataset.train.steps(job.plan, 0, 0, job.placement, 0)):
        batches = list(micros)
        if number == 5:
            parts[0.5][0].requires_grad_(False)
            sgd.zero_grad()
        for images, labels in batches:
            for part in range(0, len(images), 50):
                theirs.train()
                loss = torch.nn.functional.cross_entropy(theirs(images[part : part + 50]), labels[part : part + 50])
                (loss * 0.5).backward()
        sgd.step()
        sgd.zero_grad()
        stepped(steps, number, batches)
        for mine, weight in zip(job.engine.model.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, weight, rtol=1e-8, atol=1e-11)
    first = [group for group in job.engine.optimizer.param_groups if "0.weight" in group["names"]]
    assert [group["lr"] for group in first] == [0.0]


def test_a_rate_ends_at_its_examples():
    group = {"lr_scale": 3.0, "lr_until": 500.0}
    assert [rate_of(group, 0.1, seen) for seen in (0, 499, 500, 501)] == pytest.approx([0.3, 0.3, 0, 0])
    assert rate_of({}, 0.1, 10**9) == 0.1


def test_groups_by_rate_and_decay():
    model = models.build("tiny_cnn", 10, (1, 8, 8))
    rates = tensor_rates(model, {"norm": TensorRate(4.0), "11": TensorRate(until=70.0)}, {"0.weight": 0.5})
    table = treatments(model, ("0",), None)
    groups = parameter_groups(model, 0.2, table, rates, even=True)
    found = {tuple(g["names"]): (g["weight_decay"], g["lr_scale"], g.get("lr_until")) for g in groups}
    assert found == {
        ("0.weight",): (0.0, 0.5, None),
        ("1.weight", "1.bias", "4.weight", "4.bias", "7.weight", "7.bias"): (0.05, 4.0, None),
        ("3.weight", "6.weight"): (0.2, 1.0, None),
        ("11.weight", "11.bias"): (0.2, 1.0, 70.0),
    }


@pytest.mark.worlds
def test_two_ranks_and_a_resume_end_where_one_process_does(tmp_path):
    keys = {**RECIPE, "lr": {"base": 0.05, "scales": SCALES}, "weight_decay": {"value": 0.01, "skip": [], "even": True}}
    train(config.from_dict({**keys, "record": {"dir": str(tmp_path / "one"), "to": []}}), quiet=True)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({**keys, "record": {"dir": str(tmp_path / "two"), "to": []}}))
    stop = pool.ranks(2, "-m", "largebatch", "train", file, "steps=6")
    assert stop.returncode == 0, stop.stdout + stop.stderr
    on = pool.ranks(2, "-m", "largebatch", "train", file)
    assert on.returncode == 0, on.stdout + on.stderr
    one, two = weights_at_end(tmp_path / "one"), weights_at_end(tmp_path / "two")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lr": {"base": 0.1, "scales": {"nom": 2}}}, "lr.scales: 'nom' is none of norm, bias"),
        ({"lr": {"base": 0.1, "scales": {"norm": 2, "1.*": 3}}}, "lr.scales: 'norm' and '1.*' both say the lr of 1.we"),
        ({"lr": {"base": 0.1, "scales": {"norm": 0}}}, "lr.scales.norm"),
        ({"lr": {"base": 0.1, "scales": {"norm": {"until_epoch": -1}}}}, "lr.scales.norm"),
        ({"weight_decay": {"even": True}}, "weight_decay.even = true has no effect without lr.scales; leave it out"),
        (
            {"phases": [{"steps": 1, "lr.scales": {"norm": 2}}, {}], "steps": 3},
            "lr.scales holds for the whole run, and phases change it; write it outside of them",
        ),
        (
            {
                "lr": {"base": 0.1, "scales": {"norm": 2}},
                "weight_decay": {"value": 0.1, "even": True},
                "phases": [{"steps": 1}, {}],
                "steps": 3,
            },
            "weight_decay.even = true does not go with phases; choose one",
        ),
    ],
)
def test_what_does_not_go_is_one_sentence(changes, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        assemble(recipe(**changes), torch.device("cpu"))


@pytest.mark.parametrize("now", [{"base": 0.05}, {"base": 0.05, "scales": {"norm": 4}}])
def test_a_run_does_not_go_on_with_other_rates_of_its_tensors(now):
    from largebatch.recipes.longer import may_go_on

    before = recipe(lr={"base": 0.05, "scales": {"norm": 8}}).science()
    assert may_go_on(before, recipe(lr={"base": 0.04, "scales": {"norm": 8}}, steps=20).science())
    assert not may_go_on(before, recipe(lr=now, steps=20).science())

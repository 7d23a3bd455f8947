"""Outer momentum against torch's SGD over the way of the inner steps, closed forms, and DiLoCo written out by hand.

Worlds, engines and kills are in test_methods.py and test_kill_and_resume.py.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from beside import stepped, steps_of
from method_recipes import PLAIN, recipe_of
from programs import state_at_end, torchrun

from largebatch.engines.states import whole_model
from largebatch.optim.outer import OuterMomentum
from largebatch.recipes import config
from largebatch.run.assemble import assemble

SHARDED = ["fsdp", *(["deepspeed"] if importlib.util.find_spec("deepspeed") else [])]
INNER: dict[str, tuple[dict[str, Any], float]] = {
    "sgd": ({"name": "sgd", "momentum": 0.9}, 0.05),
    "lars": ({"name": "lars", "trust_coefficient": 0.01}, 1.0),
    "lamb": ({"name": "lamb"}, 0.01),
    "adamw": ({"name": "adamw"}, 0.005),
    "muon": ({"name": "muon", "iteration": "fp64"}, 0.02),
}


def job_of(method: str, **more: Any) -> Any:
    return assemble(config.from_dict(recipe_of(method, **more)), torch.device("cpu"))


def outer_sgd(weights: list[torch.Tensor], lr: float, momentum: float, nesterov: bool) -> torch.optim.SGD:
    return torch.optim.SGD([w.detach().clone() for w in weights], lr=lr, momentum=momentum, nesterov=nesterov)


@torch.no_grad()
def take_outer_step(outer: torch.optim.SGD, weights: list[torch.Tensor]) -> None:
    """How DiLoCo's authors write it: the way back is the gradient of the anchor."""
    anchors = outer.param_groups[0]["params"]
    for anchor, weight in zip(anchors, weights, strict=True):
        anchor.grad = anchor - weight
    outer.step()
    for anchor, weight in zip(anchors, weights, strict=True):
        weight.copy_(anchor)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("inner", INNER)
def test_torchs_sgd_over_the_way_of_any_optimizer(inner, nesterov):
    optimizer, lr = INNER[inner]
    options = {
        "optimizer": optimizer,
        "lr": {"base": lr},
        "model": PLAIN["model"],
        "batch": PLAIN["batch"],
        "ema": None,
    }
    section = {"every_steps": 3, "lr": 0.6, "momentum": 0.7, "nesterov": nesterov}
    job = job_of("outer_momentum", **options, outer_momentum=section)
    steps = steps_of(job)
    plain = job_of("outer_momentum", **options, outer_momentum=None)
    inner_steps, theirs = steps_of(plain), list(plain.engine.model.parameters())
    outer = outer_sgd(theirs, lr=0.6, momentum=0.7, nesterov=nesterov)
    for number, micros in enumerate(job.dataset.train.steps(job.plan, 0, 0, job.placement, 0)):
        batches = list(micros)
        stepped(steps, number, [tuple(t.clone() for t in batch) for batch in batches])
        stepped(inner_steps, number, batches)
        if number % 3 == 2:
            take_outer_step(outer, theirs)
        for mine, weight in zip(job.engine.model.parameters(), theirs, strict=True):
            torch.testing.assert_close(mine, weight, rtol=1e-11, atol=1e-13)
        if number == 10:
            break


def test_lookahead_is_the_case_without_momentum():
    weight = torch.tensor([1.0, -2.0], dtype=torch.float64)
    outer = OuterMomentum(lambda: [weight], lr=0.5, momentum=0.0)
    slow = weight.clone()
    for way in ([1.0, 3.0], [-4.0, 0.5]):
        weight += torch.tensor(way, dtype=torch.float64)
        slow = slow + 0.5 * (weight - slow)  # Zhang et al. 2019, algorithm 1
        outer.step()
        torch.testing.assert_close(weight, slow, rtol=1e-15, atol=0)


@pytest.mark.parametrize("nesterov", [True, False])
def test_the_closed_form_of_equal_ways(nesterov):
    """Inner steps that always go d: u_n = −d(1 − μ^n)/(1 − μ); with Nesterov an outer step goes η(d + μ|u_n|)."""
    weight = torch.zeros(3, dtype=torch.float64)
    outer = OuterMomentum(lambda: [weight], lr=0.7, momentum=0.6, nesterov=nesterov)
    expected = 0.0
    for n in range(1, 9):
        weight += 0.25
        outer.step()
        u = 0.25 * (1 - 0.6**n) / (1 - 0.6)
        expected += 0.7 * (0.25 + 0.6 * u if nesterov else u)
        torch.testing.assert_close(weight, torch.full_like(weight, expected), rtol=1e-14, atol=0)


def test_slowmo_with_a_constant_inner_lr():
    """Wang et al. 2019, algorithm 1: u ← βu + (x_0 − x)/γ, x ← x_0 − αγu; here α is the lr and β the momentum."""
    gamma, weight, slow = 0.03, torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    outer, u = OuterMomentum(lambda: [weight], lr=0.8, momentum=0.5, nesterov=False), torch.zeros_like(weight)
    for n in range(1, 5):
        weight += torch.tensor([0.1 * n, -0.4], dtype=torch.float64)
        u = 0.5 * u + (slow - weight) / gamma
        slow = slow - 0.8 * gamma * u
        outer.step()
        torch.testing.assert_close(weight, slow, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize(("lr", "momentum"), [(0.0, 0.5), (-1.0, 0.5), (0.7, 1.0), (0.7, -0.1), (float("nan"), 0.5)])
def test_an_outer_step_of_no_length_is_refused(lr, momentum):
    with pytest.raises(ValueError, match="should be above 0"):
        OuterMomentum(lambda: [torch.zeros(1)], lr=lr, momentum=momentum)


@pytest.mark.worlds
def test_diloco_by_hand():
    """Four models with an AdamW of their own; every fourth step a Nesterov step of the anchor on their mean's way.

    Averaged every second step, and from the fifth step on.
    """
    more = {"data": {"name": "digits"}, "weight_decay": {"value": 0.0}}
    job = job_of("outer_momentum_of_workers", **more)
    steps = steps_of(job)
    model = job_of("outer_momentum_of_workers", **more).engine.model
    models = [[p.detach().clone().requires_grad_() for p in model.parameters()] for _ in range(4)]
    inner = [torch.optim.AdamW(weights, lr=0.005, weight_decay=0.0) for weights in models]
    names = [name for name, _ in model.named_parameters()]
    for number, micros in enumerate(job.dataset.train.steps(job.plan, 0, 0, job.placement, 0)):
        batches = list(micros)
        stepped(steps, number, [tuple(t.clone() for t in batch) for batch in batches])
        images, labels = (torch.cat(both) for both in zip(*batches, strict=True))
        gradients = []
        for worker, weights in enumerate(models):
            cut = slice(worker * 30, worker * 30 + 30)
            outputs = torch.func.functional_call(model, dict(zip(names, weights, strict=True)), images[cut])
            gradients.append(torch.autograd.grad(F.cross_entropy(outputs, labels[cut]), weights))
        if number < 4:
            gradients = [[torch.stack(of).mean(0) for of in zip(*gradients, strict=True)]] * 4
        elif number == 4:
            outer = outer_sgd(models[0], lr=0.7, momentum=0.9, nesterov=True)
        for weights, gradient, optimizer in zip(models, gradients, inner, strict=True):
            for weight, of in zip(weights, gradient, strict=True):
                weight.grad = of.clone()
            optimizer.step()
        if number >= 4 and (number + 1 - 4) % 2 == 0:
            mean = [torch.stack([w.detach() for w in of]).mean(0) for of in zip(*models, strict=True)]
            if (number + 1 - 4) % 4 == 0:
                take_outer_step(outer, mean)
            with torch.no_grad():
                for weights in models:
                    torch._foreach_copy_(weights, mean)
            with steps.parts["post_local_sgd"].shown():
                for mine, weight in zip(job.engine.model.parameters(), mean, strict=True):
                    torch.testing.assert_close(mine, weight, rtol=1e-9, atol=1e-11)


def test_what_is_kept_and_said():
    job = job_of("outer_momentum")
    weights = sum(p.numel() for p in job.engine.model.parameters())
    part = steps_of(job).parts["outer_momentum"]
    assert sum(t.numel() for t in part.kept()) == 2 * weights == job.run.methods["outer_momentum"].saved(2) * weights
    words = {beside.key: beside.words for beside in job.decided.beside}
    assert words["outer_momentum"] == (
        "outer momentum every 4 steps: Nesterov, lr 0.7, momentum 0.6; the last step has none"
    )
    of_workers = job_of("outer_momentum_of_workers", outer_momentum={"lr": 0.5, "momentum": 0}).decided
    assert of_workers.methods["outer_momentum"].words == (
        "outer momentum every 2 steps: lr 0.5, no momentum (lookahead), on the workers' mean, from step 5 on; the last "
        "step has none"
    )


@pytest.fixture(scope="module")
def engines(tmp_path_factory) -> Path:
    """Every inner optimizer in every engine, on two ranks."""
    directory = tmp_path_factory.mktemp("engines")
    for name, (optimizer, lr) in INNER.items():
        more = {"optimizer": optimizer, "lr": {"base": lr}, "epochs": 1, "precision": "fp32", "ema": None}
        written = recipe_of("outer_momentum", **more, max_grad_norm=1.0)
        (directory / f"{name}.yaml").write_text(yaml.safe_dump(written))
    ended = torchrun(2, "worlds.methods:train_in_engines", directory, "ddp", *SHARDED)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return directory


@pytest.mark.worlds
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("engine", SHARDED)
def test_any_optimizer_in_any_engine(engines, engine, inner):
    whole, sharded = (whole_model(state_at_end(engines / name / inner)) for name in ("ddp", engine))
    for name, tensor in whole.items():
        distance = (sharded[name] - tensor).double().norm()
        assert distance <= 2e-5 * max(tensor.double().norm(), 1e-3), name


def test_airbenchs_lookahead():
    """Jordan 2024: every five steps slow ← d·slow + (1 − d)·w and w ← slow, d = 0.95⁵·(t/T)³; at the end w ← slow."""
    section = {"every_steps": 5, "lr": 1, "end_lr": 1 - 0.95**5, "power": 3, "momentum": 0, "drop_rest": True}
    options = {"model": PLAIN["model"], "batch": PLAIN["batch"], "ema": None, "steps": 13, "epochs": None}
    options = {key: value for key, value in options.items() if value is not None}
    job = looking_ahead(section, **options)
    plain = looking_ahead(None, **options)
    steps, inner = steps_of(job), steps_of(plain)
    theirs = list(plain.engine.model.parameters())
    slow = [weight.detach().clone() for weight in theirs]
    total = job.plan.steps
    assert total % 5
    for number, micros in enumerate(job.dataset.train.steps(job.plan, 0, 0, job.placement, 0), start=1):
        batches = list(micros)
        stepped(steps, number - 1, [tuple(t.clone() for t in batch) for batch in batches])
        stepped(inner, number - 1, batches)
        with torch.no_grad():
            if number % 5 == 0:
                d = 0.95**5 * (number / total) ** 3
                for kept, weight in zip(slow, theirs, strict=True):
                    kept.lerp_(weight, 1 - d)
                    weight.copy_(kept)
            if number == total:
                moved = any(not torch.equal(kept, weight) for kept, weight in zip(slow, theirs, strict=True))
                assert moved, "nothing is left over"
                for kept, weight in zip(slow, theirs, strict=True):
                    weight.copy_(kept)
        for mine, weight in zip(job.engine.model.parameters(), theirs, strict=True):
            torch.testing.assert_close(mine, weight, rtol=1e-11, atol=1e-13)


def looking_ahead(section: dict[str, Any] | None, **more: Any) -> Any:
    written = {**recipe_of("outer_momentum"), **more, "outer_momentum": section}
    written.pop("epochs", None)
    return assemble(config.from_dict(written), torch.device("cpu"))


def test_words_of_a_lookahead_that_pulls_harder():
    section = {"every_steps": 5, "lr": 1, "end_lr": 0.25, "power": 3, "momentum": 0, "drop_rest": True}
    words = looking_ahead(section, steps=13).decided.methods["outer_momentum"].words
    assert words == (
        "outer momentum every 5 steps: lr 1 to 0.25 by power 3, no momentum (lookahead); the last 3 steps are dropped"
    )


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"power": 2}, "outer_momentum.power = 2 has no effect without outer_momentum.end_lr"),
        ({"lr": 1, "momentum": 0}, "outer_momentum.lr = 1 with outer_momentum.momentum = 0 leaves the weights"),
        ({"lr": 1, "end_lr": 1, "momentum": 0}, "outer_momentum.lr = 1 with outer_momentum.momentum = 0 leaves"),
    ],
)
def test_a_schedule_that_does_nothing_is_one_sentence(section, sentence):
    from largebatch.errors import UserError

    with pytest.raises(UserError, match=sentence):
        looking_ahead({"every_steps": 5, **section}, steps=13)

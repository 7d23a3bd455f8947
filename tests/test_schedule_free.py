"""Schedule-free against the authors' package, its equations written out by hand, and closed forms.

Worlds, engines and kills are in test_methods.py and test_kill_and_resume.py.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from beside import stepped, steps_of
from method_recipes import recipe_of

from largebatch.optim.schedule_free import ScheduleFree
from largebatch.recipes import config
from largebatch.run.assemble import assemble

RATES = [0.0, 0.02, 0.04, 0.06, *[0.08] * 6, 0.05, 0.09, 0.03]
CURVATURE = np.array([1.0, 4.0, 0.3])


def gradient(weights: Any) -> Any:
    return CURVATURE * weights - np.array([0.5, -1.0, 2.0])


def by_hand(beta: float, decay: float = 0.0) -> list[tuple[Any, Any]]:
    """x and y after every step of plain SGD, by the paper's equations on numbers, one after another."""
    z = x = np.array([1.0, -2.0, 0.5])
    found, largest, total = [], 0.0, 0.0
    for lr in RATES:
        y = (1 - beta) * z + beta * x
        z = z - lr * (gradient(y) + decay * y)
        largest = max(largest, lr)
        total += largest**2
        c = largest**2 / total if total else 0.0
        x = (1 - c) * x + c * z
        found.append((x, (1 - beta) * z + beta * x))
    return found


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("beta", [0.0, 0.6, 0.9])
def test_the_equations(beta, decay):
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    free = ScheduleFree(lambda: [weights.detach()], beta)
    sgd = torch.optim.SGD([weights], lr=1.0, weight_decay=decay)
    for lr, (x, y) in zip(RATES, by_hand(beta, decay), strict=True):
        sgd.param_groups[0]["lr"] = lr
        weights.grad = torch.from_numpy(gradient(weights.detach().numpy()))
        sgd.step()
        free.follow(lr)
        np.testing.assert_allclose(weights.detach().numpy(), y, rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(free.mean[0].numpy(), x, rtol=1e-13, atol=1e-15)


def test_without_beta_it_is_the_mean_of_plain_sgd():
    """Polyak 1990: with a constant lr x_t is the mean of z_1 ... z_t."""
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    free, plain, seen = ScheduleFree(lambda: [weights], 0.0), weights.clone(), []
    for _ in range(20):
        weights.sub_(0.1 * torch.from_numpy(gradient(weights.numpy())))
        free.follow(0.1)
        plain = plain - 0.1 * torch.from_numpy(gradient(plain.numpy()))
        seen.append(plain)
        torch.testing.assert_close(weights, plain, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(free.mean[0], torch.stack(seen).mean(0), rtol=1e-13, atol=1e-15)


@pytest.mark.skipif(not importlib.util.find_spec("schedulefree"), reason="the authors' package is not installed")
@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_authors_package(kind, warmup):
    import schedulefree

    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(64, 5, generator=generator, dtype=torch.float64)
    targets = torch.randn(64, 1, generator=generator, dtype=torch.float64)
    mine = torch.randn(5, 1, generator=generator, dtype=torch.float64).requires_grad_()
    theirs = mine.detach().clone().requires_grad_()
    if kind == "sgd":
        inner: Any = torch.optim.SGD([mine], lr=1.0, weight_decay=0.01)
        outside = schedulefree.SGDScheduleFree([theirs], lr=0.1, momentum=0.9, weight_decay=0.01, warmup_steps=warmup)
    else:
        inner = torch.optim.AdamW([mine], lr=1.0, betas=(0.0, 0.99), weight_decay=0.01)
        outside = schedulefree.AdamWScheduleFree(
            [theirs], lr=0.1, betas=(0.9, 0.99), weight_decay=0.01, warmup_steps=warmup, foreach=False
        )
    free = ScheduleFree(lambda: [mine.detach()], 0.9)
    outside.train()
    for step in range(25):
        lr = 0.1 * min(1.0, (step + 1) / warmup) if warmup else 0.1
        for optimizer, weights in ((inner, mine), (outside, theirs)):
            optimizer.zero_grad()
            F.mse_loss(inputs @ weights, targets).backward()
        inner.param_groups[0]["lr"] = lr
        inner.step()
        free.follow(lr)
        outside.step()
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
        outside.eval()
        torch.testing.assert_close(free.mean[0], theirs.detach(), rtol=1e-9, atol=1e-11)
        outside.train()


def job_of(**more: Any) -> Any:
    return assemble(config.from_dict(recipe_of("schedule_free", **more)), torch.device("cpu"))


def test_what_is_shown_and_kept_is_the_average():
    job = job_of()
    steps = steps_of(job)
    part = steps.parts["schedule_free"]
    for number, micros in enumerate(job.dataset.train.steps(job.plan, 0, 0, job.placement, 0)):
        stepped(steps, number, list(micros))
        if number == 8:
            break
    before = [p.detach().clone() for p in job.engine.model.parameters()]
    with part.shown():
        for weight, mean in zip(job.engine.model.parameters(), part.weights.mean, strict=True):
            assert torch.equal(weight, mean)
    assert all(torch.equal(p, b) for p, b in zip(job.engine.model.parameters(), before, strict=True))
    assert not all(torch.equal(m, b) for m, b in zip(part.weights.mean, before, strict=True))
    weights = sum(p.numel() for p in before)
    assert sum(t.numel() for t in part.kept()) == 2 * weights
    assert job.run.methods["schedule_free"].saved(2) == 1
    assert job.decided.methods["schedule_free"].words == (
        "schedule-free: gradients at 0.2·z + 0.8·x; the average x is judged and saved"
    )


def test_where_every_lr_was_zero_the_average_stays():
    weights = torch.tensor([1.0, -2.0], dtype=torch.float64)
    free = ScheduleFree(lambda: [weights], 0.9)
    free.follow(0.0)  # a warm-up from zero
    assert torch.equal(free.mean[0], weights)
    assert free.total == 0


@pytest.mark.parametrize("beta", [-0.1, 1.0, float("nan")])
def test_a_beta_that_averages_nothing_is_refused(beta):
    with pytest.raises(ValueError, match="should be at least 0 and below 1"):
        ScheduleFree(lambda: [torch.zeros(1)], beta)

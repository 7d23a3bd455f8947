"""What diagnose looks at where a loss is a mean over units that vary: the same mean."""

from __future__ import annotations

from pathlib import Path

import pytest
import texts
import torch
import torch.nn.functional as F

from largebatch.plan import batch
from largebatch.recipes import config
from largebatch.run.train import train
from largebatch.studies.diagnose import noise
from largebatch.studies.diagnose.opened import opened

CPU = torch.device("cpu")


@pytest.fixture
def trained(recipe) -> Path:
    changes = {
        "model": {"name": "bert", "layers": 1, "width": 8, "heads": 2, "positions": 32, "dropout": 0.0},
        "data": {"name": "text", "root": str(texts.shared_pack()), "length": 32},
    }
    run = config.load(recipe(**changes, steps=1, epochs=None))
    assert train(run, quiet=True).status == "finished"
    assert run.directory is not None
    return run.directory


def test_the_objective_is_the_mean_over_masked_tokens_and_has_a_hessian(trained):
    run = opened(trained, CPU, "fp64")
    sample = run.sample(40, 10)
    batches = list(sample.mine())
    with torch.no_grad():
        summed = sum(float(run.loss(batch)) for batch in batches)
    masked = sum(int((batch["labels"] >= 0).sum()) for batch in batches)
    assert masked != sample.examples * batches[0]["labels"].shape[1]
    objective = run.objective(sample)
    value, gradient = objective.check_deterministic()
    assert value == pytest.approx(summed / masked, rel=1e-12)
    generator = torch.Generator().manual_seed(0)
    v, w = (torch.randn(objective.parameters, dtype=torch.float64, generator=generator) for _ in range(2))
    product = objective.hessian_product(v)
    assert torch.dot(w, product).item() == pytest.approx(torch.dot(v, objective.hessian_product(w)).item(), rel=1e-8)
    begin, step = objective.weights(), 1e-5 * v / v.norm()
    ahead, behind = (objective.value_and_gradient(begin + sign * step)[1] for sign in (1, -1))
    objective.restore()
    torch.testing.assert_close((ahead - behind) / 2e-5, product / v.norm(), rtol=1e-4, atol=1e-6)
    assert gradient.norm() > 0


def test_the_noise_scale_by_hand(trained):
    """Σ (uᵢ/U)·‖gᵢ‖² over parts of uᵢ masked tokens, each part's gradient by plain autograd."""
    facts = noise.measure(trained, CPU, small=10, big=40, batches=2, hessian=True, precision="fp64")
    run = opened(trained, CPU, "fp64", augmented=True)
    plan = batch.resolve(
        dataset_size=len(run.dataset.train),
        global_batch_size=40,
        micro_batch_size=10,
        steps=2,
        seed=run.run.seed ^ 0x0153,
    )
    found = []
    for step in run.dataset.train.steps(plan, 0, 0, run.placement, plan.seed):
        gradients, units = [], []
        for part in step:
            units.append(int((part["labels"] >= 0).sum()))
            loss = F.cross_entropy(
                run.model(part["tokens"], part["positions"]).flatten(0, 1), part["labels"].flatten(), ignore_index=-100
            )
            weights = list(run.model.parameters())
            gradients.append(
                torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, materialize_grads=True)])
            )
        assert len(set(units)) > 1
        shares = torch.tensor(units, dtype=torch.float64) / sum(units)
        small = sum(share * g.square().sum() for share, g in zip(shares, gradients, strict=True)).item()
        whole = (shares[:, None] * torch.stack(gradients)).sum(0).square().sum().item()
        found.append(((40 * whole - 10 * small) / 30, (small - whole) / (1 / 10 - 1 / 40)))
    assert facts.gradient_square == pytest.approx(sum(square for square, _ in found) / 2)
    assert facts.variance_trace == pytest.approx(sum(trace for _, trace in found) / 2)

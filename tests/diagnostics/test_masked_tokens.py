"""What diagnose looks at where a loss is a mean over units that vary: the same mean; what it cannot is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import texts
import torch

from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.run.train import train
from largebatch.studies.diagnose import noise
from largebatch.studies.diagnose.opened import opened

CPU = torch.device("cpu")


@pytest.fixture
def trained(recipe) -> Path:
    changes = {
        "model": {"name": "bert", "layers": 1, "width": 8, "heads": 2, "positions": 32},
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


def test_the_noise_scale_is_refused_for_parts_are_no_means_of_one_another(trained):
    with pytest.raises(UserError, match="diagnose noise does not take a loss that is a mean over units that vary"):
        noise.measure(trained, CPU)

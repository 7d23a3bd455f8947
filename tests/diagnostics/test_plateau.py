"""The verdict on loss curves made for it: falling, rising, valley, saddle, minimum, noise, steps too short."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from largebatch.diagnostics.plateau import Seen, judge, stability_limit

STEPS = list(range(10, 610, 10))
STILL = [0.2 + 2.0 * math.exp(-step / 40) for step in STEPS]
VANISHING = [3.0 * math.exp(-step / 60) + 1e-4 for step in STEPS]
LASTING = [3.0 * math.exp(-step / 60) + 0.6 for step in STEPS]


def seen(losses=STILL, norms=VANISHING, **more) -> Seen:
    return Seen(STEPS, losses, norms, **more)


def descend(gradient, start, lr, steps, loss):
    """Gradient descent by hand: (losses, gradient norms, cosines)."""
    w, losses, norms, gradients = np.array(start, float), [], [], []
    for _ in range(steps):
        g = gradient(w)
        losses.append(loss(w))
        norms.append(float(np.linalg.norm(g)))
        gradients.append(g)
        w = w - lr * g
    cosines = [
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(gradients, gradients[1:], strict=False)
    ]
    return losses, norms, cosines


@pytest.mark.parametrize(
    ("verdict", "record"),
    [
        ("falling", seen(losses=[2.0 * math.exp(-step / 300) for step in STEPS])),
        ("rising", seen(losses=[0.5 + (step / 600) ** 4 for step in STEPS])),
        ("minimum", seen(largest=4.0, smallest=-0.001)),
        ("saddle", seen(largest=2.0, smallest=-2.0)),
        ("flat", seen()),
        ("valley", seen(norms=LASTING, alignments=[-0.8] * 60)),
        ("valley", seen(norms=LASTING, alignments=[-0.8] * 60, whole_gradient_norm=0.01)),
        ("valley", seen(norms=LASTING, stable_below=20.0, lr=0.1, curvature=19.0)),
        ("slow", seen(norms=LASTING, stable_below=20.0, lr=0.1, curvature=19.0, alignments=[0.0] * 60)),  # seen: no
        ("slow", seen(norms=LASTING, lr=8.0, curvature=30.0, alignments=[0.0] * 60)),  # LARS: nobody knows its limit
        ("decayed", seen(norms=LASTING, lr=1e-9, highest_lr=0.1, alignments=[0.5] * 60)),
        ("stopped", seen(norms=[30.0] + [1.0] * 59)),  # one record makes no large gradient
        ("noise", seen(norms=LASTING, whole_gradient_norm=0.02, alignments=[-0.15] * 60)),
        ("noise", seen(norms=LASTING, whole_gradient_norm=0.02)),
        ("slow", seen(norms=LASTING, alignments=[0.9] * 60, lr=1e-3, stable_below=2e3, curvature=1.0)),
        ("stopped", seen(norms=LASTING)),
        ("unknown", Seen(STEPS[:5], STILL[:5], VANISHING[:5])),
        ("unknown", Seen(range(12), [1.0, 0.3, 1.2, 0.4, 0.9, 0.2, 1.0, 0.5, 0.3, 1.1, 0.2, 0.6], VANISHING[:12])),
    ],
)  # fmt: skip
def test_the_verdict_on_cases_made_for_it(verdict, record):
    answer = judge(record)
    assert answer.verdict == verdict
    assert answer.sentence
    assert answer.evidence
    assert answer.advice


def test_the_lectures_saddle():
    """L = (1 − w1·w2)² from close to (0, 0), where both are equal and opposite: it creeps, and its Hessian says why."""
    losses, norms, cosines = descend(
        lambda w: np.array([-2 * w[1] * (1 - w[0] * w[1]), -2 * w[0] * (1 - w[0] * w[1])]),
        (1.0, -1.0), 0.05, 200, lambda w: (1 - w[0] * w[1]) ** 2,
    )  # fmt: skip
    answer = judge(Seen(range(200), losses, norms, cosines, largest=2.0, smallest=-2.0))
    assert answer.verdict == "saddle"
    assert answer.numbers["loss"] == pytest.approx(1.0, abs=1e-6)


def test_a_ravine_at_the_highest_rate():
    """η = 2/λ: across it the steps swing forever, along it, a million times flatter, next to nothing happens."""
    curvature = np.array([1e-6, 1.0])
    losses, norms, cosines = descend(
        lambda w: curvature * w, (1.0, 1.0), 2.0, 300, lambda w: float((curvature * w * w).sum() / 2)
    )
    limit = stability_limit(2.0)
    answer = judge(Seen(range(300), losses, norms, cosines, lr=2.0, stable_below=limit, curvature=1.0))
    assert answer.verdict == "valley"
    assert answer.numbers["alignment"] == pytest.approx(-1, abs=1e-4)
    assert limit == 1.0


def test_a_convex_bowl_is_a_minimum():
    losses, norms, cosines = descend(lambda w: 2 * w, (3.0, -1.0), 0.1, 300, lambda w: 0.3 + float(w @ w))
    answer = judge(Seen(range(300), losses, norms, cosines, largest=2.0, smallest=2.0, curvature=2.0))
    assert answer.verdict == "minimum"


def test_the_evidence_has_the_numbers():
    more = {"lr": 0.1, "stable_below": 20.0, "curvature": 19.0, "largest": 25.0, "smallest": -0.1}
    answer = judge(seen(norms=LASTING, alignments=[-0.8] * 60, **more))
    told = " ".join(answer.evidence)
    for words in (
        "stands still",
        "not small",
        "-0.80",
        "turn back",
        "where it is below 20",
        "-0.1 to 25",
        "none leads",
    ):
        assert words in told, words
    assert any("lr" in advice for advice in answer.advice)


@pytest.mark.worlds
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_up_to_which_curvature_the_steps_converge(momentum, nesterov):
    """Walked: just below the limit torch's SGD comes to rest on a quadratic, just above it does not."""
    limit = stability_limit(0.1, momentum, nesterov)
    for curvature, converges in ((0.99 * limit, True), (1.01 * limit, False)):
        w = torch.ones(1, dtype=torch.float64, requires_grad=True)
        sgd = torch.optim.SGD([w], lr=0.1, momentum=momentum, nesterov=nesterov and momentum > 0)
        for _ in range(3000):
            w.grad = curvature * w.detach()
            sgd.step()
        assert (abs(w.item()) < 1e-3) == converges


def test_a_loss_that_falls_by_less_than_a_fiftieth_stands_still():
    falling = [1.0 - 0.01 * step / 600 for step in STEPS]
    assert judge(seen(losses=falling)).numbers["moving"] == ""


def test_a_noisy_fall_is_seen_through_the_noise():
    rng = np.random.default_rng(0)
    noisy = [2.0 * math.exp(-step / 300) * math.exp(0.2 * rng.standard_normal()) for step in STEPS]
    assert judge(seen(losses=noisy)).verdict == "falling"

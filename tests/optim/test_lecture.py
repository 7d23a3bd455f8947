"""The lecture's optimizers against its formulas one number at a time, and on its ravine."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from largebatch.errors import UserError
from largebatch.optim import LectureAdagrad, LectureAdam, LectureRmsprop

FORMS = ["plain", "foreach", "fused"]
LRS = [0.0, 0.5, 1.0, 1.0, 0.1, 0.1]
SHAPES = [(3, 4), (5,), (2, 3, 2), (1,)]


def layers(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def gradients(step: int) -> list[torch.Tensor]:
    grads = layers(100 + step)
    if step < 2:
        grads[1][:2] = 0.0  # two elements get their first signal in the third step
    return grads


def adagrad(w: float, gs: list[float], lrs: list[float], decay: float) -> float:
    seen: list[float] = []
    for g, lr in zip(gs, lrs, strict=True):
        seen.append(g + decay * w)
        sigma = math.sqrt(sum(x**2 for x in seen) / len(seen))
        w = w - lr / sigma * seen[-1] if sigma > 0 else w
    return w


def rmsprop(w: float, gs: list[float], lrs: list[float], decay: float, alpha: float) -> float:
    sigma = 0.0
    for t, (g, lr) in enumerate(zip(gs, lrs, strict=True)):
        g = g + decay * w
        sigma = abs(g) if t == 0 else math.sqrt(alpha * sigma**2 + (1 - alpha) * g**2)
        w = w - lr / sigma * g if sigma > 0 else w
    return w


def adam(w: float, gs: list[float], lrs: list[float], decay: float, alpha: float, momentum: float) -> float:
    sigma = m = 0.0
    for t, (g, lr) in enumerate(zip(gs, lrs, strict=True)):
        g = g + decay * w
        sigma = abs(g) if t == 0 else math.sqrt(alpha * sigma**2 + (1 - alpha) * g**2)
        m = momentum * m - lr * g
        w = w + m / sigma if sigma > 0 else w
    return w


EVERY = {
    "adagrad": (lambda ps, **k: LectureAdagrad(ps, 1.0, **k), adagrad, {}),
    "rmsprop": (lambda ps, **k: LectureRmsprop(ps, 1.0, alpha=0.8, **k), rmsprop, {"alpha": 0.8}),
    "adam": (
        lambda ps, **k: LectureAdam(ps, 1.0, alpha=0.8, momentum=0.7, **k),
        adam,
        {"alpha": 0.8, "momentum": 0.7},
    ),
}


def run(make: Any, steps: int = len(LRS)) -> tuple[Any, list[torch.nn.Parameter]]:
    parameters = [torch.nn.Parameter(layer) for layer in layers(0)]
    optimizer = make(parameters)
    for step, lr in enumerate(LRS[:steps]):
        advance(optimizer, parameters, step, lr)
        for parameter, grad in zip(parameters, gradients(step), strict=True):
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, grad)
    return optimizer, parameters


def advance(optimizer: Any, parameters: list[torch.nn.Parameter], step: int, lr: float) -> None:
    for parameter, grad in zip(parameters, gradients(step), strict=True):
        parameter.grad = grad
    optimizer.param_groups[0]["lr"] = lr
    optimizer.step()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("name", EVERY)
def test_every_number_follows_the_slide(name, decay, form):
    make, formula, settings = EVERY[name]
    _, ends = run(lambda ps: make(ps, weight_decay=decay, form=form))
    for number, end in enumerate(ends):
        starts = layers(0)[number].flatten().tolist()
        grads = [gradients(step)[number].flatten().tolist() for step in range(len(LRS))]
        expected = [formula(w, [g[i] for g in grads], LRS, decay, **settings) for i, w in enumerate(starts)]
        torch.testing.assert_close(
            end.detach().flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-13
        )


@pytest.mark.parametrize("name", EVERY)
def test_foreach_equals_plain_bit_for_bit_states_included(name):
    make, _, _ = EVERY[name]
    (plain, these), (fast, those) = (
        run(lambda ps, form=form: make(ps, weight_decay=0.01, form=form)) for form in ("plain", "foreach")
    )
    for this, that in zip(these, those, strict=True):
        assert torch.equal(this, that)
        assert set(plain.state[this]) == {*type(plain).BUFFERS, "step"}
        for key, value in plain.state[this].items():
            assert torch.equal(value, fast.state[that][key])


@pytest.mark.parametrize("name", EVERY)
def test_a_saved_optimizer_continues_bit_for_bit(name):
    make, _, _ = EVERY[name]
    _, ends = run(make)
    half, parameters = run(make, steps=3)
    again = make(parameters)
    again.load_state_dict(copy.deepcopy(half.state_dict()))
    for step in range(3, len(LRS)):
        advance(again, parameters, step, LRS[step])
    for this, that in zip(parameters, ends, strict=True):
        assert torch.equal(this, that)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", EVERY)
def test_a_first_step_is_lr_long_and_what_has_no_gradient_stays(name, form):
    """No ε and no bias correction: η·sign(g). Where σ is 0 the step is 0, not 0/0."""
    make, _, _ = EVERY[name]
    moved, still = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(3))
    optimizer = make([moved, still], form=form)
    optimizer.param_groups[0]["lr"] = 0.5
    moved.grad = torch.tensor([1e-12, -7.0, 0.0])
    optimizer.step()
    assert moved.tolist() == pytest.approx([-0.5, 0.5, 0.0])
    assert torch.equal(still, torch.zeros(3))
    assert still not in optimizer.state


@pytest.mark.parametrize("form", FORMS)
def test_tensors_that_missed_a_step_count_their_own(form):
    """The mean is over the gradients a tensor has had: 1 and 3 give σ = √5, whenever they came."""
    early, late = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = LectureAdagrad([early, late], 1.0, form=form)
    for of_early, of_late in ((1.0, None), (3.0, 1.0), (3.0, 3.0)):
        early.grad = torch.tensor([of_early])
        late.grad = None if of_late is None else torch.tensor([of_late])
        optimizer.step()
    assert late.item() == pytest.approx(-1 - 3 / math.sqrt(5))
    assert early.item() == pytest.approx(-1 - 3 / math.sqrt(5) - 3 / math.sqrt(19 / 3))


def test_torchs_adagrad_divides_by_the_sum():
    """What the docstring says of it: with η·√(t+1) torch's steps are the lecture's."""
    w, v = torch.nn.Parameter(torch.zeros(4).double()), torch.nn.Parameter(torch.zeros(4).double())
    ours, theirs = LectureAdagrad([w], 0.1), torch.optim.Adagrad([v], 0.1, eps=0.0)
    for step in range(5):
        w.grad = torch.randn(4, generator=torch.Generator().manual_seed(step)).double()
        v.grad = w.grad.clone()
        theirs.param_groups[0]["lr"] = 0.1 * math.sqrt(step + 1)
        ours.step()
        theirs.step()
    torch.testing.assert_close(w, v, rtol=1e-12, atol=0)


X = [338.0, 333.0, 328.0, 207.0, 226.0, 25.0, 179.0, 60.0, 208.0, 606.0]
Y = [640.0, 633.0, 619.0, 393.0, 428.0, 27.0, 193.0, 66.0, 226.0, 1591.0]


@pytest.mark.worlds
def test_the_rms_form_reaches_the_ravines_optimum():
    """optimizer_v4, slide 12: the sum of (y − b − w·x)² from (−120, −4), η = 0.1: within 1e-3 after 29,512 updates."""
    n, sx, sy = len(X), sum(X), sum(Y)
    sxx, sxy = sum(x * x for x in X), sum(x * y for x, y in zip(X, Y, strict=True))
    slope = (n * sxy - sx * sy) / (n * sxx - sx * sx)
    optimum = ((sy - slope * sx) / n, slope)
    assert optimum == (pytest.approx(-188.43320, abs=5e-6), pytest.approx(2.669455, abs=5e-7))
    theta = torch.nn.Parameter(torch.tensor([-120.0, -4.0], dtype=torch.float64))
    grad = theta.grad = torch.zeros_like(theta)
    optimizer = LectureAdagrad([theta], 0.1, form="plain")
    away = math.inf
    for update in range(1, 30_001):
        b, w = theta.tolist()
        grad[0], grad[1] = 2 * (n * b + w * sx - sy), 2 * (b * sx + w * sxx - sxy)
        optimizer.step()
        before, away = away, abs(theta[0].item() - optimum[0])
        if update == 29_512:
            assert away <= 1e-3 < before
    assert away < 1e-3
    assert theta[1].item() == pytest.approx(optimum[1], abs=1e-5)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: LectureRmsprop([p], 0.1, alpha=1.0), "alpha = 1.0 in parameter group 0; it must be at least 0 and"),
        (lambda p: LectureAdam([p], 0.1, alpha=-0.1), "alpha = -0.1 in parameter group 0; it must be at least 0 and"),
        (lambda p: LectureAdam([p], 0.1, momentum=1.0), "momentum = 1.0 in parameter group 0; it must be below 1"),
        (lambda p: LectureAdagrad([p], -0.1), "lr = -0.1 in parameter group 0; it must be at least 0"),
    ],
)
def test_bad_settings_are_one_sentence(make, sentence):
    with pytest.raises(UserError) as told:
        make(torch.nn.Parameter(torch.ones(1)))
    assert sentence in str(told.value)

"""Akiba's optimizer against its formula one number at a time, its limits against torch's, and the ramp's values."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from largebatch.errors import UserError
from largebatch.optim import RmspropSgd, sgd_share

FORMS = ["plain", "foreach", "fused"]
LRS = [0.5, 0.5, 0.0, 1.0, 0.1, 0.1]
SHARES = [0.01, 0.2, 0.5, 0.7, 1.3, 1.0]  # 1.3 is the ramp as printed
SHAPES = [(3, 4), (5,), (2, 3, 2), (1,)]


def layers(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def one_number(
    w: float, gs: list[float], lrs: list[float], shares: list[float],
    mu1: float, mu2: float, eps: float, lr_rms: float, decay: float,
) -> float:  # fmt: skip
    s = delta = 0.0
    for g, lr, share in zip(gs, lrs, shares, strict=True):
        g = g + decay * w
        s = mu2 * s + (1 - mu2) * g**2
        rms = (1 - share) * lr_rms / lr if lr > 0 else 0.0
        delta = mu1 * delta - (share + rms / (math.sqrt(s) + eps)) * g
        w = w + lr * delta
    return w


def run(make: Any, lrs: list[float] = LRS, shares: list[float] = SHARES) -> tuple[Any, list[torch.nn.Parameter]]:
    parameters = [torch.nn.Parameter(layer) for layer in layers(0)]
    optimizer = make(parameters)
    for step, (lr, share) in enumerate(zip(lrs, shares, strict=True)):
        for parameter, grad in zip(parameters, layers(100 + step), strict=True):
            parameter.grad = grad
        for group in optimizer.param_groups:
            group["lr"], group["sgd_share"] = lr, share
        optimizer.step()
        for parameter, grad in zip(parameters, layers(100 + step), strict=True):
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, grad)
    return optimizer, parameters


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_every_number_follows_the_formula(decay, form):
    settings = {"momentum": 0.8, "decay": 0.95, "eps": 1e-3, "rmsprop_lr": 0.02}
    _, ends = run(lambda ps: RmspropSgd(ps, 1.0, weight_decay=decay, form=form, **settings))
    for number, end in enumerate(ends):
        starts = layers(0)[number].flatten().tolist()
        grads = [layers(100 + step)[number].flatten().tolist() for step in range(len(LRS))]
        expected = [
            one_number(w, [g[i] for g in grads], LRS, SHARES, 0.8, 0.95, 1e-3, 0.02, decay)
            for i, w in enumerate(starts)
        ]
        torch.testing.assert_close(
            end.detach().flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0
        )


def test_the_defaults_are_the_published_ones():
    group = RmspropSgd([torch.nn.Parameter(torch.ones(1))], 0.1).param_groups[0]
    published = {"momentum": 0.9, "decay": 0.99, "eps": 1e-8, "rmsprop_lr": 3e-4}
    assert {key: group[key] for key in published} == published


def test_foreach_equals_plain_bit_for_bit_states_included():
    (plain, these), (fast, those) = (
        run(lambda ps, form=form: RmspropSgd(ps, 1.0, weight_decay=0.01, form=form)) for form in ("plain", "foreach")
    )
    for this, that in zip(these, those, strict=True):
        assert torch.equal(this, that)
        assert set(plain.state[this]) == {"momentum_buffer", "square_average"}
        for key, value in plain.state[this].items():
            assert torch.equal(value, fast.state[that][key])


def test_at_share_one_it_is_torchs_sgd_at_any_lr():
    ones = [1.0] * len(LRS)
    _, ours = run(lambda ps: RmspropSgd(ps, 1.0, weight_decay=0.01, rmsprop_lr=7.0), shares=ones)
    _, theirs = run(lambda ps: torch.optim.SGD(ps, 1.0, 0.9, weight_decay=0.01), shares=ones)
    for this, that in zip(ours, theirs, strict=True):
        torch.testing.assert_close(this, that, rtol=1e-12, atol=0)


def test_at_share_zero_and_one_lr_it_is_torchs_rmsprop_with_its_own_lr():
    zeros, lrs = [0.0] * len(LRS), [0.25] * len(LRS)
    _, ours = run(lambda ps: RmspropSgd(ps, 1.0, weight_decay=0.01, rmsprop_lr=0.03), lrs, zeros)
    _, theirs = run(
        lambda ps: torch.optim.RMSprop(ps, 1.0, alpha=0.99, eps=1e-8, momentum=0.9, weight_decay=0.01),
        [0.03] * len(LRS),
        zeros,
    )
    for this, that in zip(ours, theirs, strict=True):
        torch.testing.assert_close(this, that, rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_at_lr_zero_nothing_moves_and_the_states_go_on(form):
    optimizer, ends = run(lambda ps: RmspropSgd(ps, 1.0, form=form), [0.0] * 2, [0.25] * 2)
    for end, start, first, second in zip(ends, layers(0), layers(100), layers(101), strict=True):
        assert torch.equal(end, start)
        state = optimizer.state[end]
        torch.testing.assert_close(state["momentum_buffer"], -0.25 * (0.9 * first + second))
        torch.testing.assert_close(state["square_average"], 0.01 * (0.99 * first**2 + second**2))


@pytest.mark.parametrize("form", FORMS)
def test_an_element_without_gradient_and_a_tensor_without_one_stay(form):
    moved, still = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = RmspropSgd([moved, still], 0.1, sgd_share=0.5, form=form)
    moved.grad = torch.tensor([1.0, 0.0])
    optimizer.step()
    assert moved[0] < 1
    assert moved[1] == 1
    assert torch.equal(still, torch.ones(2))
    assert still not in optimizer.state


def test_a_saved_optimizer_continues_bit_for_bit():
    whole, ends = run(lambda ps: RmspropSgd(ps, 1.0))
    half, parameters = run(lambda ps: RmspropSgd(ps, 1.0), LRS[:3], SHARES[:3])
    again = RmspropSgd(parameters, 1.0)
    again.load_state_dict(copy.deepcopy(half.state_dict()))
    for step in range(3, len(LRS)):
        for parameter, grad in zip(parameters, layers(100 + step), strict=True):
            parameter.grad = grad
        again.param_groups[0]["lr"], again.param_groups[0]["sgd_share"] = LRS[step], SHARES[step]
        again.step()
    for this, that in zip(parameters, ends, strict=True):
        assert torch.equal(this, that)
        assert torch.equal(again.state[this]["square_average"], whole.state[that]["square_average"])


@pytest.mark.parametrize(
    ("epoch", "smooth", "printed"),
    [
        (0, 0.009158, 0.009158),
        (5, 0.067668, 0.067668),
        (10, 0.5, 0.5),
        (11, 0.7, 0.9),
        (12, 0.9, 1.3),
        (12.5, 1.0, 1.0),
        (90, 1.0, 1.0),
    ],
)
def test_the_ramps_values(epoch, smooth, printed):
    assert sgd_share(epoch) == pytest.approx(smooth, abs=5e-7)
    assert sgd_share(epoch, printed=True) == pytest.approx(printed, abs=5e-7)


def test_the_smooth_ramp_has_no_jump_and_the_printed_one_falls_from_one_and_a_half():
    for corner in (4.0, 5.0):  # centre 4, period 2
        assert sgd_share(corner - 1e-9, 4.0, 2.0) == pytest.approx(sgd_share(corner, 4.0, 2.0), abs=1e-8)
    assert sgd_share(5.0 - 1e-9, 4.0, 2.0, printed=True) == pytest.approx(1.5, abs=1e-8)
    assert sgd_share(5.0, 4.0, 2.0, printed=True) == 1.0


def one(**settings: Any) -> RmspropSgd:
    return RmspropSgd([torch.nn.Parameter(torch.ones(1))], 0.1, **settings)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: one(decay=1.0), "decay = 1.0 in parameter group 0; it must be at least 0 and below 1"),
        (lambda: one(eps=0.0), "eps = 0.0 in parameter group 0; it must be above 0"),
        (lambda: one(rmsprop_lr=-1.0), "rmsprop_lr = -1.0 in parameter group 0; it must be at least 0"),
        (lambda: one(sgd_share=math.nan), "sgd_share = nan in parameter group 0; it must be at least 0"),
        (lambda: one(momentum=1.0), "momentum = 1.0 in parameter group 0; it must be below 1"),
        (
            lambda: RmspropSgd([{"params": [torch.ones(1)], "momentum_correction": True}], 0.1),
            "momentum_correction needs the lr inside the buffer; RmspropSgd has it outside",
        ),
        (lambda: sgd_share(1.0, period=0.0), "period = 0.0 of the SGD share must be above 0"),
    ],
)
def test_bad_settings_are_one_sentence(make, sentence):
    with pytest.raises(UserError) as told:
        make()
    assert sentence in str(told.value)

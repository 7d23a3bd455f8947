"""Every optimizer against the oracle in float64, its two forms against each other, and installed peers."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from optim import oracle

from largebatch.errors import UserError
from largebatch.optim import HeavyBall, Lamb, Lars
from largebatch.optim.lars import VARIANTS

FORMS = ["plain", "foreach", "fused"]
LRS = [0.0, 0.5, 1.0, 1.0, 0.1, 0.1]  # a warm-up from zero, a plateau, a drop
SHAPES = [(3, 4), (5,), (2, 3, 2), (1,)]


def layers(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    made[3].zero_()  # a zero-initialised bias
    return made


def gradients(steps: int = len(LRS)) -> list[list[torch.Tensor]]:
    made = [layers(seed=100 + step) for step in range(steps)]
    for step, grads in enumerate(made):
        grads[3].fill_(0.3)  # the zero bias gets a direction
        if step == 2:
            grads[1].zero_()  # one layer gets no gradient signal in one step
    return made


def run(make: Any, steps: int = len(LRS), lrs: list[float] = LRS) -> list[torch.Tensor]:
    parameters = [torch.nn.Parameter(layer) for layer in layers()]
    optimizer = make(parameters)
    for grads, lr in zip(gradients(steps), lrs, strict=True):
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad.clone()
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        for parameter, grad in zip(parameters, grads, strict=True):
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, grad), "p.grad is bit-identical after the step"
    return [parameter.detach() for parameter in parameters]


def by_oracle(formula: Any, **settings: Any) -> list[torch.Tensor]:
    ends = []
    for number, layer in enumerate(layers()):
        gs = [grads[number].flatten().tolist() for grads in gradients()]
        ends.append(torch.tensor(formula(layer.flatten().tolist(), gs, LRS, **settings)).view_as(layer))
    return ends


def assert_close(these: list[torch.Tensor], those: list[torch.Tensor], rtol: float = 1e-12) -> None:
    for this, that in zip(these, those, strict=True):
        torch.testing.assert_close(this, that.double(), rtol=rtol, atol=1e-13)


@pytest.fixture(autouse=True)
def double_precision() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("nesterov", [False, True])
def test_heavy_ball_is_the_lectures_formula(nesterov, form):
    ends = run(lambda ps: HeavyBall(ps, 1.0, 0.9, 0.01, nesterov=nesterov, form=form))
    assert_close(ends, by_oracle(oracle.heavy_ball, momentum=0.9, decay=0.01, nesterov=nesterov))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("variant", "nesterov", "eps", "adapt", "largest"),
    [(v, n, e, True, None) for v, n, e in itertools.product(VARIANTS, [False, True], [0.0, 1e-3])]
    + [(v, False, 0.0, False, None) for v in VARIANTS]
    + [(v, False, 0.0, True, 0.02) for v in VARIANTS],
)
def test_every_lars_variant_is_its_row_of_the_table(variant, nesterov, eps, adapt, largest, form):
    settings = {"momentum": 0.9, "nesterov": nesterov, "eps": eps, "variant": variant}

    def make(parameters: Any) -> Lars:
        groups = [{"params": parameters, "adapt": adapt}]
        return Lars(
            groups,
            1.0,
            weight_decay=0.01,
            trust_coefficient=0.05,
            max_trust_ratio=largest,
            form=form,
            **settings,
        )

    expected = by_oracle(oracle.lars, decay=0.01, eta=0.05, adapt=adapt, largest=largest, **settings)
    assert_close(run(make), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("adapt", [False, True])
@pytest.mark.parametrize("largest", [None, 1.5])
def test_lamb_is_algorithm_2(corrected, adapt, largest, form):
    def make(parameters: Any) -> Lamb:
        groups = [{"params": parameters, "adapt": adapt}]
        return Lamb(groups, 1.0, weight_decay=0.1, bias_correction=corrected, max_weight_norm=largest, form=form)

    expected = by_oracle(
        oracle.lamb,
        beta1=0.9,
        beta2=0.999,
        eps=1e-6,
        decay=0.1,
        corrected=corrected,
        adapt=adapt,
        largest=largest,
    )
    assert_close(run(make), expected, rtol=1e-10)


def every_optimizer() -> dict[str, Any]:
    return {
        "heavy_ball": lambda ps, **k: HeavyBall(ps, 1.0, 0.9, 0.01, momentum_correction=True, **k),
        "lamb": lambda ps, **k: Lamb(ps, 1.0, weight_decay=0.1, **k),
        **{f"lars {v}": lambda ps, v=v, **k: Lars(ps, 1.0, 0.9, 0.01, 0.05, variant=v, **k) for v in VARIANTS},
    }


@pytest.mark.parametrize("name", every_optimizer())
def test_foreach_equals_plain_bit_for_bit_states_included(name):
    make = every_optimizer()[name]
    optimizers = []

    def remembered(**form: Any) -> Any:
        def build(parameters: Any) -> Any:
            optimizers.append(make(parameters, **form))
            return optimizers[-1]

        return build

    plain, fast = run(remembered(form="plain")), run(remembered(form="foreach"))
    for this, that in zip(plain, fast, strict=True):
        assert torch.equal(this, that)
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    for index, state in states[0].items():
        for key, value in state.items():
            other = states[1][index][key]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


@pytest.mark.parametrize("name", every_optimizer())
def test_a_saved_optimizer_continues_bit_for_bit(name):
    make = every_optimizer()[name]
    whole = run(lambda ps: make(ps))
    parameters = [torch.nn.Parameter(layer) for layer in layers()]
    optimizer = make(parameters)
    for step, (grads, lr) in enumerate(zip(gradients(), LRS, strict=True)):
        if step == 3:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = make(parameters)
            optimizer.load_state_dict(saved)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad.clone()
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
    for this, that in zip(whole, parameters, strict=True):
        assert torch.equal(this, that)


def test_the_two_denominators_of_one_vector():
    """The test vector of the correctness matrix: g orthogonal to w, wd 0.1, eta 0.001."""
    for variant, expected in (("you2017", 0.00333333333), ("vissl", 0.00447213595)):
        w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        w.grad = torch.tensor([0.8, -0.6])
        Lars([w], 1.0, 0.0, 0.1, 0.001, variant=variant).step()
        step = torch.tensor([3.0, 4.0]) - w.detach()
        full = torch.tensor([0.8, -0.6]) + 0.1 * torch.tensor([3.0, 4.0])
        torch.testing.assert_close(step / full, torch.full((2,), expected), rtol=1e-8, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_momentum_correction_is_goyals_example(form):
    """m = 0.9, g = 1, settled at lr 0.1, then a jump to 3.2: v = 32.0 corrected, 4.1 not."""
    for corrected, expected in ((True, 32.0), (False, 4.1)):
        w = torch.nn.Parameter(torch.zeros(1))
        optimizer = HeavyBall([w], 0.1, 0.9, momentum_correction=corrected, form=form)
        for lr in [0.1] * 400 + [3.2]:
            w.grad = torch.ones(1)
            optimizer.param_groups[0]["lr"] = lr
            before = w.item()
            optimizer.step()
        assert before - w.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.worlds
def test_a_tenfold_drop_moves_the_inside_form_by_nine_times_more():
    def first_step_after(optimizer: torch.optim.Optimizer, w: torch.nn.Parameter) -> float:
        for lr in [1.0] * 400 + [0.1]:
            w.grad = torch.ones(1)
            optimizer.param_groups[0]["lr"] = lr
            before = w.item()
            optimizer.step()
        return before - w.item()

    w = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    outside = first_step_after(torch.optim.SGD([w[0]], 1.0, 0.9), w[0])
    assert first_step_after(HeavyBall([w[1]], 1.0, 0.9), w[1]) / outside == pytest.approx(9.1, rel=1e-6)
    corrected = first_step_after(HeavyBall([w[2]], 1.0, 0.9, momentum_correction=True), w[2])
    assert corrected / outside == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_corrected_heavy_ball_is_torchs_sgd_at_every_lr(nesterov):
    lrs = [0.3, 0.5, 1.0, 1.0, 0.1, 0.1]  # above zero: at zero the inside buffer forgets, torch's does not
    ours = run(lambda ps: HeavyBall(ps, 1.0, 0.9, 0.01, nesterov=nesterov, momentum_correction=True), lrs=lrs)
    peer = run(lambda ps: torch.optim.SGD(ps, 1.0, 0.9, weight_decay=0.01, nesterov=nesterov), lrs=lrs)
    assert_close(ours, peer)


def test_lars_timm_is_timms_lars():
    from timm.optim.lars import Lars as TimmLars

    def theirs(parameters: Any) -> Any:
        optimizer = TimmLars(parameters, 1.0, momentum=0.9, weight_decay=0.01, trust_coeff=0.05, eps=1e-8)
        step = optimizer.step

        def keeping_gradients() -> None:
            kept = [p.grad.clone() for p in parameters]
            step()
            for parameter, grad in zip(parameters, kept, strict=True):
                parameter.grad = grad  # timm's form edits p.grad

        optimizer.step = keeping_gradients  # type: ignore[method-assign]
        return optimizer

    ours = run(lambda ps: Lars(ps, 1.0, 0.9, 0.01, 0.05, eps=1e-8, variant="timm"))
    assert_close(ours, run(theirs))


def test_lamb_is_timms_lamb_without_its_hidden_clip():
    from timm.optim.lamb import Lamb as TimmLamb

    def theirs(parameters: Any) -> Any:
        return TimmLamb(parameters, 1.0, weight_decay=0.1, eps=1e-6, max_grad_norm=None, grad_averaging=True)

    assert_close(run(lambda ps: Lamb(ps, 1.0, weight_decay=0.1)), run(theirs), rtol=1e-10)


@pytest.mark.parametrize("name", every_optimizer())
@pytest.mark.parametrize("form", FORMS)
def test_parameters_without_gradient_or_without_elements_are_left_alone(name, form):
    moved, still, empty = (torch.nn.Parameter(t) for t in (torch.ones(2), torch.ones(2), torch.ones(0)))
    optimizer = every_optimizer()[name]([moved, still, empty], form=form)
    moved.grad, empty.grad = torch.ones(2), torch.ones(0)
    optimizer.step()
    assert (moved != 1).all()
    assert (still == 1).all()
    assert still not in optimizer.state


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: Lars([p], -0.1), "lr = -0.1 in parameter group 0; it must be at least 0"),
        (lambda p: Lars([p], 0.1, momentum=1.0), "momentum = 1.0 in parameter group 0; it must be below 1"),
        (
            lambda p: Lars([p], 0.1, trust_coefficient=-1),
            "trust_coefficient = -1 in parameter group 0; it must be above 0",
        ),
        (lambda p: Lars([p], 0.1, variant="you217"), "'you217' is not known; did you mean you2017"),
        (
            lambda p: Lars([p], 0.1, variant="timm", momentum_correction=True),
            "needs the lr inside the buffer",
        ),
        (lambda p: Lamb([p], 0.1, beta2=1.0), "beta2 = 1.0 in parameter group 0; it must be below 1"),
        (
            lambda p: HeavyBall([p], 0.1, weight_decay=-1),
            "weight_decay = -1 in parameter group 0; it must be at least 0",
        ),
    ],
)
def test_bad_settings_are_one_sentence(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make(torch.nn.Parameter(torch.ones(1)))


def test_sparse_gradients_are_refused():
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(UserError, match="Lamb takes dense gradients"):
        Lamb(embedding.parameters(), 0.1).step()


@pytest.mark.worlds
def test_a_ratio_is_defined_where_a_norm_is_zero():
    from largebatch.optim.trust_ratio import trust_ratio

    weight, step = torch.tensor([0.0, 2.0, 0.0, 2.0]), torch.tensor([1.0, 0.0, 0.0, 4.0])
    assert trust_ratio(weight, step, coefficient=0.1).tolist() == pytest.approx([1, 1, 1, 0.05])
    assert trust_ratio(weight, step, largest=0.3).tolist() == pytest.approx([1, 1, 1, 0.3])
    assert not math.isnan(trust_ratio(torch.tensor(0.0), torch.tensor(0.0)).item())

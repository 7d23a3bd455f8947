"""LAMB's named variants, the pre-clip, half precision, states, and what is refused."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from optim import oracle

from largebatch.errors import UserError
from largebatch.optim import HeavyBall, Lamb, Lars, Watch, parameter_groups, treatments

FORMS = ["plain", "foreach", "fused"]
SHAPES = {"weight": (4, 3), "bias": (4,)}
LRS = [0.0, 0.1, 0.2, 0.2, 0.02]


def tensors(seed: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES.values()]


def run(make: Any, dtype: torch.dtype = torch.float64, steps: int = len(LRS)) -> tuple[Any, list[torch.nn.Parameter]]:
    parameters = [torch.nn.Parameter(tensor) for tensor in tensors(0, dtype)]
    groups = [{"params": parameters[:1], "weight_decay": 0.1}, {"params": parameters[1:], "weight_decay": 0.0}]
    optimizer = make(groups)
    for step, lr in enumerate(LRS[:steps]):
        for parameter, grad in zip(parameters, tensors(step + 1, dtype), strict=True):
            parameter.grad = grad
        before = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(parameters, before, strict=True) if p.grad is not None)
    return optimizer, parameters


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("variant", "corrected", "bias_is_adapted", "bounds"),
    [
        ("you2019", True, True, (0.0, math.inf)),
        ("apex", True, False, (0.0, math.inf)),
        ("nus", False, False, (0.0, math.inf)),
        ("deepspeed", False, True, (0.01, 0.3)),
    ],
)
def test_each_lamb_is_its_row_of_the_table(variant, corrected, bias_is_adapted, bounds, form):
    _, ends = run(lambda groups: Lamb(groups, 0.1, variant=variant, form=form))
    for number, (end, decay, adapt) in enumerate(zip(ends, (0.1, 0.0), (True, bias_is_adapted), strict=True)):
        gs = [tensors(step + 1)[number].flatten().tolist() for step in range(len(LRS))]
        start = tensors(0)[number].flatten().tolist()
        expected = oracle.lamb(start, gs, LRS, 0.9, 0.999, 1e-6, decay, corrected, adapt, None, bounds)
        torch.testing.assert_close(end.flatten().tolist(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("smallest", "largest"), [(None, 0.05), (0.2, None), (0.2, 0.2)])
def test_a_lamb_takes_bounds_of_its_own_and_says_where_they_decide(smallest, largest, form):
    """0.01 and 0.3 are left where a bound is not given; zero norms keep the ratio 1, as in DeepSpeed's kernel."""
    bounds = {"min_trust_ratio": smallest, "max_trust_ratio": largest}
    optimizer, ends = run(lambda groups: Lamb(groups, 0.1, variant="deepspeed", form=form, **bounds))
    for number, (end, decay) in enumerate(zip(ends, (0.1, 0.0), strict=True)):
        gs = [tensors(step + 1)[number].flatten().tolist() for step in range(len(LRS))]
        start = tensors(0)[number].flatten().tolist()
        both = (smallest or 0.01, largest or 0.3)
        expected = oracle.lamb(start, gs, LRS, 0.9, 0.999, 1e-6, decay, False, True, None, both)
        torch.testing.assert_close(end.flatten().tolist(), expected, rtol=1e-10, atol=1e-12)
    norms = torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([1e3, 5.0, 0.1, 1.0])
    group = {**optimizer.param_groups[0], "min_trust_ratio": 0.01, "max_trust_ratio": 0.3}
    assert optimizer.ratios(*norms, group).tolist() == pytest.approx([0.01, 0.2, 0.3, 1.0])
    assert optimizer.bounded(*norms, group).tolist() == [True, False, True, False]


@pytest.mark.parametrize("form", FORMS)
def test_the_global_norm_is_clipped_before_the_moments_as_in_apex_and_timm(form):
    from timm.optim.lamb import Lamb as TimmLamb

    _, ours = run(lambda groups: Lamb(groups, 0.1, variant="apex", max_grad_norm=1.0, form=form))
    _, unclipped = run(lambda groups: Lamb(groups, 0.1, variant="apex", form=form))

    parameters = [torch.nn.Parameter(tensor) for tensor in tensors(0)]
    groups = [{"params": parameters[:1], "weight_decay": 0.1}, {"params": parameters[1:], "weight_decay": 0.0}]
    peer = TimmLamb(groups, 0.1, max_grad_norm=1.0)
    for step, lr in enumerate(LRS):
        for parameter, grad in zip(parameters, tensors(step + 1), strict=True):
            parameter.grad = grad
        for group in peer.param_groups:
            group["lr"] = lr
        peer.step()
    for this, that, other in zip(ours, parameters, unclipped, strict=True):
        torch.testing.assert_close(this, that, rtol=1e-5, atol=1e-7)  # timm leaves out torch's 1e-6 beside the norm
        assert not torch.allclose(this, other, rtol=1e-3)


def every_half() -> dict[str, Any]:
    return {
        "heavy_ball": lambda g, **k: HeavyBall(g, 0.1, **k),
        "lars": lambda g, **k: Lars(g, 0.1, trust_coefficient=0.1, **k),
        "lamb": lambda g, **k: Lamb(g, 0.1, **k),
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", every_half())
def test_half_precision_keeps_float32_masters(name, dtype, form):
    """The master takes the float32 steps, the parameter is its rounding; without one small steps would be lost."""
    optimizer, halves = run(lambda g: every_half()[name](g, form=form), dtype)
    starts, masters = [tensor.float() for tensor in tensors(0, dtype)], []
    for start in starts:
        masters.append(torch.nn.Parameter(start))
    groups = [{"params": masters[:1], "weight_decay": 0.1}, {"params": masters[1:], "weight_decay": 0.0}]
    single = every_half()[name](groups, form="plain")
    for step, lr in enumerate(LRS):
        for master, grad in zip(masters, tensors(step + 1, dtype), strict=True):
            master.grad = grad.float()
        for group in single.param_groups:
            group["lr"] = lr
        single.step()
    for half, master in zip(halves, masters, strict=True):
        kept = optimizer.state[half]["master_weight"]
        assert kept.dtype == torch.float32
        torch.testing.assert_close(kept, master.detach(), rtol=1e-6, atol=1e-7)
        assert torch.equal(half, kept.to(dtype))


@pytest.mark.parametrize("name", every_half())
def test_half_precision_continues_bit_for_bit_from_its_state(name):
    """torch would round the masters and momenta to the parameter's type when it loads them."""
    make = every_half()[name]
    whole, ends = run(make, torch.bfloat16)
    half, parameters = run(make, torch.bfloat16, steps=3)
    again = make([{**g, "params": g["params"]} for g in half.param_groups])
    again.load_state_dict(copy.deepcopy(half.state_dict()))
    for step in (3, 4):
        for parameter, grad in zip(parameters, tensors(step + 1, torch.bfloat16), strict=True):
            parameter.grad = grad
        for group in again.param_groups:
            group["lr"] = LRS[step]
        again.step()
    for this, that in zip(parameters, ends, strict=True):
        assert torch.equal(this, that)
        for key, value in whole.state[that].items():
            assert torch.equal(again.state[this][key], value)
            assert again.state[this][key].dtype == value.dtype


def test_a_deep_copy_keeps_its_form_and_goes_on_alike():
    optimizer, parameters = run(lambda g: Lamb(g, 0.1, form="plain", max_grad_norm=2.0), steps=2)
    other, copies = copy.deepcopy((optimizer, parameters))
    assert (other.form, other.max_grad_norm) == ("plain", 2.0)
    for parameter, its_copy in zip(parameters, copies, strict=True):
        assert parameter.grad is not None
        its_copy.grad = parameter.grad.clone()  # torch's deep copy of a parameter leaves the gradient behind
    for both in (optimizer, other):
        both.step()
    for this, that in zip(parameters, copies, strict=True):
        assert torch.equal(this, that)


def fresh(**changes: Any) -> Lars:
    shape = changes.pop("shape", (2, 3))
    return Lars([torch.nn.Parameter(torch.ones(shape))], 0.1, **changes)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: fresh(eps=-1e-9), "eps = -1e-09 in parameter group 0; it must be at least 0"),
        (lambda: fresh(eps=math.nan), "eps = nan in parameter group 0"),
        (lambda: fresh(max_trust_ratio=0.0), "max_trust_ratio = 0.0 in parameter group 0; it must be above 0"),
        (lambda: Lars([{"params": [torch.ones(1)], "weight_decay": -1.0}], 0.1), "weight_decay = -1.0 in parameter"),
        (lambda: fresh(form="cuda"), "form = 'cuda' is not known; valid: auto, foreach, fused, plain"),
        (lambda: Lamb([torch.ones(1)], 0.1, variant="nvlamb"), "LAMB variant 'nvlamb' is not known"),
        (lambda: Lamb([torch.ones(1)], 0.1, variant="deepspeed", bias_correction=True), "has none inside of the ratio"),
        (
            lambda: Lamb([torch.ones(1)], 0.1, variant="deepspeed", min_trust_ratio=0.5),
            "group 0 is above max_trust_ratio = 0.3",
        ),
        (
            lambda: Lamb([torch.ones(1)], 0.1, max_trust_ratio=0.0),
            "max_trust_ratio = 0.0 in parameter group 0; it must be above 0",
        ),
        (lambda: Lamb([torch.ones(1)], 0.1, max_grad_norm=0.0), "max_grad_norm = 0.0 must be above 0"),
    ],
)
def test_bad_settings_are_one_sentence(make, sentence):
    with pytest.raises(UserError) as told:
        make()
    assert sentence in str(told.value)


def test_a_lamb_goes_on_from_a_state_of_before_it_had_bounds_of_the_ratio():
    _, ends = run(lambda groups: Lamb(groups, 0.1))
    half, parameters = run(lambda groups: Lamb(groups, 0.1), steps=3)
    older = copy.deepcopy(half.state_dict())
    for group in older["param_groups"]:
        del group["min_trust_ratio"], group["max_trust_ratio"]
    groups = [{**group, "params": group["params"]} for group in half.param_groups]
    again = Lamb([{k: v for k, v in group.items() if "trust" not in k} for group in groups], 0.1)
    again.load_state_dict(older)
    assert [group["min_trust_ratio"] for group in again.param_groups] == [None, None]
    for step in (3, 4):
        for parameter, grad in zip(parameters, tensors(step + 1), strict=True):
            parameter.grad = grad
        for group in again.param_groups:
            group["lr"] = LRS[step]
        again.step()
    assert all(torch.equal(one, other) for one, other in zip(parameters, ends, strict=True))


def test_a_state_of_another_model_or_optimizer_is_refused_and_nothing_changed():
    optimizer = fresh()
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2, 3)
    optimizer.step()
    kept = copy.deepcopy(optimizer.state_dict())
    other = Lamb([torch.nn.Parameter(torch.ones(2, 3))], 0.1)
    other.param_groups[0]["params"][0].grad = torch.ones(2, 3)
    other.step()
    larger = fresh(shape=(3, 3))
    larger.param_groups[0]["params"][0].grad = torch.ones(3, 3)
    larger.step()
    two = Lars([torch.nn.Parameter(torch.ones(2)) for _ in range(2)], 0.1)
    for state, sentence in (
        (
            other.state_dict(),
            "belongs to another optimizer: its parameter group 0 has no momentum, which Lars needs",
        ),
        (larger.state_dict(), r"another model: parameter 0 has momentum_buffer of shape \(3, 3\), here it is \(2, 3\)"),
        (two.state_dict(), r"belongs to another model: its parameter groups hold \[2\]"),
    ):
        with pytest.raises(UserError, match=sentence):
            optimizer.load_state_dict(state)
    now = optimizer.state_dict()
    assert torch.equal(now["state"][0]["momentum_buffer"], kept["state"][0]["momentum_buffer"])


def test_a_watch_sees_ratio_norms_and_shares():
    """Four layers of known norms: one adapted, one bounded, one without length, one excluded."""
    named = {
        "adapted": torch.nn.Parameter(torch.full((4,), 1.0)),
        "bounded": torch.nn.Parameter(torch.full((4,), 100.0)),
        "empty handed": torch.nn.Parameter(torch.zeros(4)),
        "excluded": torch.nn.Parameter(torch.full((4,), 3.0)),
    }
    *adapted, excluded = named.values()
    groups = [{"params": adapted, "names": list(named)[:3]}, {"params": [excluded], "adapt": False}]
    optimizer = Lars(groups, 0.5, momentum=0.0, trust_coefficient=0.1, max_trust_ratio=1.0)
    watch = Watch(named.items(), optimizer)
    for parameter in named.values():
        parameter.grad = torch.full((4,), 2.0)
    watch.before()
    optimizer.step()
    values = watch.after().read()
    assert values.trust_ratio == pytest.approx({"adapted": 0.05, "bounded": 1.0, "empty handed": 1.0})
    assert values.weight_norm == pytest.approx({"adapted": 2.0, "bounded": 200.0, "empty handed": 0.0, "excluded": 6.0})
    moved = {"adapted": 0.5 * 0.05 * 4, "bounded": 0.5 * 4, "empty handed": 0.5 * 4, "excluded": 0.5 * 4}
    assert values.update_norm == pytest.approx(moved, rel=1e-4)
    assert values.share_bounded == pytest.approx(1 / 3)
    assert values.share_fallback == pytest.approx(1 / 3)
    summary = values.summary()
    assert summary["trust_ratio_median"] == pytest.approx(1.0)
    assert summary["relative_update_max"] == pytest.approx(0.5 * 4 / 6)


def test_words_and_tables_that_do_not_fit_are_refused():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    with pytest.raises(UserError, match=r"weight_decay\.skip: 'norms' is none of .*; did you mean norm"):
        treatments(model, ("norms",), ())
    with pytest.raises(UserError, match="skip_adaptation = 'norm' is one word"):
        treatments(model, (), "norm")
    with pytest.raises(UserError, match=r"the table is of another model: this one has no 0\.weight"):
        parameter_groups(torch.nn.Linear(2, 2), 0.1, treatments(model, (), ()))
    with pytest.raises(UserError, match=r"Watch\.after\(\) without Watch\.before\(\)"):
        Watch(model.named_parameters(), torch.optim.SGD(model.parameters(), 0.1)).after()


def test_a_watch_of_an_optimizer_without_ratios_has_norms_alone():
    weight = torch.nn.Parameter(torch.ones(4))
    weight.grad = torch.ones(4)
    optimizer = torch.optim.SGD([weight], 0.5)
    watch = Watch([("weight", weight)], optimizer)
    watch.before()
    optimizer.step()
    values = watch.after().read()
    assert values.trust_ratio == {}
    assert values.share_bounded is None
    assert values.update_norm == pytest.approx({"weight": 1.0})
    assert values.summary()["relative_update_median"] == pytest.approx(0.5)


def twins(shapes: list[tuple[int, ...]], make: Any) -> list[tuple[Any, list[torch.nn.Parameter]]]:
    """The same weights in the form under test and in the plain one."""
    made = []
    for form in ("auto", "plain"):
        generator = torch.Generator().manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
        made.append(
            (make([{"params": parameters, "names": [f"layer {i}" for i in range(len(shapes))]}], form), parameters)
        )
    return made


def stepped(optimizer: Any, parameters: list[torch.nn.Parameter], seed: int, without: tuple[int, ...] = ()) -> None:
    generator = torch.Generator().manual_seed(seed)
    for number, parameter in enumerate(parameters):
        grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        parameter.grad = None if number in without else torch.empty_like(parameter).copy_(grad)
    optimizer.step()


BOTH = {"lars": lambda g, f: Lars(g, 0.1, trust_coefficient=0.1, form=f), "lamb": lambda g, f: Lamb(g, 0.1, form=f)}


@pytest.mark.parametrize("name", BOTH)
def test_what_is_kept_between_steps_follows_the_tensors(name):
    """Another memory format, another type, a gradient missing once, states cleared: as the plain form does it."""
    pair = twins([(4, 3, 3, 3), (5, 4), (6,)], BOTH[name])
    for optimizer, parameters in pair:
        stepped(optimizer, parameters, 1)
        parameters[0].data = parameters[0].data.to(memory_format=torch.channels_last)
        stepped(optimizer, parameters, 2)
        stepped(optimizer, parameters, 3, without=(1,))
        stepped(optimizer, parameters, 4)
        optimizer.state.clear()
        stepped(optimizer, parameters, 5)
        for parameter in parameters:
            parameter.data = parameter.data.double()
            optimizer.state[parameter] = {
                key: value.double() if value.dim() else value for key, value in optimizer.state[parameter].items()
            }
        stepped(optimizer, parameters, 6)
    for this, that in zip(pair[0][1], pair[1][1], strict=True):
        torch.testing.assert_close(this, that, rtol=2e-6, atol=1e-7)


@pytest.mark.worlds
@pytest.mark.parametrize("form", ["auto", "plain", "foreach"])
@pytest.mark.parametrize("name", BOTH)
def test_no_gradient_is_kept_alive(name, form):
    import gc
    import weakref

    parameters = [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(2))]
    optimizer = BOTH[name](parameters, form)
    stepped(optimizer, parameters, 1)
    alive = [weakref.ref(parameter.grad) for parameter in parameters]
    optimizer.zero_grad(set_to_none=True)
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


@pytest.mark.parametrize("form", FORMS)
def test_what_was_measured_is_of_the_last_step_alone(form):
    parameters = [torch.nn.Parameter(torch.ones(3, 2)) for _ in range(3)]
    optimizer = Lamb([{"params": parameters[:2]}, {"params": parameters[2:]}], 0.1, form=form)
    stepped(optimizer, parameters, 1)
    stepped(optimizer, parameters, 2, without=(0,))
    assert [name for _, names, _ in optimizer.measured for name in names] == ["parameter 1", "parameter 2"]
    optimizer.param_groups[1]["adapt"] = False
    stepped(optimizer, parameters, 3)
    assert [name for _, names, _ in optimizer.measured for name in names] == ["parameter 0", "parameter 1"]


def test_a_refused_group_is_not_left_behind():
    optimizer = fresh()
    with pytest.raises(UserError, match=r"weight_decay = -1\.0 in parameter group 1"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "weight_decay": -1.0})
    assert len(optimizer.param_groups) == 1

"""What torch promises of an optimizer, for every one of ours; from torch's own table of inputs where it is installed.

MEANT_TO_DIFFER names what ours leave out, with the reason; docs/optimizers.md says the same.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pool
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from largebatch.errors import UserError
from largebatch.optim import (
    HeavyBall,
    Lamb,
    Lars,
    LectureAdagrad,
    LectureAdam,
    LectureRmsprop,
    Muon,
    RmspropSgd,
    Watch,
)

MEANT_TO_DIFFER = {
    "maximize": "turn the sign of the loss",
    "differentiable": "a step is made in place, without a graph",
    "foreach": "form says it",
    "fused": "form says it",
    "capturable": "the fused form on CUDA is capturable with lr on the device",
    "amsgrad": "no published LARS or LAMB has it",
    "dampening": "no published LARS has it",
}
FORMS = ("plain", "foreach", "fused")
LAYERWISE: dict[str, Callable[..., Any]] = {
    "heavy_ball": HeavyBall, "lars": Lars, "lamb": Lamb, "rmsprop_sgd": RmspropSgd, "lecture_adagrad": LectureAdagrad,
    "lecture_rmsprop": LectureRmsprop, "lecture_adam": LectureAdam,
}  # fmt: skip


def others_of_muon(others: str) -> Callable[..., Any]:
    def make(params: Any, lr: Any = 0.1, **settings: Any) -> Muon:
        params = list(params)
        groups = params if params and isinstance(params[0], dict) else [{"params": params}]
        return Muon([{"muon": False, **group} for group in groups], lr, others=others, **settings)

    return make


def matrices(params: Any, lr: Any = 0.1, **settings: Any) -> Muon:
    """Matrices are Muon's, what has fewer dimensions is the others'."""
    params = list(params)
    if params and isinstance(params[0], dict):
        return Muon([{"muon": False, **group} for group in params], lr, **settings)
    groups = [{"params": [p for p in params if (p.dim() >= 2) is muon], "muon": muon} for muon in (True, False)]
    return Muon(groups, lr, **settings)


EVERY: dict[str, Callable[..., Any]] = {
    **{
        f"{name} {form}": lambda params, lr=0.1, make=make, form=form, **k: make(params, lr, form=form, **k)
        for name, make in LAYERWISE.items()
        for form in FORMS
    },
    "lamb clipped": lambda params, lr=0.1, **k: Lamb(params, lr, max_grad_norm=1.0, form="plain", **k),
    "lamb clipped foreach": lambda params, lr=0.1, **k: Lamb(params, lr, max_grad_norm=1.0, form="foreach", **k),
    "lamb clipped fused": lambda params, lr=0.1, **k: Lamb(params, lr, max_grad_norm=1.0, form="fused", **k),
    "lars nus": lambda params, lr=0.1, **k: Lars(params, lr, variant="nus", **k),
    "muon": matrices,
    "muon sgd": others_of_muon("sgd"),
    "muon adamw": others_of_muon("adamw"),
}
ONE_OF_EACH = [name for name in EVERY if "plain" not in name and "foreach" not in name]
every = pytest.mark.parametrize("name", EVERY)
each = pytest.mark.parametrize("name", ONE_OF_EACH)


def parameters(dtype: torch.dtype = torch.float32, shapes: Any = ((4, 3), (3,))) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]


def give_gradients(params: list[nn.Parameter], seed: int = 2) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in params:
        grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = torch.empty_like(parameter).copy_(grad)


def stepped(optimizer: Any, params: list[nn.Parameter], seeds: Any = (2, 3)) -> list[torch.Tensor]:
    for seed in seeds:
        give_gradients(params, seed)
        optimizer.step()
    return [parameter.detach().clone() for parameter in params]


def assert_same(these: list[torch.Tensor], those: list[torch.Tensor]) -> None:
    for this, that in zip(these, those, strict=True):
        assert torch.equal(this, that)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64])
def test_a_number_is_a_vector_of_one_and_an_empty_tensor_is_nothing(name, dtype):
    if name == "muon" and dtype is torch.complex64:
        pytest.skip("test_what_cannot_be_stepped_is_one_sentence")
    number, vector = parameters(dtype, [(), (2,)]), parameters(dtype, [(1,), (2,)])
    ends = [stepped(EVERY[name]([*ps, nn.Parameter(torch.ones(0))]), ps) for ps in (number, vector)]
    assert_same([end.view(-1) for end in ends[0]], ends[1])
    if dtype.itemsize > 2:  # half precision may round a step away
        for end, start in zip(ends[1], parameters(dtype, [(1,), (2,)]), strict=True):
            assert (end != start).all()


@every
def test_a_complex_parameter_is_its_real_and_imaginary_part(name):
    if name == "muon":
        pytest.skip("test_what_cannot_be_stepped_is_one_sentence")
    pair = nn.Parameter(torch.tensor([[3.0, 4.0], [1.0, -2.0]]))
    whole = nn.Parameter(torch.view_as_complex(pair.detach().clone()))
    optimizers = [EVERY[name]([parameter], weight_decay=0.1) for parameter in (pair, whole)]
    for step in (1.0, 2.0):
        pair.grad = step * torch.tensor([[0.5, -1.0], [2.0, 1.0]])
        whole.grad = torch.view_as_complex(pair.grad.clone())
        watch = Watch([("whole", whole)], optimizers[1])
        watch.before()
        weight_norm = pair.detach().norm().item()
        for optimizer in optimizers:
            optimizer.step()
        assert watch.after().read().weight_norm["whole"] == pytest.approx(weight_norm, rel=1e-6)
    torch.testing.assert_close(torch.view_as_real(whole.detach()), pair.detach())


@each
def test_an_empty_group_is_taken_and_groups_may_come_later(name):
    (early, late), (twin, twin_late) = parameters(), parameters()
    decays = {"weight_decay": 0.1}
    optimizer = EVERY[name]([{"params": [early], **decays}, {"params": [], "weight_decay": 0.0}])
    peer = EVERY[name]([{"params": [twin], **decays}])
    assert_same(stepped(optimizer, [early]), stepped(peer, [twin]))
    for each_of, parameter in ((optimizer, late), (peer, twin_late)):
        each_of.add_param_group({"params": [parameter], "lr": 0.02, "muon": False})
    assert_same(stepped(optimizer, [early, late]), stepped(peer, [twin, twin_late]))
    assert (late != parameters()[1]).all()


@each
def test_names_come_along_with_named_parameters(name):
    if name.startswith("muon"):
        pytest.skip("its groups come from muon_groups")
    model = nn.Linear(3, 2)
    optimizer = EVERY[name](model.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


@pytest.mark.worlds
@every
def test_a_learning_rate_may_be_a_tensor_and_a_scheduler_turns_it(name):
    ends = []
    for lr in (0.125, torch.tensor(0.125)):
        params = parameters()
        optimizer = EVERY[name](params, lr=lr)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        for seed in (2, 3, 4):
            stepped(optimizer, params, [seed])
            schedule.step()
        assert float(optimizer.param_groups[0]["lr"]) == 0.125 / 8
        ends.append([parameter.detach() for parameter in params])
    assert_same(*ends)


@pytest.mark.worlds
@each
def test_schedulers_turn_momentum_or_betas_or_say_that_there_is_none(name):
    """Never a number that nobody reads."""
    has_any = name.split()[0] not in ("lecture_adagrad", "lecture_rmsprop")
    ends = []
    for momenta in ((0.5, 0.9), (0.9, 0.9)):
        params = parameters(shapes=((4, 3), (3, 2)))
        optimizer = matrix_muon(params) if name == "muon" else EVERY[name](params)
        arguments: dict[str, Any] = {"base_momentum": momenta[0], "max_momentum": momenta[1], "cycle_momentum": True}
        if not has_any:
            with pytest.raises(ValueError, match="momentum"):
                torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 6, **arguments)
            return
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 6, **arguments)
        for seed in range(5):
            stepped(optimizer, params, [seed])
            schedule.step()
        ends.append(params[0].detach())
    if name in ("muon sgd", "muon adamw"):
        return  # momentum is that of its matrices; the others' is others_momentum
    assert not torch.equal(*ends)


def matrix_muon(params: list[nn.Parameter]) -> Muon:
    return Muon([{"params": params, "muon": True}], 0.1)


@each
def test_hooks_see_every_step_and_state_once(name):
    params = parameters()
    optimizer = EVERY[name](params)
    seen: list[str] = []
    kept = [
        optimizer.register_step_pre_hook(lambda *_: seen.append("before")),
        optimizer.register_step_post_hook(lambda *_: seen.append("after")),
        register_optimizer_step_pre_hook(lambda *_: seen.append("before any")),
        optimizer.register_state_dict_pre_hook(lambda _: seen.append("state")),
        optimizer.register_state_dict_post_hook(lambda _, state: state | {"more": 1}),
    ]
    stepped(optimizer, params, [2])
    assert seen == ["before any", "before", "after"]
    saved = optimizer.state_dict()
    assert (saved["more"], seen[-1]) == (1, "state")
    for hook in kept:
        hook.remove()


@each
def test_a_hook_may_mend_a_state_before_it_is_judged(name):
    """Another order of groups' tensors, as torch's documentation of named parameters does it."""
    params = parameters(shapes=((3,), (2,)))
    optimizer = EVERY[name](params)
    ends = stepped(optimizer, params)
    wrong = copy.deepcopy(optimizer.state_dict())
    wrong["state"] = {1 - number: state for number, state in wrong["state"].items()}
    twins = [nn.Parameter(end.clone()) for end in ends]
    again = EVERY[name](twins)
    with pytest.raises(UserError, match="belongs to another model"):
        again.load_state_dict(wrong)
    assert not again.state

    def mended(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "state": {1 - number: of_one for number, of_one in state["state"].items()}}

    seen: list[int] = []
    again.register_load_state_dict_pre_hook(mended)
    again.register_load_state_dict_post_hook(lambda o: seen.append(len(o.state)))
    again.load_state_dict(wrong)
    assert seen == [2]
    assert_same(stepped(optimizer, params), stepped(again, twins))


@pytest.mark.worlds
@each
@pytest.mark.parametrize("way", ["state", "deepcopy", "pickle", "file"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_goes_on_bit_for_bit(name, way, dtype):
    params = parameters(dtype, [(4, 3), (3,), ()])
    optimizer = EVERY[name](params)
    stepped(optimizer, params)
    if way == "deepcopy":
        other, twins = copy.deepcopy((optimizer, params))
    elif way == "pickle":
        other, twins = pickle.loads(pickle.dumps((optimizer, params)))
    else:
        twins = [nn.Parameter(parameter.detach().clone()) for parameter in params]
        other = EVERY[name](twins, lr=7.0)
        saved = copy.deepcopy(optimizer.state_dict())
        if way == "file":
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
        other.load_state_dict(saved)
    assert_same(stepped(optimizer, params), stepped(other, twins))
    for this, that in zip(params, twins, strict=True):
        for key, value in optimizer.state[this].items():
            assert torch.equal(other.state[that][key], value)
            assert other.state[that][key].dtype == value.dtype


def test_a_state_with_beta1_and_beta2_goes_on():
    """As they were kept once; groups may still say them."""
    params = parameters()
    optimizer = Lamb([{"params": params, "beta1": 0.5}], 0.1, beta2=0.9)
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.9)
    stepped(optimizer, params)
    saved = copy.deepcopy(optimizer.state_dict())
    [group] = saved["param_groups"]
    group["beta1"], group["beta2"] = group.pop("betas")
    again = Lamb(params, 0.1)
    again.load_state_dict(saved)
    assert again.param_groups[0]["betas"] == (0.5, 0.9)
    assert "beta1" not in again.param_groups[0]


@each
def test_a_closure_is_called_with_gradients_and_its_loss_returned(name):
    params = parameters()
    optimizer = EVERY[name](params)
    before = [parameter.detach().clone() for parameter in params]

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum((parameter**2).sum() for parameter in params)
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == pytest.approx(sum((b**2).sum().item() for b in before), rel=1e-6)
    assert all((p != b).any() for p, b in zip(params, before, strict=True))


@each
def test_without_gradients_a_step_does_nothing(name):
    params = parameters()
    optimizer = EVERY[name](params)
    assert optimizer.step() is None
    assert_same([p.detach() for p in params], [p.detach() for p in parameters()])
    assert not any(optimizer.state[p] for p in params)


@each
def test_a_shared_weight_is_stepped_once(name):
    first = nn.Linear(3, 3, bias=False)
    tied = nn.Sequential(first, nn.Linear(3, 3, bias=False))
    tied[1].weight = first.weight
    assert len(EVERY[name](tied.parameters()).param_groups[0]["params"]) == 1 if name != "muon" else True
    with pytest.raises(ValueError, match="more than one parameter group"):
        EVERY[name]([{"params": [first.weight]}, {"params": [first.weight]}])


@every
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "strided", "gradient otherwise"])
def test_how_a_tensor_lies_in_memory_changes_rounding_alone(name, layout):
    generator = torch.Generator().manual_seed(5)
    start = torch.randn(4, 3, 2, 2, generator=generator, dtype=torch.float64)
    ends = []
    for way in ("contiguous", layout):
        laid = {
            "channels_last": start.clone(memory_format=torch.channels_last),
            "transposed": start.transpose(0, 1).contiguous().transpose(0, 1),
            "strided": torch.stack([start, start], dim=-1)[..., 0],
        }.get(way, start.clone())
        parameter = nn.Parameter(laid)
        optimizer = EVERY[name]([parameter])
        for seed in (2, 3):
            give_gradients([parameter], seed)
            if way == "gradient otherwise":
                parameter.grad = parameter.grad.contiguous(memory_format=torch.channels_last)
            optimizer.step()
        ends.append(parameter.detach())
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-14)


@pytest.mark.worlds
@each
def test_the_gradient_scaler_steps_and_leaves_out_what_overflowed(name):
    params, twins = parameters(), parameters()
    optimizer, peer = EVERY[name](params), EVERY[name](twins)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for seed in (2, 3, 4):
        scaler.scale(torch.ones(()))  # the scaler makes its tensors when it first sees a loss
        give_gradients(params, seed)
        for parameter in params:
            parameter.grad.mul_(1024.0 if seed == 2 else scaler.get_scale())
        if seed == 3:
            params[0].grad[0] = torch.inf
        else:
            stepped(peer, twins, [seed])
        scaler.step(optimizer)
        scaler.update()
    assert_same([p.detach() for p in params], [p.detach() for p in twins])


@each
def test_what_cannot_be_stepped_is_one_sentence(name):
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    meta = nn.Parameter(torch.ones(3, 2, device="meta"))
    meta.grad = torch.ones_like(meta)
    for parameter, sentence in ((embedding.weight, "takes dense gradients"), (meta, "on the meta device")):
        with pytest.raises(UserError, match=sentence):
            EVERY[name]([parameter]).step()
    with pytest.raises(UserError, match="orthogonalises real weights"):
        matrix_muon([nn.Parameter(torch.ones(2, 3, dtype=torch.complex64))])


def test_norms_of_shards_are_refused_and_steps_without_norms_are_made():
    """FSDP1 marks what it has flattened (a test in engines/ wraps a model); the mark alone decides."""
    for make in (
        lambda p: Lars(p, 0.1),
        lambda p: Lamb(p, 0.1),
        lambda p: Lamb([{"params": p, "adapt": False}], 0.1, max_grad_norm=1.0),
    ):
        flat = nn.Parameter(torch.ones(6))
        flat._fsdp_flattened = True  # type: ignore[attr-defined]
        with pytest.raises(UserError, match=r"FullyShardedDataParallel \(FSDP1\)"):
            make([flat])
        late = nn.Parameter(torch.ones(6))
        optimizer = make([late])
        late._fsdp_flattened = True  # type: ignore[attr-defined]
        late.grad = torch.ones(6)
        with pytest.raises(UserError, match=r"FullyShardedDataParallel \(FSDP1\)"):
            optimizer.step()
    flat.grad = torch.ones(6)
    for make in (HeavyBall, RmspropSgd, LectureAdam, lambda p, lr: Lars([{"params": p, "adapt": False}], lr)):
        before = flat.detach().clone()
        make([flat], 0.1).step()
        assert (flat != before).all()


def test_in_the_backward_pass_there_is_no_global_norm():
    from torch.distributed.optim import _apply_optimizer_in_backward

    for settings in ({}, {"max_grad_norm": 1.0}):
        weight = nn.Parameter(torch.ones(3))
        _apply_optimizer_in_backward(Lamb, [weight], {"lr": 0.1, **settings})
        if settings:
            with pytest.raises(UserError, match="one tensor at a time"):
                (weight**2).sum().backward()
        else:
            (weight**2).sum().backward()
            assert (weight != 1).all()


def test_variant_timm_is_timms_for_groups_without_decay():
    from timm.optim.lars import Lars as TimmLars

    for variant, always in (("timm", False), ("larc", True)):
        ours, theirs = parameters(torch.float64), parameters(torch.float64)
        optimizers = []
        for params, make in (
            (ours, lambda g, v=variant: Lars(g, 0.5, 0.9, trust_coefficient=0.02, eps=1e-8, variant=v)),
            (theirs, lambda g, a=always: TimmLars(g, 0.5, 0.9, trust_coeff=0.02, eps=1e-8, always_adapt=a)),
        ):
            optimizers.append(make([{"params": params[:1], "weight_decay": 0.1}, {"params": params[1:]}]))
        for optimizer, params in zip(optimizers, (ours, theirs), strict=True):
            stepped(optimizer, params, range(4))
        for this, that in zip(ours, theirs, strict=True):
            torch.testing.assert_close(this, that, rtol=1e-12, atol=0)


@pytest.mark.worlds
@pytest.mark.parametrize("name", EVERY)
def test_compiled_or_not_it_is_the_same_step(name):
    """The step itself is not traced: the graph breaks around it, whatever the backend would make of the rest."""
    params, twins = parameters(), parameters()
    optimizer, peer = EVERY[name](params), EVERY[name](twins)
    step = torch.compile(optimizer.step, backend="eager")
    for seed in range(4):
        give_gradients(params, seed)
        give_gradients(twins, seed)
        step()
        peer.step()
    assert_same([p.detach() for p in params], [p.detach() for p in twins])
    for this, that in zip(params, twins, strict=True):
        assert optimizer.state[this].keys() == peer.state[that].keys() != set()


PEERS = {
    "heavy_ball": "SGD", "lars": "SGD", "lamb": "AdamW", "rmsprop_sgd": "RMSprop", "lecture_adagrad": "Adagrad",
    "lecture_rmsprop": "RMSprop", "lecture_adam": "Adam", "muon": "Muon", "muon sgd": "SGD", "muon adamw": "AdamW",
}  # fmt: skip
ALGORITHM = {  # settings of the nearest that are of its algorithm, not of ours
    "rmsprop_sgd": {"alpha", "centered"},  # our decay is torch's alpha
    "lecture_adagrad": {"lr_decay", "initial_accumulator_value", "eps"},
    "lecture_rmsprop": {"centered", "momentum", "eps"},
    "lecture_adam": {"betas", "eps"},
    "muon": {"ns_coefficients", "adjust_lr_fn"},  # our match
}
SETTINGS = ("lr", "weight_decay", "momentum", "nesterov", "eps", "alpha", "ns_steps")  # of the same name here


def torchs_table() -> dict[str, Any]:
    flags = torch.backends.disable_global_flags.__globals__  # called as torch's tests are imported; for good
    before = dict(flags)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.testing._internal.common_optimizers import optim_db
    except ImportError:
        return {}
    finally:
        flags.update(before)
    return {info.optim_cls.__name__: info for info in optim_db}


@pytest.mark.worlds
@pytest.mark.parametrize("name", PEERS)
def test_torchs_own_inputs_are_taken_or_meant_to_differ(name):
    """Each of torch's inputs to the nearest of its optimizers trains ours, from a number and from a tensor as lr."""
    info = torchs_table().get(PEERS[name])
    if info is None:
        pytest.skip("torch's table needs expecttest")
    make = EVERY.get(f"{name} fused") or EVERY[name]
    left_out = set()
    foreign = ALGORITHM.get(name, set())
    for given in info.optim_inputs_func(device="cpu"):
        known = {key: value for key, value in given.kwargs.items() if key in SETTINGS and key not in foreign}
        left_out |= set(given.kwargs) - set(known)
        params = parameters()
        optimizer = make(params, **known)
        ends = stepped(optimizer, params)
        assert all(torch.isfinite(end).all() for end in ends), given.desc
        if known.get("lr", 1) != 0:
            assert any((end != start).any() for end, start in zip(ends, parameters(), strict=True)), given.desc
        again = make(parameters(), **known)
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert left_out <= set(MEANT_TO_DIFFER) | foreign, left_out
    for key in set(info.supported_impls) | {"maximize"}:
        assert key in MEANT_TO_DIFFER
        with pytest.raises(TypeError):
            make(parameters(), **{key: True})


@pytest.mark.worlds
@pytest.mark.parametrize("what", ["divided_states", "flattened"])
def test_wrapped_by_torchs_distributed_optimizers(what):
    ended = pool.ranks(2, f"worlds.wrapped:{what}")
    assert ended.returncode == 0, ended.stderr

"""What the Triton kernels must do, on any device: the fused form beside ``plain`` on the same inputs.

As a program, with TRITON_INTERPRET=1, it runs its part of the cases on the CPU and prints what failed as JSON.
"""

from __future__ import annotations

import copy
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from largebatch.optim import Lamb, Lars, kernels, tables
from largebatch.optim.lamb import VARIANTS as LAMB_VARIANTS
from largebatch.optim.lars import VARIANTS as LARS_VARIANTS
from largebatch.optim.shards import Partition, Segment

LRS = [0.0, 0.5, 0.05]  # a warm-up from zero, and a drop
CASES: dict[str, Callable[[str], None]] = {}
Tensors = list[torch.Tensor]


def case(function: Callable[[str], None]) -> Callable[[str], None]:
    CASES[function.__name__] = function
    return function


def shapes() -> list[tuple[int, ...]]:
    """One less than a block, one of two chunks, a zero weight, a zero gradient, an empty one."""
    return [(3, 4), (tables.CHUNK + tables.BLOCK + 5,), (4,), (7,), (0,)]


def weights(device: str, dtype: torch.dtype = torch.float64, many: int = 1) -> Tensors:
    generator = torch.Generator().manual_seed(1)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes() * many]
    for zero in made[2::5]:
        zero.zero_()
    return [w.to(device, dtype) for w in made]


def gradients(parameters: Tensors, step: int) -> Tensors:
    """Of the parameters' layout; of five the third is long, the fourth zero in the second step."""
    generator = torch.Generator().manual_seed(100 + step)
    made = []
    for number, p in enumerate(parameters):
        grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        length = {2: 30, 3: 0 if step == 1 else 1}.get(number % 5, 1)
        made.append(torch.empty_like(p).copy_(grad * length))
    return made


def train(optimizer: Any, steps: range = range(len(LRS)), give: Any = gradients, hold: bool = False) -> None:
    """Steps at ``LRS`` with gradients from ``give``; what was given must be the same bits afterwards."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    held = []
    for step in steps:
        for group in optimizer.param_groups:
            lr = group["lr"]
            group["lr"] = lr.fill_(LRS[step]) if isinstance(lr, torch.Tensor) else LRS[step]
        grads = give(parameters, step)
        held.append(grads if hold else None)  # so that the next ones lie elsewhere
        for p, grad in zip(parameters, grads, strict=True):
            p.grad = grad
        before = [None if g is None else g.clone() for g in grads]
        optimizer.step()
        for p, b in zip(parameters, before, strict=True):
            assert (p.grad is None and b is None) or torch.equal(p.grad, b), "p.grad was written"


def same(one: torch.Tensor, other: torch.Tensor, tolerance: float, what: str) -> None:
    assert one.dtype == other.dtype, (what, one.dtype, other.dtype)
    one, other = one.detach().cpu().double(), other.detach().cpu().double()
    assert one.shape == other.shape, (what, one.shape, other.shape)
    if one.numel():
        assert torch.isfinite(other).all(), what
        error = (one - other).abs().max() / other.abs().max().clamp(min=1e-30)
        assert error <= tolerance, f"{what}: {error:.2e} is more than {tolerance}"


def same_optimizers(fused: Any, plain: Any, tolerance: float) -> None:
    assert fused._triton, "the kernels were not used"
    assert not plain._triton
    for number, (group, other) in enumerate(zip(fused.param_groups, plain.param_groups, strict=True)):
        for i, (p, q) in enumerate(zip(group["params"], other["params"], strict=True)):
            where = f"group {number} tensor {i}"
            same(p, q, tolerance if p.dtype in (torch.float32, torch.float64) else 1e-2, where)
            assert fused.state[p].keys() == plain.state[q].keys(), where
            for key, value in plain.state[q].items():
                same(fused.state[p][key], value, tolerance, f"{where} {key}")
            if "master_weight" in plain.state[q]:
                assert torch.equal(p, fused.state[p]["master_weight"].to(p.dtype)), f"{where} is not its rounding"
    assert [m[1] for m in fused.measured] == [m[1] for m in plain.measured]
    for (settings, _, mine), (_, _, theirs) in zip(fused.measured, plain.measured, strict=True):
        assert mine.dtype == torch.float64
        same(mine, theirs, tolerance, "sums of squares")
        ratios = [fused.ratios(*m.sqrt().unbind(1), settings) for m in (mine, theirs)]
        same(*ratios, tolerance, "ratios")


def kernels_of(optimizer: Any) -> Any:
    [made] = optimizer._triton.values()
    return made


def compare(make: Callable[..., Any], parameters: Tensors, tolerance: float = 1e-12, **how: Any) -> tuple[Any, Any]:
    """The same training in both forms; ``make(parameters, form=...)``."""
    both = []
    for form in ("fused", "plain"):
        mine = [torch.nn.Parameter(p.clone(memory_format=torch.preserve_format)) for p in parameters]
        both.append(make(mine, form=form))
        train(both[-1], **how)
    same_optimizers(*both, tolerance)
    return both[0], both[1]


def grouped(parameters: Tensors, *settings: dict[str, Any]) -> list[dict[str, Any]]:
    size = len(parameters) // len(settings)
    return [{"params": parameters[i * size : (i + 1) * size], **s} for i, s in enumerate(settings)]


def lars(variant: str, nesterov: bool) -> Callable[[str], None]:
    def check(device: str) -> None:
        settings = ({}, {"adapt": False}, {"eps": 1e-3}, {"max_trust_ratio": 0.02}, {"weight_decay": 0.0})
        compare(
            lambda ps, form: Lars(
                grouped(ps, *settings), 1.0, 0.9, 0.1, 0.05, nesterov=nesterov, variant=variant, form=form
            ),
            weights(device, many=len(settings)),
        )

    return check


def lamb(variant: str, clipped: bool) -> Callable[[str], None]:
    bound = 1e6 if variant == "you2019" else 0.7  # above and below every norm

    def check(device: str) -> None:
        settings = (
            {"max_weight_norm": 1.5}, {"adapt": False}, {"bias_correction": variant != "deepspeed"},
            {"bias_correction": False}, {"weight_decay": 0.0, "beta1": 0.0},
        )  # fmt: skip
        compare(
            lambda ps, form: Lamb(
                grouped(ps, *settings), 1.0, weight_decay=0.1, variant=variant, form=form,
                max_grad_norm=bound if clipped else None,
            ),
            weights(device, many=len(settings)),
        )  # fmt: skip

    return check


for name in LARS_VARIANTS:
    CASES[f"lars_{name}"], CASES[f"lars_{name}_nesterov"] = lars(name, False), lars(name, True)
for name in LAMB_VARIANTS:
    CASES[f"lamb_{name}"], CASES[f"lamb_{name}_clipped"] = lamb(name, False), lamb(name, True)
MAKERS: dict[str, Callable[..., Any]] = {
    "lars": lambda ps, **k: Lars(ps, 1.0, 0.9, 0.1, 0.05, **k),
    "lamb": lambda ps, **k: Lamb(ps, 1.0, weight_decay=0.1, **k),
}


@case
def float32(device: str) -> None:
    for make in MAKERS.values():
        compare(make, weights(device, torch.float32), 5e-6)
    compare(lambda ps, form: Lamb(ps, 1.0, max_grad_norm=0.7, form=form), weights(device, torch.float32), 5e-6)


@case
def masters_of_half_precision_beside_float32(device: str) -> None:
    dtypes = (torch.bfloat16, torch.float32, torch.float16)
    for make in MAKERS.values():
        fused, _ = compare(make, [w for dtype in dtypes for w in weights(device, dtype)], 5e-6)
        assert len(kernels_of(fused).tables.buckets) == 3


@case
def a_nan_stays_one(device: str) -> None:
    """In the gradient of one layer: that layer is lost in both forms, the others are not."""
    for make in MAKERS.values():
        ends = []
        for form in ("fused", "plain"):
            parameters = [torch.nn.Parameter(w) for w in weights(device)]
            for p, grad in zip(parameters, gradients(parameters, 0), strict=True):
                p.grad = grad
            parameters[1].grad[3] = float("nan")
            make(parameters, form=form).step()
            ends.append([p.isnan() for p in parameters])
        assert ends[0][1][3]
        assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@case
def momentum_correction_and_lr_on_the_device(device: str) -> None:
    for on_device in (False, True):
        for corrected in (False, True):

            def make(ps: Any, form: str, on_device: bool = on_device, corrected: bool = corrected) -> Lars:
                lr = torch.tensor(1.0, device=device, dtype=torch.float64) if on_device and form == "fused" else 1.0
                return Lars(ps, lr, 0.9, 0.1, 0.05, momentum_correction=corrected, form=form)

            fused, plain = compare(make, weights(device))
            assert float(fused.param_groups[0]["previous_lr"]) == plain.param_groups[0]["previous_lr"] == LRS[-1]


@case
def lamb_with_lr_on_the_device(device: str) -> None:
    def make(ps: Any, form: str) -> Lamb:
        return Lamb(ps, torch.tensor(1.0, device=device, dtype=torch.float64) if form == "fused" else 1.0, form=form)

    compare(make, weights(device))


@case
def a_tensor_that_has_no_gradient_at_first(device: str) -> None:
    def give(parameters: Tensors, step: int) -> Any:
        return [None if i == 0 and step < 1 else g for i, g in enumerate(gradients(parameters, step))]

    for make in MAKERS.values():
        fused, _ = compare(make, weights(device), give=give)
        counted = fused.state[fused.param_groups[0]["params"][0]].get("step", len(LRS) - 1)
        assert int(counted) == len(LRS) - 1, "counted while there was no gradient"


@case
def moved_gradients_keep_the_tables(device: str) -> None:
    for make in MAKERS.values():
        with mock.patch.object(kernels, "KernelStep", wraps=kernels.KernelStep) as built:
            fused, _ = compare(make, weights(device), hold=True)
        assert built.call_count == 1
        with mock.patch.object(
            kernels_of(fused).tables, "move_grads", wraps=kernels_of(fused).tables.move_grads
        ) as moved:
            fused.step()
            assert not moved.called, "they lie where they lay"


@case
def one_group_after_another_as_zero_steps_them(device: str) -> None:
    """Each group has its tables, made once; the same steps as all together."""
    from largebatch.optim import kernels

    parameters = weights(device)
    together = MAKERS["lamb"](grouped(parameters, {"weight_decay": 0.1}, {"adapt": False}), form="plain")
    copies = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
    apart = MAKERS["lamb"](grouped(copies, {"weight_decay": 0.1}, {"adapt": False}), form="fused")
    with mock.patch.object(kernels, "KernelStep", wraps=kernels.KernelStep) as built:
        for step in range(3):
            for those in (parameters, copies):
                for p, grad in zip(those, gradients(those, step), strict=True):
                    p.grad = grad
            together.step()
            groups = apart.param_groups
            for group in groups:
                apart.param_groups = [group]
                apart.step()
            apart.param_groups = groups
    assert built.call_count == 2
    same_optimizers(apart, together, 1e-12)


@case
def counters_and_states_survive_new_tables(device: str) -> None:
    """A gradient missing once, states cleared, a change of form: the counters go on where they were."""
    both = []
    for form in ("fused", "plain"):
        parameters = weights(device)
        optimizer = MAKERS["lamb"](grouped(parameters, {"weight_decay": 0.1}, {"adapt": False}), form=form)
        train(optimizer, range(3))
        grads = gradients(parameters, 3)
        for number, (p, grad) in enumerate(zip(parameters, grads, strict=True)):
            p.grad = None if number == 0 else grad
        optimizer.step()
        train(optimizer, range(2))
        if form == "fused":
            optimizer.form = "foreach"
        train(optimizer, range(1))
        optimizer.form = form
        train(optimizer, range(2))
        optimizer.state.clear()
        train(optimizer, range(3))
        both.append(optimizer)
    same_optimizers(both[0], both[1], 1e-12)


@case
def what_lies_otherwise_in_memory_is_copied(device: str) -> None:
    """A channels_last weight with contiguous gradients, and a weight with gaps."""
    conv = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)

    def give(parameters: Tensors, step: int) -> Tensors:
        return [g.contiguous() for g in gradients(parameters, step)]

    for make in MAKERS.values():
        both = []
        for form in ("fused", "plain"):
            wide = torch.cat([conv, conv], dim=1).clone()
            ps = [torch.nn.Parameter(conv.to(memory_format=torch.channels_last)), torch.nn.Parameter(wide[:, ::2])]
            assert not ps[1].is_contiguous()
            optimizer = make(ps, form=form)
            train(optimizer, give=give)
            assert torch.equal(wide[:, 1::2], torch.cat([conv, conv], dim=1)[:, 1::2]), "the gaps were written"
            both.append(optimizer)
        same_optimizers(both[0], both[1], 1e-12)
        assert kernels_of(both[0]).tables.copied_grads
        assert both[0].param_groups[0]["params"][0].is_contiguous(memory_format=torch.channels_last)
        relaid = copy.deepcopy(both[0].state_dict())  # as a contiguous model would have saved it
        for state in relaid["state"].values():
            state.update({k: v.contiguous() for k, v in state.items()})
        both[0].load_state_dict(relaid)
        for optimizer in both:
            train(optimizer, range(1, 3), give=give)
        same_optimizers(both[0], both[1], 1e-12)


@case
def saved_by_one_form_continued_by_the_other(device: str) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.bfloat16, 5e-6)):
        for make in MAKERS.values():
            whole = make([torch.nn.Parameter(w) for w in weights(device, dtype)], form="plain")
            train(whole)
            parameters = [torch.nn.Parameter(w) for w in weights(device, dtype)]
            for steps, form in ((range(1), "fused"), (range(1, 2), "plain"), (range(2, 3), "fused")):
                optimizer = make(parameters, form=form)
                if steps.start:
                    optimizer.load_state_dict(saved)  # noqa: F821
                train(optimizer, steps)
                saved = copy.deepcopy(optimizer.state_dict())  # noqa: F841
            same_optimizers(optimizer, whole, tolerance)


@case
def settings_that_change(device: str) -> None:
    for make in MAKERS.values():

        def change(optimizer: Any) -> None:
            optimizer.param_groups[0].update(weight_decay=0.3, eps=1e-2)
            train(optimizer, range(1, 3))
            optimizer.param_groups[0]["adapt"] = False
            optimizer.max_grad_norm = 0.5
            train(optimizer, range(1, 2))
            optimizer.param_groups[0]["adapt"], optimizer.max_grad_norm = True, None
            train(optimizer, range(2, 3))

        both = compare(make, weights(device))
        for optimizer in both:
            change(optimizer)
        same_optimizers(both[0], both[1], 1e-12)


@case
def pieces_of_layers_in_a_flat_partition(device: str) -> None:
    """Two pieces of one layer, one of another, a third that is elsewhere, padding in between."""
    owner = not dist.is_initialized()
    if owner:
        dist.init_process_group("gloo" if device == "cpu" else "nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        long = tables.CHUNK + 9
        named = (("a", (long,)), ("b", (6, 2)), ("c", (5,)))
        pieces = (Segment(1, 3, 12, 0), Segment(0, 15, long - 20, 20), Segment(0, long + 2, 20, 0))
        for make in MAKERS.values():
            for dtype, tolerance in ((torch.float64, 1e-12), (torch.bfloat16, 5e-6)):
                flat = torch.randn(long + 25, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
                both = []
                for form in ("fused", "plain"):
                    parameter = torch.nn.Parameter(flat.clone().to(device, dtype))
                    optimizer = make([parameter], form=form)
                    optimizer.use_partition(parameter, Partition(named, pieces, dist.group.WORLD))
                    train(optimizer)
                    both.append(optimizer)
                    here = torch.zeros(len(flat), dtype=torch.bool)
                    for piece in pieces:
                        here[piece.offset : piece.offset + piece.length] = True
                    assert torch.equal(parameter.detach().cpu()[~here], flat.to(dtype)[~here]), "padding was written"
                    assert (parameter.detach().cpu()[here] != flat.to(dtype)[here]).any()
                same_optimizers(both[0], both[1], tolerance)
    finally:
        if owner:
            dist.destroy_process_group()


@case
def launches_do_not_depend_on_the_number_of_tensors(device: str) -> None:
    for make, expected in ((MAKERS["lars"], 3), (MAKERS["lamb"], 4)):
        for many in (3, 20):
            parameters = [torch.nn.Parameter(torch.ones(2, device=device)) for _ in range(many)]
            optimizer = make(grouped(parameters, {}, {"adapt": False}) if many > 3 else parameters)
            for step in range(2):
                for p in parameters:
                    p.grad = torch.ones_like(p)
                with mock.patch.object(kernels, "launch", wraps=kernels.launch) as launch:
                    optimizer.step()
                assert launch.call_count == expected, (many, step, launch.call_count)


def main(part: int, parts: int) -> None:
    from triton._C.libtriton import ir
    from triton.runtime import interpreter

    convert = interpreter._convert_float  # left to itself it cuts bfloat16 off, where the hardware rounds to even

    def rounding(values: Any, of: Any, to: Any, mode: Any) -> Any:
        return convert(values, of, to, ir.ROUNDING_MODE.RTNE if mode is None else mode)

    interpreter._convert_float = rounding
    tables.CHUNK, tables.BLOCK = 64, 32
    failed = {}
    for name, check in list(CASES.items())[part::parts]:
        try:
            check("cpu")
            failed[name] = None
        except Exception:
            failed[name] = traceback.format_exc()
    print(json.dumps(failed))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""Muon against torch's own, weight by weight; who goes where; states; what is refused."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import nn

from largebatch.errors import UserError
from largebatch.optim import Muon, muon_groups, parameter_groups, treatments
from largebatch.optim.matrices import hidden_weights

LRS = [0.0, 0.02, 0.05, 0.05, 0.01]
OTHERS = ["sgd", "adamw"]


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 12, 3),
        nn.Conv2d(12, 6, 1, bias=False),
        nn.Flatten(),
        nn.Linear(24, 20),
        nn.Linear(20, 5),
    )


HIDDEN = ["2.weight", "3.weight", "5.weight"]


def groups_of(model: nn.Module, weight_decay: float = 0.1) -> list[dict[str, Any]]:
    return muon_groups(parameter_groups(model, weight_decay, treatments(model, ("norm", "bias"), None)), model)


def gradients(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    grads = gradients(model, 100 + step)
    for name, parameter in model.named_parameters():
        parameter.grad = torch.empty_like(parameter).copy_(grads[name])
    for group in optimizer.param_groups:
        group["lr"] = LRS[step]
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, grads[name])


def trained(steps: int = len(LRS), **settings: Any) -> tuple[nn.Module, Muon]:
    model = small_net()
    optimizer = Muon(groups_of(model), 0.1, **settings)
    for step in range(steps):
        advance(model, optimizer, step)
    return model, optimizer


def test_stem_head_and_what_has_one_dimension_go_to_the_other_optimizer():
    model = small_net()
    groups = groups_of(model, weight_decay=0.3)
    assert sorted(name for g in groups if g["muon"] for name in g["names"]) == HIDDEN
    names = [name for g in groups for name in g["names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    own = dict(model.named_parameters())
    for group in groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            assert parameter is own[name]
            assert group["weight_decay"] == (0.3 if parameter.dim() > 1 else 0.0)
            assert group["adapt"] is False


def test_vectors_in_disguise_are_no_hidden_weights():
    import timm

    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5
    )
    shapes = {name: tuple(parameter.shape) for name, parameter in vit.named_parameters()}
    assert shapes["cls_token"] == (1, 1, 24)  # the first in module order, and no matrix
    matrices = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    assert list(hidden_weights(vit)) == [f"blocks.{block}.{name}" for block in (0, 1) for name in matrices]

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = small_net()
            self.layer_scale = nn.Parameter(torch.ones(8, 1, 1))
            self.plane_norm = nn.LayerNorm([4, 4])
            self.table_bias = nn.Parameter(torch.ones(4, 4))

    assert list(hidden_weights(Scaled())) == [f"layers.{name}" for name in HIDDEN]


@pytest.mark.worlds
@pytest.mark.parametrize(
    ("variant", "match", "torchs"),
    [
        ("jordan2024", None, "original"),
        ("moonlight2025", None, "match_rms_adamw"),
        ("jordan2024", "rms", "match_rms_adamw"),
        ("moonlight2025", "spectral", "original"),
    ],
)
@pytest.mark.parametrize("nesterov", [True, False])
def test_hidden_weights_take_torchs_muon_bit_for_bit(nesterov, variant, match, torchs):
    settings: dict[str, Any] = {"momentum": 0.9, "nesterov": nesterov, "ns_steps": 4}
    model, _ = trained(variant=variant, match=match, form="plain", **settings)
    twin = small_net()
    flat = {name: nn.Parameter(twin.get_parameter(name).detach().flatten(1)) for name in HIDDEN}
    peer = torch.optim.Muon(flat.values(), 0.1, weight_decay=0.1, adjust_lr_fn=torchs, **settings)
    for step, lr in enumerate(LRS):
        grads = gradients(twin, 100 + step)
        for name, matrix in flat.items():
            matrix.grad = grads[name].flatten(1)
        peer.param_groups[0]["lr"] = lr
        peer.step()
    for name, matrix in flat.items():
        assert torch.equal(model.get_parameter(name).flatten(1), matrix)
        assert not torch.equal(small_net().get_parameter(name).flatten(1), matrix)


@pytest.mark.parametrize("others", OTHERS)
def test_the_rest_takes_torchs_sgd_or_adamw_bit_for_bit(others):
    settings: dict[str, Any] = {"others_momentum": 0.8, "beta1": 0.7, "beta2": 0.95, "eps": 1e-5}
    model, _ = trained(others=others, others_lr_scale=0.5, **settings)
    twin = small_net()
    rest = {name: p for name, p in twin.named_parameters() if name not in HIDDEN}
    groups = [
        {"params": [p for p in rest.values() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in rest.values() if p.dim() == 1], "weight_decay": 0.0},
    ]
    peer: torch.optim.Optimizer = (
        torch.optim.SGD(groups, 0.1, 0.8, nesterov=True)
        if others == "sgd"
        else torch.optim.AdamW(groups, 0.1, (0.7, 0.95), 1e-5)
    )
    for step, lr in enumerate(LRS):
        for name, grad in gradients(twin, 100 + step).items():
            twin.get_parameter(name).grad = grad if name in rest else None
        for group in peer.param_groups:
            group["lr"] = 0.5 * lr
        peer.step()
    for name, parameter in rest.items():
        assert torch.equal(model.get_parameter(name), parameter)
        assert not torch.equal(small_net().get_parameter(name), parameter)


@pytest.mark.parametrize("columns", [3, 5])
def test_an_update_is_nearly_orthogonal_and_the_decay_decoupled(columns):
    """Weight decay alone shrinks by 1 − η·λ; what is left has singular values near 1, times lr and √max(1, A/B)."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(4, columns, generator=generator)
    weight = nn.Parameter(start.clone())
    weight.grad = torch.randn(4, columns, generator=generator)
    Muon([{"params": [weight], "muon": True}], 0.5, weight_decay=0.4).step()
    update = (start * (1 - 0.5 * 0.4) - weight.detach()) / (0.5 * math.sqrt(max(1, 4 / columns)))
    values = torch.linalg.svdvals(update)
    assert values.min() > 0.6
    assert values.max() < 1.3
    u, _, vh = torch.linalg.svd(weight.grad, full_matrices=False)
    assert torch.linalg.norm(update - u @ vh) / torch.linalg.norm(u @ vh) < 0.3


@pytest.mark.worlds
def test_channels_last_is_contiguous_but_for_rounding():
    """Also where the gradient lies otherwise than the weight."""
    shapes = [(8, 4, 3, 3), (6, 5, 1, 1), (4, 1, 3, 3), (4, 3, 2, 2, 2)]
    ends = []
    for last in (False, True):
        generator = torch.Generator().manual_seed(2)
        weights = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
        if last:
            for weight in weights:
                kind = torch.channels_last if weight.dim() == 4 else torch.channels_last_3d
                weight.data = weight.data.contiguous(memory_format=kind)
        optimizer = Muon([{"params": weights, "muon": True}], 1e-3)
        for step in range(3):
            for weight in weights:
                grad = torch.randn(weight.shape, generator=generator)
                weight.grad = grad if step == 1 else torch.empty_like(weight).copy_(grad)
            before = [weight.detach().clone() for weight in weights]
            optimizer.step()
            moved = [(w.detach() - b).abs().max() for w, b in zip(weights, before, strict=True)]
            assert min(moved) > 1e-4  # ten times what the two may differ by
        for weight in weights:
            assert optimizer.state[weight]["momentum_buffer"].stride() == weight.stride()
        ends.append(weights)
    assert ends[0][0].stride() != ends[1][0].stride()
    for this, that in zip(*ends, strict=True):
        torch.testing.assert_close(this.contiguous(), that.contiguous(), rtol=0, atol=1e-5)


@pytest.mark.worlds
@pytest.mark.parametrize("others", OTHERS)
def test_a_saved_optimizer_continues_bit_for_bit(others):
    whole, of_whole = trained(others=others)
    model, half = trained(3, others=others)
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    again = Muon(groups_of(model), 7.0, others=others)
    again.load_state_dict(torch.load(file))
    for step in range(3, len(LRS)):
        advance(model, again, step)
    for (name, this), (_, that) in zip(model.named_parameters(), whole.named_parameters(), strict=True):
        assert torch.equal(this, that), name
        assert set(again.state[this]) == set(of_whole.state[that])
        for key, value in of_whole.state[that].items():
            assert torch.equal(again.state[this][key], value)


@pytest.mark.worlds
def test_a_channels_last_weight_continues_from_states_laid_out_otherwise():
    """A checkpoint may bring the states back contiguous."""
    ends = []
    for relaid in (False, True):
        model = small_net().to(memory_format=torch.channels_last)
        optimizer = Muon(groups_of(model), 0.1)
        for step in range(len(LRS)):
            if step == 3 and relaid:
                saved = copy.deepcopy(optimizer.state_dict())
                for state in saved["state"].values():
                    state["momentum_buffer"] = state["momentum_buffer"].contiguous()
                optimizer.load_state_dict(saved)
                buffer = optimizer.state[model.get_parameter("2.weight")]["momentum_buffer"]
                assert buffer.stride() != model.get_parameter("2.weight").stride()
            advance(model, optimizer, step)
        ends.append(list(model.parameters()))
    for this, that in zip(*ends, strict=True):
        assert torch.equal(this, that)


@pytest.mark.parametrize("others", OTHERS)
def test_states_are_kept_by_the_parameter_in_its_shape(others):
    model, optimizer = trained(1, others=others)
    assert set(optimizer.state) == set(model.parameters())
    for name, parameter in model.named_parameters():
        keys = {"momentum_buffer"} if name in HIDDEN or others == "sgd" else {"step", "exp_avg", "exp_avg_sq"}
        assert set(optimizer.state[parameter]) == keys
        for key in keys - {"step"}:
            assert optimizer.state[parameter][key].shape == parameter.shape


@pytest.mark.parametrize("others", OTHERS)
def test_what_has_no_gradient_is_left_alone_and_a_gradient_of_zero_moves_nothing(others):
    weights = [nn.Parameter(torch.ones(3, 2)) for _ in range(3)]
    vectors = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    optimizer = Muon([{"params": weights, "muon": True}, {"params": vectors, "muon": False}], 0.1, others=others)
    for moved, zero, _ in (weights, vectors):
        moved.grad, zero.grad = torch.ones_like(moved), torch.zeros_like(zero)
    optimizer.step()
    for moved, zero, still in (weights, vectors):
        assert (moved < 1).all()
        assert (zero == 1).all()
        assert (still == 1).all()
        assert still not in optimizer.state


def test_without_momentum_the_others_take_plain_sgd():
    bias = nn.Parameter(torch.ones(2))
    optimizer = Muon([{"params": [bias], "muon": False}], 0.5, others_momentum=0.0, weight_decay=0.1)
    for _ in range(2):
        bias.grad = torch.ones(2)
        optimizer.step()
    assert bias.tolist() == pytest.approx([(1 - 0.5 * 1.1) - 0.5 * (1 + 0.1 * (1 - 0.5 * 1.1))] * 2)


def matrix(**settings: Any) -> Muon:
    return Muon([{"params": [nn.Parameter(torch.ones(2, 3))], "muon": True}], 0.1, **settings)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Muon([torch.ones(2, 2)], 0.1), "parameter group 0 must say whether it is Muon's by muon = true or"),
        (
            lambda: Muon([{"params": [torch.ones(2)], "names": ["fc.bias"], "muon": True}], 0.1),
            "Muon takes weights of at least two dimensions; fc.bias has shape (2,)",
        ),
        (lambda: matrix(others="adam"), "others = 'adam' is not known; did you mean adamw"),
        (lambda: matrix(match="rns"), "match = 'rns' is not known; did you mean rms"),
        (lambda: matrix(variant="jordan"), "variant = 'jordan' is not known; did you mean jordan2024"),
        (lambda: matrix(iteration="fp16"), "iteration = 'fp16' is not known; did you mean"),
        (lambda: matrix(form="fused"), "form = 'fused' is not known; valid: auto, batched, gram, plain"),
        (lambda: matrix(row_beta=1.0), "row_beta = 1.0 in parameter group 0; it must be below 1"),
        (lambda: matrix(momentum=1.0), "momentum = 1.0 in parameter group 0; it must be below 1"),
        (lambda: matrix(others_lr_scale=-1.0), "others_lr_scale = -1.0 in parameter group 0; it must be at least 0"),
        (lambda: matrix(weight_decay=math.nan), "weight_decay = nan in parameter group 0; it must be at least 0"),
        (lambda: matrix(ns_steps=0), "ns_steps = 0 in parameter group 0; it must be a whole number from 1 to 99"),
        (lambda: matrix(ns_steps=5.0), "ns_steps = 5.0 in parameter group 0; it must be a whole number from 1 to 99"),
        (
            lambda: groups_of(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))),
            "Muon needs a model with hidden weights; Sequential has 2 weight matrices",
        ),
        (
            lambda: muon_groups(parameter_groups(small_net(), 0.1, treatments(small_net(), (), None)), small_net()),
            "the parameter groups are of another model: this one does not hold their 0.weight",
        ),
    ],
)
def test_mistakes_are_one_sentence(make, sentence):
    with pytest.raises(UserError) as told:
        make()
    assert sentence in str(told.value)


def test_a_refused_group_is_not_left_behind():
    optimizer = matrix()
    with pytest.raises(UserError, match="at least two dimensions"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "muon": True})
    assert len(optimizer.param_groups) == 1


def test_weights_that_an_engine_flattened_are_refused():
    optimizer = matrix()
    flat = nn.Parameter(torch.ones(6))
    flat.grad = torch.ones(6)
    optimizer.param_groups[0]["params"] = [flat]
    with pytest.raises(
        UserError, match=r"now finds \[\(6,\)\] in parameter group 0: an engine has put flat partitions"
    ):
        optimizer.step()


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(UserError, match="Muon takes dense gradients"):
        Muon([{"params": [embedding.weight], "muon": True}], 0.1).step()


def test_a_state_of_another_model_or_optimizer_is_refused_and_nothing_changed():
    _, optimizer = trained(2)
    kept = copy.deepcopy(optimizer.state_dict())
    other_shape = copy.deepcopy(kept)
    number = kept["param_groups"][0]["params"][0]
    other_shape["state"][number]["momentum_buffer"] = torch.ones(1, 2)
    without = copy.deepcopy(kept)
    without["state"][number] = {"exp_avg": torch.ones(12, 8, 3, 3)}
    sgd = torch.optim.SGD([nn.Parameter(torch.ones(2)) for _ in range(2)], 0.1).state_dict()
    for state, sentence in (
        (trained(1, others="adamw")[1].state_dict(), "its parameter group 0 has others = 'adamw', here it is 'sgd'"),
        (sgd, r"belongs to another model: its parameter groups hold \[2\] tensors"),
        (other_shape, r"belongs to another model: parameter 0 has momentum_buffer of shape \(1, 2\), here it is \(12,"),
        (without, "belongs to another optimizer: parameter 0 has exp_avg, Muon needs momentum_buffer here"),
    ):
        with pytest.raises(UserError, match=sentence):
            optimizer.load_state_dict(state)
    now = optimizer.state_dict()
    assert now["param_groups"] == kept["param_groups"]
    for index, state in kept["state"].items():
        assert torch.equal(now["state"][index]["momentum_buffer"], state["momentum_buffer"])


@pytest.mark.worlds
def test_a_small_net_learns_alike_twice():
    ends = []
    for _ in range(2):
        model = small_net()
        optimizer = Muon(groups_of(model, 0.0), 0.02)
        images, classes = torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(5)), torch.arange(32) % 5
        losses = []
        for _ in range(30):
            loss = nn.functional.cross_entropy(model(images), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.1 * losses[0]
        ends.append(list(model.parameters()))
    for this, that in zip(*ends, strict=True):
        assert torch.equal(this, that)


def test_normalised_weights_are_those_of_airbenchs_muon():
    """Its lines, in float64: the weight to a norm of √rows, then lr times the orthogonalised momentum, unscaled."""
    torch.manual_seed(3)
    model = small_net().double()
    theirs = {name: p.detach().clone() for name, p in model.named_parameters() if name in HIDDEN}
    optimizer = Muon(
        groups_of(model, weight_decay=0.0), 0.24, momentum=0.6, nesterov=True, match="none", normalised=True,
        ns_steps=3, iteration="fp64",
    )  # fmt: skip
    buffers = {name: torch.zeros_like(weight) for name, weight in theirs.items()}
    for step in range(3):
        grads = gradients(model, 50 + step)
        for name, parameter in model.named_parameters():
            parameter.grad = grads[name].double()
        optimizer.step()
        for name, weight in theirs.items():
            g = grads[name].double()
            buffers[name] = 0.6 * buffers[name] + g
            weight.mul_(len(weight) ** 0.5 / weight.norm())
            x = (g + 0.6 * buffers[name]).reshape(len(g), -1)
            x = x / (x.norm() + 1e-7)
            wide = x.T if x.shape[0] > x.shape[1] else x
            for _ in range(3):
                a = wide @ wide.T
                wide = 3.4445 * wide + (-4.7750 * a + 2.0315 * a @ a) @ wide
            x = wide.T if x.shape[0] > x.shape[1] else wide
            weight.sub_(0.24 * x.reshape(weight.shape))
    for name, weight in theirs.items():
        torch.testing.assert_close(model.get_parameter(name), weight, rtol=1e-6, atol=1e-8)


def test_a_matrix_of_zeros_is_not_normalised_and_states_of_before_are_not():
    model = small_net()
    with torch.no_grad():
        model.get_parameter("3.weight").zero_()
    optimizer = Muon(groups_of(model), 0.02, normalised=True)
    advance(model, optimizer, 1)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    older = optimizer.state_dict()
    for group in older["param_groups"]:
        del group["normalised"]
    other = Muon(groups_of(small_net()), 0.02)
    other.load_state_dict(older)
    assert not any(group["normalised"] for group in other.param_groups)
    with pytest.raises(UserError, match="normalised = 1 in parameter group 0; it must be true or false"):
        Muon(groups_of(small_net()), 0.02, normalised=1)  # type: ignore[arg-type]

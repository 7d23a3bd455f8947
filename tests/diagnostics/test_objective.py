"""f, ∇f and H·v of networks with every kind of layer, against autograd on a function of one vector, in float64."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch.diagnostics.objective import Objective
from largebatch.errors import UserError
from largebatch.models.batch_norm import sized

IMAGES = (2, 6, 6)
EXAMPLES, BATCH = 12, 4


class Attention(nn.Module):
    """One head over the columns of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.norm, self.outward = nn.Linear(12, 9), nn.LayerNorm(3), nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inward(x.flatten(1, 2).transpose(1, 2)).split(3, -1)
        return self.outward(self.norm(F.scaled_dot_product_attention(q, k, v)).flatten(1))


class Tied(nn.Module):
    """One matrix used twice, one that is used in one batch only, one that never is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(72, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = nn.Parameter(torch.randn(4, 4))
        self.sometimes, self.never = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(2))
        self.last.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.second(torch.tanh(self.second(self.first(x.flatten(1))))))
        return self.last(h * self.sometimes if x[0, 0, 0, 0] > 0 else h)


class Drifting(nn.Module):
    """Its buffers change in every pass, one in place and one by another tensor in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inside", torch.ones(72))
        self.register_buffer("instead", torch.ones(()))
        self.linear = nn.Linear(72, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        self.inside.lerp_(x.mean(0), 0.5)
        self.instead = self.instead * 2
        return self.linear(x * self.inside * self.instead)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "perceptron": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 3), nn.Tanh(), nn.Linear(3, 3)),
    "batch norm": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(72, 3), nn.BatchNorm1d(3), nn.ReLU(inplace=True), nn.Linear(3, 3)
    ),
    "running statistics": lambda: NETWORKS["batch norm"]().eval(),
    "convolution": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    ),
    "attention": Attention,
    "tied and unused": Tied,
    "spectral norm": lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(72, 3))),
    "drifting": Drifting,
}


def network(name: str) -> nn.Module:
    torch.manual_seed(7)
    model = NETWORKS[name]().double()
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(norm.running_mean), nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return model


def examples(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(EXAMPLES, *IMAGES, generator=generator, dtype=torch.float64).to(dtype)
    return images, torch.randint(3, (EXAMPLES,), generator=generator)


def summed(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, reduction="sum", label_smoothing=0.1)


def objective_of(model: nn.Module, order: tuple[int, ...] = (0, 1, 2)) -> Objective:
    images, labels = examples(next(model.parameters()).dtype)
    parts = list(zip(images.split(BATCH), labels.split(BATCH), strict=True))
    return Objective(model, lambda: [parts[i] for i in order], EXAMPLES, summed)


def plain(model: nn.Module) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """f as autograd's own tools see it: a function of one vector, buffers handed in anew for every batch."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    others = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    images, labels = examples()

    def f(w: Tensor) -> Tensor:
        parts = w.split([p.numel() for p in named.values()])
        weights = {name: part.view(p.shape) for (name, p), part in zip(named.items(), parts, strict=True)}
        total = torch.zeros((), dtype=torch.float64)
        for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                outputs = torch.func.functional_call(model, {**others, **weights, **buffers}, (x,))
            total = total + F.cross_entropy(outputs, y, label_smoothing=0.1) * len(x)
        return total / EXAMPLES

    return f, torch.cat([p.detach().reshape(-1) for p in named.values()])


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_bitwise(model: nn.Module, before: dict[str, Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.worlds
@pytest.mark.parametrize("name", NETWORKS)
def test_value_gradient_and_hessian_are_those_of_autograd(name):
    model = network(name)
    f, w = plain(model)
    objective = objective_of(model)
    torch.testing.assert_close(objective.weights(), w, rtol=0, atol=0)
    value, gradient = objective.value_and_gradient()
    assert value == pytest.approx(float(f(w)), rel=1e-13)
    assert objective.value() == pytest.approx(value, rel=1e-13)
    expected = torch.autograd.functional.jacobian(f, w)
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-13)
    hessian = torch.autograd.functional.hessian(f, w)
    assert float(hessian.norm()) > 1e-3
    torch.testing.assert_close(objective.hessian(), hessian, rtol=1e-9, atol=1e-11)
    v = torch.randn(len(w), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(objective.hessian_product(v), hessian @ v, rtol=1e-9, atol=1e-10)


@pytest.mark.worlds
@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_left_behind(name):
    model = network(name).float()
    model[0].requires_grad_(True) if isinstance(model, nn.Sequential) else None
    before, buffers = state(model), dict(model.named_buffers())
    tracking = [getattr(module, "track_running_stats", None) for module in model.modules()]
    with objective_of(model) as objective:
        objective.value()
        objective.value_and_gradient(objective.weights() + 0.125)
        objective.hessian_product(objective.weights())
    assert_bitwise(model, before)
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
    assert [getattr(module, "track_running_stats", None) for module in model.modules()] == tracking
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.worlds
def test_what_a_batch_norm_gathers_beside_its_buffers_stays_as_it_was_too():
    model = network("batch norm")
    sized(model, bn_batch_size=2, micro_batch_size=BATCH)
    objective_of(model).value_and_gradient()
    assert model[2].sums is None
    model(examples()[0].flatten(1))
    assert model[2].sums is not None


@pytest.mark.worlds
def test_an_error_leaves_nothing_behind_either():
    model = network("batch norm").float()
    before = state(model)

    def batches() -> Any:
        yield from zip(*(part.split(BATCH) for part in examples(torch.float32)), strict=True)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"), Objective(model, batches, EXAMPLES, summed) as objective:
        objective.value(objective.weights() + 1)
    assert_bitwise(model, before)
    assert model[2].track_running_stats


def test_weights_are_a_copy_and_what_is_set_stays():
    model = network("perceptron").float()
    objective = objective_of(model)
    w = objective.weights()
    assert (w.dtype, w.dim()) == (torch.float64, 1)
    kept = w.clone()
    shifted = objective.value(w + 0.5)
    assert torch.equal(w, kept)
    torch.testing.assert_close(objective.weights(), w + 0.5, rtol=1e-7, atol=1e-7)
    assert objective.value() == shifted != objective.value(w)
    assert torch.equal(objective.weights(), kept)


@pytest.mark.worlds
@pytest.mark.parametrize("name", ["batch norm", "spectral norm", "drifting"])
def test_the_order_of_the_batches_does_not_matter(name):
    """No batch sees what another has left in a buffer; only so can ranks share them in any way."""
    model = network(name)
    there, back = (objective_of(model, order).value_and_gradient() for order in ((0, 1, 2), (2, 0, 1)))
    assert back[0] == pytest.approx(there[0], rel=1e-14)
    torch.testing.assert_close(back[1], there[1], rtol=1e-12, atol=1e-14)


def test_the_mean_is_over_the_units_of_all_batches():
    """Not over examples, and no mean of the batches' means."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    values = torch.tensor([[3.0], [5.0], [7.0]], dtype=torch.float64)
    batches = [(values[:2], torch.tensor([1, 4])), (values[2:], torch.tensor([2]))]
    squares = lambda outputs, _: outputs.square().sum()  # noqa: E731
    objective = Objective(model, lambda: batches, 3, squares, units=lambda counts: counts.sum())
    value, gradient = objective.value_and_gradient()
    assert (value, gradient.item()) == (83 / 7, 2 * 83 / 7)
    assert objective.hessian_product(torch.ones(1).double()).item() == 2 * 83 / 7


def test_batches_are_added_up_in_float64():
    """A hundred losses of which float32 sums would lose the last digits."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    values = torch.cat([torch.tensor([1e8]), torch.full((99,), 1.0)])[:, None]
    objective = Objective(model, lambda: [(x, x) for x in values.split(1)], 100, lambda outputs, _: outputs.sum())
    value, gradient = objective.value_and_gradient()
    assert value == gradient.item() == (1e8 + 99) / 100


def test_a_loss_that_is_linear_has_no_curvature():
    model = nn.Linear(72, 1).double()
    images, labels = examples()
    objective = Objective(model, lambda: [(images.flatten(1), labels)], EXAMPLES, lambda outputs, _: outputs.sum())
    assert torch.equal(objective.hessian_product(torch.ones(73).double()), torch.zeros(73).double())
    assert not objective.hessian().any()


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from timm.layers import DropPath

        self.linear, self.drop, self.path = nn.Linear(72, 3), nn.Dropout(0.0), DropPath(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.path(self.drop(self.linear(x.flatten(1))))


@pytest.mark.worlds
@pytest.mark.parametrize(("layer", "probability"), [("drop", "p"), ("path", "drop_prob")])
def test_layers_that_draw_at_random_are_named(layer, probability):
    model = Dropping().double()
    objective_of(model).check_deterministic()
    setattr(getattr(model, layer), probability, 0.5)
    with pytest.raises(UserError, match=f"these layers draw at random: {layer}; valid: the model in evaluation mode"):
        objective_of(model).check_deterministic()
    value, gradient = objective_of(model.eval()).check_deterministic()
    assert (value, len(gradient)) == (objective_of(model).value(), 219)


def test_passes_that_differ_for_another_reason_say_by_how_much():
    model, images = nn.Linear(72, 3).double(), examples()[0].flatten(1)
    grown = [1.0]

    def batches(growth: float) -> Any:
        grown[0] *= growth
        return [(images * grown[0], examples()[1])]

    with pytest.raises(UserError, match=r"two passes over the same batches differ by \d.*e-\d+ of the loss"):
        Objective(model, lambda: batches(1.01), EXAMPLES, summed).check_deterministic()
    Objective(model, lambda: batches(1 + 1e-9), EXAMPLES, summed).check_deterministic()  # a GPU's rounding


def test_what_cannot_be_measured_is_one_sentence():
    images, labels = examples()
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 3)).double()
    with pytest.raises(UserError, match="examples = 0 must be at least 1"):
        Objective(model, lambda: [(images, labels)], 0, summed)
    with pytest.raises(UserError, match="no parameters to train"):
        Objective(model.requires_grad_(False), lambda: [(images, labels)], EXAMPLES, summed)
    model.requires_grad_(True)
    with pytest.raises(AssertionError, match="hold 12 examples, not 13"):
        Objective(model, lambda: [(images, labels)], 13, summed).value()
    with torch.no_grad():
        model[1].bias[0] = math.nan
    with pytest.raises(UserError, match="the loss at these weights is nan"):
        objective_of(model).check_deterministic()


def test_a_second_derivative_that_is_not_finite_is_told():
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    x = torch.ones(1, 1, dtype=torch.float64)
    objective = Objective(model, lambda: [(x, x)], 1, lambda outputs, _: outputs.abs().pow(1.5).sum())
    assert objective.check_deterministic()[0] == 0
    with pytest.raises(UserError, match="the second derivative of the loss is not finite"):
        objective.hessian_product(torch.ones(1, dtype=torch.float64))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradient


@pytest.mark.parametrize("layer", [nn.Hardsigmoid(), Once.apply])
def test_a_layer_without_a_second_derivative_is_told(layer):
    """Of the second torch says nothing by itself, and the Hessian would come out as zero."""
    model = nn.Linear(72, 3).double()
    images, labels = examples()
    data = [(images.flatten(1), labels)]
    objective = Objective(model, lambda: data, EXAMPLES, lambda outputs, y: summed(layer(outputs), y))
    objective.check_deterministic()
    with pytest.raises(UserError, match="this model has no Hessian, because one of its layers can be differentiated"):
        objective.hessian_product(objective.weights())


@pytest.mark.worlds
def test_a_rank_without_batches_learns_from_the_others():
    model = network("batch norm")
    whole, seen = objective_of(model), []
    whole.sum_over_ranks = lambda sums: seen.append(sums.clone()) or sums
    empty = Objective(model, list, EXAMPLES, summed, lambda sums: sums + seen[-1])
    for measure in (whole.value_and_gradient, whole.hessian):
        expected = measure()
        torch.testing.assert_close(getattr(empty, measure.__name__)(), expected, rtol=0, atol=0)


@pytest.mark.worlds
@pytest.mark.parametrize("name", ["perceptron", "running statistics", "convolution", "attention"])
def test_the_product_is_that_of_curvlinops(name):
    """An installed peer. It takes no batch norm in training; in layer norm it differs, also from finite differences."""
    model = network(name).eval()
    if isinstance(model, Attention):
        model.norm = nn.Identity()
    images, labels = examples()
    data = list(zip(images.split(BATCH), labels.split(BATCH), strict=True))
    objective = Objective(model, lambda: data, EXAMPLES, nn.CrossEntropyLoss(reduction="sum"))
    v = torch.randn(objective.parameters, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours = objective.hessian_product(v)
    with warnings.catch_warnings(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        warnings.simplefilter("ignore")  # it still writes torch.jit.script
        import curvlinops

        peer = curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), data)
        theirs = peer @ v
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)

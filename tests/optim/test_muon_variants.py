"""Muon's equations against second statements in float64, its iteration against its polynomial, who computes what."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from largebatch import optimizers
from largebatch.errors import UserError
from largebatch.optim import Muon, muon_groups, newton_schulz, orthogonalised_names, parameter_groups, treatments
from largebatch.optim.dealt import dealt_by_cost
from largebatch.optim.matrices import hidden_weights
from largebatch.optim.muon_settings import VARIANTS
from largebatch.optimizers.muon import OWN, MuonSection

SHAPES = {"wide": (4, 9), "tall": (11, 3), "square": (5, 5), "conv": (6, 2, 3, 3)}


def polynomial(matrix: Tensor, steps: int = 5) -> Tensor:
    """The iteration, said of singular values one after another."""
    u, values, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    length = math.sqrt(sum(value**2 for value in values.tolist()))
    ends = []
    for value in values.tolist():
        s = value / length if length else 0.0
        for _ in range(steps):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        ends.append(s)
    return u @ torch.diag(torch.tensor(ends, dtype=torch.float64)) @ vh


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def jordan(w: Tensor, gradients: list[Tensor], lr: float, decay: float) -> Tensor:
    """As the post and its code have it: the buffer is a sum, not a mean."""
    rows, columns = w.shape[0], w[0].numel()
    buffer = torch.zeros(rows, columns, dtype=torch.float64)
    for gradient in gradients:
        g = gradient.reshape(rows, columns)
        buffer = 0.95 * buffer + g
        o = polynomial(g + 0.95 * buffer)
        w = w - lr * decay * w - (lr * max(1.0, rows / columns) ** 0.5 * o).reshape(w.shape)
    return w


def moonlight(w: Tensor, gradients: list[Tensor], lr: float, decay: float) -> Tensor:
    """2502.16982, eq. 1 with Nesterov and eq. 4: W ← W − η·(0.2·√max(A, B)·O + λ·W)."""
    rows, columns = w.shape[0], w[0].numel()
    m = torch.zeros(rows, columns, dtype=torch.float64)
    for gradient in gradients:
        m = 0.95 * m + gradient.reshape(rows, columns)
        o = polynomial(gradient.reshape(rows, columns) + 0.95 * m)
        w = w - lr * (0.2 * math.sqrt(max(rows, columns)) * o.reshape(w.shape) + decay * w)
    return w


def normuon(w: Tensor, gradients: list[Tensor], lr: float, decay: float) -> Tensor:
    """2510.05491, Algorithm 1, row by row."""
    rows, columns = w.shape[0], w[0].numel()
    m = torch.zeros(rows, columns, dtype=torch.float64)
    v = [0.0] * rows
    for gradient in gradients:
        m = 0.95 * m + (1 - 0.95) * gradient.reshape(rows, columns)
        o = polynomial(m)
        v = [0.95 * v[i] + 0.05 * sum(x * x for x in o[i].tolist()) / columns for i in range(rows)]
        hat = torch.stack([o[i] / (math.sqrt(v[i]) + 1e-10) for i in range(rows)])
        size = 0.2 * lr * math.sqrt(rows * columns) / math.sqrt(sum(x * x for x in hat.flatten().tolist()))
        w = w - lr * decay * w - size * hat.reshape(w.shape)
    return w


def frobenius(matrix: Tensor) -> float:
    return math.sqrt(sum(x * x for x in matrix.flatten().tolist()))


def orscale(
    w: Tensor,
    gradients: list[Tensor],
    lr: float,
    decay: float,
    smallest: float = 0.5,
    largest: float = 1.5,
    of_language: bool = False,
) -> Tensor:
    """2605.07815, as its README has it: D = λ·W + s·Q, r = ‖W‖/(c·‖D‖), W ← W − η·clip(r)·D; without its ε."""
    rows, columns = w.shape[0], w[0].numel()
    s = 0.2 * math.sqrt(max(rows, columns)) if of_language else 1.0
    buffer, c = torch.zeros(rows, columns, dtype=torch.float64), 1.0
    for number, gradient in enumerate(gradients):
        g = gradient.reshape(rows, columns)
        buffer = 0.95 * buffer + g
        d = decay * w + s * polynomial(g + 0.95 * buffer).reshape(w.shape)
        if of_language and number == 0:
            c = frobenius(w) / frobenius(d)
        w = w - lr * min(max(frobenius(w) / (c * frobenius(d)), smallest), largest) * d
    return w


def orscale_lm(w: Tensor, gradients: list[Tensor], lr: float, decay: float, **bounds: float) -> Tensor:
    return orscale(w, gradients, lr, decay, **{"smallest": 0.1, "largest": 5.0, **bounds}, of_language=True)


STATEMENTS = {
    "jordan2024": jordan,
    "moonlight2025": moonlight,
    "normuon": normuon,
    "orscale": orscale,
    "orscale_lm": orscale_lm,
}


@pytest.mark.parametrize("form", newton_schulz.FORMS)
@pytest.mark.parametrize("variant", STATEMENTS)
def test_a_variant_is_its_equation(variant, form):
    starts = {name: drawn(shape, 1) for name, shape in SHAPES.items()}
    weights = {name: nn.Parameter(start.clone()) for name, start in starts.items()}
    optimizer = Muon(
        [{"params": list(weights.values()), "muon": True}],
        0.03, variant=variant, weight_decay=0.2, iteration="fp64", form=form,
    )  # fmt: skip
    gradients = {name: [drawn(shape, 10 + step) for step in range(4)] for name, shape in SHAPES.items()}
    for step in range(4):
        for name, weight in weights.items():
            weight.grad = gradients[name][step]
        optimizer.step()
    for name, weight in weights.items():
        stated = STATEMENTS[variant](starts[name], gradients[name], 0.03, 0.2)
        torch.testing.assert_close(weight.detach(), stated, rtol=1e-11, atol=1e-12)
        others = [
            other(starts[name], gradients[name], 0.03, 0.2) for key, other in STATEMENTS.items() if key != variant
        ]
        assert min((other - stated).abs().max() for other in others) > 1e-4
    assert (optimizer.traffic.orthogonalised, optimizer.traffic.due) == (16, 16)


@pytest.mark.parametrize(
    ("match", "scale"), [("none", 1.0), ("spectral", math.sqrt(12 / 3)), ("rms", 0.2 * math.sqrt(12))]
)
def test_what_an_update_is_matched_to(match, scale):
    """A step of an orthogonal gradient times that number; with ``rms`` its root mean square is about 0.2 of the lr."""
    q, _ = torch.linalg.qr(drawn((12, 3), 2))
    weight = nn.Parameter(torch.zeros(12, 3, dtype=torch.float64))
    weight.grad = q.clone()
    Muon([{"params": [weight], "muon": True}], 0.5, match=match, iteration="fp64").step()
    s = math.sqrt(1 / 3)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(weight.detach(), -0.5 * scale * s * q)
    if match == "rms":
        assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.5 * 0.2 * s)


@pytest.mark.parametrize("bounds", [(0.01, 100.0), (0.5, 1.001), (2.0, 9.0), (None, 1.2), (0.9, None)])
@pytest.mark.parametrize("variant", ["orscale", "orscale_lm"])
def test_the_trust_ratio_is_its_equation_within_any_bounds(variant, bounds):
    said = {key: value for key, value in zip(("smallest", "largest"), bounds, strict=True) if value is not None}
    for name, shape in SHAPES.items():
        weight = nn.Parameter(drawn(shape, 1))
        optimizer = Muon(
            [{"params": [weight], "muon": True}], 0.1, variant=variant, weight_decay=0.2, iteration="fp64",
            min_trust_ratio=bounds[0], max_trust_ratio=bounds[1],
        )  # fmt: skip
        gradients = [drawn(shape, 30 + step) for step in range(6)]
        for gradient in gradients:
            weight.grad = gradient
            optimizer.step()
        stated = STATEMENTS[variant](drawn(shape, 1), gradients, 0.1, 0.2, **said)
        torch.testing.assert_close(weight.detach(), stated, rtol=1e-11, atol=1e-12, msg=name)


def test_a_calibrated_ratio_begins_as_moonlight_does():
    """r is 1, and a decay beside or inside of the step is the same then."""
    ends = []
    for variant in ("orscale_lm", "moonlight2025"):
        weight = nn.Parameter(drawn((4, 9), 1))
        optimizer = Muon([{"params": [weight], "muon": True}], 0.1, variant=variant, weight_decay=0.2, iteration="fp64")
        for step in range(2):
            weight.grad = drawn((4, 9), 40 + step)
            optimizer.step()
            ends.append(weight.detach().clone())
    torch.testing.assert_close(ends[0], ends[2], rtol=1e-14, atol=1e-15)
    assert (ends[1] - ends[3]).abs().max() > 1e-4


@pytest.mark.parametrize("variant", ["orscale", "orscale_lm"])
def test_a_matrix_without_length_has_the_ratio_1_and_is_calibrated_when_it_has_one(variant):
    start = torch.zeros(4, 9, dtype=torch.float64)
    weight = nn.Parameter(start.clone())
    optimizer = Muon([{"params": [weight], "muon": True}], 0.1, variant=variant, weight_decay=0.2, iteration="fp64")
    gradients = [drawn((4, 9), 50 + step) for step in range(4)]
    weight.grad = gradients[0]
    optimizer.step()
    s = 0.2 * 3 if variant == "orscale_lm" else 1.0
    torch.testing.assert_close(weight.detach(), -0.1 * s * polynomial(gradients[0]), rtol=1e-11, atol=1e-12)
    if variant == "orscale_lm":
        assert optimizer.state[weight]["trust_calibration"].tolist() == [0.0]
        length = frobenius(weight.detach())
        weight.grad = gradients[1]
        optimizer.step()
        buffer = 0.95 * gradients[0] + gradients[1]
        d = 0.2 * (weight.detach() * 0 + -0.1 * s * polynomial(gradients[0]))
        d = d + s * polynomial(gradients[1] + 0.95 * buffer)
        (c,) = optimizer.state[weight]["trust_calibration"].tolist()
        assert c == pytest.approx(length / frobenius(d), rel=1e-10)
        weight.grad = gradients[2]
        optimizer.step()
        assert optimizer.state[weight]["trust_calibration"].tolist() == [c]


def test_a_state_keeps_the_calibration_and_another_models_is_refused():
    def stepped(optimizer: Muon, weight: nn.Parameter, numbers: range) -> None:
        for step in numbers:
            weight.grad = drawn((6, 8), 60 + step).float()
            optimizer.step()

    def made(start: Tensor) -> tuple[nn.Parameter, Muon]:
        weight = nn.Parameter(start.clone())
        return weight, Muon([{"params": [weight], "muon": True}], 0.1, variant="orscale_lm", iteration="fp32")

    weight, optimizer = made(drawn((6, 8), 6).float())
    stepped(optimizer, weight, range(2))
    other, resumed = made(weight.detach())
    saved = copy.deepcopy(optimizer.state_dict())
    resumed.load_state_dict(copy.deepcopy(saved))
    for one, of in ((weight, optimizer), (other, resumed)):
        stepped(of, one, range(2, 5))
    assert torch.equal(weight, other)
    saved["state"][0]["trust_calibration"] = torch.ones(2)
    with pytest.raises(UserError, match=r"parameter 0 has trust_calibration of shape \(2,\), here it is \(1,\)"):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"variant": "normuon", "max_trust_ratio": 2.0},
            "variant = normuon has no trust ratio that min_trust_ratio or",
        ),
        ({"variant": "orscale", "min_trust_ratio": 2.0}, "min_trust_ratio = 2 in parameter group 0 is above max_trust"),
        (
            {"variant": "orscale", "min_trust_ratio": 0.0},
            "min_trust_ratio = 0.0 in parameter group 0; it must be above",
        ),
    ],
)
def test_bounds_of_no_ratio_are_one_sentence(settings, sentence):
    with pytest.raises(UserError) as told:
        Muon([{"params": [nn.Parameter(torch.ones(2, 3))], "muon": True}], 0.1, **settings)
    assert sentence in str(told.value)


def test_normuon_makes_rows_equally_long_at_its_first_step():
    weight = nn.Parameter(torch.zeros(4, 9, dtype=torch.float64))
    weight.grad = drawn((4, 9), 3)
    Muon([{"params": [weight], "muon": True}], 1.0, variant="normuon", iteration="fp64").step()
    lengths = torch.linalg.vector_norm(weight.detach(), dim=1)
    torch.testing.assert_close(lengths, torch.full((4,), 0.2 * 3, dtype=torch.float64))


@given(
    rows=st.integers(1, 12), columns=st.integers(1, 40), steps=st.integers(1, 9), seed=st.integers(0, 9),
    form=st.sampled_from(newton_schulz.FORMS),
)  # fmt: skip
def test_every_form_is_the_polynomial_of_the_singular_values(rows, columns, steps, seed, form):
    matrices = [drawn((rows, columns), seed), drawn((columns, rows), seed + 1), torch.zeros(rows, columns).double()]
    for end, matrix in zip(newton_schulz.orthogonalised(matrices, steps, form), matrices, strict=True):
        assert end.shape == matrix.shape
        torch.testing.assert_close(end, polynomial(matrix, steps), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (8, 200)])
def test_the_gram_matrix_keeps_its_tolerance_in_lower_precision(shape):
    """Relative, of the whole matrix: 1e-5 in float32 and 0.02 in bfloat16 of well conditioned gradients; of singular
    values over seven decades no further from the polynomial than the plain form is, but for a factor of 3."""
    for conditioned in (True, False):
        matrix = drawn(shape, 4)
        if not conditioned:
            u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
            matrix = u * torch.logspace(0, -7, min(shape), dtype=torch.float64) @ vh
        exact = polynomial(matrix)
        for kind, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.02)):
            plain, gram = (
                float(
                    (newton_schulz.orthogonalised([matrix.to(kind)], 5, form)[0].double() - exact).norm() / exact.norm()
                )
                for form in ("plain", "gram")
            )
            assert gram < (tolerance if conditioned else 3 * plain)


def test_singular_values_come_to_where_the_docstring_says():
    values = torch.logspace(math.log10(0.005), 0, 20_000, dtype=torch.float64)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    assert (round(float(values.min()), 2), round(float(values.max()), 2)) == (0.68, 1.15)


@given(st.lists(st.integers(1, 1000), max_size=30), st.integers(1, 8))
def test_matrices_are_dealt_so_that_nobody_has_more_than_an_equal_share_and_one_matrix(costs, ranks):
    owners = dealt_by_cost(costs, ranks)
    loads = [sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(ranks)]
    assert sum(loads) == sum(costs)
    assert max(loads) <= sum(costs) / ranks + max(costs, default=0)
    assert owners == dealt_by_cost(list(costs), ranks)


def test_half_precision_has_float32_masters_that_train_as_float32_does():
    start = drawn((6, 8), 5).bfloat16()
    ends = []
    for dtype in (torch.bfloat16, torch.float32):
        weight, bias = (nn.Parameter(t.to(dtype, copy=True)) for t in (start, start[0]))
        optimizer = Muon(
            [{"params": [weight], "muon": True}, {"params": [bias], "muon": False}], 1e-3, variant="normuon"
        )
        for step in range(20):
            weight.grad, bias.grad = (drawn(tuple(p.shape), step).bfloat16().to(dtype) for p in (weight, bias))
            optimizer.step()
        ends.append([optimizer.state[p].get("master_weight", p).detach() for p in (weight, bias)])
        again = copy.deepcopy(optimizer.state_dict())
        optimizer.load_state_dict(again)
        if dtype is torch.bfloat16:
            assert optimizer.state[weight]["master_weight"].dtype == torch.float32
            assert optimizer.state[weight]["row_second_moment"].dtype == torch.float32
            assert torch.equal(optimizer.state[weight]["master_weight"].bfloat16(), weight)
    for this, that in zip(*ends, strict=True):
        assert torch.equal(this, that)


def test_a_state_of_before_variants_goes_on():
    """Groups then had torch's adjust_lr, and neither match nor variant nor row_beta."""
    ends = []
    for older in (False, True):
        weight = nn.Parameter(drawn((6, 8), 6))
        optimizer = Muon([{"params": [weight], "muon": True}], 0.1, match="rms")
        for step in range(4):
            if step == 2 and older:
                saved = copy.deepcopy(optimizer.state_dict())
                for group in saved["param_groups"]:
                    group["adjust_lr"] = "match_rms_adamw"
                    for key in ("match", "variant", "row_beta", "min_trust_ratio", "max_trust_ratio"):
                        del group[key]
                optimizer = Muon([{"params": [weight], "muon": True}], 0.1, match="none")
                optimizer.load_state_dict(saved)
                assert "adjust_lr" not in optimizer.param_groups[0]
            weight.grad = drawn((6, 8), 20 + step)
            optimizer.step()
        ends.append(weight.detach())
    assert torch.equal(*ends)


def test_a_recipe_of_before_match_says_the_same():
    for older, match in (("original", "spectral"), ("match_rms_adamw", "rms")):
        read = MuonSection.model_validate({"name": "muon", "adjust_lr": older})
        assert read == MuonSection(name="muon", match=match)
    assert MuonSection(name="muon") == MuonSection(name="muon", match="spectral", nesterov=True)
    for keys, sentence in (
        ({"adjust_lr": "rms"}, "optimizer.adjust_lr = rms is not known; today it is optimizer.match: rms, spectral"),
        ({"adjust_lr": "original", "match": "rms"}, "optimizer.adjust_lr is optimizer.match by its former name"),
        ({"row_beta": 0.9}, "optimizer.row_beta belongs to optimizer.variant = normuon"),
        ({"max_trust_ratio": 2}, "optimizer.max_trust_ratio belongs to optimizer.variant = orscale or orscale_lm"),
    ):
        with pytest.raises(ValueError, match=sentence):
            MuonSection.model_validate({"name": "muon", **keys})


def test_a_recipes_variants_are_those_of_the_algebra():
    assert {name: (one.match, one.nesterov) for name, one in VARIANTS.items()} == OWN
    assert issubclass(MuonSection, optimizers.Optimizer)


class Tokens(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(20, 6), nn.Embedding(9, 6)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 20, bias=False)
        if tied:
            self.head.weight = self.tokens.weight


def groups_of(model: nn.Module, skip: Any = ()) -> list[dict[str, Any]]:
    return muon_groups(parameter_groups(model, 0.1, treatments(model, ("norm", "bias"), None)), model, skip)


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_and_heads_tied_or_not_are_the_second_rules(tied):
    model = Tokens(tied)
    assert list(hidden_weights(model)) == [f"layers.{i}.weight" for i in range(3)]
    optimizer = Muon(groups_of(model, ("layers.1",)), 0.1)
    assert orthogonalised_names(optimizer) == {"layers.0.weight", "layers.2.weight"}
    assert orthogonalised_names(torch.optim.SGD(model.parameters(), 0.1)) == set()


def frozen() -> nn.Module:
    model = Tokens(False)
    model.layers.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: groups_of(Tokens(True), ("layer.*",)), "no hidden weight of the model has a name like 'layer.*'"),
        (lambda: groups_of(Tokens(True), ("layers",)), "leaves Muon none of the 3 hidden weights of Tokens"),
        (lambda: groups_of(frozen()), "none of the 3 of Tokens is in the parameter groups"),
        (
            lambda: groups_of(nn.Sequential(nn.Embedding(4, 3), nn.Embedding(4, 3), nn.Linear(3, 2))),
            "Muon needs a model with hidden weights; Sequential has 3 weight matrices, and the first, the last and",
        ),
    ],
)
def test_a_model_without_a_single_matrix_is_refused(make, sentence):
    with pytest.raises(UserError) as told:
        make()
    assert sentence in str(told.value)


def test_a_state_of_other_rows_is_refused():
    weight = nn.Parameter(drawn((6, 8), 6))
    weight.grad = drawn((6, 8), 7)
    optimizer = Muon([{"params": [weight], "muon": True}], 0.1, variant="normuon")
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["row_second_moment"] = torch.ones(8)
    with pytest.raises(UserError, match=r"parameter 0 has row_second_moment of shape \(8,\), here it is \(6,\)"):
        optimizer.load_state_dict(saved)

"""Shampoo of a recipe against the papers' equations with numpy in float64, tensor by tensor and block by block."""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from optim.kronecker import along, arrays, blocks_of, built, is_decayed, odd, power, quadratic, statistic, steps

from largebatch.errors import UserError
from largebatch.recipes import config, refusals

pytestmark = pytest.mark.usefixtures("one_thread")
RATES = [0.1, 0.05, 0.0, 0.2, 0.1, 0.03]
DECAY = 0.3


def section(**keys: Any) -> Any:
    return config.from_dict({"name": "n", **TINY, "optimizer": {"name": "shampoo", **keys}}).optimizer


# gupta2018


@pytest.mark.parametrize("every", [1, 3])
def test_algorithm_2_of_the_first_paper(every):
    model, eps = odd(), 1e-3
    optimizer = built(model, DECAY, name="shampoo", variant="gupta2018", matrix_eps=eps, precondition_frequency=every)
    theta = arrays(model)
    sums = {name: [eps * np.eye(side) for side in weight.shape] for name, weight in theta.items()}
    roots = {name: [np.zeros((side, side)) for side in weight.shape] for name, weight in theta.items()}
    for t, gradients in enumerate(steps(model, optimizer, RATES), start=1):
        for name, gradient in gradients.items():
            update = gradient
            for axis in range(gradient.ndim):
                sums[name][axis] += statistic(gradient, axis)
                if t % every == 0:
                    roots[name][axis] = power(sums[name][axis], -1 / (2 * gradient.ndim))
                update = along(roots[name][axis], update, axis)
            lr = RATES[t - 1]
            theta[name] = theta[name] * (1 - lr * DECAY * is_decayed(name)) - lr * update
        compare(model, theta, 1e-9)


def compare(model: torch.nn.Module, theta: dict[str, np.ndarray], tolerance: float) -> None:
    for name, weight in arrays(model).items():
        np.testing.assert_allclose(weight, theta[name], rtol=tolerance, atol=tolerance, err_msg=name)


# anil2020


class Reference:
    """One tensor: its blocks' factors, the graft, both momenta."""

    def __init__(self, shape: tuple[int, ...], keys: dict[str, Any]) -> None:
        self.keys = keys
        has_factors = len(shape) > 1 and max(shape) <= keys["max_preconditioner_dim"]
        self.blocks = blocks_of(shape, keys["block_size"]) if has_factors else []
        sides = [[part.stop - part.start for part in block] for block in self.blocks]
        self.factors = [[keys["matrix_eps"] * np.eye(side) for side in of] for of in sides]
        self.roots = [[np.eye(side) for side in of] for of in sides]
        self.squares, self.m, self.n, self.t = np.zeros(shape), np.zeros(shape), np.zeros(shape), 0

    def update(self, g: np.ndarray) -> np.ndarray:
        keys, self.t = self.keys, self.t + 1
        d = self.graft(g)
        u = np.zeros_like(g)
        for block, factors, roots in zip(self.blocks, self.factors, self.roots, strict=True):
            part = g[block]
            for axis in range(part.ndim):
                factors[axis] = keys["beta2"] * factors[axis] + (1 - keys["beta2"]) * statistic(part, axis)
                if self.t % keys["precondition_frequency"] == 0:
                    order = keys["exponent_override"] or 2 * part.ndim
                    ridge = keys["matrix_eps"] if keys["roots"] == "newton" else 0.0
                    roots[axis] = power(factors[axis], -1 / order, ridge)
            for axis in range(part.ndim):
                part = along(roots[axis], part, axis)
            u[block] = part
        if not self.blocks:
            u = d.copy()
        if keys["grafting"] != "none":
            u = u * (np.linalg.norm(d) / (np.linalg.norm(u) + 1e-16))
        self.m, self.n = keys["beta1"] * self.m + u, keys["beta1"] * self.n + d
        m, u = (self.m, u) if self.t >= keys["start_preconditioning_step"] else (self.n, d)
        return u + keys["beta1"] * m if keys["nesterov"] else m

    def graft(self, g: np.ndarray) -> np.ndarray:
        if self.keys["grafting"] == "adagrad":
            self.squares = self.squares + g * g
        elif self.keys["grafting"] == "rmsprop":
            self.squares = self.keys["beta2"] * self.squares + (1 - self.keys["beta2"]) * g * g
        else:
            return g
        return g / (np.sqrt(self.squares) + 1e-10)


PLAIN: dict[str, Any] = {
    "beta1": 0.8, "beta2": 0.9, "nesterov": True, "grafting": "sgd", "start_preconditioning_step": 3, "block_size": 3,
    "roots": "svd", "precondition_frequency": 1, "max_preconditioner_dim": 5, "exponent_override": None,
    "matrix_eps": 1e-3,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "sgd": {},
    "not grafted": {"grafting": "none", "start_preconditioning_step": 1},
    "adagrad": {"grafting": "adagrad"},
    "rmsprop, no nesterov": {"grafting": "rmsprop", "nesterov": False},
    "exponent -1/2": {"exponent_override": 2, "grafting": "none", "start_preconditioning_step": 1},
    "every second step": {"precondition_frequency": 2},
    "other blocks": {"block_size": 2, "max_preconditioner_dim": 7},
    "newton": {"roots": "newton"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_equations_of_the_second_paper(case):
    keys = {**PLAIN, **CASES[case]}
    model = odd()
    optimizer = built(model, DECAY, name="shampoo", **{k: value for k, value in keys.items() if value is not None})
    theta = arrays(model)
    references = {name: Reference(weight.shape, keys) for name, weight in theta.items()}
    tolerance = 1e-9 if keys["roots"] == "svd" else 2e-3  # Newton's iteration ends at a residual of 1e-3
    for lr, gradients in zip(RATES, steps(model, optimizer, RATES), strict=True):
        for name, gradient in gradients.items():
            update = references[name].update(gradient)
            theta[name] = theta[name] * (1 - lr * DECAY * is_decayed(name)) - lr * update
        compare(model, theta, tolerance)
    with_factors = {name for name, of in references.items() if of.blocks}
    longer = {"embedding.weight"} if keys["max_preconditioner_dim"] == 7 else set()
    assert with_factors == {"conv.weight", "square.weight", "head.weight"} | longer


def test_the_draws_of_newtons_iteration_are_no_ranks_and_no_runs():
    """Two ranks have other random states, and a run draws its dropout from them: neither is felt."""
    ends, after = [], []
    for seed in (1, 2):
        model = odd()
        optimizer = built(model, 0.0, name="shampoo")
        torch.manual_seed(5)
        gradients = [[torch.randn_like(p) for p in model.parameters()] for _ in range(3)]
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        for of_step in gradients:
            for parameter, gradient in zip(model.parameters(), of_step, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
        after.append(torch.equal(torch.get_rng_state(), before))
        ends.append(arrays(model))
    assert all(after)
    assert all(np.array_equal(ends[0][name], ends[1][name]) for name in ends[0])


# The section


def test_the_defaults_are_those_of_the_authors_code():
    found = section().model_dump(exclude={"name", "variant", "precondition_frequency", "max_preconditioner_dim"})
    assert found == {
        "matrix_eps": 1e-6, "exponent_override": None, "beta1": 0.9, "beta2": 0.999, "nesterov": True,
        "grafting": "sgd", "start_preconditioning_step": 5, "block_size": 128, "roots": "newton",
    }  # fmt: skip
    assert section(beta1=0.5).beta1 == 0.5
    assert section(**section().model_dump(exclude={"name"})) == section()
    gupta = section(variant="gupta2018")
    assert gupta.model_dump(exclude_none=True).keys() == {
        "name", "variant", "matrix_eps", "precondition_frequency", "max_preconditioner_dim",
    }  # fmt: skip
    assert section(**gupta.model_dump(exclude={"name"})) == gupta


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"variant": "gupta2018", "grafting": "sgd"}, "optimizer.grafting belongs to optimizer.variant = anil2020"),
        ({"variant": "gupta2018", "beta1": 0.9}, "optimizer.beta1 belongs to optimizer.variant = anil2020"),
        ({"beta2": 1.0}, "optimizer.beta2"),
        ({"precondition_frequency": 0}, "optimizer.precondition_frequency"),
        ({"grafting": "adam"}, "optimizer.grafting"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(keys, sentence):
    with pytest.raises(UserError) as refusal:
        section(**keys)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["shampoo", "soap"])
def test_engines_that_cut_layers_are_refused(name):
    def refused(**engine: Any) -> list[str]:
        run = config.from_dict({"name": "n", **TINY, "optimizer": {"name": name}, "engine": engine})
        return list(refusals.refusals(run, "fp32"))

    assert refused(name="ddp") == refused(name="deepspeed", zero=0) == []
    for engine, words in (
        ({"name": "fsdp"}, "engine.name = fsdp cuts them"),
        ({"name": "deepspeed", "zero": 1}, "engine.name = deepspeed with engine.zero = 1 cuts them"),
        ({"name": "deepspeed", "zero": 2}, "engine.name = deepspeed with engine.zero = 2 cuts them"),
    ):
        [sentence] = refused(**engine)
        assert sentence == (
            f"optimizer.name = {name} needs whole layers on every rank, and {words}; valid: engine.name = ddp, or "
            "deepspeed with engine.zero = 0"
        )


def test_a_layer_that_gupta_would_square_is_refused_by_its_name():
    with pytest.raises(UserError, match=r"has a factor of 7 × 7 for embedding.weight, and .*_dim is 6; valid"):
        built(odd(), 0.0, name="shampoo", variant="gupta2018", max_preconditioner_dim=6)


@pytest.mark.parametrize("name", ["shampoo", "soap"])
def test_without_the_package_it_is_one_sentence(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(UserError, match=rf"optimizer.name = {name} is stepped by .*largebatch\[preconditioned\]"):
        built(odd(), 0.0, name=name)


KEPT: list[dict[str, Any]] = [
    {"name": "shampoo", "variant": "gupta2018"},
    {"name": "shampoo"},
    {"name": "shampoo", "grafting": "none", "block_size": 2},
    {"name": "shampoo", "grafting": "adagrad", "block_size": 4, "max_preconditioner_dim": 5},
    {"name": "soap"},
    {"name": "soap", "max_preconditioner_dim": 4},
    {"name": "soap", "precondition_1d": True, "max_preconditioner_dim": 5},
]


@pytest.mark.parametrize("keys", KEPT, ids=str)
def test_what_it_says_that_it_keeps_is_what_it_keeps(keys):
    model = odd()
    optimizer = built(model, 0.0, **keys)
    list(steps(model, optimizer, [0.1, 0.1]))
    said = config.from_dict({"name": "n", **TINY, "optimizer": keys}).optimizer
    for name, parameter in model.named_parameters():
        leaves = torch.utils._pytree.tree_leaves(dict(optimizer.state[parameter]))
        found = sum(leaf.numel() for leaf in leaves if isinstance(leaf, torch.Tensor))
        assert said.kept(tuple(parameter.shape)) == found, name


@pytest.mark.parametrize("keys", KEPT, ids=str)
def test_a_state_that_is_loaded_goes_on_as_if_never_stopped(keys):
    """In a new optimizer, by torch's own way."""
    one, other = odd(), odd()
    first = built(one, DECAY, **keys)
    torch.manual_seed(1)
    list(steps(one, first, RATES))
    other.load_state_dict(one.state_dict())
    second = built(other, DECAY, **keys)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for model, optimizer in ((one, first), (other, second)):
        torch.manual_seed(2)
        list(steps(model, optimizer, RATES))
    assert all(np.array_equal(arrays(one)[name], weight) for name, weight in arrays(other).items())


@pytest.mark.parametrize("keys", KEPT, ids=str)
def test_a_tensor_without_a_gradient_is_left_alone(keys):
    model = odd()
    optimizer = built(model, DECAY, **keys)
    list(steps(model, optimizer, [0.1, 0.1]))
    before = arrays(model)
    for name, parameter in model.named_parameters():
        parameter.grad = None if name == "conv.weight" else torch.ones_like(parameter)
    optimizer.step()
    assert {name for name, weight in arrays(model).items() if np.array_equal(weight, before[name])} == {"conv.weight"}
    list(steps(model, optimizer, [0.1]))
    assert not np.array_equal(arrays(model)["conv.weight"], before["conv.weight"])


@pytest.mark.parametrize("keys", [KEPT[0], {"name": "shampoo", "grafting": "none", "beta1": 0.0}, {"name": "soap"}])
def test_on_an_ill_conditioned_quadratic_it_is_ahead_of_sgd(keys):
    """With momentum; each at the best of its learning rates."""

    def preconditioned(lr: float) -> float:
        return quadratic(lambda model: built(model, 0.0, lr, **keys))

    def sgd(lr: float) -> float:
        return quadratic(lambda model: torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9))

    best = min(preconditioned(lr) for lr in (0.1, 0.3, 1.0, 3.0))
    assert best < 0.5 * min(sgd(lr) for lr in (0.3, 1.0, 2.0, 3.0))


@pytest.mark.parametrize("keys", KEPT, ids=str)
@pytest.mark.parametrize("nothing", [float("nan"), float("inf"), 1e300])
def test_what_is_not_finite_makes_weights_that_are_none(keys, nothing):
    """As with any other optimizer, so that the loss of the next step tells of it; 1e300 has no square."""
    model = odd()
    optimizer = built(model, 0.0, **{**keys, "precondition_frequency": 1})
    list(steps(model, optimizer, [0.1] * 6))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, nothing)
    for _ in range(2):
        optimizer.step()
    assert not all(parameter.isfinite().all() for parameter in model.parameters())

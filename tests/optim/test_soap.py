"""SOAP of a recipe against its algorithm with numpy in float64, and what follows where bases are not determined."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from optim.kronecker import along, arrays, built, is_decayed, odd, statistic, steps

pytestmark = pytest.mark.usefixtures("one_thread")
RATES = [0.1, 0.05, 0.02, 0.0, 0.2, 0.1, 0.03]
DECAY = 0.3
PLAIN: dict[str, Any] = {
    "beta1": 0.8, "beta2": 0.9, "shampoo_beta": 0.7, "eps": 1e-8, "bias_correction": True, "precondition_frequency": 2,
    "max_preconditioner_dim": 5, "precondition_1d": False,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "bases that stay": {"precondition_frequency": 100},
    "bases that are renewed": {},
    "no correction": {"bias_correction": False, "precondition_frequency": 100},
    "the factors' beta is beta2": {"shampoo_beta": None},
    "vectors, too": {"precondition_1d": True, "max_preconditioner_dim": 7, "precondition_frequency": 100},
}


def orthonormal(matrix: np.ndarray) -> np.ndarray:
    """Its columns by Gram and Schmidt, each twice."""
    columns: list[np.ndarray] = []
    for column in matrix.T:
        for _ in range(2):
            for known in columns:
                column = column - (known @ column) * known
        columns.append(column / np.linalg.norm(column))
    return np.array(columns).T


class Reference:
    """One tensor. Its first bases are the optimizer's: where a factor has no full rank they are anybody's choice."""

    def __init__(self, first_gradient: np.ndarray, bases: list[Any], keys: dict[str, Any]) -> None:
        g, self.keys, self.t = first_gradient, keys, 0
        self.beta = keys["beta2"] if keys["shampoo_beta"] is None else keys["shampoo_beta"]
        self.m, self.v = np.zeros_like(g), np.zeros_like(g)
        has_factors = g.ndim > 1 or (g.ndim == 1 and keys["precondition_1d"])
        self.axes = [axis for axis in range(g.ndim) if has_factors and g.shape[axis] <= keys["max_preconditioner_dim"]]
        assert [axis for axis in range(len(bases)) if len(bases[axis])] == self.axes
        self.factors = {axis: (1 - self.beta) * statistic(g, axis) for axis in self.axes}
        self.bases = {axis: bases[axis].numpy() for axis in self.axes}
        for axis, basis in self.bases.items():
            diagonal = basis.T @ self.factors[axis] @ basis
            np.testing.assert_allclose(basis.T @ basis, np.eye(len(basis)), atol=1e-12)
            np.testing.assert_allclose(diagonal, np.diag(np.sort(np.diag(diagonal))[::-1]), atol=1e-12)

    def turned(self, tensor: np.ndarray) -> np.ndarray:
        for axis, basis in self.bases.items():
            tensor = along(basis.T, tensor, axis)
        return tensor

    def turned_back(self, tensor: np.ndarray) -> np.ndarray:
        for axis, basis in self.bases.items():
            tensor = along(basis, tensor, axis)
        return tensor

    def update(self, g: np.ndarray) -> np.ndarray:
        keys, self.t = self.keys, self.t + 1
        self.m = keys["beta1"] * self.m + (1 - keys["beta1"]) * g
        self.v = keys["beta2"] * self.v + (1 - keys["beta2"]) * self.turned(g) ** 2
        scale = np.sqrt(1 - keys["beta2"] ** self.t) / (1 - keys["beta1"] ** self.t) if keys["bias_correction"] else 1
        update = scale * self.turned_back(self.turned(self.m) / (np.sqrt(self.v) + keys["eps"]))
        for axis in self.axes:
            self.factors[axis] = self.beta * self.factors[axis] + (1 - self.beta) * statistic(g, axis)
            if self.t % keys["precondition_frequency"] == 0:
                product = self.factors[axis] @ self.bases[axis]
                order = np.argsort(-(self.bases[axis] * product).sum(axis=0))
                self.v = np.take(self.v, order, axis)
                self.bases[axis] = orthonormal(product[:, order])
        return update


@pytest.mark.parametrize("case", CASES)
def test_the_algorithm_of_the_paper(case):
    keys = {**PLAIN, **CASES[case]}
    model = odd()
    optimizer = built(model, DECAY, name="soap", **{k: value for k, value in keys.items() if value is not None})
    theta, references = arrays(model), {}
    tolerance = 1e-9 if keys["precondition_frequency"] == 100 else 1e-5  # bases are renewed in float32
    for number, gradients in enumerate(steps(model, optimizer, RATES)):
        for name, parameter in model.named_parameters():
            gradient = gradients[name]
            if number == 0:  # which moves nothing
                references[name] = Reference(gradient, optimizer.state[parameter]["Q"], keys)
                continue
            update, lr = references[name].update(gradient), RATES[number]
            theta[name] = (theta[name] - lr * update) * (1 - lr * DECAY * is_decayed(name))
        for name, weight in arrays(model).items():
            np.testing.assert_allclose(weight, theta[name], rtol=tolerance, atol=tolerance, err_msg=name)
    with_factors = {name for name, of in references.items() if of.axes}
    vectors = {"conv.bias", "head.bias", "norm.weight", "norm.bias"} if keys["precondition_1d"] else set()
    assert with_factors == {"conv.weight", "embedding.weight", "square.weight", "head.weight"} | vectors


def test_a_basis_that_is_not_determined_turns_with_the_last_digit():
    """A factor of 6 × 6 of a gradient of rank 2: four eigenvectors of 0 are whatever rounding makes of them, and the
    steps that follow are taken in them. Of 2 × 2, whose eigenvalues differ, all are determined. This is why a SOAP run
    in another world is the same optimizer, but not the same to twelve digits."""
    torch.manual_seed(0)
    gradients = [torch.randn(2, 6, dtype=torch.float64) for _ in range(4)]

    def end(noise: float, longest: int) -> torch.Tensor:
        model = torch.nn.Linear(6, 2, bias=False).double()
        torch.nn.init.zeros_(model.weight)
        optimizer = built(model, 0.0, name="soap", max_preconditioner_dim=longest, precondition_frequency=100)
        for gradient in gradients:
            model.weight.grad = gradient * (1 + noise * torch.arange(12, dtype=torch.float64).view(2, 6).cos())
            optimizer.step()
        return model.weight.detach()

    assert (end(1e-15, 2) - end(0.0, 2)).abs().max() < 1e-12
    assert (end(1e-15, 6) - end(0.0, 6)).abs().max() > 1e-3

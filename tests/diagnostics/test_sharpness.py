"""Keskar's and SAM's numbers where the largest value is known, once more in plain numpy, and on two ranks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pool
import pytest
import torch
import torch.nn.functional as F
from scipy import optimize
from torch import Tensor, nn

from largebatch.diagnostics.objective import Objective
from largebatch.diagnostics.sharpness import Random, sharpness
from largebatch.errors import UserError


class Landscape(nn.Module):
    """A function of one vector as a model: what it gives is the loss."""

    def __init__(self, function: Callable[[Tensor], Tensor], start: Tensor) -> None:
        super().__init__()
        self.function, self.x = function, nn.Parameter(start.clone())

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(self.x).expand(len(inputs))


def landscape(function: Callable[[Tensor], Tensor], start: Any) -> Objective:
    model = Landscape(function, torch.as_tensor(start, dtype=torch.float64))
    return Objective(model, lambda: [(torch.zeros(2), torch.zeros(2))], 2, lambda outputs, _: outputs.sum())


def vector(n: int, seed: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def full(objective: Objective, epsilon: float, **settings: Any) -> dict[str, Any]:
    found = sharpness(objective, (epsilon,), (None,), (), **settings)
    assert found["sam"] == []
    [item] = found["keskar"]
    return {**item, "loss": found["loss"]}


@pytest.mark.parametrize("epsilon", [1e-3, 5e-4, 0.3])
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_a_linear_loss_rises_to_its_corner(epsilon, scale):
    """Also one whose slope lies below what SciPy calls a solution unless told otherwise."""
    x, slope = vector(2, 0), scale * torch.tensor([1.0, -2.0]).double()
    found = full(landscape(lambda w: 5 + slope @ w, x), epsilon)
    rise = float((epsilon * (x.abs() + 1) * slope.abs()).sum())
    assert found["loss"] == pytest.approx(5 + float(slope @ x), rel=1e-14)
    assert found["max_loss"] - found["loss"] == pytest.approx(rise, rel=1e-6)
    assert found["sharpness"] == pytest.approx(100 * rise / (1 + found["loss"]), rel=1e-6)
    assert (found["space"], found["dimensions"], found["epsilon"]) == ("full", None, epsilon)


@pytest.mark.parametrize("n", [1, 5, 300])
def test_a_separable_quadratic_rises_to_the_corner_on_the_side_of_its_slope(n):
    x, slope, curvature = vector(n, 1), vector(n, 2), vector(n, 3).abs()
    origin = x.clone()
    function = lambda w: 3 + slope @ (w - origin) + 0.5 * curvature @ (w - origin).square()  # noqa: E731
    found = full(landscape(function, x), 1e-3)
    box = 1e-3 * (x.abs() + 1)
    rise = (slope.abs() * box + 0.5 * curvature * box**2).sum().item()
    assert found["loss"] == pytest.approx(3, rel=1e-14)
    assert found["sharpness"] == pytest.approx(100 * rise / (1 + 3), rel=1e-9)


def test_a_hill_inside_the_box_is_climbed_to_its_top():
    function = lambda w: 2 - 3 * (w[0] - 0.52).square() - 5 * (w[1] + 1.01).square()  # noqa: E731
    found = full(landscape(function, [0.5, -1.0]), 0.1)
    assert found["max_loss"] == pytest.approx(2, rel=1e-9)
    assert found["loss"] == pytest.approx(2 - 3 * 0.02**2 - 5 * 0.01**2, rel=1e-12)


@pytest.mark.worlds
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_random_directions_against_every_point_of_the_box(seed):
    """A loss with cross terms and cubes; the box of z has the scale of A⁺x."""
    x, slope = 10 * vector(6, seed), vector(6, seed + 10)
    hessian = torch.outer(slope, slope) + torch.eye(6).double()
    origin = x.clone()

    def function(w: Tensor) -> Tensor:
        d = w - origin
        return 1 + slope @ d + 0.5 * d @ hessian @ d + d.pow(3).sum()

    found = sharpness(landscape(function, x), (0.01,), (2,), (), seed=seed)
    [item] = found["keskar"]
    columns = Random(x, 2, seed).matrix.double()
    box = 0.01 * (np.abs(np.linalg.pinv(columns.numpy()) @ x.numpy()) + 1)
    points = [torch.tensor(z) for z in itertools.product(*(np.linspace(-b, b, 41) for b in box))]
    best = max(float(function(origin + columns @ z)) for z in points)
    assert item["max_loss"] == pytest.approx(best, rel=1e-12), "the largest value is at a corner"
    assert (item["space"], item["dimensions"]) == ("random", 2)


def logistic() -> tuple[Objective, Callable[[np.ndarray], tuple[float, np.ndarray]], np.ndarray]:
    """A classifier of three classes as an objective, and as numpy sees it."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(40, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (40,), generator=generator)
    model = nn.Linear(8, 3).double()
    nn.init.normal_(model.weight, generator=generator)
    nn.init.zeros_(model.bias)
    batches = list(zip(inputs.split(10), labels.split(10), strict=True))
    objective = Objective(model, lambda: batches, 40, nn.CrossEntropyLoss(reduction="sum"))

    def f(w: np.ndarray) -> tuple[float, np.ndarray]:
        outputs = inputs.numpy() @ w[:24].reshape(3, 8).T + w[24:]
        p = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
        value = -np.log(p[np.arange(40), labels.numpy()]).mean()
        p[np.arange(40), labels.numpy()] -= 1
        return value, np.concatenate([(p.T @ inputs.numpy()).reshape(-1), p.sum(0)]) / 40

    return objective, f, objective.weights().numpy().copy()


@pytest.mark.parametrize("epsilon", [1e-3, 0.05])
@pytest.mark.parametrize("dimensions", [None, 7])
def test_metric_2_1_typed_by_hand(dimensions, epsilon):
    objective, f, x = logistic()
    found = sharpness(objective, (epsilon,), (dimensions,), (0.05,), seed=4)
    columns = np.eye(27) if dimensions is None else Random(torch.tensor(x), dimensions, 4).matrix.double().numpy()
    box = epsilon * (np.abs(np.linalg.pinv(columns) @ x) + 1)
    values = []

    def minus(z: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = f(x + columns @ z)
        values.append(value)
        return -value, -columns.T @ gradient

    optimize.fmin_l_bfgs_b(minus, 0 * box, bounds=list(zip(-box, box, strict=True)), factr=0, pgtol=0, maxiter=10)
    phi = 100 * (max(values) - f(x)[0]) / (1 + f(x)[0])
    assert phi > 0.01
    assert found["keskar"][0]["sharpness"] == pytest.approx(phi, rel=1e-8)
    value, gradient = f(x)
    there = f(x + 0.05 * gradient / np.linalg.norm(gradient))[0]
    assert found["loss"] == pytest.approx(value, rel=1e-12)
    assert found["sam"] == [
        {"rho": 0.05, "loss": pytest.approx(there, rel=1e-12), "increase": pytest.approx(there - value, rel=1e-9)}
    ]


def test_the_random_columns_are_normal_and_the_seeds_own():
    matrix = Random(vector(20_000, 0), 5, seed=1).matrix
    assert (matrix.dtype, matrix.shape) == (torch.float32, (20_000, 5))
    assert torch.equal(matrix, Random(vector(20_000, 1), 5, seed=1).matrix)
    assert not torch.equal(matrix, Random(vector(20_000, 0), 5, seed=2).matrix)
    assert float(matrix.mean()) == pytest.approx(0, abs=0.01)
    assert float(matrix.std()) == pytest.approx(1, abs=0.01)


def test_products_with_the_random_matrix_in_parts_are_those_with_the_whole(monkeypatch):
    x, z = vector(50, 0), vector(3, 1)
    monkeypatch.setattr("largebatch.diagnostics.sharpness.ROWS", 7)
    space = Random(x, 3, seed=0)
    whole = space.matrix.double()
    torch.testing.assert_close(space.step(z), whole @ z)
    torch.testing.assert_close(space.gradient(x), whole.T @ x)
    torch.testing.assert_close(space.coordinates, torch.linalg.pinv(whole) @ x)


def rosenbrock(w: Tensor) -> Tensor:
    """Upside down, its top far along a curved ridge."""
    return 50 - (1 - w[0]).square() - 100 * (w[1] - w[0].square()).square()


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_the_search_stops_after_its_iterations(iterations):
    found = full(landscape(rosenbrock, [-1.2, 1.0]), 1.0, iterations=iterations)
    assert found["iterations"] == iterations
    assert found["evaluations"] > iterations
    assert found["loss"] < found["max_loss"] < 50
    assert found["max_loss"] < full(landscape(rosenbrock, [-1.2, 1.0]), 1.0, iterations=iterations + 5)["max_loss"]


def test_the_best_of_all_points_counts_not_the_last():
    """At a cliff a line search ends where it ends."""
    values: list[float] = []

    def function(w: Tensor) -> Tensor:
        value = (2 + w - (20 * w).floor()).sum()
        values.append(value.item())
        return value

    found = full(landscape(function, [0.5]), 0.1)
    assert found["max_loss"] == max(values)
    assert values[-1] < max(values)


def test_ten_iterations_unless_told_otherwise():
    assert full(landscape(rosenbrock, [-1.2, 1.0]), 1.0)["iterations"] == 10


def test_a_loss_that_only_falls_has_no_sharpness():
    found = sharpness(landscape(lambda w: 1 - w @ w, [0.0, 0.0]), (1e-3,), (None,), (0.1,))
    assert found["keskar"][0]["sharpness"] == 0
    assert found["sam"] == [{"rho": 0.1, "loss": 1.0, "increase": 0.0}]


def test_a_step_of_sam_on_a_quadratic():
    """f = ½|w|² at distance 2: a step of ρ along the gradient adds 2ρ + ρ²/2."""
    found = sharpness(landscape(lambda w: 0.5 * w @ w, [0.0, 2.0]), (), (), (0.05, 0.5))
    assert [item["rho"] for item in found["sam"]] == [0.05, 0.5]
    for item in found["sam"]:
        assert item["increase"] == pytest.approx(2 * item["rho"] + item["rho"] ** 2 / 2, rel=1e-12)
        assert item["loss"] == pytest.approx(2 + item["increase"], rel=1e-14)


def small_network() -> tuple[nn.Module, Objective]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    inputs, labels = torch.randn(30, 4), torch.randint(3, (30,))
    loss = lambda outputs, y: F.cross_entropy(outputs, y, reduction="sum")  # noqa: E731
    return model, Objective(model, lambda: [(inputs, labels)], 30, loss)


@pytest.mark.worlds
def test_every_epsilon_in_every_space_and_the_weights_come_back():
    model, objective = small_network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lines: list[str] = []
    found = sharpness(objective, dimensions=(None, 10), progress=lines.append)
    items = found["keskar"]
    assert [(item["space"], item["dimensions"], item["epsilon"]) for item in items] == [
        ("full", None, 1e-3), ("full", None, 5e-4), ("random", 10, 1e-3), ("random", 10, 5e-4),
    ]  # fmt: skip
    for wide, narrow in (items[:2], items[2:]):
        assert wide["sharpness"] > 1.9 * narrow["sharpness"] > 0
    for item in items:
        assert item["max_loss"] == pytest.approx(found["loss"] + item["sharpness"] / 100 * (1 + found["loss"]))
        assert 1 <= item["iterations"] <= 10
        assert item["seconds"] > 0
    assert len(lines) == 4
    assert lines[0].startswith("full space, epsilon 0.001: sharpness ")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_weights_come_back_after_an_error():
    objective = landscape(lambda w: -torch.log(1 - w).sum(), [0.999])
    with pytest.raises(UserError, match="epsilon = 0.01 reaches weights where the loss or its gradient is not finite"):
        sharpness(objective, (0.01,), (None,))
    assert objective.weights().tolist() == [0.999]


def test_what_cannot_be_asked_is_one_sentence():
    model, objective = small_network()
    for message, asked in {
        "epsilon = 0 must be a number above 0": {"epsilons": (0,)},
        "rho = -0.1 must be a number above 0": {"rhos": (-0.1,)},
        "epsilon = inf must be": {"epsilons": (math.inf,)},
        "dimensions = 84 of the random subspace must be at least 1 and at most 83": {"dimensions": (84,)},
        "iterations = 0 must be at least 1": {"iterations": 0},
    }.items():
        with pytest.raises(UserError, match=message):
            sharpness(objective, **{"dimensions": (None,), **asked})
    model[2] = nn.Dropout(0.5)
    with pytest.raises(UserError, match="these layers draw at random: 2"):
        sharpness(objective, dimensions=(None,))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> dict[int, list[dict[str, Any]]]:
    """Five batches here and on two ranks."""
    folder = tmp_path_factory.mktemp("worlds")
    for ended in (pool.run("worlds.sharpness:measure", folder), pool.ranks(2, "worlds.sharpness:measure", folder)):
        assert ended.returncode == 0, ended.stderr[-4000:]
    return {world: torch.load(folder / f"world{world}.pt", weights_only=True) for world in (1, 2)}


@pytest.mark.worlds
@pytest.mark.parametrize("mode", ["batch", "running"])
def test_two_ranks_are_one_process(worlds, mode):
    one, many = worlds[1][0][mode], worlds[2][0][mode]
    for key in ("value", "gradient", "product"):
        torch.testing.assert_close(many[key], one[key], rtol=1e-12, atol=1e-14)
    for key in ("dense", "products"):
        for end in ("largest", "smallest"):
            values = [[pair["value"] for pair in found[key][end]] for found in (one, many)]
            assert values[1] == pytest.approx(values[0], rel=1e-10, abs=1e-12)
        assert many[key]["trace"] == pytest.approx(one[key]["trace"], rel=1e-12)
    assert many["sharpness"] == pytest.approx(one["sharpness"], rel=1e-9)
    assert many["sam"] == pytest.approx(one["sam"], rel=1e-11)


@pytest.mark.worlds
@pytest.mark.parametrize("mode", ["batch", "running"])
def test_both_ranks_find_the_same_bits(worlds, mode):
    first, second = (end[mode] for end in worlds[2])
    assert torch.equal(second["gradient"], first["gradient"])
    assert second["sharpness"] == first["sharpness"]
    assert second["products"]["largest"] == first["products"]["largest"]

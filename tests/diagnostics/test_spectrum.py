"""Eigenvalues, density, trace and shares of matrices that are known, and of networks against their whole Hessian."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
import scipy.stats
import torch
from torch import Tensor, nn

from largebatch.diagnostics.lanczos import Tridiagonal, lanczos
from largebatch.diagnostics.objective import Objective
from largebatch.diagnostics.spectrum import density, of_matrix, of_products, spectrum
from largebatch.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

CLUSTERED = np.concatenate(
    [[-3.0, -2.9999, -1.0], np.linspace(-1e-3, 1e-3, 150), np.linspace(0.5, 0.501, 40), [4.0, 7.0, 7.001, 50.0]]
)


def symmetric(eigenvalues: np.ndarray, seed: int = 0) -> Tensor:
    """A dense matrix that has them."""
    n = len(eigenvalues)
    basis, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return torch.tensor(basis * eigenvalues @ basis.T)


def random_vector(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(matrix: Tensor, iterations: int, **settings: Any) -> Tridiagonal:
    generator = torch.Generator().manual_seed(1)
    return lanczos(lambda v: matrix @ v, random_vector(len(matrix)), iterations, generator, **settings)


def quadrature(matrix: Tensor, **settings: Any) -> dict[str, Any]:
    numbers = {"eigenvalues": 3, "iterations": 60, "vectors": 10, "density_iterations": 30, "seed": 0, **settings}
    return of_products(lambda v: matrix @ v, matrix[0], **numbers)


@pytest.mark.worlds
@pytest.mark.parametrize("storage", [None, torch.float32])
def test_ritz_values_lie_within_their_residuals_of_eigenvalues(storage):
    theta, _, residuals = run(symmetric(CLUSTERED), 60, storage=storage).ritz()
    distance = np.abs(theta[:, None] - CLUSTERED).min(1)
    assert (distance <= residuals + 1e-6).all()
    assert residuals[[0, 1, -1, -2]].max() < 1e-5


@pytest.mark.worlds
@pytest.mark.parametrize("storage", [None, torch.float32])
def test_no_eigenvalue_appears_twice(storage):
    """Without orthogonalising again, one as large as this comes back every few iterations."""
    eigenvalues = np.concatenate([np.linspace(-1, 1, 199), [1e6]])
    theta, _, _ = run(symmetric(eigenvalues), 100, storage=storage).ritz()
    assert (theta > 2).sum() == 1
    assert theta[-1] == pytest.approx(1e6, rel=1e-9)


def test_the_start_vector_sees_every_power_of_the_matrix():
    """vᵀHᵏv of a matrix with negative eigenvalues, for every k that m iterations determine."""
    matrix, m = symmetric(np.linspace(-1.5, 2.0, 40)), 8
    theta, weights, _ = run(matrix, m).ritz()
    v = random_vector(40)
    power = v.clone()
    for k in range(2 * m):
        assert float(v @ v) * float(weights @ theta**k) == pytest.approx(float(v @ power), rel=1e-10), k
        power = matrix @ power


def test_an_exhausted_space_is_left_and_every_copy_of_an_eigenvalue_found():
    matrix = symmetric(np.array([5.0] * 3 + [0.0] * 4 + [-2.0] * 2))
    found = run(matrix, 9)
    theta, weights, residuals = found.ritz()
    np.testing.assert_allclose(theta, [-2, -2, 0, 0, 0, 0, 5, 5, 5], atol=1e-12)
    assert residuals.max() == 0
    short = found.first(3).ritz()
    np.testing.assert_allclose(short[0], [-2, 0, 5], atol=1e-12)
    groups = [weights[:2].sum(), weights[2:6].sum(), weights[6:].sum()]
    np.testing.assert_allclose(groups, short[1], atol=1e-12)


def test_a_matrix_of_zeros():
    found = quadrature(torch.zeros(50, 50).double())
    assert {pair["value"] for pair in found["largest"] + found["smallest"]} == {0.0}
    assert (found["trace"], found["zero_share"], found["zero_below"]) == (0, 1, 0)
    assert math.isfinite(sum(found["density"]["density"]))


@pytest.mark.worlds
def test_both_ends_of_a_clustered_spectrum():
    found = quadrature(symmetric(CLUSTERED), iterations=80)
    assert [pair["value"] for pair in found["largest"]] == pytest.approx([50, 7.001, 7], rel=1e-5)
    assert [pair["value"] for pair in found["smallest"]] == pytest.approx([-3, -2.9999, -1], rel=1e-5)


def test_lanczos_stops_when_the_ends_are_known():
    eigenvalues = np.concatenate([np.linspace(-0.01, 0.01, 194), [-9, -8, -7, 10, 20, 30]])
    found = quadrature(symmetric(eigenvalues), iterations=150, vectors=1, density_iterations=2)
    assert found["products"] < 40
    for end, values in (("largest", [30, 20, 10]), ("smallest", [-9, -8, -7])):
        assert [pair["value"] for pair in found[end]] == pytest.approx(values, rel=1e-5)
        assert all(pair["residual"] <= 1e-3 * abs(pair["value"]) for pair in found[end])
    assert found["trace_std_error"] is None


def test_ends_that_count_as_zero_are_known_too():
    """The lower end of a positive semidefinite matrix does not keep Lanczos going, and 1 is not taken for it."""
    eigenvalues = np.concatenate([np.linspace(0, 1e-6, 191), np.arange(1, 10)])
    found = quadrature(symmetric(eigenvalues), iterations=100, vectors=1, density_iterations=2, eigenvalues=2)
    assert found["products"] < 50
    assert [pair["value"] for pair in found["smallest"]] == pytest.approx([0, 0], abs=4e-5)


@pytest.mark.worlds
def test_the_trace_of_a_diagonal_matrix_is_exact():
    diagonal = torch.linspace(-1, 3, 60, dtype=torch.float64)
    found = quadrature(torch.diag(diagonal))
    assert found["trace"] == pytest.approx(60, rel=1e-12)
    assert found["trace_std_error"] == pytest.approx(0, abs=1e-11)


@pytest.mark.worlds
@pytest.mark.parametrize("seed", range(5))
def test_the_trace_lies_within_its_standard_error(seed):
    """Which is √(2·(‖H‖² − Σ H_ii²)/vectors) for random signs."""
    matrix = symmetric(CLUSTERED)
    found = quadrature(matrix, vectors=100, density_iterations=2, iterations=6, seed=seed)
    assert abs(found["trace"] - CLUSTERED.sum()) < 3 * found["trace_std_error"]
    outside = (matrix.square().sum() - matrix.diagonal().square().sum()).item()
    assert found["trace_std_error"] == pytest.approx((2 * outside / 100) ** 0.5, rel=0.3)


def broadened(eigenvalues: np.ndarray, found: dict[str, Any]) -> np.ndarray:
    """Once more, by SciPy, on the same grid and equally broad."""
    return np.mean([scipy.stats.norm.pdf(found["eigenvalue"], value, found["width"]) for value in eigenvalues], 0)


def distance(found: dict[str, Any], expected: np.ndarray) -> float:
    """∫|ρ − ρ'|/2, between 0 and 1."""
    return float(scipy.integrate.trapezoid(np.abs(found["density"] - expected), found["eigenvalue"])) / 2


def test_the_density_of_a_known_spectrum_is_a_sum_of_bells():
    values = np.array([-1.0, 0.0, 0.0, 2.0])
    found = density(values, np.full(4, 0.25))
    assert found["width"] == pytest.approx(3 * 1e-5**0.5)
    np.testing.assert_allclose(found["density"], broadened(values, found), rtol=1e-5, atol=1e-12)
    assert scipy.integrate.trapezoid(found["density"], found["eigenvalue"]) == pytest.approx(1, rel=1e-12)


@pytest.mark.worlds
def test_the_density_is_that_of_the_eigenvalues():
    """Gaps in the spectrum are seen as such; inside a band the nodes stand apart, so it is compared by its shares."""
    eigenvalues = np.concatenate([np.full(20, -1.0), np.full(100, 0.0), np.full(60, 0.5), np.full(20, 3.0)])
    found = quadrature(symmetric(eigenvalues), vectors=200, density_iterations=20)["density"]
    assert (found["vectors"], found["iterations"]) == (200, 20)
    assert distance(found, broadened(eigenvalues, found)) < 0.02
    assert distance(found, broadened(eigenvalues + 0.1, found)) > 0.9


@pytest.mark.worlds
def test_a_band_has_its_share_of_the_density():
    bands = {(-1.2, -0.7): np.linspace(-1.1, -0.8, 30), (-0.1, 0.4): np.linspace(0, 0.3, 140), (1, 4): np.full(30, 3.0)}
    found = quadrature(symmetric(np.concatenate(list(bands.values()))), vectors=100, density_iterations=20)["density"]
    grid, height = np.array(found["eigenvalue"]), np.array(found["density"])
    for (low, high), inside in bands.items():
        here = (grid > low) & (grid < high)
        assert scipy.integrate.trapezoid(height[here], grid[here]) == pytest.approx(len(inside) / 200, abs=0.02)


def test_shares_of_a_known_spectrum():
    eigenvalues = np.concatenate([[-4.0, -1.0, -1e-3], np.full(5, 1e-6), [2e-5, 1.0]])
    found = of_matrix(symmetric(eigenvalues), 2)
    assert found["zero_below"] == pytest.approx(4e-5, rel=1e-12)
    assert [found[f"{sign}_share"] for sign in ("positive", "zero", "negative")] == pytest.approx([0.1, 0.6, 0.3])
    assert found["shares_exact"]
    assert [pair["value"] for pair in found["largest"]] == pytest.approx([1, 2e-5], rel=1e-9)
    assert [pair["value"] for pair in found["smallest"]] == pytest.approx([-4, -1], rel=1e-12)
    assert max(pair["residual"] for pair in found["largest"] + found["smallest"]) < 1e-13
    assert (found["trace"], found["trace_std_error"]) == (pytest.approx(eigenvalues.sum()), 0)


@pytest.mark.worlds
def test_shares_by_quadrature():
    eigenvalues = np.concatenate([np.full(30, -1.0), np.zeros(100), np.full(70, 2.0)])
    found = quadrature(symmetric(eigenvalues), vectors=200, density_iterations=10)
    assert not found["shares_exact"]
    shares = [found[f"{sign}_share"] for sign in ("positive", "zero", "negative")]
    assert shares == pytest.approx([0.35, 0.5, 0.15], abs=0.015)
    assert sum(shares) == pytest.approx(1, rel=1e-12)


def test_the_saddle_of_the_lecture():
    """y = w₂·w₁·x with one example, x = 1 and y = 1: at the origin a gradient of 0 and eigenvalues of 2 and −2."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    for layer in model:
        nn.init.zeros_(layer.weight)
    one = torch.ones(1, 1, dtype=torch.float64)
    objective = Objective(model, lambda: [(one, one)], 1, nn.MSELoss(reduction="sum"))
    for exact_up_to in (3000, 0):
        found = spectrum(objective, eigenvalues=1, dense_up_to=exact_up_to)
        assert (found["loss"], found["gradient_norm"], found["parameters"]) == (1, 0, 2)
        assert [pair["value"] for pair in found["largest"] + found["smallest"]] == pytest.approx([2, -2])
        assert found["shares_exact"] == (exact_up_to > 0)
        if found["shares_exact"]:
            assert (found["positive_share"], found["zero_share"], found["negative_share"]) == (0.5, 0, 0.5)
            assert found["trace"] == 0


def network(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Objective]:
    """With a unit that is always off: its weights have eigenvalues of zero."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 4)).to(dtype)
    with torch.no_grad():
        model[1].bias[0] = -100
    inputs, labels = torch.randn(60, 6, dtype=dtype), torch.randint(4, (60,))
    batches = list(zip(inputs.split(20), labels.split(20), strict=True))
    return model, Objective(model, lambda: batches, 60, nn.CrossEntropyLoss(reduction="sum"))


@pytest.mark.worlds
def test_a_network_by_products_is_the_network_by_its_whole_hessian():
    _, objective = network()
    whole = spectrum(objective)
    lines: list[str] = []
    found = spectrum(objective, vectors=10, density_iterations=80, dense_up_to=133, progress=lines.append)
    assert (whole["parameters"], whole["products"], whole["shares_exact"]) == (134, 134, True)
    assert (found["shares_exact"], found["loss"], found["gradient_norm"]) == (
        False, whole["loss"], whole["gradient_norm"],
    )  # fmt: skip
    for end in ("largest", "smallest"):
        values = [[pair["value"] for pair in facts[end]] for facts in (found, whole)]
        assert values[0] == pytest.approx(values[1], rel=1e-8)
    assert abs(found["trace"] - whole["trace"]) < 3 * found["trace_std_error"]
    eigenvalues = torch.linalg.eigvalsh(objective.hessian()).numpy()
    assert whole["trace"] == pytest.approx(eigenvalues.sum(), rel=1e-12)
    assert distance(whole["density"], broadened(eigenvalues, whole["density"])) < 1e-6
    assert distance(found["density"], broadened(eigenvalues, found["density"])) < 0.15
    for sign, there in (
        ("positive", eigenvalues > found["zero_below"]),
        ("zero", np.abs(eigenvalues) <= found["zero_below"]),
        ("negative", eigenvalues < -found["zero_below"]),
    ):
        assert found[f"{sign}_share"] == pytest.approx(there.mean(), abs=0.06), sign
    assert whole["zero_share"] == (np.abs(eigenvalues) < 1e-5 * np.abs(eigenvalues).max()).mean() > 0.08
    assert lines[0].startswith("vector 1 of 10: 10 products, largest ")


@pytest.mark.worlds
def test_every_product_is_counted_and_the_facts_are_json():
    _, objective = network()
    count, product = [0], objective.hessian_product

    def counted(v: Tensor) -> Tensor:
        count[0] += 1
        return product(v)

    objective.hessian_product = counted
    found = spectrum(objective, iterations=20, vectors=3, density_iterations=15, dense_up_to=0)
    assert found["products"] == count[0] == 20 + 15 + 15
    assert set(json.loads(json.dumps(found))) == {
        "parameters", "loss", "gradient_norm", "largest", "smallest", "trace", "trace_std_error", "density",
        "positive_share", "zero_share", "negative_share", "shares_exact", "zero_below", "products", "seconds",
    }  # fmt: skip
    assert [pair["value"] for pair in found["largest"]] == sorted((p["value"] for p in found["largest"]), reverse=True)
    assert [pair["value"] for pair in found["smallest"]] == sorted(p["value"] for p in found["smallest"])


@pytest.mark.worlds
def test_what_float32_leaves_of_zero_counts_as_zero():
    """The same network in both types has the same shares."""
    shares = []
    for dtype in (torch.float64, torch.float32):
        model, objective = network()
        model.to(dtype)
        objective.batches = lambda batches=objective.batches, dtype=dtype: [(x.to(dtype), y) for x, y in batches()]
        shares.append(spectrum(objective)["zero_share"])
    assert shares[0] == shares[1]


@pytest.mark.worlds
@pytest.mark.parametrize(("dtype", "eps"), [(torch.float64, 2**-52), (torch.float32, 2**-23)])
@pytest.mark.parametrize("dense_up_to", [0, 3000])
def test_no_residual_is_smaller_than_rounding(dtype, eps, dense_up_to):
    model, objective = network()
    model.to(dtype)
    batches = [(x.to(dtype), y) for x, y in objective.batches()]
    objective = Objective(model, lambda: batches, 60, nn.CrossEntropyLoss(reduction="sum"))
    found = spectrum(objective, dense_up_to=dense_up_to)
    largest = max(found["largest"][0]["value"], -found["smallest"][0]["value"])
    least = min(pair["residual"] for pair in found["largest"] + found["smallest"])
    assert eps * largest <= least < 100 * eps * largest


@pytest.mark.worlds
def test_the_same_seed_finds_the_same_and_leaves_no_trace():
    model, objective = network(torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    first, second, other = (
        spectrum(objective, iterations=20, vectors=2, density_iterations=10, dense_up_to=0, seed=seed)
        for seed in (0, 0, 1)
    )
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    assert first["trace"] != other["trace"]
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.worlds
def test_the_ends_are_those_of_arpack_on_curvlinops():
    model, objective = network()
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it still writes torch.jit.script
        import curvlinops

        data = list(objective.batches())
        peer = curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), data).to_scipy()
        theirs = scipy.sparse.linalg.eigsh(peer, k=6, which="BE", return_eigenvectors=False)
    found = spectrum(objective, eigenvalues=3, iterations=134, dense_up_to=0)
    ours = [pair["value"] for pair in found["smallest"] + found["largest"][::-1]]
    assert ours == pytest.approx(sorted(theirs), rel=1e-5)


@pytest.mark.worlds
def test_what_cannot_be_asked_is_one_sentence():
    model, objective = network()
    for message, asked in {
        "eigenvalues = 0 must be at least 1": {"eigenvalues": 0},
        "vectors = 0 must be at least 1": {"vectors": 0},
        "iterations = 9 and density_iterations = 40 are too few; valid: at least 10 for 5": {"iterations": 9},
        "density_iterations = 1 are too few": {"density_iterations": 1},
    }.items():
        with pytest.raises(UserError, match=message):
            spectrum(objective, **asked)
    model[2] = nn.Dropout(0.5)
    with pytest.raises(UserError, match="these layers draw at random: 2"):
        spectrum(objective)

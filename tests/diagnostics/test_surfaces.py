"""The lecture's own numbers; the methods beside torch's optimizers and ours on the same gradients, in float64."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from largebatch.diagnostics.surfaces import (
    METHODS,
    SURFACES,
    adagrad,
    adagrad_sum,
    crossings,
    curvature,
    distances,
    gradient_descent,
    momentum_by_recursion,
    momentum_by_sum,
    momentum_weights,
    settled_after,
    walk,
)
from largebatch.optim import HeavyBall, LectureAdagrad, LectureAdam, LectureRmsprop

RAVINE, SADDLE, WELLS = (SURFACES[name] for name in ("ravine", "saddle", "double_well"))
UPDATES = 100_000

X = torch.tensor([338, 333, 328, 207, 226, 25, 179, 60, 208, 606], dtype=torch.float64)
Y = torch.tensor([640, 633, 619, 393, 428, 27, 193, 66, 226, 1591], dtype=torch.float64)


def wells(w: torch.Tensor) -> torch.Tensor:
    """The derivative multiplied out and integrated."""
    return 1 + (w**6 / 6 + w**5 / 5 - 23 * w**4 / 2 - 18 * w**3 + 234 * w**2) / 2000


STATED = {  # the losses once more, of a vector, for torch to differentiate
    "saddle": lambda p: (1 - p[0] * p[1]) ** 2,
    "ravine": lambda p: ((Y - (p[0] + p[1] * X)) ** 2).sum(),
    "double_well": lambda p: wells(p[0]),
}
SOMEWHERE = {
    "saddle": [(0.0, 0.0), (0.7, -1.3), (1.0, 1.0), (-1.9, 0.4)],
    "ravine": [(-120.0, -4.0), (-188.4, 2.67), (3.0, 0.5)],
    "double_well": [(-7.0,), (-5.0,), (0.0,), (1.5,), (6.3,)],
}
POINTS = [(name, point) for name, points in SOMEWHERE.items() for point in points]


@pytest.mark.parametrize(("name", "point"), POINTS)
def test_loss_gradient_and_hessian_are_one_anothers_derivatives(name, point):
    surface, p = SURFACES[name], torch.tensor(point, dtype=torch.float64)
    assert surface.loss(*point) == pytest.approx(float(STATED[name](p)), rel=1e-12)
    gradient = torch.func.grad(STATED[name])(p).numpy()
    hessian = torch.autograd.functional.hessian(STATED[name], p)
    assert isinstance(hessian, torch.Tensor)
    np.testing.assert_allclose(surface.gradient(*point), gradient, rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(surface.hessian(*point), hessian.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", SURFACES)
def test_a_surface_of_arrays_is_that_of_their_numbers(name):
    surface = SURFACES[name]
    many = np.array(SOMEWHERE[name])
    np.testing.assert_array_equal(surface.loss(*many.T), [surface.loss(*point) for point in many.tolist()])


@pytest.mark.parametrize("name", SURFACES)
def test_critical_points_are_critical_and_nothing_in_the_window_is_below_the_lowest(name):
    surface = SURFACES[name]
    for point in surface.critical.values():
        scale = np.abs(np.array(surface.gradient(*surface.start))).max()
        assert np.abs(np.array(surface.gradient(*point))).max() <= 1e-12 * scale
    lost = surface.loss(*np.meshgrid(*(np.linspace(*side, 201) for side in surface.window)))
    assert lost.min() >= surface.lowest
    assert surface.lowest == pytest.approx(min(surface.loss(*point) for point in surface.critical.values()), rel=1e-12)


def test_the_saddle_of_slides_7_to_10():
    at = SADDLE.critical["saddle point"]
    assert at == (0, 0)
    assert SADDLE.loss(*at) == 1
    assert SADDLE.gradient(*at) == (0, 0)
    assert SADDLE.hessian(*at) == ((0, -2), (-2, 0))
    seen = curvature(SADDLE, at)
    assert seen.eigenvalues == pytest.approx([-2, 2])
    assert seen.minimum_ratio == 0.5
    assert seen.escape == pytest.approx([1 / math.sqrt(2)] * 2)
    assert (seen.condition_number, seen.stable_below) == (None, None)
    assert SADDLE.loss(*(0.1 * np.array(seen.escape))) == pytest.approx(0.995**2)  # 1 − ½·2·0.1², and the fourth order


def test_a_flat_direction_is_neither_a_minimum_nor_a_way_out():
    seen = curvature(SADDLE, SADDLE.critical["one of the minima"])
    assert seen.eigenvalues == pytest.approx([0, 4], abs=1e-12)
    assert (seen.minimum_ratio, seen.escape, seen.condition_number) == (0.5, None, None)
    assert seen.stable_below == pytest.approx(0.5)


def test_the_ravine_of_slide_4():
    assert RAVINE.optimum == pytest.approx((-188.43320, 2.669455), rel=1e-6)
    assert RAVINE.lowest == pytest.approx(101_936.73, abs=0.005)
    seen = curvature(RAVINE, RAVINE.optimum)
    assert seen.eigenvalues == pytest.approx([5.57348, 1.746830e6], rel=1e-6)
    assert seen.condition_number == pytest.approx(3.134e5, rel=1e-4)
    assert seen.stable_below == pytest.approx(1.14493e-6, rel=1e-6)
    assert (RAVINE.start, RAVINE.window) == ((-120, -4), ((-200, -100), (-5, 5)))


def down_the_ravine(begin, updates=UPDATES, scale=1.0):
    return walk(RAVINE, begin, RAVINE.start, updates, scale)


@pytest.mark.worlds
@pytest.mark.parametrize(
    ("begin", "scale", "end"),
    [
        (partial(gradient_descent, 1e-7), 1.0, (-123.69217, 2.48340)),
        (partial(gradient_descent, 1e-7), 0.1, (-120.36185, 2.47383)),
        (partial(adagrad_sum, 1.0), 1.0, (-188.36684, 2.66926)),
        (partial(adagrad, 0.1), 1.0, (-188.43320, 2.669455)),
        (partial(adagrad, 0.01), 1.0, (-180.37505, 2.64627)),
    ],
    ids=["sum", "mean", "Adagrad of torch", "RMS 0.1", "RMS 0.01"],
)
def test_the_ends_of_100_000_updates(begin, scale, end):
    points = down_the_ravine(begin, scale=scale)
    assert points.shape == (UPDATES + 1, 2)
    assert tuple(points[0]) == RAVINE.start
    assert points[-1] == pytest.approx(end, abs=5.1e-6)


@pytest.mark.worlds
def test_the_rms_form_reaches_the_optimum_at_eta_a_tenth():
    points = down_the_ravine(partial(adagrad, 0.1), 40_000)
    b, _ = np.linalg.lstsq(np.stack([np.ones(10), X.numpy()], axis=1), Y.numpy(), rcond=None)[0]
    assert settled_after(np.abs(points[:, 0] - b), 1e-3) == 29_512
    assert settled_after(distances(RAVINE, points)) == 29_512
    assert settled_after(distances(RAVINE, points[:29_512])) is None


@pytest.mark.worlds
def test_the_rms_form_never_settles_at_eta_one():
    last = down_the_ravine(partial(adagrad, 1.0))[-50_000:]
    assert last[:, 1].min() == pytest.approx(0.67, abs=0.005)
    assert last[:, 1].max() == pytest.approx(4.67, abs=0.005)


def test_too_large_a_step_leaves_in_upright_lines_and_is_cut_off():
    points = down_the_ravine(partial(gradient_descent, 1e-2))
    assert len(points) < 10
    assert np.isfinite(points).all()
    assert points[1] == pytest.approx((201.12, 113_063.76), abs=0.005)
    assert crossings(points, 2.67)[:3] == pytest.approx([-119.98, -123.80, -127.40], abs=0.005)


@pytest.mark.parametrize(("share", "stays"), [(0.999, True), (1.001, False)])
def test_gradient_descent_is_stable_up_to_two_over_the_largest_eigenvalue(share, stays):
    points = down_the_ravine(partial(gradient_descent, share * 1.14493e-6), 5_000)
    assert (RAVINE.loss(*points[-1]) < RAVINE.loss(*points[0])) == stays


def test_a_crossing_is_where_a_straight_line_meets_the_value():
    zigzag = np.array([[0.0, 0.0], [10.0, 4.0], [12.0, 3.0], [20.0, -1.0]])
    assert crossings(zigzag, 1.0) == pytest.approx([2.5, 16.0])
    assert crossings(zigzag, 5.0) == []


TORCHS = {  # lr and constants as in METHODS
    "gradient_descent": lambda w, lr: torch.optim.SGD([w], lr),
    "heavy_ball": lambda w, lr: torch.optim.SGD([w], lr, momentum=0.9),
    "nesterov": lambda w, lr: torch.optim.SGD([w], lr, momentum=0.9, nesterov=True),
    "adagrad_sum": lambda w, lr: torch.optim.Adagrad([w], lr, eps=0.0),
}
OURS = {
    "heavy_ball": lambda w, lr: HeavyBall([w], lr, momentum=0.9),
    "nesterov": lambda w, lr: HeavyBall([w], lr, momentum=0.9, nesterov=True),
    "adagrad": lambda w, lr: LectureAdagrad([w], lr),
    "rmsprop": lambda w, lr: LectureRmsprop([w], lr, alpha=0.9),
    "adam": lambda w, lr: LectureAdam([w], lr, alpha=0.9, momentum=0.9),
}
PEERS = [(name, make) for peers in (TORCHS, OURS) for name, make in peers.items()]


@pytest.mark.parametrize(("name", "make"), PEERS, ids=[f"{i}-{name}" for i, (name, _) in enumerate(PEERS)])
@pytest.mark.parametrize("surface", SURFACES.values(), ids=list(SURFACES))
def test_every_method_walks_as_its_optimizer_does(name, make, surface):
    lr = {"saddle": 0.02, "ravine": 1e-7, "double_well": 0.1}[surface.name]
    method = METHODS[name]
    points = walk(surface, lambda: method.begin(lr, **method.constants), surface.start, 60)
    w = torch.nn.Parameter(torch.tensor(surface.start, dtype=torch.float64))
    optimizer = make(w, lr)
    for expected in points[1:]:
        w.grad = torch.func.grad(STATED[surface.name])(w.detach())
        optimizer.step()
        np.testing.assert_allclose(expected, w.detach().numpy(), rtol=1e-9, atol=1e-12)
    assert set(METHODS) == set(TORCHS) | set(OURS)


@pytest.mark.parametrize("name", METHODS)
def test_where_there_was_no_gradient_yet_there_is_no_step(name):
    move = METHODS[name].begin(0.1, **METHODS[name].constants)
    assert [move(0.0), move(0.0)] == [0, 0]
    assert move(2.0) < 0


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_momentum_is_the_weighted_sum_of_all_gradients_before(momentum):
    lr, method = 0.02, METHODS["heavy_ball"]
    points = walk(SADDLE, lambda: method.begin(lr, momentum), SADDLE.start, 12)
    gradients = np.array([SADDLE.gradient(*point) for point in points[:-1].tolist()])
    by_sum = momentum_by_sum(gradients, lr, momentum)
    np.testing.assert_allclose(by_sum, np.diff(points, axis=0), rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(by_sum, momentum_by_recursion(gradients, lr, momentum), rtol=1e-12, atol=1e-15)


def test_the_weights_of_slide_34():
    """m_1 = −η·g_0, m_2 = −λ·η·g_0 − η·g_1, and so on."""
    assert momentum_weights(1, 0.5, 0.8).tolist() == [-0.5]
    assert momentum_weights(2, 0.5, 0.8) == pytest.approx([-0.4, -0.5])
    assert momentum_weights(4, 0.5, 0.8) == pytest.approx([-0.256, -0.32, -0.4, -0.5])


@pytest.mark.parametrize(
    ("name", "lr", "end"),
    [("gradient_descent", 0.4, 0.0), ("rmsprop", 0.02, 0.0), ("heavy_ball", 0.4, 6.0), ("nesterov", 0.4, 6.0)],
)
def test_what_has_momentum_rolls_out_of_the_local_minimum(name, lr, end):
    method = METHODS[name]
    points = walk(WELLS, lambda: method.begin(lr, **method.constants), WELLS.start, 600)
    assert points[-1, 0] == pytest.approx(end, abs=0.02)


def test_the_double_well_has_a_plateau_a_shallow_and_a_deep_minimum_with_a_hill_between():
    local, hill, deep = (WELLS.critical[name] for name in ("local minimum", "hill", "minimum"))
    assert WELLS.loss(*deep) < WELLS.loss(*local) < WELLS.loss(*hill) < WELLS.loss(-5.0) < WELLS.loss(*WELLS.start)
    assert [curvature(WELLS, point).minimum_ratio for point in (local, hill, deep)] == [1, 0, 1]
    slope = [-WELLS.gradient(w)[0] for w in (-6.0, -5.0, -3.0)]
    assert slope[1] < min(slope[0], slope[2]) / 1.5


def test_from_the_ridge_gradient_descent_ends_in_the_saddle_and_from_beside_it_escapes():
    begin = partial(gradient_descent, 0.05)
    assert np.abs(walk(SADDLE, begin, (1.0, -1.0), 200)[-1]).max() < 1e-6
    assert settled_after(distances(SADDLE, walk(SADDLE, begin, (1.0, -0.99), 200))) == 68

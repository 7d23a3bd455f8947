"""Small surfaces to watch an optimizer on, and the optimizers in the lecture's formulas, in plain float64.

H. Lee, NTU Machine Learning 2021: "When gradient is small" (S) and "Error surface is rugged" (O).

    saddle        L = (1 − w1·w2)²             S, slides 7–10: y = w1·w2·x with one datum, x = y = 1
    ravine        L = Σ (y_i − b − w·x_i)²     O, slide 4: ten points, the sum and not the mean
    double_well   L' = w(w − 3)(w − 6)((w + 5)² + 1)/2000, L(0) = 1
                                               after S, slide 36, a sketch without numbers: the formula is ours.
                                               A plateau at −5, local minimum at 0, hill at 3, deeper minimum at 6

At a critical point the Hessian's eigenvalues say what it is; the minimum ratio is the share of them above zero, and an
eigenvector u with a negative one is a way out: L(θ + εu) < L(θ) (S, slides 8–15).

The momentum of an update is a weighted sum of all gradients before it (S, slides 33–34; Polyak 1964):

    m_0 = 0,  m_i = λ·m_{i−1} − η·g_{i−1}          hence          m_i = −η·Σ_{k<i} λ^{i−1−k}·g_k
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

FAR = 1e15
"""A path that leaves ±FAR has diverged."""

X = (338.0, 333.0, 328.0, 207.0, 226.0, 25.0, 179.0, 60.0, 208.0, 606.0)
Y = (640.0, 633.0, 619.0, 393.0, 428.0, 27.0, 193.0, 66.0, 226.0, 1591.0)

Point = tuple[float, ...]
Move = Callable[[float], float]


@dataclass(frozen=True)
class Surface:
    """``loss``, ``gradient`` and ``hessian`` take one argument per parameter; the first two arrays, too.

    ``critical`` names points where the gradient is zero. The loss is ``lowest`` at the ``optimum``, which is None where
    it is a whole curve. The mean loss is the loss over ``examples``.
    """

    name: str
    formula: str
    parameters: tuple[str, ...]
    window: tuple[tuple[float, float], ...]
    start: Point
    loss: Callable[..., Any]
    gradient: Callable[..., tuple[Any, ...]]
    hessian: Callable[..., tuple[Point, ...]]
    critical: dict[str, Point]
    lowest: float
    optimum: Point | None = None
    examples: int = 1


def _saddle() -> Surface:
    def loss(w1: Any, w2: Any) -> Any:
        rest = 1 - w1 * w2
        return rest * rest

    def gradient(w1: Any, w2: Any) -> tuple[Any, Any]:
        rest = 1 - w1 * w2
        return -2 * w2 * rest, -2 * w1 * rest

    def hessian(w1: float, w2: float) -> tuple[Point, Point]:
        across = 4 * w1 * w2 - 2
        return (2 * w2 * w2, across), (across, 2 * w1 * w1)

    return Surface(
        "saddle",
        "L = (1 − w1·w2)²",
        ("w1", "w2"),
        ((-2.0, 2.0), (-2.0, 2.0)),
        (1.0, -0.99),
        loss,
        gradient,
        hessian,
        {"saddle point": (0.0, 0.0), "one of the minima": (1.0, 1.0)},
        lowest=0.0,
    )


def _ravine() -> Surface:
    n, sum_x, sum_y = float(len(X)), math.fsum(X), math.fsum(Y)
    sum_xx = math.fsum(x * x for x in X)
    sum_xy = math.fsum(x * y for x, y in zip(X, Y, strict=True))

    def loss(b: Any, w: Any) -> Any:
        rests = (y - b - w * x for x, y in zip(X, Y, strict=True))
        return sum(rest * rest for rest in rests)

    def gradient(b: Any, w: Any) -> tuple[Any, Any]:
        return 2 * (n * b + sum_x * w - sum_y), 2 * (sum_x * b + sum_xx * w - sum_xy)

    def hessian(b: float, w: float) -> tuple[Point, Point]:
        return (2 * n, 2 * sum_x), (2 * sum_x, 2 * sum_xx)

    determinant = n * sum_xx - sum_x * sum_x
    optimum = ((sum_xx * sum_y - sum_x * sum_xy) / determinant, (n * sum_xy - sum_x * sum_y) / determinant)
    return Surface(
        "ravine",
        "L = Σ (y − b − w·x)², ten points",
        ("b", "w"),
        ((-200.0, -100.0), (-5.0, 5.0)),
        (-120.0, -4.0),
        loss,
        gradient,
        hessian,
        {"minimum": optimum},
        lowest=loss(*optimum),
        optimum=optimum,
        examples=len(X),
    )


def _double_well() -> Surface:
    """Multiplied out: L' = (w⁵ + w⁴ − 46w³ − 54w² + 468w)/2000."""

    def loss(w: Any) -> Any:
        return 1 + w * w * (234 + w * (-18 + w * (-11.5 + w * (0.2 + w / 6)))) / 2000

    def gradient(w: Any) -> tuple[Any]:
        return (w * (w - 3) * (w - 6) * ((w + 5) * (w + 5) + 1) / 2000,)

    def hessian(w: float) -> tuple[Point]:
        return (((468 + w * (-108 + w * (-138 + w * (4 + 5 * w)))) / 2000,),)

    return Surface(
        "double_well",
        "L' = w(w − 3)(w − 6)((w + 5)² + 1)/2000, L(0) = 1",
        ("w",),
        ((-7.5, 7.5),),
        (-7.0,),
        loss,
        gradient,
        hessian,
        {"local minimum": (0.0,), "hill": (3.0,), "minimum": (6.0,)},
        lowest=loss(6.0),
        optimum=(6.0,),
    )


SURFACES = {surface.name: surface for surface in (_saddle(), _ravine(), _double_well())}


class Curvature(NamedTuple):
    """What the Hessian says at a point. Eigenvalues ascend; ``escape`` is the first one's vector if that is below zero.

    ``condition_number`` and ``stable_below``, the 2/λ_max under which gradient descent stays, are for minima alone.
    """

    eigenvalues: list[float]
    minimum_ratio: float
    escape: list[float] | None
    condition_number: float | None
    stable_below: float | None


def curvature(surface: Surface, point: Point) -> Curvature:
    values, vectors = np.linalg.eigh(np.array(surface.hessian(*point)))
    zero = 1e-12 * np.abs(values).max()
    u = vectors[:, 0] * (np.sign(vectors[np.abs(vectors[:, 0]).argmax(), 0]))
    low, high = float(values[0]), float(values[-1])
    return Curvature(
        [float(value) for value in values],
        float((values > zero).mean()),
        [float(part) for part in u] if low < -zero else None,
        high / low if low > zero else None,
        2 / high if low >= -zero else None,
    )


def gradient_descent(lr: float) -> Move:
    """θ −= η·g. No state."""
    return lambda g: -lr * g


def heavy_ball(lr: float, momentum: float) -> Move:
    """θ += m_t, m_t = λ·m_{t−1} − η·g_{t−1}. State: m, from 0; the learning rate is inside."""
    m = 0.0

    def move(g: float) -> float:
        nonlocal m
        m = momentum * m - lr * g
        return m

    return move


def nesterov(lr: float, momentum: float) -> Move:
    """θ += λ·m_t − η·g_{t−1} with heavy ball's m_t (Nesterov 1983). State: m, from 0."""
    m = 0.0

    def move(g: float) -> float:
        nonlocal m
        m = momentum * m - lr * g
        return momentum * m - lr * g

    return move


def adagrad(lr: float) -> Move:
    """θ −= η·g/σ, σ² the mean of all g² so far: the lecture's form (O, slide 6). State: Σg² and how many."""
    squares, seen = 0.0, 0

    def move(g: float) -> float:
        nonlocal squares, seen
        squares, seen = squares + g * g, seen + 1
        return _over(-lr * g, squares / seen)

    return move


def adagrad_sum(lr: float) -> Move:
    """θ −= η·g/√Σg²: the form of Duchi et al. 2011, and torch's but for its ε. State: Σg²."""
    squares = 0.0

    def move(g: float) -> float:
        nonlocal squares
        squares += g * g
        return _over(-lr * g, squares)

    return move


def rmsprop(lr: float, alpha: float) -> Move:
    """θ −= η·g_t/σ_t, σ_t² = α·σ_{t−1}² + (1−α)·g_t², σ_0 = |g_0| (O, slide 9). State: σ²."""
    return adam(lr, 0.0, alpha)


def adam(lr: float, momentum: float, alpha: float) -> Move:
    """θ += m_t/σ_t with heavy ball's m and RMSprop's σ, no bias correction (O, slide 11). State: m, from 0, and σ²."""
    m, square = 0.0, None

    def move(g: float) -> float:
        nonlocal m, square
        square = g * g if square is None else alpha * square + (1 - alpha) * g * g
        m = momentum * m - lr * g
        return _over(m, square)

    return move


def _over(step: float, square: float) -> float:
    """step/σ; where σ is 0 there has been no gradient yet, and the step is 0."""
    return step / math.sqrt(square) if square > 0 else 0.0


@dataclass(frozen=True)
class DescentMethod:
    """``begin(lr, **constants)`` gives the move of one coordinate: gradient in, change of the parameter out."""

    title: str
    begin: Callable[..., Move]
    constants: dict[str, float] = field(default_factory=dict)


METHODS = {
    "gradient_descent": DescentMethod("gradient descent", gradient_descent),
    "heavy_ball": DescentMethod("heavy ball", heavy_ball, {"momentum": 0.9}),
    "nesterov": DescentMethod("Nesterov", nesterov, {"momentum": 0.9}),
    "adagrad": DescentMethod("Adagrad, mean of g²", adagrad),
    "adagrad_sum": DescentMethod("Adagrad, sum of g²", adagrad_sum),
    "rmsprop": DescentMethod("RMSprop", rmsprop, {"alpha": 0.9}),
    "adam": DescentMethod("Adam", adam, {"momentum": 0.9, "alpha": 0.9}),
}


def walk(surface: Surface, begin: Callable[[], Move], start: Point, updates: int, scale: float = 1.0) -> np.ndarray:
    """All points, (updates + 1, parameters); fewer if it diverges: then the last is the last within ±FAR.

    ``scale`` multiplies the loss: 1/examples makes a mean of a sum.
    """
    point, moves = list(start), [begin() for _ in start]
    points = [point]
    for _ in range(updates):
        gradient = surface.gradient(*point)
        point = [w + move(scale * g) for w, move, g in zip(point, moves, gradient, strict=True)]
        if not all(abs(w) <= FAR for w in point):
            break
        points.append(point)
    return np.array(points)


def distances(surface: Surface, points: np.ndarray) -> np.ndarray:
    """Of each point to the optimum in its farthest coordinate; where the optima are a curve, the loss above theirs."""
    if surface.optimum is None:
        return np.array(surface.loss(*points.T)) - surface.lowest
    return np.abs(points - np.array(surface.optimum)).max(axis=1)


def settled_after(distances: np.ndarray, within: float = 1e-3) -> int | None:
    """The update from which on the distance stays below ``within``; None if it does not."""
    far = np.flatnonzero(distances >= within)
    after = int(far[-1]) + 1 if far.size else 0
    return after if after < len(distances) else None


def crossings(points: np.ndarray, value: float) -> list[float]:
    """The first coordinates where the straight segments of a path of two cross ``value`` in the second."""
    before, after = points[:-1], points[1:]
    crossing = np.flatnonzero((before[:, 1] < value) != (after[:, 1] < value))
    part = (value - before[crossing, 1]) / (after[crossing, 1] - before[crossing, 1])
    return [float(b) for b in before[crossing, 0] + part * (after[crossing, 0] - before[crossing, 0])]


def momentum_by_recursion(gradients: np.ndarray, lr: float, momentum: float) -> np.ndarray:
    """m_1, m_2, … one row each, from gradients g_0, g_1, …, a row each."""
    m, rows = np.zeros(gradients.shape[1]), []
    for g in gradients:
        m = momentum * m - lr * g
        rows.append(m)
    return np.array(rows)


def momentum_weights(updates: int, lr: float, momentum: float) -> np.ndarray:
    """The weights −η·λ^{i−1−k} of g_0, …, g_{i−1} in m_i, i = ``updates``."""
    return -lr * momentum ** np.arange(updates - 1, -1, -1.0)


def momentum_by_sum(gradients: np.ndarray, lr: float, momentum: float) -> np.ndarray:
    """The same as :func:`momentum_by_recursion`, each m_i the weighted sum of all gradients before it."""
    return np.array([momentum_weights(i, lr, momentum) @ gradients[:i] for i in range(1, len(gradients) + 1)])

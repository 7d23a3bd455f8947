"""The lecture's small surfaces, walked by its optimizers: the numbers of its slides, and what a picture needs.

Where no method is named, the runs are the lecture's; its numbers for the ravine (its optimizer slides 4 and 12) follow
from its ten points.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import rich.box
import rich.table

from largebatch.diagnostics.surfaces import (
    FAR,
    METHODS,
    SURFACES,
    Point,
    Surface,
    crossings,
    curvature,
    distances,
    momentum_by_recursion,
    momentum_by_sum,
    momentum_weights,
    settled_after,
    walk,
)
from largebatch.errors import UserError, suggestion
from largebatch.records.circumstances import circumstances_of
from largebatch.report.numerals import count, listing, plain

MOST_UPDATES = 1_000_000
MARKS = 100  # of a long path, between which only the extremes are kept
GRID, CURVE = 61, 301  # points of a picture's surface, per side or along it
UNROLLED = 4  # updates whose momentum is written as a sum


@dataclasses.dataclass(frozen=True)
class Descent:
    """``mean``: of the mean loss instead of the sum. ``start``: else the surface's."""

    method: str
    lr: float
    mean: bool = False
    start: Point | None = None
    momentum: float | None = None


class Defaults(NamedTuple):
    """``lrs``: of a method named without one."""

    updates: int
    lrs: dict[str, float]
    runs: tuple[Descent, ...]


ON_SADDLE = {
    "gradient_descent": 0.05, "heavy_ball": 0.02, "nesterov": 0.02, "adagrad": 0.05, "adagrad_sum": 0.5,
    "rmsprop": 0.02, "adam": 0.01,
}  # fmt: skip
IN_RAVINE = {
    "gradient_descent": 1e-7, "heavy_ball": 1e-7, "nesterov": 1e-7, "adagrad": 0.1, "adagrad_sum": 1.0,
    "rmsprop": 0.001, "adam": 0.001,
}  # fmt: skip
IN_WELLS = {
    "gradient_descent": 0.4, "heavy_ball": 0.4, "nesterov": 0.4, "adagrad": 0.4, "adagrad_sum": 1.0,
    "rmsprop": 0.1, "adam": 0.2,
}  # fmt: skip
DEFAULTS = {
    "saddle": Defaults(
        200,
        ON_SADDLE,
        (
            Descent("gradient_descent", 0.05, start=(1.0, -1.0)),
            *(Descent(method, lr) for method, lr in ON_SADDLE.items()),
        ),
    ),
    "ravine": Defaults(
        100_000,
        IN_RAVINE,
        (
            Descent("gradient_descent", 1e-7),
            Descent("gradient_descent", 1e-7, mean=True),
            Descent("gradient_descent", 1e-2),
            Descent("adagrad_sum", 1.0),
            Descent("adagrad", 1.0),
            Descent("adagrad", 0.1),
            Descent("adagrad", 0.01),
        ),
    ),
    "double_well": Defaults(
        200,
        IN_WELLS,
        tuple(
            Descent(method, IN_WELLS[method])
            for method in ("gradient_descent", "rmsprop", "heavy_ball", "nesterov", "adam")
        ),
    ),
}

OURS = {
    "saddle": ["starts and learning rates are ours; the lecture gives none"],
    "double_well": ["formula, start and learning rates are ours; the lecture sketches such a curve without numbers"],
}


def measure(
    name: str,
    methods: Sequence[str] | None = None,
    lr: float | None = None,
    momentum: float | None = None,
    updates: int | None = None,
    start: Sequence[float] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Every mistake of the command is found here, before anything is walked."""
    if name not in SURFACES:
        raise UserError(f"surface {name!r} is not known{suggestion(name, list(SURFACES))}")
    surface = SURFACES[name]
    if updates is None:
        updates = DEFAULTS[name].updates
    if not 1 <= updates <= MOST_UPDATES:
        raise UserError(f"updates = {updates} must be between 1 and {MOST_UPDATES:,}")
    origin = surface.start if start is None else _checked_start(surface, start)
    runs = _runs(name, methods, lr, momentum, moved=start is not None)
    walked = [_walked(surface, run, origin, updates) for run in runs]
    facts = {
        "kind": "surface",
        "name": name,
        "formula": surface.formula,
        "parameters": list(surface.parameters),
        "window": [list(side) for side in surface.window],
        "start": list(origin),
        "optimum": surface.optimum and list(surface.optimum),
        "updates": updates,
        "critical_points": [_critical(surface, *named) for named in surface.critical.items()],
        "paths": [_path(surface, run, points, updates) for run, points in zip(runs, walked, strict=True)],
        "momentum": _momentum(surface, runs, walked),
        **_drawn_surface(surface),
        **circumstances_of(command),
    }
    return facts | {"notes": _notes(facts)}


def table(facts: dict[str, Any]) -> rich.table.Table:
    title = f"{facts['name']}: {facts['updates']:,} updates from {point(facts['start'], facts['parameters'])}"
    shown = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    shown.add_column("method", no_wrap=True)
    for heading in ("η", *facts["parameters"], "loss", "settled"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for path in facts["paths"]:
        shown.add_row(
            _who(facts, path),
            plain(path["lr"]),
            *map(_coordinate, path["end"]),
            number(path["end_loss"], 3),
            "diverges" if path["diverged"] else count(path["settled_after_updates"]),
        )
    return shown


def momentum_table(facts: dict[str, Any]) -> rich.table.Table | None:
    """The first updates' momentum as the weighted sum of all gradients; None where no method has one."""
    unrolled = facts["momentum"]
    if unrolled is None:
        return None
    apart = "\n" if len(facts["parameters"]) > 1 else " "
    title = f"{unrolled['label']}: m_i = −η·Σ λ^(i−1−k)·g_k"
    shown = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    shown.add_column("i", justify="right")
    shown.add_column("−η·λ^(i−1−k)·g_k, k = 0, …, i − 1")
    for heading in ("their sum", "the buffer"):
        shown.add_column(heading, no_wrap=True)
    for row in unrolled["updates"]:
        terms = zip(row["weights"], unrolled["gradients"], strict=False)
        said = apart.join(f"− {number(-weight)}·{vector(gradient)}" for weight, gradient in terms)
        both = (vector(row[key], 5).strip("()") for key in ("weighted_sum", "buffer"))
        shown.add_row(str(row["update"]), said, *both)
    return shown


def number(value: float, digits: int = 4) -> str:
    """``−188.4``, ``101,936.73``, ``3.4e13``."""
    if 1e4 <= abs(value) < 1e7:
        text = f"{value:,.2f}".rstrip("0").rstrip(".")
    else:
        text = f"{value + 0.0:.{digits}g}".replace("e-0", "e-").replace("e+", "e")
    return text.replace("-", "−") if text.startswith("-") else text


def _coordinate(value: float) -> str:
    """To a ten-thousandth, so that a column can be compared."""
    return f"{round(value, 4) + 0.0:.4f}".replace("-", "−") if abs(value) < 1e4 else number(value, 3)


def vector(values: Sequence[float], digits: int = 4) -> str:
    """``(−1, 0.5)``; of one alone only a negative is in brackets."""
    if len(values) == 1 and values[0] >= 0:
        return number(values[0], digits)
    return f"({', '.join(number(value, digits) for value in values)})"


def point(values: Sequence[float], names: Sequence[str], digits: int = 4) -> str:
    """``b = −120, w = −4``."""
    return ", ".join(f"{name} = {number(value, digits)}" for name, value in zip(names, values, strict=True))


def _checked_start(surface: Surface, start: Sequence[float]) -> Point:
    given, names = ", ".join(f"{value:g}" for value in start), ", ".join(surface.parameters)
    if len(start) != len(surface.parameters):
        raise UserError(f"start = {given} does not fit {surface.name}; valid: one number for each of {names}")
    if not all(abs(value) <= FAR for value in start):
        raise UserError(f"start = {given} must be finite numbers within ±{FAR:g}, one for each of {names}")
    return tuple(float(value) for value in start)


def _runs(
    name: str, methods: Sequence[str] | None, lr: float | None, momentum: float | None, moved: bool
) -> list[Descent]:
    """Those asked for, each once; the surface's own where no method is."""
    for method in methods or ():
        if method not in METHODS:
            raise UserError(f"method {method!r} is not known{suggestion(method, list(METHODS))}")
    if lr is not None and not 0 < lr < math.inf:
        raise UserError(f"lr = {lr:g} must be a finite number above 0")
    if momentum is not None and not 0 <= momentum < 1:
        raise UserError(f"momentum = {momentum:g} must be at least 0 and below 1")
    lrs, runs = DEFAULTS[name].lrs, DEFAULTS[name].runs
    if methods:
        runs = tuple(Descent(method, lrs[method]) for method in methods)
    changed = []
    for run in runs:
        own = METHODS[run.method].constants.get("momentum")
        changed.append(
            dataclasses.replace(
                run,
                lr=run.lr if lr is None else lr,
                start=None if moved else run.start,
                momentum=own if own is None or momentum is None else momentum,
            )
        )
    if momentum is not None and all(run.momentum is None for run in changed):
        having = [method for method, made in METHODS.items() if "momentum" in made.constants]
        raise UserError(
            f"momentum = {momentum:g} is of no use to the methods chosen; those with one: {listing(having)}"
        )
    return list(dict.fromkeys(changed))


def _walked(surface: Surface, run: Descent, origin: Point, updates: int) -> np.ndarray:
    method = METHODS[run.method]
    begin = partial(method.begin, run.lr, **_constants(run))
    return walk(surface, begin, run.start or origin, updates, 1 / surface.examples if run.mean else 1.0)


def _constants(run: Descent) -> dict[str, float]:
    constants = METHODS[run.method].constants
    return constants | ({"momentum": run.momentum} if run.momentum is not None else {})


def _path(surface: Surface, run: Descent, points: np.ndarray, updates: int) -> dict[str, Any]:
    done, last = len(points) - 1, points[-1]
    kept = thinned(points)
    diverged = done < updates
    half = points[len(points) // 2 :]
    low, high = half.min(0), half.max(0)
    settled = None if diverged else settled_after(distances(surface, points))
    optimum = None if surface.optimum is None else np.array(surface.optimum)
    around = optimum is not None and bool((low < optimum).all() and (optimum < high).all())
    constants = _constants(run)
    said = [METHODS[run.method].title, "mean loss" if run.mean else "", f"η = {plain(run.lr)}"]
    if run.momentum is not None:
        said.append(f"λ = {plain(run.momentum)}")
    if run.start:
        said.append(f"from {vector(run.start)}")
    return {
        "method": run.method,
        "title": METHODS[run.method].title,
        "label": ", ".join(word for word in said if word),
        "lr": run.lr,
        "momentum": constants.get("momentum"),
        "alpha": constants.get("alpha"),
        "mean_loss": run.mean,
        "start": points[0].tolist(),
        "updates": done,
        "end": last.tolist(),
        "end_loss": float(surface.loss(*last)),
        "ends_in": _ends_in(surface, points),
        "diverged": diverged,
        "settled_after_updates": settled,
        "swings_around_optimum": around and settled is None and not diverged,
        "range_of_last_half": np.stack([low, high], axis=1).tolist(),
        "crossings_of_optimum": (
            crossings(points, optimum[1]) if diverged and optimum is not None and len(optimum) == 2 else None
        ),
        "after_one_update": points[min(1, done)].tolist(),
        "update_numbers": kept.tolist(),
        "points": points[kept].tolist(),
    }


def _ends_in(surface: Surface, points: np.ndarray) -> str | None:
    """The critical point that the path came to rest in, by its name."""
    for name, at in surface.critical.items():
        if np.abs(points[-1] - np.array(at)).max() < 1e-3:
            return name
    return None


def thinned(points: np.ndarray) -> np.ndarray:
    """Which points to draw: marks evenly spaced in log(update), and each coordinate's extremes between two of them."""
    last = len(points) - 1
    if last <= 3 * MARKS:
        return np.arange(last + 1)
    marks = np.unique(np.geomspace(1, last + 1, MARKS).round().astype(int)) - 1
    kept = {*marks.tolist()}
    for begin, end in itertools.pairwise(marks):
        between = points[begin:end]
        kept.update((begin + between.argmin(0)).tolist(), (begin + between.argmax(0)).tolist())
    return np.array(sorted(kept))


def _critical(surface: Surface, name: str, at: Point) -> dict[str, Any]:
    seen = curvature(surface, at)
    return {
        "name": name,
        "point": list(at),
        "loss": float(surface.loss(*at)),
        "gradient": [part + 0.0 for part in surface.gradient(*at)],  # no −0
        "hessian": [[part + 0.0 for part in row] for row in surface.hessian(*at)],
        "eigenvalues": seen.eigenvalues,
        "minimum_ratio": seen.minimum_ratio,
        "escape_direction": seen.escape,
        "condition_number": seen.condition_number,
        "gradient_descent_stable_below_lr": seen.stable_below,
    }


def _momentum(surface: Surface, runs: list[Descent], walked: list[np.ndarray]) -> dict[str, Any] | None:
    """The first updates of the first heavy ball, both ways; Nesterov's and Adam's steps are more than their buffer."""
    for run, points in zip(runs, walked, strict=True):
        if run.method != "heavy_ball" or run.momentum is None:
            continue
        passed = points[:-1][:UNROLLED]
        gradients = np.array([surface.gradient(*at) for at in passed.tolist()]).reshape(len(passed), points.shape[1])
        sums = momentum_by_sum(gradients, run.lr, run.momentum)
        buffers = momentum_by_recursion(gradients, run.lr, run.momentum)
        title = METHODS[run.method].title
        return {
            "label": f"{title}, η = {plain(run.lr)}, λ = {plain(run.momentum)}",
            "gradients": gradients.tolist(),
            "updates": [
                {
                    "update": i,
                    "weights": momentum_weights(i, run.lr, run.momentum).tolist(),
                    "weighted_sum": sums[i - 1].tolist(),
                    "buffer": buffers[i - 1].tolist(),
                }
                for i in range(1, len(passed) + 1)
            ],
        }
    return None


def _drawn_surface(surface: Surface) -> dict[str, Any]:
    """``contours``: loss[row of y][column of x]; of one parameter, ``curve``."""
    (left, right), *up = surface.window
    if not up:
        x = np.linspace(left, right, CURVE)
        return {"contours": None, "curve": {"x": _short(x), "loss": _short(surface.loss(x))}}
    x, y = np.linspace(left, right, GRID), np.linspace(*up[0], GRID)
    loss = surface.loss(x[None, :], y[:, None])
    return {"contours": {"x": _short(x), "y": _short(y), "loss": _short(loss)}, "curve": None}


def _short(values: np.ndarray) -> Any:
    """Seven digits are plenty to draw."""
    return [_short(row) for row in values] if values.ndim > 1 else [float(f"{value:.7g}") for value in values]


def _notes(facts: dict[str, Any]) -> list[str]:
    """What is said below the table."""
    names = facts["parameters"]
    near = "every coordinate stays within 0.001 of the optimum" if facts["optimum"] else "the loss stays below 0.001"
    said = [facts["formula"], f"settled: the updates after which {near}"]
    said += [_of_critical(critical, names) for critical in facts["critical_points"]]
    for path in facts["paths"]:
        if path["diverged"]:
            said.append(f"{path['label']}: {_diverged(facts, path)}")
        elif path["settled_after_updates"] is None and path["ends_in"]:
            said.append(f"{path['label']}: ends in the {path['ends_in']}")
        elif path["swings_around_optimum"]:
            said.append(f"{path['label']}: has not settled: in the last {_swings(facts, path)}")
    return said + OURS.get(facts["name"], [])


def _diverged(facts: dict[str, Any], path: dict[str, Any]) -> str:
    names, crossed = facts["parameters"], path["crossings_of_optimum"]
    said = f"diverges; the first update leads to {point(path['after_one_update'], names, 6)}"
    if crossed:
        where = ", ".join(f"{value:.2f}".replace("-", "−") for value in crossed)
        said += f", and its segments cross {names[1]} = {facts['optimum'][1]:.2f} at {names[0]} = {where}"
    return said


def _swings(facts: dict[str, Any], path: dict[str, Any]) -> str:
    ranges = zip(facts["parameters"], path["range_of_last_half"], strict=True)
    between = (f"{name} between {number(low)} and {number(high)}" for name, (low, high) in ranges)
    return f"{path['updates'] // 2:,} updates {', '.join(between)}"


def _of_critical(critical: dict[str, Any], names: Sequence[str]) -> str:
    said = [
        f"{critical['name']} at {point(critical['point'], names, 7)}: loss {number(critical['loss'], 7)}",
        f"gradient {vector(critical['gradient'])}",
    ]
    rows = [[number(part, 7) for part in row] for row in critical["hessian"]]
    if len(names) == 1:
        said.append(f"second derivative {rows[0][0]}")
    else:
        said.append(f"Hessian [{', '.join('[' + ', '.join(row) + ']' for row in rows)}]")
        said.append(f"eigenvalues {listing(number(value, 6) for value in critical['eigenvalues'])}")
        said.append(f"minimum ratio {critical['minimum_ratio']:g}")
        if critical["escape_direction"]:
            said.append(f"escape direction {vector(critical['escape_direction'])}")
        if critical["condition_number"]:
            said.append(f"condition number {critical['condition_number']:,.0f}")
    if critical["gradient_descent_stable_below_lr"]:
        said.append(f"gradient descent is stable below η = {number(critical['gradient_descent_stable_below_lr'], 6)}")
    return ", ".join(said)


def _who(facts: dict[str, Any], path: dict[str, Any]) -> str:
    said = path["title"] + (", mean loss" if path["mean_loss"] else "")
    if path["momentum"] not in (None, METHODS[path["method"]].constants.get("momentum")):
        said += f", λ = {plain(path['momentum'])}"
    return said if path["start"] == facts["start"] else f"{said}, from {vector(path['start'])}"

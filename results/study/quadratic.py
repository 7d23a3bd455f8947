"""The method of `largebatch study` on a problem whose answer is known: does it find it as often as it says?

SGD on a noisy quadratic. Along an axis of curvature h the gradient of a batch B is h·θ + ε, ε ~ N(0, h²σ²/B)
(McCandlish et al. 2018, arXiv:1812.06162, appendix A; Zhang et al. 2019, arXiv:1907.04164, section 2), so that

    θ' = (1 − η·h)·θ − η·ε        E[θ'²] = (1 − η·h)²·E[θ²] + η²·h²·σ²/B

and the loss ½·Σ h·E[θ²] after any number of steps is known. The truth is the least number of steps over a fine grid of
η, from that recursion, and B_crit of the law through the truth at the same batches. A study sees trajectories that
were drawn, as long as the budget lasts; its search (rounds of sixteen trials), its points, law and pairs are the
package's.

    python results/study/quadratic.py --studies 100 --json results/study/quadratic.json
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np

from largebatch.records.facts import write_json
from largebatch.studies.curves.law import fit
from largebatch.studies.curves.measured import TargetCurve, TargetPoint, TargetRun
from largebatch.studies.curves.pairs import statements
from largebatch.studies.search.rounds import SearchPlan, rounds
from largebatch.studies.search.space import Axis, Space
from largebatch.studies.search.trial import Trial, best

CURVATURES = np.geomspace(0.05, 1.0, 16)
NOISE, BEGIN = 1.0, 1.0  # σ, and θ of every axis at first
TARGET = 0.02  # of the loss at first
BATCHES = (4, 16, 64, 256, 1024)
BUDGET = 8_000  # [examples]: steps beyond BUDGET / B are not made
COPIES = 256  # of the problem, side by side, whose mean loss is looked at: an evaluation's noise
TRIALS = 16
FIRST = 0.5 * float((CURVATURES * BEGIN**2).sum())


def expected_steps(eta: float, batch: int) -> float:
    """Until the expected loss is at the target, interpolated in ln loss; infinite beyond the budget."""
    square, before = np.full(CURVATURES.shape, BEGIN**2), 1.0
    for step in range(1, BUDGET // batch + 1):
        square = (1 - eta * CURVATURES) ** 2 * square + (eta * CURVATURES * NOISE) ** 2 / batch
        share = 0.5 * float((CURVATURES * square).sum()) / FIRST
        if share <= TARGET:
            return step - 1 + math.log(before / TARGET) / math.log(before / share)
        if share > 1e6:
            return math.inf
        before = share
    return math.inf


def drawn_steps(eta: float, batch: int, draw: np.random.Generator) -> tuple[float, float]:
    """The same of trajectories that are drawn, and the least share of the loss that was seen."""
    theta, before, least = np.full((COPIES, len(CURVATURES)), BEGIN), 1.0, 1.0
    spread = CURVATURES * NOISE / math.sqrt(batch)
    for step in range(1, BUDGET // batch + 1):
        theta = theta - eta * (CURVATURES * theta + spread * draw.standard_normal(theta.shape))
        share = 0.5 * float((CURVATURES * theta**2).sum(axis=1).mean()) / FIRST
        least = min(least, share)
        if share <= TARGET:
            return step - 1 + math.log(before / TARGET) / math.log(before / share), least
        if not share < 1e6:
            return math.inf, least
        before = share
    return math.inf, least


def truth() -> dict[int, tuple[float, float]]:
    """By batch the best η and its examples."""
    grid = np.geomspace(0.02, 1.95, 120)
    found = {}
    for batch in BATCHES:
        steps = [expected_steps(float(eta), batch) for eta in grid]
        place = int(np.argmin(steps))
        found[batch] = (float(grid[place]), steps[place] * batch)
    return found


def searched(number: int) -> dict[int, float]:
    """The η that a study's search chooses at every batch."""
    found = {}
    for batch in BATCHES:
        draw = np.random.default_rng((number, batch))
        space = Space((Axis.between("lr", "log", (0.02, 2.0)),))
        plan = SearchPlan(space, {"lr": 0.2}, (TRIALS,), lambda key, value: True, seed=number)
        trials: dict[int, Trial] = {}
        for one in rounds(plan, trials):
            for place, values in enumerate(one.values, start=one.first):
                steps, least = drawn_steps(values["lr"], batch, draw)
                worth = (1.0, -steps * batch) if math.isfinite(steps) else (0.0, -least)
                trials[place] = Trial(values, worth)
        top = best(list(trials.values()))
        assert top is not None
        found[batch] = top.values["lr"]
    return found


def row(label: str, chosen: dict[int, float], seeds: int, draw: np.random.Generator) -> TargetCurve:
    """The chosen η run at every seed."""
    points = []
    for batch, eta in chosen.items():
        runs = []
        for seed in range(seeds):
            steps, _ = drawn_steps(eta, batch, draw)
            reached = math.isfinite(steps)
            runs.append(TargetRun(seed, steps * batch if reached else float(BUDGET), reached))
        points.append(TargetPoint(batch, tuple(runs), {"lr": eta}))
    return TargetCurve(label, tuple(points))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--studies", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    known = truth()
    true_points = [TargetPoint(batch, (TargetRun(0, examples),)) for batch, (_, examples) in known.items()]
    true_fit = fit(TargetCurve("truth", tuple(true_points)).middles())
    assert true_fit is not None
    critical = true_fit.law.critical
    held = wrong = wrong_over_all = unbounded = 0
    away = {batch: [] for batch in BATCHES}
    costs = {batch: [] for batch in BATCHES}
    for number in range(asked.studies):
        draw, chosen = np.random.default_rng(number), searched(number)
        first, second = (row(label, chosen, asked.seeds, draw) for label in ("one", "two"))
        fitted = fit(first.middles())
        assert fitted is not None
        assert fitted.critical is not None
        low, high = fitted.critical.low, fitted.critical.high
        unbounded += low is None or high is None
        held += (low or 0) <= critical <= (high or math.inf)
        wrong += any(one.decided for one in statements([first, second]))
        wrong_over_all += any(one.decided for one in statements([first, second], whole=True))
        for point in first.points:
            eta, examples = known[point.batch]
            away[point.batch].append(point.settings["lr"] / eta)
            costs[point.batch].append(expected_steps(point.settings["lr"], point.batch) * point.batch / examples)
    facts = {
        "kind": "quadratic",
        "studies": asked.studies,
        "seeds": asked.seeds,
        "trials": TRIALS,
        "critical_batch_size": critical,
        "law_rms_error": true_fit.rms_error,
        "interval_holds_share": held / asked.studies,
        "interval_unbounded_share": unbounded / asked.studies,
        "alike_rows_told_apart_share": wrong / asked.studies,
        "alike_rows_told_apart_over_all_batches_share": wrong_over_all / asked.studies,
        "batches": [
            {
                "global_batch_size": batch,
                "best_lr": known[batch][0],
                "least_examples": known[batch][1],
                "chosen_over_best_lr": np.quantile(away[batch], (0.05, 0.5, 0.95)).tolist(),
                "examples_over_least": np.quantile(costs[batch], (0.05, 0.5, 0.95)).tolist(),
            }
            for batch in BATCHES
        ],
    }
    print(json.dumps(facts, indent=1))
    if asked.json:
        write_json(asked.json, facts)


if __name__ == "__main__":
    main()

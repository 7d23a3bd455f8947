"""σ and the seconds of saves from what runs wrote: simulated ranks whose σ is known, known expectations, real files."""

from __future__ import annotations

import json
import math
import statistics

import numpy as np
import pytest
from programs import REPOSITORY

from largebatch.errors import UserError
from largebatch.studies.cluster.observed import _normal, saves_of, stragglers_of_run

OLD = REPOSITORY / "tests" / "runs" / "old_classification" / "small_perceptron" / "seed-0"


def run_of(folder, ranks, lines):
    plan = json.loads((OLD / "plan.json").read_text()) | {"world_size": ranks}
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def ranks_line(step, times):
    """As methods/step_times.py writes it: the lower median of the ranks and the slowest."""
    own = {"own_seconds_median": 1.0, "own_seconds_slowest": 1.0, "slowest_over_median": 1.0}
    named = {"slowest_rank": 0, "slowest_host": "h", "slowest_part": "compute"}
    median, most = (None, None) if times is None else (statistics.median_low(times), max(times))
    seconds = {"compute_seconds_median": median, "compute_seconds_most": most}
    return {"event": "ranks", "step": step, **own, **named, **seconds}


@pytest.mark.parametrize(("ranks", "sigma"), [(2, 0.3), (3, 0.05), (8, 0.1), (64, 0.02)])
def test_the_deviation_of_simulated_ranks(tmp_path, ranks, sigma):
    steps = 3000
    draws = np.exp(sigma * np.random.default_rng(2).standard_normal((steps, ranks)))
    folder = run_of(tmp_path, ranks, [ranks_line(step, list(row)) for step, row in enumerate(draws)])
    assert stragglers_of_run(folder).of_steps == pytest.approx(sigma, rel=0.05)


def test_order_statistics_of_normal_values():
    """Two in closed form, 1/√π; three 3/(2√π); five by the tables (1.16296, 0.49502)."""
    assert _normal(2, 2) == pytest.approx(1 / math.sqrt(math.pi))
    assert _normal(1, 2) == pytest.approx(-1 / math.sqrt(math.pi))
    assert _normal(3, 3) == pytest.approx(1.5 / math.sqrt(math.pi))
    assert [_normal(k, 5) for k in (3, 4, 5)] == pytest.approx([0, 0.49502, 1.16296], abs=1e-5)
    assert _normal(1000, 1000) == pytest.approx(3.2414, abs=1e-4)


def test_what_has_no_stragglers(tmp_path):
    with pytest.raises(UserError, match="a run of one rank, which waits for nobody"):
        stragglers_of_run(run_of(tmp_path, 1, [ranks_line(1, [1.0])]))
    with pytest.raises(UserError, match=r"record\.ranks_every_steps and engine ddp does"):
        stragglers_of_run(run_of(tmp_path, 2, [ranks_line(1, None)]))


def test_the_saves_of_a_run_that_was_made():
    lines = [json.loads(text) for text in (OLD / "metrics.jsonl").read_text().splitlines()]
    saves = [line for line in lines if line["event"] == "checkpoint"]
    seen = saves_of(OLD)
    assert seen.saves == len({line["step"] for line in saves}) > 2
    assert seen.standing == pytest.approx(np.median([line["seconds_standing"] for line in saves]))
    assert seen.lag == pytest.approx(np.median([line["seconds_saving"] for line in saves]))


def test_the_measured_saves_of_resnet50():
    file = REPOSITORY / "results" / "checkpoint" / "pause.json"
    seen = saves_of(file)
    assert (seen.saves, seen.megabytes) == (len(json.loads(file.read_text())["saves"]), pytest.approx(188.5, abs=0.1))
    times = seen.times(2 * seen.megabytes, 60)
    assert (times.standing, times.lag, times.restart) == (2 * seen.standing, 2 * seen.lag, 60)
    assert 0.03 < seen.standing < 0.05 < 0.6 < seen.lag < 0.9


def test_saves_that_the_loop_waited_for_have_no_lag(tmp_path):
    save = {"event": "checkpoint", "written": True, "megabytes": 10.0}
    lines = [
        {**save, "step": 5, "seconds_saving": 1.0, "seconds_standing": 1.1},
        {**save, "step": 9, "seconds_saving": 9.0, "seconds_standing": 0.0, "written": False},
    ]
    folder = run_of(tmp_path, 1, lines)
    (folder / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text() + '{"event": "checkp')
    seen = saves_of(folder)
    assert (seen.standing, seen.lag, seen.saves) == (1.1, 0.0, 1)
    with pytest.raises(UserError, match=r"plan\.json is neither a run directory nor facts of kind checkpoint_pause"):
        saves_of(folder / "plan.json")
    with pytest.raises(UserError, match="tells of no checkpoint that was written"):
        saves_of(run_of(tmp_path, 1, lines[1:]))

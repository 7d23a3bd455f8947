"""Run directories from strangers: a report ends in a page or in one short sentence, never in a traceback."""

from __future__ import annotations

import copy
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_svg import FigureCanvasSVG
from report import made_up

from largebatch import report
from largebatch.errors import UserError
from largebatch.plan.score import ACCURACY

SCORE = ACCURACY._asdict()
SEARCH = {
    "key": "lr.base", "budget": 3, "metric": "held-out accuracy", "hold_out": 100, "chosen": 0.1, "chosen_base": 0.1,
    "score": SCORE,
    "trials": [{"factor": 1.0, "peak_lr": 0.1, "accuracy_percent": 90.0, "status": "finished", "reason": None}],
}  # fmt: skip
EXPECT = {
    "top1": 90.0,
    "numbers": {"accuracy_percent": 90.0},
    "source": "a paper",
    "by_batch_size": {"640": {"top1": 91.0, "steps": 100}},
}
EVENTS = [
    {
        "event": "noise_scale",
        "step": 2,
        "epoch": 0.2,
        "noise_scale": 100.0,
        "gradient_square": 0.1,
        "variance_trace": 3.0,
    },
    {"event": "directions", "step": 2, "epoch": 0.2, "distance": 1.0, "step_length": 0.1, "cosine": 0.5},
]
FACTS = [
    made_up.sharpness(1, 0.5, 0.1),
    made_up.spectrum(3.0),
    made_up.noise(10.0, 5.0, 20.0),
    made_up.path(),
    made_up.PLATEAU,
    made_up.critical(),
]
VALUES = [
    None, True, 0, -1, 1, 0.5, 1e308, -1e308, 1e-320, 10**30, 10**400,
    float("nan"), float("inf"), "", "x", "ü", "\ud800",
    "\x00", "<script>", "../..", "/", "9" * 300, "x" * 10_000, [], [1], [[1]], [None], ["a"], [{}], {}, {"a": 1},
]  # fmt: skip
TEXTS = [
    "", "[", "null", "1", "nan", "\x00", "{" * 2000, "[" * 100_000, "1" * 5000, '{"a": 1}', "é", "a: &a [*a]",
    "a: !!python/name:os.system", "? [a]\n: b", "a: 0x" + "f" * 10_000, '"\\ud800"',
]  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory, write_run, write_comparison) -> Path:
    folder = tmp_path_factory.mktemp("strangers") / "study"
    write_comparison(folder, {"small": (64, [90.0, 91.0]), "large": (640, [88.0, None])}, of_runs={"score": SCORE})
    comparison = json.loads((folder / "comparison.json").read_text())
    comparison["rows"][1] |= {"learning_rate_search": SEARCH, "expect": EXPECT}
    (folder / "comparison.json").write_text(json.dumps(comparison))
    shutil.rmtree(folder / "row-1" / "seed-0")
    write_run(folder / "row-1" / "seed-0", 88.0, 640, steps=10, diagnostics=FACTS, events=EVENTS)
    for file in folder.rglob("metrics.jsonl"):  # short: what is fuzzed is not their length
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join([*lines[:6], *lines[20:]]))
    recipe = {
        "name": "x",
        "batch": {"global_batch_size": 640},
        "expect": EXPECT,
        "record": {"noise_scale": {"smoothing": 0.9}},
    }
    (folder / "row-1" / "seed-0" / "run.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def changed(value: Any, chance: random.Random) -> Any:
    """One place of it is another value, or gone."""
    value = [copy.deepcopy(value)]
    holder, key = value, 0
    while isinstance(holder[key], (dict, list)) and holder[key] and chance.random() < 0.85:
        holder = holder[key]
        key = chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    if chance.random() < 0.15 and holder is not value:
        del holder[key]
    else:
        holder[key] = copy.deepcopy(chance.choice(VALUES))
    return value[0]


def rewritten(file: Path, text: str, chance: random.Random) -> bytes:
    if chance.random() < 0.05:
        return chance.choice(TEXTS).encode()
    if chance.random() < 0.05:
        at = chance.randrange(len(text))
        return text[:at].encode() + chance.randbytes(chance.randrange(3)) + text[at + chance.randrange(3) :].encode()
    if file.suffix == ".jsonl":
        lines = text.splitlines()
        at = chance.randrange(len(lines))
        lines[at] = json.dumps(changed(json.loads(lines[at]), chance))
        return "\n".join(lines).encode()
    return json.dumps(changed(yaml.safe_load(text) if file.suffix == ".yaml" else json.loads(text), chance)).encode()


def attempt(study: Path, out: Path, seed: int) -> bool:
    """Whether a page came of it."""
    chance = random.Random(seed)
    file = chance.choice(sorted(path for path in study.rglob("*.*") if path.is_file()))
    before = file.read_text()
    try:
        file.write_bytes(rewritten(file, before, chance))
        report.write([study], out)
        return True
    except UserError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 500
        return False
    finally:
        file.write_text(before)


@pytest.mark.worlds
def test_any_change_is_a_page_or_a_sentence(study, tmp_path_factory, monkeypatch):
    """Layout without ink, which takes most of a report's time."""
    monkeypatch.setattr(
        FigureCanvasSVG,
        "print_svg",
        lambda self, file, **_: file.write('<svg width="1" height="1" viewBox="0 0 1 1"/>'),
    )
    out, outcomes = tmp_path_factory.mktemp("out"), []

    @settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**32))
    def tried(seed):
        outcomes.append(attempt(study, out, seed))

    tried()
    assert any(outcomes)
    assert not all(outcomes)


@pytest.mark.worlds
def test_some_changes_drawn_to_the_end(study, tmp_path):
    for seed in range(2):
        attempt(study, tmp_path / "out", seed)


@pytest.mark.worlds
@pytest.mark.parametrize("name", ["../elsewhere", "/elsewhere", "row-0/../../elsewhere"])
def test_a_comparison_shows_no_run_from_elsewhere(tmp_path, write_run, write_comparison, name):
    folder = write_comparison(tmp_path / "c", {"a": (64, [90.0])})
    (folder / "comparison.json").write_text(json.dumps({"rows": [{"id": "x", "runs": [name]}]}))
    write_run(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="does not lie in the folder"):
        report.write([tmp_path / "c"])

"""The page of a study: made of its facts alone, with the numbers of the tables, and made again from the folder."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import sys

import pytest
from rich.console import Console

from largebatch import cli
from largebatch.records.curves import (
    CurveToTarget,
    RegionOfKey,
    RowsInPairs,
    RuleOfKey,
    SearchedBatch,
    TargetsRecord,
)
from largebatch.records.typed import content, read
from largebatch.report import study, targets
from largebatch.studies.curves.measured import TargetCurve, TargetPoint, TargetRun
from largebatch.studies.curves.recorded import curve_record

HOSTILE = "<script>alert(1)</script>"


def row(label: str, least: float, critical: float, batches: tuple[int, ...] = (32, 128, 512, 2048)) -> CurveToTarget:
    """Points on a law, three seeds each, a second a hundred steps."""
    points = []
    for batch in batches:
        needed = least * (1 + batch / critical)
        runs = tuple(TargetRun(seed, needed * (1 + 0.01 * seed), True, needed / batch / 100) for seed in range(3))
        points.append(TargetPoint(batch, runs, {"lr.base": 0.01 * batch**0.5, "optimizer.momentum": 0.9}))
    searched = [
        SearchedBatch(
            global_batch_size=batch, trials=16, refused=1, reached=12,
            chosen={"lr.base": 0.01 * batch**0.5, "optimizer.momentum": 0.9, "lr.decay": "cosine"},
            at_edge=["lr.base"] if batch == 32 else [], outside=["lr.base"] if batch <= 128 else [],
            good=[RegionOfKey(key="lr.base", low=0.005, high=0.02, open_below=True, open_above=False)],
        )
        for batch in (*batches, 8192)
    ]  # fmt: skip
    rules = [
        RuleOfKey(key="lr.base", complement=False, decided="square root", power_low=0.4, power_high=0.6, candidates=[]),
        RuleOfKey(key="optimizer.momentum", complement=True, decided=None, power_low=None, power_high=None,
                  candidates=[]),
    ]  # fmt: skip
    made = curve_record(TargetCurve(label, tuple(points)))
    return CurveToTarget(
        **{**{key: getattr(made, key) for key in made.__dataclass_fields__}, "searched": searched, "rules": rules}
    )


@pytest.fixture(scope="module")
def facts() -> TargetsRecord:
    pair = RowsInPairs(
        first="momentum", second=HOSTILE, global_batch_size=None, pairs=4, ratio=0.5, ratio_low=None, ratio_high=None,
        p=0.125, corrected=0.125, decided=False, least_p=0.125,
    )  # fmt: skip
    return TargetsRecord(
        name="two", title="two rows", source=None, target="accuracy 84 %", unit="examples", epoch=60000.0,
        middle="median", command="largebatch study two.yaml",
        curves=[row("momentum", 10000, 200), row(HOSTILE, 9000, 2000)],
        pairs=[pair], seeds=3, trials=16,
    )  # fmt: skip


def test_the_numbers_survive_the_file(facts, tmp_path):
    written = json.loads(json.dumps(content(facts)))
    assert content(read(TargetsRecord, written, "curves.json")) == content(facts)


def test_a_file_of_before_searches_were_in_it_is_read(facts):
    old = content(facts)
    for key in ("pairs", "seeds", "trials"):
        del old[key]
    old["curves"] = [{key: one[key] for key in one if key not in ("searched", "rules")} for one in old["curves"]]
    record = read(TargetsRecord, json.loads(json.dumps(old)), "curves.json")
    assert study.html(record).count("<svg") >= 1
    assert list(targets.paired(record)) == []


def test_the_sentence_names_the_largest_batch_that_needs_as_few(facts):
    """9,000·(1 + 128/2000) = 9,576 is within 1.2 of 9,144; at 512 it is 11,304, beyond 10,973."""
    said = targets.verdict(facts)
    assert said.startswith("Up to batch 128 no more than 1.2 times the fewest examples of any row")
    assert f"with {HOSTILE}" in said
    assert "steps, 0.0099 s each" in said
    assert "against the best of all rows. Against its own smaller batches <script>" in (targets.answers(facts) or "")
    assert "needs at most 1.2 times as many up to somewhere between 128 and 512 by its points, and up to 400 by" in str(
        targets.answers(facts)
    )
    momentum, other = targets.rows(facts).lines
    assert momentum.cells[1:4] == ("0.195", "32", "–")
    assert other.cells[3] == "128"


def test_page_text_and_terminal_hold_the_same_numbers(facts, tmp_path):
    page = study.write(facts, tmp_path)
    html, text = page.read_text(), (tmp_path / "report.md").read_text()
    assert HOSTILE not in html
    assert not re.findall(r"(?:src|href)=[\"'](?!#)", html), "nothing is fetched"
    shown = io.StringIO()
    console = Console(file=shown, width=200)
    for part in study.printed(facts):
        console.print(part, markup=False)
    for number in ("0.195", "≤ 0.005 to 0.02", "16, 1 refused", "best 1 − optimizer.momentum along the batch"):
        assert number in html
        assert number in text
        assert number in shown.getvalue()
    assert "lr.base 0.05657 (beyond the stated range, at an edge of what was tried)" in html
    assert "lr.base 0.1131 (beyond the stated range)" in html
    assert "what fits best is that it rises as the square root of the batch" in html
    assert "several rules fit equally well; as batch^p, any p would do" in text
    assert "at batch 8,192 no run over the seeds ended yet" in html
    assert "not decided (1): momentum and" in html
    assert html.count("<figure>") == 3, "the curves, and a picture for each key"


def test_report_makes_it_again(facts, tmp_path, monkeypatch, capsys):
    study.write(facts, tmp_path)
    before = (tmp_path / "report.html").read_bytes()
    (tmp_path / "report.html").unlink()
    monkeypatch.setattr(sys, "argv", ["largebatch", "report", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert (tmp_path / "report.html").read_bytes() == before
    monkeypatch.setattr(sys, "argv", ["largebatch", "report", str(tmp_path), str(tmp_path)])
    with pytest.raises(SystemExit):
        cli.main()
    assert "is a study, which is reported alone" in capsys.readouterr().err


def test_a_row_without_a_run_over_the_seeds_is_told(facts):
    waiting = CurveToTarget(
        label="waiting", points=[], law=None, perfect_until=None, helps_until=None,
        searched=facts.curves[0].searched, rules=[],
    )  # fmt: skip
    made = TargetsRecord(**{**{key: getattr(facts, key) for key in facts.__dataclass_fields__}, "curves": [waiting]})
    assert "No row reached accuracy 84" in study.html(made)
    assert "no run over the seeds ended yet" in study.markdown(made)


def test_intervals_are_named_for_what_they_can_hold(facts):
    """Of three runs 75 % at most; of six it is called 95 %."""
    (heading,) = [one.heading for one in targets.points(facts, facts.curves[0]).columns if "interval" in one.title]
    assert heading.replace("\u00a0", " ") == "interval, at most 75 %"
    runs = tuple(TargetRun(seed, 1000.0 + seed) for seed in range(6))
    many = curve_record(TargetCurve("many", (TargetPoint(32, runs), TargetPoint(64, runs))))
    assert "95\u00a0%" in [one.title for one in targets.points(facts, many).columns]


@pytest.mark.parametrize(
    ("trials", "said"), [(3, "3 trials for 3 keys are few"), (7, "7 trials for 3 keys"), (8, None)]
)
def test_a_search_of_few_trials_is_warned_of(facts, trials, said):
    few = dataclasses.replace(facts, trials=trials)
    assert (targets.few_trials(few) or "").startswith(said or "")
    assert (said is None) == (targets.few_trials(few) is None)
    assert ("is luck" in study.html(few)) == ("is luck" in study.markdown(few)) == (said is not None)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_number_is_cut_whatever_the_terminal(facts, width):
    shown = io.StringIO()
    console = Console(file=shown, width=width)
    for part in study.printed(facts):
        console.print(part, markup=False, soft_wrap=isinstance(part, str))
    text = shown.getvalue()
    assert "…" not in text
    assert text.count("2,048") >= 4, "a line for the batch in the points and the search of both rows"
    assert "no room for: " in text or width == 120

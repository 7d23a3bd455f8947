"""A run that ends when an evaluation has reached a score: where, what it records of it; nothing else changes."""

from __future__ import annotations

import json
import signal
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from ends import different, events, result
from method_recipes import PLAIN, recipe_of
from programs import Killed

from largebatch.errors import UserError
from largebatch.methods.target import Target, TargetOfRun, crossing
from largebatch.plan.batch import resolve
from largebatch.plan.score import ACCURACY, Score
from largebatch.recipes import config
from largebatch.recipes.decided import Marks
from largebatch.records.target import AtScore, TargetRecord
from largebatch.run.account import Result
from largebatch.run.assemble import assemble
from largebatch.run.loop import Loop
from largebatch.run.older import of_today
from largebatch.run.saving import Progress
from largebatch.run.train import train
from largebatch.steps.evaluate import Evaluation

RMSE = Score("rmse", "RMSE", more_is_better=False)
RECIPE: dict[str, Any] = {
    **PLAIN,
    "model": {"name": "mlp", "width": 16, "depth": 1},
    "data": {"name": "digits"},
    "lr": {"base": 0.05, "decay": {"name": "cosine"}},
    "checkpoint": {"every_epochs": 0.2, "keep": 100},
    "record": {"to": [], "every_steps": 1},
}


def trained(folder: Path, **more: Any) -> Result:
    written = {"name": "target", **RECIPE, **more}
    written["record"] = {**RECIPE["record"], "dir": str(folder)}
    ended = train(config.from_dict(written), quiet=True)
    assert ended.status == "finished", ended.reason
    return ended


def at(score: float, steps: float) -> AtScore:
    """Of a run whose step is 8 examples of 64, a quarter of a second on two devices."""
    return AtScore(
        score=score, steps=steps, examples=8 * steps, epochs=steps / 8, seconds=steps / 4, device_seconds=steps / 2
    )


def steps(point: AtScore | None) -> float | None:
    return point and point.steps


def record_of(ended: Result) -> TargetRecord:
    assert ended.target is not None
    return ended.target


def told(part: TargetOfRun, scores: list[float]) -> int:
    """The part hears of an evaluation every ten steps until the steps are over; how many it took."""
    for number, score in enumerate(scores, start=1):
        part.evaluated("test", Evaluation({}, 1), at(score, 10 * number))
        part.evaluated("train", Evaluation({}, 1), at(score, 10 * number))
        if part.over:
            return number
    return 0


# The record


def test_the_crossing_by_hand():
    """72.5 lies three quarters of the way from 65 to 75."""
    assert crossing(at(65, 30), at(75, 40), 72.5) == at(72.5, 37.5)
    assert crossing(at(0.9, 30), at(0.4, 40), 0.4) == at(0.4, 40), "the mark itself"
    assert crossing(at(0.9, 30), at(0.4, 40), 0.525) == at(0.525, 37.5), "less is better"
    assert crossing(None, at(75, 10), 72.5) == at(75, 10)
    assert crossing(at(float("nan"), 10), at(75, 20), 72.5) == at(75, 20)


@pytest.mark.parametrize(
    ("score", "target", "patience", "scores", "ends", "before", "mark", "best"),
    [
        (ACCURACY, 70, 1, [50, 65, 75, 80], 3, 20, 30, 75),
        (ACCURACY, 70, 1, [70, 90], 1, None, 10, 70),
        (ACCURACY, 70, 2, [50, 71, 69, 70, 72, 80], 5, 30, 40, 72),
        (ACCURACY, 70, 2, [50, 71, 69, 70], 0, None, None, 71),
        (ACCURACY, 70, 1, [50, float("nan"), 60], 0, None, None, 60),
        (RMSE, 0.5, 1, [0.9, 0.6, 0.5, 0.1], 3, 20, 30, 0.5),
        (RMSE, 0.05, 1, [0.9, 0.6, 0.7], 0, None, None, 0.6),
    ],
)
def test_where_it_ends(score, target, patience, scores, ends, before, mark, best):
    part = TargetOfRun(Target(score=target, patience=patience), "test", score)
    assert told(part, scores) == ends
    record: TargetRecord = part.results({})["target"]
    assert record.reached == bool(ends)
    assert (steps(record.before), steps(record.mark)) == (before, mark)
    assert (record.interpolated is None) == (record.mark is None)
    assert record.best == best
    assert steps(record.last) == 10 * (ends or len(scores))


@pytest.mark.parametrize(
    ("patience", "scores", "ends", "reached"),
    [
        (1, [50, 60, 65, 66], 3, False),  # 10 steps are 1.25 epochs
        (1, [50, 60, 75], 3, True),
        (3, [50, 60, 71, 72, 73], 5, True),  # it is at the target when it would be given up
        (3, [50, 60, 71, 69, 73], 4, False),
    ],
)
def test_where_it_is_given_up(patience, scores, ends, reached):
    part = TargetOfRun(Target(score=70, patience=patience, give_up_epochs=3), "test", ACCURACY)
    assert told(part, scores) == ends
    assert part.results({})["target"].reached == reached


def test_an_evaluation_that_is_repeated_counts_once():
    """A run that was killed between its last save and its result evaluates its end again."""
    part = TargetOfRun(Target(score=70, patience=2), "test", ACCURACY)
    told(part, [60, 71])
    again = TargetOfRun(Target(score=70, patience=2), "test", ACCURACY)
    again.load(json.loads(json.dumps(part.save())), [])
    again.evaluated("test", Evaluation({}, 1), at(71, 20))
    assert not again.over
    again.evaluated("test", Evaluation({}, 1), at(72, 30))
    assert again.over
    assert again.results({})["target"].before == at(60, 10)


def test_its_words():
    part = TargetOfRun(Target(score=70), "test", ACCURACY)
    told(part, [60])
    assert part.results({})["target"].words(ACCURACY) == "target 70.00 % not reached, best 60.00 %"
    part.evaluated("test", Evaluation({}, 1), at(80, 20))
    words = "target 70.00 % reached after about 15 steps (1.875 epochs, 3.8 s of training)"
    assert part.results({})["target"].words(ACCURACY) == words
    at_once = TargetOfRun(Target(score=70), "test", ACCURACY)
    told(at_once, [80])
    words = "target 70.00 % reached by the first evaluation, after 10 steps (1.25 epochs, 2.5 s of training)"
    assert at_once.results({})["target"].words(ACCURACY) == words
    assert Target(score=91.5).words == "ends when an evaluation reaches 91.5"
    assert Target(score=0.5, patience=3).words == "ends when 3 evaluations in a row reach 0.5"


# Marks


def test_marks_finer_than_a_step_are_every_step():
    plan = resolve(dataset_size=100, global_batch_size=30, epochs=2, growth=((1.0, 45),))
    whole = {plan.first_step_at(k * 100 * 0.3) for k in range(1, 8)} | {plan.steps}
    assert Marks(plan, 0.3).steps() == whole == set(range(1, plan.steps + 1))
    assert Marks(plan, 1e-11).steps() == whole
    assert Marks(plan, 0.4).steps() < whole


# Runs


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without a target, evaluated every fifth of an epoch."""
    return trained(tmp_path_factory.mktemp("whole") / "run", evaluate={"every_epochs": 0.2}).directory


def scores_of(directory: Path, split: str = "test") -> dict[int, float]:
    return {line["step"]: line["accuracy_percent"] for line in events(directory, "evaluate") if line["split"] == split}


def test_a_run_ends_at_its_target_and_is_otherwise_that_without_one(tmp_path, whole):
    scores = scores_of(whole)
    marks = list(scores)
    target = (scores[marks[3]] + scores[marks[4]]) / 2
    assert max(list(scores.values())[:4]) < target <= scores[marks[4]], "a curve that rises there"
    evaluate = {"every_epochs": 0.2, "stop_at": {"score": target}}
    ended = trained(tmp_path, evaluate=evaluate)
    assert scores_of(tmp_path) == {step: scores[step] for step in marks[:5]}, "bitwise"
    assert len(events(tmp_path, "evaluate")) == 6, "each once, and the training set at the end"
    keys = ("step", "lr", "loss", "grad_norm")
    lines = [[tuple(line[key] for key in keys) for line in events(run, "train")] for run in (tmp_path, whole)]
    assert lines[0] == lines[1][: marks[4]], "the schedule is that of the whole budget"
    record = record_of(ended)
    before, mark, crossed = record.before, record.mark, record.interpolated
    assert (record.reached, result(tmp_path)["steps"], record.last) == (True, marks[4], mark)
    assert (steps(before), steps(mark)) == (marks[3], marks[4])
    middle = (marks[3] + marks[4]) / 2
    expected = {"score": target, "steps": middle, "examples": 120 * middle, "epochs": 120 * middle / 1500}
    assert {key: getattr(crossed, key) for key in expected} == pytest.approx(expected, rel=1e-12)
    assert before.seconds < crossed.seconds < mark.seconds == mark.device_seconds
    assert str(ended).endswith(record.words(ACCURACY))
    assert record_of(trained(tmp_path, evaluate=evaluate)) == record, "as it is read"


@pytest.mark.parametrize(
    ("more", "evaluations", "reached"),
    [
        ({"evaluate": {"every_epochs": 0.2, "stop_at": {"score": 99.9}}}, 10, False),
        ({"evaluate": {"every_epochs": 1.2, "stop_at": {"score": 0, "patience": 2}}}, 2, True),  # the last is the end
        ({"evaluate": {"every_epochs": 0.04, "stop_at": {"score": 0}}, "epochs": None, "steps": 9}, 1, True),
        ({"evaluate": {"every_epochs": 1e-6, "stop_at": {"score": 0, "patience": 3}}}, 3, True),
    ],
)
def test_budgets_marks_and_the_end(tmp_path, more, evaluations, reached):
    record = record_of(trained(tmp_path, **more))
    assert len(scores_of(tmp_path)) == evaluations
    assert record.reached == reached
    assert steps(record.last) == result(tmp_path)["steps"] == max(scores_of(tmp_path))
    assert record.best == max(scores_of(tmp_path).values())


def test_it_is_judged_as_the_run_is(tmp_path):
    """By the median of the last evaluations, on what is held out."""
    more = {"data": {"name": "digits", "hold_out": 300}}
    evaluate = {"every_epochs": 0.2, "median_of": 3}
    trained(tmp_path / "whole", evaluate=evaluate, **more)
    scores = list(scores_of(tmp_path / "whole", "held_out").values())
    medians = [statistics.median(scores[max(0, number - 2) : number + 1]) for number in range(len(scores))]
    target = medians[6]
    first, alone = (next(n for n, score in enumerate(of) if score >= target) for of in (medians, scores))
    assert alone < first, "the median is later"
    ended = trained(tmp_path / "target", evaluate={**evaluate, "stop_at": {"score": target}}, **more)
    assert list(scores_of(tmp_path / "target", "held_out").values()) == scores[: first + 1]
    mark = record_of(ended).mark
    assert mark is not None
    assert mark.score == medians[first] == ended.reached


def test_less_may_be_better(tmp_path):
    more = {"data": {"name": "diabetes"}, "batch": {"global_batch_size": 38}, "lr": {"base": 0.01}}
    every = {"every_epochs": 0.2}
    ended = trained(tmp_path / "whole", evaluate=every, **more)
    assert not ended.score.more_is_better
    lines = [line for line in events(tmp_path / "whole", "evaluate") if line["split"] == "test"]
    scores, marks = [line[ended.score.key] for line in lines], [line["step"] for line in lines]
    target = (scores[1] + scores[2]) / 2
    assert scores[1] > target > scores[2], "a curve that falls there"
    record = record_of(trained(tmp_path / "target", evaluate={**every, "stop_at": {"score": target}}, **more))
    assert (steps(record.before), steps(record.mark), steps(record.last)) == (marks[1], marks[2], marks[2])
    assert steps(record.interpolated) == pytest.approx((marks[1] + marks[2]) / 2, rel=1e-12)
    assert record.best == scores[2]


@pytest.mark.parametrize("method", ["phases", "post_local_sgd", "adascale", "ema"])
def test_beside_other_methods(tmp_path, method):
    """An evaluation in the middle ends each; what it saves is what it was judged by."""
    recipe = recipe_of(method, evaluate={"every_epochs": 0.3, "stop_at": {"score": 0, "patience": 2}})
    recipe["record"] = {"to": [], "dir": str(tmp_path)}
    model = assemble(config.from_dict(recipe), torch.device("cpu")).engine.model
    ended = train(config.from_dict(recipe), quiet=True, into=model)
    assert (ended.status, ended.target and ended.target.reached) == ("finished", True)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert ended.numbers["steps"] < plan["steps"]
    assert "ends when 2 evaluations in a row reach 0" in plan["methods"]


def test_killed_in_an_evaluation_that_a_signal_saved_before(tmp_path, monkeypatch):
    """The checkpoint of a mark that was not evaluated: the run goes on with the evaluation, which is its last here."""
    more = {"evaluate": {"every_epochs": 0.4, "stop_at": {"score": 0, "patience": 2}}}
    trained(tmp_path / "undisturbed", **more)
    evaluate = Loop.evaluate

    def dies(loop: Loop) -> None:
        if loop.step == 10:
            raise Killed
        evaluate(loop)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "asked_to_stop", lambda loop: signal.SIGTERM if loop.step == 10 else 0)
        patch.setattr(Loop, "evaluate", dies)
        with pytest.raises(Killed):
            trained(tmp_path / "killed", **more)
    assert list(scores_of(tmp_path / "killed")) == [5]
    trained(tmp_path / "killed", **more)
    assert [line["step"] for line in events(tmp_path / "killed", "resume")] == [10]
    assert different(tmp_path / "killed", tmp_path / "undisturbed") == []


def test_device_seconds_are_those_of_each_session():
    """A checkpoint of before they were counted says how many ranks it had."""
    plan = resolve(dataset_size=100, global_batch_size=10, steps=5)
    before = {"parts": {}, "progress": {"step": 3, "seconds": 4.0}, "ranks": [{}, {}]}
    progress = Progress(**of_today(before, plan)["progress"])
    progress.spend(1.5)  # alone
    assert (progress.seconds, progress.device_seconds) == (5.5, 9.5)
    again = of_today({**before, "progress": progress.save()}, plan)["progress"]
    assert again["device_seconds"] == 9.5


# Mistakes


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"score": "high"}, "evaluate.stop_at.score = 'high' should be a valid number"),
        ({"score": True}, "evaluate.stop_at.score = True should be a number"),
        ({"patience": 1}, "evaluate.stop_at.score is missing"),
        ({"score": 90, "patience": 0}, "evaluate.stop_at.patience = 0 should be greater than 0"),
        ({"score": 90, "patience": 2.5}, "evaluate.stop_at.patience = 2.5 should be a valid integer"),
        ({"score": 101}, "evaluate.stop_at.score = 101 is no accuracy in percent; valid: 0 to 100"),
        ({"score": -1}, "evaluate.stop_at.score = -1 is no accuracy in percent; valid: 0 to 100"),
        ({"score": 90, "patience": 5}, "evaluate.stop_at.patience = 5 is more than the 4 evaluations of the run"),
        (
            {"score": 90, "every_epochs": 2},
            "with evaluate.every_epochs = 2 the only evaluation of the run's 2 epochs is the one at its end; valid: "
            "evaluate.every_epochs up to 1.92",
        ),
        ({"score": 90, "of": "swap"}, "evaluate.stop_at ends the steps of a run, and averaging.name = swap goes on"),
    ],
)
def test_a_mistake_is_one_sentence(changes, sentence):
    stop_at = {key: value for key, value in changes.items() if key in ("score", "patience")}
    evaluate = {"every_epochs": changes.get("every_epochs", 0.5), "stop_at": stop_at}
    recipe = recipe_of("swap", evaluate=evaluate) if "of" in changes else {"name": "x", **RECIPE, "evaluate": evaluate}
    with pytest.raises(UserError) as caught:
        assemble(config.from_dict(recipe), torch.device("cpu"))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_target_is_another_run(tmp_path):
    evaluate = {"every_epochs": 0.2, "stop_at": {"score": 0}}
    trained(tmp_path, evaluate=evaluate)
    for changed, said in (
        ({"stop_at": {"score": 1}}, "evaluate.stop_at.score: 0.0 there, 1.0 here"),
        ({"stop_at": None}, "evaluate.every_epochs: 0.2 there, None here; evaluate.stop_at: "),
        ({"every_epochs": 0.4}, "evaluate.every_epochs: 0.2 there, 0.4 here"),
    ):
        with pytest.raises(UserError, match=f"belongs to another config .{said}"):
            trained(tmp_path, evaluate={**evaluate, **changed})

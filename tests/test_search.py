"""The search over several keys: on made-up hills whose top is known, by the same rules in every world."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.studies.search.finals import champion, finalists, mean_worth
from largebatch.studies.search.points import SAMPLERS
from largebatch.studies.search.rounds import SearchPlan, edges, rounds, sizes
from largebatch.studies.search.space import Axis, Choice, Space
from largebatch.studies.search.trial import Trial, best

LR = Space((Axis.between("lr", "log", (0.1 / 8, 0.8)),))
SEVERAL = Space((
    Axis.between("lr", "log", (1e-3, 1.0)),
    Axis.between("momentum", "one_minus_log", (0.5, 0.99)),
    Axis.between("smoothing", "linear", (0.0, 0.2)),
    Choice("decay", ("linear", "cosine")),
))  # fmt: skip
WITH = [
    pytest.param(
        name, marks=pytest.mark.skipif(name == "tpe" and not importlib.util.find_spec("optuna"), reason="Optuna")
    )
    for name in SAMPLERS
]

Worth = Callable[[dict[str, Any]], float | None]


def anything(key: str, value: Any) -> bool:
    return True


def hill(top: float, diverges_above: float = math.inf) -> Worth:
    return lambda values: None if values["lr"] > diverges_above else -(math.log2(values["lr"] / top) ** 2)


def ridge(values: dict[str, Any]) -> float:
    """Highest at lr 0.05, momentum 0.9, smoothing 0.1, cosine."""
    return -(
        math.log2(values["lr"] / 0.05) ** 2 / 10
        + math.log2((1 - values["momentum"]) / 0.1) ** 2 / 5
        + 50 * (values["smoothing"] - 0.1) ** 2
        + 0.3 * (values["decay"] == "linear")
    )


def searched(asked: SearchPlan, worth: Worth) -> list[Trial]:
    trials: dict[int, Trial] = {}
    for one in rounds(asked, trials):
        for number, values in enumerate(one.values, start=one.first):
            reached = worth(dict(values))
            trials[number] = Trial(values, None if reached is None else (reached,))
    return [trials[number] for number in range(sum(asked.budgets))]


def lrs(trials: list[Trial]) -> list[float]:
    return [trial.values["lr"] for trial in trials]


@pytest.mark.parametrize("top", [0.1, 0.05, 0.8, 0.012, 0.13])
def test_seven_trials_come_within_half_a_doubling(top):
    trials = searched(SearchPlan(LR, {"lr": 0.1}, (7,), anything), hill(top))
    chosen = best(trials)
    assert len(set(lrs(trials))) == 7
    assert lrs(trials)[0] == 0.1, "the recipe's own comes first"
    assert chosen is not None
    assert abs(math.log2(chosen.values["lr"] / top)) <= 0.5


@pytest.mark.parametrize("sampler", WITH)
def test_of_several_keys_the_top_is_found(sampler):
    own = {"lr": 0.5, "momentum": 0.6, "smoothing": 0.0, "decay": "linear"}
    trials = searched(SearchPlan(SEVERAL, own, (16,), anything, sampler), ridge)
    chosen = best(trials)
    assert chosen is not None
    assert chosen.worth is not None
    assert len({tuple(trial.values.items()) for trial in trials}) == 16
    assert chosen.worth[0] > -0.5
    for trial in trials:
        assert trial.values["momentum"] < 1
        assert trial.values["decay"] in ("linear", "cosine")
    assert trials == searched(SearchPlan(SEVERAL, own, (16,), anything, sampler), ridge), "asked again it is the same"


@pytest.mark.parametrize("sampler", WITH)
def test_a_round_is_known_from_the_trials_before_it(sampler):
    """In whatever order they ended; and not before all of them have."""
    own = {"lr": 0.5, "momentum": 0.6, "smoothing": 0.0, "decay": "linear"}
    asked = SearchPlan(SEVERAL, own, (12,), anything, sampler)
    whole = searched(asked, ridge)
    (alone,) = rounds(asked, {})
    assert alone.values == (own,), "the others of its round are given up by what it needed"
    _, others = rounds(asked, {0: whole[0]})
    assert others.first == 1
    assert others.values == tuple(trial.values for trial in whole[1:6])
    some = {number: whole[number] for number in (5, 0, 3, 1, 4)}
    assert [one.number for one in rounds(asked, some)] == [0, 0]
    later = list(rounds(asked, {**some, 2: whole[2]}))
    assert [one.number for one in later] == [0, 0, 1]
    assert later[2].values == tuple(trial.values for trial in whole[6:9])


def test_a_cliff_of_divergence_is_counted_and_avoided():
    trials = searched(SearchPlan(LR, {"lr": 0.1}, (7,), anything), hill(top=0.3, diverges_above=0.25))
    chosen = best(trials)
    assert chosen is not None
    assert 0.15 < chosen.values["lr"] <= 0.25
    assert sum(trial.worth is None for trial in trials) >= 1


def test_where_everything_diverges_it_goes_down_and_chooses_nothing():
    trials = searched(SearchPlan(LR, {"lr": 0.1}, (7,), anything), lambda values: None)
    assert best(trials) is None
    assert max(lrs(trials)[4:]) <= 0.1 / 8
    assert edges(LR, trials) == ()


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 7, 12, 16, 33])
def test_the_budget_is_the_number_of_trials(budget):
    assert sum(sizes(budget)) == budget == len(searched(SearchPlan(LR, {"lr": 0.1}, (budget,), anything), hill(3.0)))


def test_rounds_grow_smaller():
    assert {budget: sizes(budget) for budget in (1, 4, 5, 7, 16, 32)} == {
        1: [1], 4: [4], 5: [3, 2], 7: [4, 3], 16: [8, 4, 4], 32: [16, 8, 4, 4]
    }  # fmt: skip


def test_among_equals_the_earlier_is_chosen():
    first = Trial({"lr": 0.4}, (90.0,))
    assert best([first, Trial({"lr": 0.1}, (90.0,)), Trial({"lr": 0.2}, None)]) is first


def test_finalists_are_the_best_that_ended_each_values_once():
    worths = [(3.0,), None, (5.0,), (5.0,), (4.0,), (1.0,)]
    trials = [Trial({"lr": 2.0**-place}, worth) for place, worth in enumerate(worths)]
    trials.append(Trial({"lr": 0.25}, (5.0,)))  # the third's values again
    assert finalists(trials, 3) == [2, 3, 4]
    assert finalists(trials, 99) == [2, 3, 4, 0, 5]


def test_over_seeds_the_best_mean_is_chosen_and_a_failed_seed_is_the_worst():
    trials = [Trial({"lr": 1.0}, (91.0,)), Trial({"lr": 2.0}, (92.0,)), Trial({"lr": 3.0}, (91.5,))]
    worths = {1: [(92.0,), (90.0,), (90.0,)], 2: [(91.5,), (91.0,), (91.2,)], 0: [(91.0,), (93.0,), None]}
    assert champion(trials, worths) is not None
    assert champion(trials, worths).values == {"lr": 3.0}
    assert champion(trials, {}) is trials[1], "no finalists: the best trial"
    assert champion(trials, {1: [(92.0,), None]}) is trials[1], "all finalists failed"


def test_with_a_target_seeds_that_reach_it_count_before_examples():
    assert mean_worth([(1.0, -500.0), (1.0, -700.0)]) == (1.0, -600.0)
    assert mean_worth([(1.0, -100.0), (0.0, 83.0)]) == (0.5, -100.0)
    assert mean_worth([(0.0, 80.0), (0.0, 82.0)]) == (0.0, 81.0)
    assert mean_worth([(1.0, -100.0), None]) is None


def test_a_best_at_an_edge_moves_the_space_and_is_marked_if_it_stays_there():
    inside = searched(SearchPlan(LR, {"lr": 0.1}, (7,), anything), hill(0.1))
    assert edges(LR, inside) == ()
    above = searched(SearchPlan(LR, {"lr": 0.1}, (7,), anything), hill(3.0))
    assert max(lrs(above)) > 0.8, "beyond the space that was asked for"
    far = searched(SearchPlan(LR, {"lr": 0.1}, (7,), anything), hill(1e3))
    assert edges(LR, far) == ("lr",)


def test_a_space_does_not_move_where_the_recipe_takes_no_value():
    space = Space((Axis.between("lr", "linear", (0.0, 1.0)),))
    trials = searched(
        SearchPlan(space, {"lr": 0.5}, (12,), lambda key, value: value >= 0), lambda values: -values["lr"]
    )
    assert min(lrs(trials)) >= 0.0
    assert edges(space, trials) == ("lr",)


@pytest.mark.parametrize(
    ("scale", "ends", "value"),
    [("log", (0.01, 1.0), 0.1), ("linear", (1.0, 3.0), 2.0), ("one_minus_log", (0.9, 0.999), 0.99)],
)
def test_the_middle_of_an_axis(scale, ends, value):
    axis = Axis.between("key", scale, ends)
    assert axis.value(0.5) == pytest.approx(value, rel=1e-6)
    assert axis.place(value) == pytest.approx(0.5)
    assert sorted((axis.value(0.0), axis.value(1.0))) == pytest.approx(ends)


def test_own_values_outside_the_space_and_of_no_kind():
    trials = searched(SearchPlan(LR, {"lr": 5.0}, (5,), anything), hill(0.1))
    assert lrs(trials)[0] == 5.0
    assert all(0.0125 <= lr <= 0.8 for lr in lrs(trials)[1:3])
    choice = Space((Choice("decay", ("linear", "cosine", "step")),))
    trials = searched(SearchPlan(choice, None, (3,), anything), lambda values: float(values["decay"] == "step"))
    assert {trial.values["decay"] for trial in trials} == {"linear", "cosine", "step"}


def test_an_own_zero_on_an_axis_of_logarithms_is_one_trial_and_no_edge():
    space = Space((Axis.between("wd", "log", (1e-5, 1e-2)),))
    trials = searched(
        SearchPlan(space, {"wd": 0.0}, (12,), anything), lambda v: -abs(math.log(max(v["wd"], 1e-9) / 3e-4))
    )
    assert trials[0].values == {"wd": 0.0}
    assert all(trial.values["wd"] > 0 for trial in trials[1:])
    assert edges(space, trials) == ()
    best_of = best(trials)
    assert best_of is not None
    assert best_of.values["wd"] == pytest.approx(3e-4, rel=0.5)


def test_whole_numbers_stay_whole():
    space = Space((dataclasses.replace(Axis.between("n", "log", (1, 100)), whole=True),))
    trials = searched(SearchPlan(space, {"n": 10}, (8,), anything), lambda v: -abs(v["n"] - 17))
    assert all(isinstance(trial.values["n"], int) for trial in trials)


@pytest.mark.parametrize("sampler", WITH)
def test_an_own_value_that_is_no_choice_is_tried_and_passed_over(sampler):
    space = Space((Choice("d", ("a", "b")), Axis.between("lr", "log", (0.01, 1.0))))
    plan = SearchPlan(space, {"d": "c", "lr": 0.1}, (8,), anything, sampler)
    trials = searched(plan, lambda v: float(v["d"] == "b") - abs(math.log(v["lr"] / 0.1)))
    assert trials[0].values["d"] == "c"
    assert {trial.values["d"] for trial in trials[1:]} == {"a", "b"}


def test_a_small_space_is_tried_whole():
    space = Space((Choice("a", (1, 2, 3)), Choice("b", ("x", "y"))))
    trials = searched(SearchPlan(space, {"a": 1, "b": "x"}, (6,), anything), lambda v: v["a"])
    assert len({tuple(trial.values.items()) for trial in trials}) == 6


def test_without_optuna_the_sampler_is_refused(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(UserError, match=re.escape("the sampler tpe needs Optuna: pip install 'largebatch[tune]'")):
        searched(SearchPlan(LR, {"lr": 0.1}, (7,), anything, "tpe"), hill(0.1))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("search=3", "search = 3 should hold keys, as in {lr.base: {log: [0.01, 10]}}"),
        ("search={}", "search = {} should hold keys"),
        ("search.lr.base=0.1", "search.lr.base = 0.1 should be {log: [LOW, HIGH]}, {linear: [LOW, HIGH]}"),
        ("search.lr.base={lgo: [1, 2]}", "search.lr.base.lgo = [1, 2] should be {log: [LOW, HIGH]}"),
        ("search.lr.base={log: [1, 2], linear: [1, 2]}", "search.lr.base should say one of {log: [LOW, HIGH]}"),
        ("search.lr.base={log: [2, 1]}", "search.lr.base.log = [2.0, 1.0] should be [LOW, HIGH] with 0 < LOW < HIGH"),
        ("search.lr.base={log: [0, 1]}", "search.lr.base.log = [0.0, 1.0] should be [LOW, HIGH] with 0 < LOW < HIGH"),
        (
            "search.optimizer.momentum={one_minus_log: [0.5, 1]}",
            "search.optimizer.momentum.one_minus_log = [0.5, 1.0] should be [LOW, HIGH] with LOW < HIGH < 1",
        ),
        (
            "search.data.augment={choice: [flip]}",
            "search.data.augment.choice = ['flip'] should hold at least two values",
        ),
        (
            "search.lr.base={choice: [0.1, 0.2, 0.1]}",
            "search.lr.base.choice = [0.1, 0.2, 0.1] should hold each value once",
        ),
        (
            "search={lr.base: {log: [1, 2]}, lr: {base: {log: [1, 2]}}}",
            "search.lr.base is there twice, with dots and as a section",
        ),
        ("search={0: {log: [1, 2]}}", "search: 0 is no key of a recipe; write it with dots, such as lr.base"),
    ],
)
def test_a_section_that_says_no_space_is_a_sentence(recipe, override, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        config.load(recipe(), [override])


def test_the_section_changes_nothing_of_a_run_and_is_read_again(recipe):
    plain = config.load(recipe())
    nested = config.load(recipe(), ["search.lr.base={log: [0.1, 10]}"])
    assert nested.search is not None
    assert set(nested.search) == {"lr.base"}
    assert nested.science() == plain.science()
    assert config.from_dict(nested.as_written()) == nested

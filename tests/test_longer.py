"""More epochs after a run: it goes on bit by bit as the longer run, or a sentence says why it is another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pool
import pytest
import torch
from conftest import TINY
from programs import Killed, killed_at, state_at_end
from small_runs import recipe_of, recorded, trained

from largebatch.data.sizes import Sizes
from largebatch.errors import UserError
from largebatch.recipes import config, longer
from largebatch.recipes.decide import decide
from largebatch.recipes.decided import DataFacts, Decided
from largebatch.report.summary import summarize
from largebatch.run.train import train
from largebatch.studies.reading import runs

CONSTANT: dict[str, Any] = {
    "lr": {"base": 0.05, "warmup": {"epochs": 1, "from": "zero"}, "decay": {"name": "constant"}},
    "model": {"name": "tiny_cnn"},
    "ema": {"decay": 0.9},
}


WORKERS = {"name": "post_local_sgd", "workers": 2, "period": 5, "from_epoch": 1}
SLOW_START = {"name": "piecewise", "at_epochs": [1, 3], "factors": [1, 0.1, 0.01]}


def same(one: Any, other: Any, place: str = "") -> None:
    """Two states, bit by bit; times and the score of a run's own end aside."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one.keys() - {"seconds", "seconds_before", "device_seconds"}:
            same(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), place
        for number, pair in enumerate(zip(one, other, strict=True)):
            same(*pair, f"{place}.{number}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    else:
        assert one == other, place


def result_of(run: Path) -> dict[str, Any]:
    written = json.loads((run / "result.json").read_text())
    return {key: value for key, value in written.items() if "second" not in key}


@pytest.mark.worlds
@pytest.mark.parametrize(
    "keys",
    [
        CONSTANT,
        {**CONSTANT, "optimizer": {"name": "lamb"}, "evaluate": {"median_of": 2, "every_epochs": 0.75}},
        {**CONSTANT, "batch_norm": {"statistics": "precise"}, "ema": None},  # its running statistics would be others
        {
            **CONSTANT,
            "lr": {"base": 0.1, "decay": SLOW_START},
        },
        {**CONSTANT, "batch": {"global_batch_size": 100, "ramp": {"at_epochs": [1], "factor": 2}}},
        {**CONSTANT, "lawa": {"latest": 3, "every_steps": 4}},
        {**CONSTANT, "lawa": {"latest": 2}, "evaluate": {"every_epochs": 0.5}},
        {**CONSTANT, "outer_momentum": {"every_steps": 4}},  # the last two steps of the shorter one have none yet
        {**CONSTANT, "averaging": WORKERS},
        {**CONSTANT, "averaging": {**WORKERS, "from_epoch": 2.5}},  # later than the first run ends
        {**CONSTANT, "averaging": WORKERS, "outer_momentum": {"every_steps": 10}, "optimizer": {"name": "adamw"}},
    ],
    ids=[
        "constant", "lamb", "precise", "piecewise", "ramp", "lawa", "lawa_by_epochs", "outer_momentum",
        "post_local_sgd", "post_local_sgd_later", "diloco",
    ],
)  # fmt: skip
def test_a_finished_run_goes_on_as_the_longer_one(tmp_path, keys):
    run = trained(tmp_path / "run", epochs=2, **keys)
    assert trained(run, epochs=4, **keys) == run
    whole = trained(tmp_path / "whole", epochs=4, **keys)
    same(state_at_end(run), state_at_end(whole))
    assert result_of(run) == result_of(whole)
    assert "epochs: 4" in (run / "run.yaml").read_text()
    last = result_of(whole)["steps"]
    assert recorded(run, last, "test") == recorded(whole, last, "test")
    assert (
        train(config.from_dict(recipe_of(run, epochs=4, **keys)), quiet=True).record
        == train(config.from_dict(recipe_of(run, epochs=4, **keys)), quiet=True).record
    )


@pytest.mark.worlds
def test_a_budget_in_steps_is_the_same_run(tmp_path):
    run = trained(tmp_path / "run", epochs=2, **CONSTANT)
    longer_one = config.from_dict({**recipe_of(run, **CONSTANT), "epochs": None, "steps": 37})
    assert train(longer_one, quiet=True).record.steps == 37
    whole = {**recipe_of(tmp_path / "whole", **CONSTANT), "epochs": None, "steps": 37}
    assert train(config.from_dict(whole), quiet=True).status == "finished"
    same(state_at_end(run), state_at_end(tmp_path / "whole"))


@pytest.mark.worlds
def test_one_that_was_killed_on_its_longer_way_goes_on(tmp_path):
    run = trained(tmp_path / "run", epochs=2, **CONSTANT)
    with pytest.raises(Killed), killed_at(40):
        train(config.from_dict(recipe_of(run, epochs=4, **CONSTANT)), quiet=True)
    assert not (run / "result.json").exists()
    trained(run, epochs=4, **CONSTANT)
    same(state_at_end(run), state_at_end(trained(tmp_path / "whole", epochs=4, **CONSTANT)))


@pytest.mark.worlds
def test_two_ranks_go_on_and_refuse_as_one(tmp_path):
    import yaml

    (tmp_path / "t.yaml").write_text(yaml.safe_dump(recipe_of(tmp_path / "run", **CONSTANT)))
    for epochs in (2, 3):
        ended = pool.ranks(2, "-m", "largebatch", "train", str(tmp_path / "t.yaml"), f"epochs={epochs}")
        assert ended.returncode == 0, ended.stderr
    (tmp_path / "w.yaml").write_text(yaml.safe_dump(recipe_of(tmp_path / "whole", **CONSTANT)))
    ended = pool.ranks(2, "-m", "largebatch", "train", str(tmp_path / "w.yaml"), "epochs=3")
    assert ended.returncode == 0, ended.stderr
    same(state_at_end(tmp_path / "run"), state_at_end(tmp_path / "whole"))
    ended = pool.ranks(2, "-m", "largebatch", "train", str(tmp_path / "t.yaml"), "epochs=1.5")
    assert ended.returncode == 2
    assert "it has made 45 steps, and would end after 23" in ended.stderr


@pytest.mark.worlds
def test_another_run_is_told_from_a_longer_one(tmp_path):
    run = trained(tmp_path / "run", epochs=2)  # its cosine ends with the budget
    before = (run / "run.yaml").read_text(), (run / "result.json").read_text()
    for keys, said in (
        (
            {"epochs": 4},
            r"\(epochs: 2.0 there, 4.0 here\): the lr of step 2 was 0\.09\d+ and would be 0\.09\d+; choose",
        ),
        ({"epochs": 1}, r": it has made 30 steps, and would end after 15; choose another record.dir, where --from "),
        ({"epochs": 4, "seed": 3}, r"\(epochs: .*; seed: 0 there, 3 here\); choose another record.dir"),
    ):
        with pytest.raises(UserError, match=said):
            trained(run, **keys)
    assert before == ((run / "run.yaml").read_text(), (run / "result.json").read_text())
    bare = trained(tmp_path / "bare", epochs=1.5, checkpoint={"every_epochs": 0}, **CONSTANT)
    with pytest.raises(UserError, match=": it kept no checkpoint that it could go on from; choose another record.dir"):
        trained(bare, epochs=2, checkpoint={"every_epochs": 0}, **CONSTANT)


@pytest.mark.worlds
def test_workers_of_swap_have_gone_on_from_the_end_that_was(tmp_path):
    swap = {"name": "swap", "stop_at_train_accuracy": 99.9, "workers": 2, "worker_batch_size": 50, "epochs": 1}
    keys = CONSTANT | {"ema": None, "averaging": {**swap, "lr": {"base": 0.01}}}
    keys = {key: value for key, value in keys.items() if value is not None}
    run = trained(tmp_path / "run", epochs=2, **keys)
    with pytest.raises(UserError, match=": its workers went on from where its steps ended; choose another record.dir"):
        trained(run, epochs=3, **keys)


def decided(**keys: Any) -> Decided:
    written = {"name": "x", **TINY, "epochs": 2, **keys}
    return decide(config.from_dict(written), DataFacts(1500), 1, "cpu")


STEADY: dict[str, Any] = {"lr": {"base": 0.1}}
DROPS_AT_ONE: dict[str, Any] = {"base": 0.1, "decay": {"name": "steps", "at_epochs": [1]}}
NO_SIDE = (lambda step: None, lambda step: None)


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({"lr": {"base": 0.1}}, {"lr": {"base": 0.1}, "epochs": 4}, None),
        ({"lr": {"base": 0.1}}, {"lr": {"base": 0.2}}, "the lr of step 1 was 0.1 and would be 0.2"),
        (
            {"lr": {"base": 0.1, "scaling": "adascale", "reference_batch_size": 50}},
            {"lr": {"base": 0.1, "scaling": "adascale", "reference_batch_size": 50}, "epochs": 4},
            "its schedule follows gains, which end with the plan",
        ),
        (
            {"lr": {"base": 0.1}, "evaluate": {"stop_at": {"score": 99}, "every_epochs": 0.8}},
            {"lr": {"base": 0.1}, "evaluate": {"stop_at": {"score": 99}, "every_epochs": 0.8}, "epochs": 4},
            "evaluate.stop_at has counted the evaluation after step 30, which the longer run would not have",
        ),
        (
            {**STEADY, "lawa": {"every_epochs": 0.75}},
            {**STEADY, "lawa": {"every_epochs": 0.75}, "epochs": 4},
            "lawa took a snapshot after step 30 and would take none",
        ),
        ({**STEADY, "lawa": {"every_epochs": 0.5}}, {**STEADY, "lawa": {"every_epochs": 0.5}, "epochs": 4}, None),
        (
            {**STEADY, "averaging": {**WORKERS, "period": 4}},
            {**STEADY, "averaging": {**WORKERS, "period": 4}, "epochs": 4},
            "post_local_sgd averaged its workers after step 30, the end, 3 steps after the average before, and would "
            "average them every 4 steps (averaging.period)",
        ),
        (
            {"lr": DROPS_AT_ONE, "averaging": {**WORKERS, "from_epoch": None}},
            {"lr": {**DROPS_AT_ONE, "decay": {"name": "steps", "at_epochs": [1.5]}}, "epochs": 4}
            | {"averaging": {**WORKERS, "from_epoch": None}},
            "post_local_sgd began at step 16 and would begin at step 24",
        ),
        (
            {**STEADY, "outer_momentum": {"every_steps": 7}, "record": {"layers_every_steps": 3}},
            {**STEADY, "outer_momentum": {"every_steps": 7}, "record": {"layers_every_steps": 5}, "epochs": 4},
            None,
        ),
    ],
)
def test_steps_are_compared_one_by_one(before, now, said):
    assert longer.first_difference(decided(**before), decided(**now), 30, NO_SIDE) == said


def test_an_outer_step_counts_from_where_workers_step_alone():
    keys = {"averaging": {**WORKERS, "from_epoch": None}, "outer_momentum": {}}
    one = decided(lr=DROPS_AT_ONE, **keys)
    two = decided(lr={**DROPS_AT_ONE, "decay": {"name": "steps", "at_epochs": [1.5]}}, epochs=4, **keys)
    outer = (of.methods["outer_momentum"] for of in (one, two))
    before, now = outer
    assert before.first_difference(now, 30) == "began at step 16 and would begin at step 24"
    assert before.first_difference(now, 15) is None


@pytest.mark.worlds
def test_the_end_that_was_is_no_score_of_the_longer_run(tmp_path):
    """Of a run that went on, of one that was killed on its way, and of the longer one: the same score everywhere."""
    keys = {**CONSTANT, "evaluate": {"every_epochs": 0.8, "median_of": 2}}
    run, short = (trained(tmp_path / name, epochs=2, **keys) for name in ("run", "short"))
    end_that_was = recorded(run, 30, "test")["accuracy_percent"]
    whole = trained(tmp_path / "whole", epochs=4, **keys)
    with pytest.raises(Killed), killed_at(50):
        train(config.from_dict(recipe_of(run, epochs=4, **keys)), quiet=True)
    row = runs.row_of(run, tmp_path)
    assert (row["state"], row["score"]) == ("unfinished", recorded(whole, 48, "test")["accuracy_percent"])
    trained(run, epochs=4, **keys)
    assert recorded(run, 30, "test")["accuracy_percent"] == end_that_was, "what was measured stays"
    rows = [runs.row_of(path, tmp_path) for path in (run, whole)]
    assert rows[0]["score"] == rows[1]["score"] == result_of(whole)["test_accuracy_percent"] != end_that_was
    assert rows[0]["epochs"] == rows[1]["epochs"] == 4
    compared = summarize([whole, run])
    for row in compared.rows:
        assert row.reached is not None
        assert (row.reached.mean, row.steps) == (rows[1]["score"], 60)
        assert row.reached_in_training is not None
        assert row.reached_in_training.mean == result_of(whole)["train_accuracy_percent"]
    assert runs.row_of(short, tmp_path)["score"] != rows[0]["score"]


def test_images_that_grow_to_the_end_of_the_budget_would_have_been_smaller():
    one, two = decided(lr={"base": 0.1}), decided(lr={"base": 0.1}, epochs=4)
    sizes = Sizes(32, 128, 128)
    sides = (lambda step: sizes.at(step, one.plan), lambda step: sizes.at(step, two.plan))
    assert "the size of the examples of step 6 was another" in str(longer.first_difference(one, two, 30, sides))


def test_phases_may_be_added_behind_those_that_were_taken():
    written = {**TINY, "name": "x"} | {"lr": {"base": 0.1}}
    one = config.from_dict({**written, "epochs": 2, "phases": [{"until_epoch": 1}, {"lr.base": 0.05}]})
    two = config.from_dict(
        {**written, "epochs": 3, "phases": [{"until_epoch": 1}, {"lr.base": 0.05, "until_epoch": 2}, {"lr.base": 0.01}]}
    )
    assert longer.may_go_on(one.science(), two.science())
    plans = [decide(run, DataFacts(1500), 1, "cpu") for run in (one, two)]
    assert longer.first_difference(plans[0], plans[1], 30, NO_SIDE) is None
    assert plans[1].plan.steps == 45

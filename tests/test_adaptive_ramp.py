"""The batch grows as the noise scale has it: where a closed form says, and bit by bit as a run by schedule would.

The toy is the mean of points: a weight w, the loss ‖w − y‖² of a point y. A point's gradient is 2·(w − y)/T, so that
tr(Σ)/|G|² = tr Cov(y)/‖w − ȳ‖², whatever w is.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pool
import pytest
import torch
import yaml
from conftest import TINY
from ends import different, events, result
from hypothesis import given
from hypothesis import strategies as st
from programs import Killed, killed_at, state_at_end, weights_at_end
from torch import Tensor, nn
from worlds.own_parts import TwoInputs, dataset_of

import largebatch as lb
from largebatch.diagnostics.noise import Averages, Squares
from largebatch.errors import UserError
from largebatch.plan import batch
from largebatch.recipes import config
from largebatch.recipes.config import Ramp
from largebatch.recipes.decide import decide
from largebatch.recipes.decided import DataFacts
from largebatch.recipes.ramps import adapted, may_come_to
from largebatch.run.train import train

# The rule itself

sizes = st.integers(1, 10**6)
low = st.floats(0, 1e12)
noises = st.one_of(st.none(), low)


@given(sizes, st.integers(2, 10), st.integers(1, 10**7), st.floats(0.01, 100), noises, low, st.floats(0, 200))
def test_the_rule_is_three_comparisons(size, factor, largest, above, noise_scale, low, measured):
    ramp = Ramp(rule="adaptive", factor=factor, largest=largest, above=above, least_steps=7)
    verdict = adapted(ramp, size, noise_scale, low, measured)
    known = low if noise_scale is None else noise_scale
    grows = measured >= 7 and known > above * size and size * factor <= largest
    assert verdict.size == (size * factor if grows else size)
    assert verdict.why.startswith("grows: " if grows else "stays: ")


def test_merrills_rule_is_what_is_left_out():
    ramp = Ramp(rule="adaptive", factor=2, largest=64)
    assert [adapted(ramp, 16, noise, 1e9, 10).size for noise in (31.9, 32.0, 32.1, math.nan)] == [16, 16, 32, 16]
    assert adapted(ramp, 16, 32.1, 0, 9.9).size == 16
    assert adapted(ramp, 64, 1e9, 1e9, 100).size == 64


@given(st.integers(1, 300), st.lists(st.tuples(st.integers(1, 40), st.integers(2, 5)), max_size=4), st.integers(1, 4))
def test_a_grown_plan_cuts_the_same_stream(first, growths, world):
    plan = batch.resolve(dataset_size=10**7, global_batch_size=first * world, world_size=world, epochs=3e-4)
    step, size, growth = 0, first * world, []
    for steps, factor in growths:
        step, size = step + steps, size * factor
        growth.append((step, size))
    growth = [(at, of) for at, of in growth if batch.grown(plan, [g for g in growth if g[0] < at]).steps > at]
    grown = batch.grown(plan, growth)
    seen = step = 0
    while seen < 3000:  # by hand
        size = max([first * world, *(of for at, of in growth if at <= step)])
        stage = grown.at(step)
        assert (grown.examples_before(step), stage.global_batch_size) == (seen, size)
        assert stage.micro_batch_size * stage.accumulation_steps * world == size
        seen, step = seen + size, step + 1
    assert (grown.steps, grown.examples, grown.budget_examples) == (step, seen, 3000)


# Where the noise scale is known

DIMENSIONS, POINTS = 64, 8192
TOY: dict[str, Any] = {
    "name": "toy",
    "batch": {
        "global_batch_size": 16,
        "micro_batch_size": 4,
        "ramp": {"rule": "adaptive", "factor": 2, "largest": 1024, "every_epochs": 0.125, "least_steps": 20},
    },
    "epochs": 2,
    "device": "cpu",
    "precision": "fp64",
    "optimizer": {"name": "sgd", "momentum": 0.0},
    "task": {"name": "regression"},
    "record": {"to": [], "noise_scale": {"every_steps": 1, "smoothing": 0.98}},
    "checkpoint": {"every_epochs": 0},
}


class Mean(nn.Module):
    def __init__(self, distance: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((DIMENSIONS,), distance / math.sqrt(DIMENSIONS), dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.weight.expand(len(inputs), -1)


class Points(torch.utils.data.Dataset):
    """Their mean is 0 and the trace of their covariance is 1, exactly."""

    def __init__(self, count: int) -> None:
        drawn = torch.randn(count, DIMENSIONS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        drawn -= drawn.mean(0)
        self.points = drawn / drawn.square().sum(1).mean().sqrt()

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(1, dtype=torch.float64), self.points[index]


class Distances(lb.Part):
    """|G|²·(T/2)² of every step: how far w is from the mean."""

    def __init__(self, job: Any) -> None:
        self.weight, self.squares = next(job.engine.model.parameters()), []

    def with_gradient(self, turn: Any) -> None:
        self.squares.append(float(self.weight.detach().square().sum()))


def trained_toy(folder: Path, distance: float, lr: float, **ramp: Any) -> tuple[lb.Result, list[float]]:
    looked: list[Distances] = []

    def look(job: Any) -> Distances:
        looked.append(Distances(job))
        return looked[-1]

    written = {**TOY, "lr": {"base": lr}, "record": {**TOY["record"], "dir": str(folder)}}
    written["batch"] = {**TOY["batch"], "ramp": {**TOY["batch"]["ramp"], **ramp}}
    data = lb.Dataset(Points(POINTS), Points(64), task="regression", outputs=DIMENSIONS)
    ended = lb.train(written, model=Mean(distance), dataset=data, parts={"path": look})
    assert ended.status == "finished", ended.reason
    return ended, looked[0].squares


@pytest.mark.worlds
@pytest.mark.parametrize(("noise_scale", "end"), [(360, 256), (90, 64), (20, 16)])
def test_the_batch_comes_to_where_the_closed_form_has_it(tmp_path, noise_scale, end):
    """With w where it is, tr(Σ)/|G|² = 1/‖w‖² stays; B doubles as long as it is above 2·B."""
    ended, _ = trained_toy(tmp_path / "run", noise_scale**-0.5, 1e-9)
    lines = events(tmp_path / "run", "ramp")
    assert lines[-1]["next_global_batch_size"] == end
    assert lines[-1]["noise_scale"] == pytest.approx(noise_scale, rel=0.2)
    assert [size for _, size in ended.numbers["ramp"]] == [
        line["next_global_batch_size"] for line in lines if line["next_global_batch_size"] > line["global_batch_size"]
    ]
    assert ended.numbers["steps"] < 2 * POINTS / 16 or end == 16


@pytest.mark.worlds
def test_a_gradient_that_cannot_be_told_from_its_noise_lets_the_batch_grow(tmp_path):
    """With w at the mean the noise scale has no upper end, and what its interval begins with is above 2·B."""
    trained_toy(tmp_path / "run", 0.0, 1e-9)
    lines = events(tmp_path / "run", "ramp")
    assert lines[-1]["next_global_batch_size"] >= 128
    assert any(line["noise_scale"] is None and "at least" in line["why"] for line in lines)


@pytest.mark.worlds
def test_the_batch_grows_along_the_closed_form_of_a_training(tmp_path):
    """w falls towards the mean, and 1/‖w‖² rises: averaged as the run averages, it gives the same decisions."""
    ended, squares = trained_toy(tmp_path / "run", 0.3, 0.32, every_epochs=0.0625)
    lines, margins = events(tmp_path / "run", "ramp"), []
    assert len(ended.numbers["ramp"]) >= 3
    for line in lines:
        if line["measured_steps"] < 20:
            assert line["next_global_batch_size"] == line["global_batch_size"]
            continue
        averages = Averages(0.98)
        for square in squares[: line["step"]]:  # E|g_b|² and E|g_B|² of this w
            averages.add(Squares(4, 16, square + 1 / 4, square + 1 / 16))
        known = averages.estimate().noise_scale
        assert known is not None
        margins.append(abs(line["noise_scale"] / known - 1))
        if not 0.75 < known / (2 * line["global_batch_size"]) < 1.33:
            grows = known > 2 * line["global_batch_size"]
            assert line["next_global_batch_size"] == (2 if grows else 1) * line["global_batch_size"], line
    assert sum(margins) / len(margins) < 0.25


# The same run by schedule

ADAPTIVE = {"rule": "adaptive", "factor": 2, "largest": 400, "above": 0.02, "every_epochs": 0.25, "least_steps": 3}
BATCH = {"global_batch_size": 50, "micro_batch_size": 10, "ramp": ADAPTIVE}
KEYS: dict[str, Any] = {
    "epochs": 3,
    "batch": BATCH,
    "lr": {"base": 0.05, "warmup": {"epochs": 0.3}, "decay": {"name": "cosine"}},
    "model": {"name": "tiny_cnn", "channels": [4, 6]},
    "evaluate": {"every_epochs": 0.4},
    "checkpoint": {"every_epochs": 0.2, "asynchronous": False, "keep": 100},
    "record": {"to": [], "every_steps": 1, "noise_scale": {"every_steps": 1, "smoothing": 0.7}},
}


def recipe_of(folder: Path, **keys: Any) -> dict[str, Any]:
    everything = {"name": "adaptive", "device": "cpu", **TINY, **KEYS, **keys}
    return {**everything, "record": {**everything["record"], "dir": str(folder)}}


def trained(folder: Path, **keys: Any) -> Path:
    assert train(config.from_dict(recipe_of(folder, **keys)), quiet=True).status == "finished"
    return folder


def same_weights(one: Path, other: Path) -> bool:
    these, those = weights_at_end(one), weights_at_end(other)
    return these.keys() == those.keys() and all(torch.equal(these[name], those[name]) for name in these)


def by_schedule(run: Path, lr: str) -> dict[str, Any]:
    growth = result(run)["ramp"]
    assert len(growth) >= 2, "it has not grown"
    ramp = {"at_epochs": [epoch for epoch, _ in growth], "sizes": [size for _, size in growth], "lr": lr}
    return {**BATCH, "ramp": ramp}


@pytest.mark.worlds
@pytest.mark.parametrize("lr", ["stays", "sqrt", "linear"])
def test_it_is_the_run_by_schedule_of_its_own_decisions(tmp_path, one_thread, lr):
    adaptive = trained(tmp_path / "adaptive", batch={**BATCH, "ramp": {**ADAPTIVE, "lr": lr}})
    schedule = trained(tmp_path / "schedule", batch=by_schedule(adaptive, lr))
    assert same_weights(adaptive, schedule)
    for event in ("train", "evaluate"):
        these, those = events(adaptive, event), events(schedule, event)
        keys = these[0].keys() - {"time", "seconds", "examples_per_second"}
        assert [[line[key] for key in keys] for line in these] == [[line[key] for key in keys] for line in those]
    saves = [[line["step"] for line in events(of, "checkpoint")] for of in (adaptive, schedule)]
    assert saves[0] == saves[1]
    assert result(adaptive)["steps"] == result(schedule)["steps"]
    assert result(adaptive)["peak_lr"] == result(schedule)["peak_lr"]
    rates = {line["global_batch_size"]: line["lr"] for line in events(adaptive, "train")}
    assert len(rates) >= 3


@pytest.mark.worlds
@pytest.mark.parametrize(
    "keys",
    [
        {"lawa": {"latest": 2, "every_epochs": 0.3}},
        {"optimizer": {"name": "adamw", "beta2_half_life": {"reference_batch_size": 50}}, "ema": {"decay": 0.9}},
        {"data": {"name": "digits", "augment": "crop_flip", "mix": {"mixup": 0.4}}},
        {"outer_momentum": {"every_steps": 4}, "record": {**KEYS["record"], "directions_every_steps": 3}},
    ],
    ids=lambda keys: "+".join(keys),
)
def test_with_what_else_follows_the_plan(tmp_path, one_thread, keys):
    """Also where one of both was killed between its decisions."""
    ramp = {"lr": {**KEYS["lr"], "base": 0.02}, **keys}
    adaptive = trained(tmp_path / "adaptive", **ramp)
    schedule = trained(tmp_path / "schedule", **ramp, batch=by_schedule(adaptive, "stays"))
    assert same_weights(adaptive, schedule)
    these, those = (state_at_end(of)["parts"].get("lawa", {}).get("snapshots", []) for of in (adaptive, schedule))
    assert len(these) == len(those)
    assert all(torch.equal(one[name], other[name]) for one, other in zip(these, those, strict=True) for name in one)
    first, second = (line["step"] for line in grown(adaptive)[:2])
    run = config.from_dict(recipe_of(tmp_path / "killed", **ramp))
    with pytest.raises(Killed), killed_at((first + second) // 2 + 1):
        train(run, quiet=True)
    assert train(run, quiet=True).status == "finished"
    assert different(tmp_path / "killed", adaptive) == []


@pytest.mark.worlds
def test_what_processes_have_read_ahead_is_cut_anew(tmp_path, one_thread):
    """Two of them, and augmentation that is drawn by an example's place in the run."""
    ramp: dict[str, Any] = {**ADAPTIVE, "largest": 96, "above": 0.1, "every_epochs": 0.5}
    weights, growth = [], []
    for name in ("adaptive", "schedule"):
        written = {
            "name": name, "device": "cpu", "epochs": 6, "data": {"name": "own", "workers": 2},
            "batch": {"global_batch_size": 12, "micro_batch_size": 6, "ramp": ramp}, "optimizer": {"name": "sgd"},
            "lr": {"base": 0.05}, "record": {**KEYS["record"], "dir": str(tmp_path / name)},
        }  # fmt: skip
        model, data = TwoInputs(), dataset_of("generator")
        ended = lb.train(written, model=model, dataset=data)
        weights.append(model.state_dict())
        growth = growth or ended.numbers["ramp"]
        ramp = {"at_epochs": [epoch for epoch, _ in growth], "sizes": [size for _, size in growth]}
    assert len(growth) >= 2
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def grown(run: Path) -> list[dict[str, Any]]:
    return [line for line in events(run, "ramp") if line["next_global_batch_size"] > line["global_batch_size"]]


# Killed, resumed, in other worlds


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = trained(tmp_path_factory.mktemp("adaptive") / "whole")
    torch.set_num_threads(before)
    return folder


@pytest.mark.worlds
@pytest.mark.parametrize("moment", ["before", "at", "after", "at the next"])
def test_killed_around_a_decision_it_decides_alike(tmp_path, one_thread, whole, moment):
    first, second = (line["step"] for line in grown(whole)[:2])
    run = config.from_dict(recipe_of(tmp_path / "killed"))
    at = {"before": first - 1, "at": first, "after": first + 2, "at the next": second}[moment]
    with pytest.raises(Killed), killed_at(at):
        train(run, quiet=True)
    assert train(run, quiet=True).status == "finished"
    assert different(run.directory, whole) == []
    decided = [{key: line[key] for key in line if key != "time"} for line in events(run.directory, "ramp")]
    last = {line["step"]: line for line in decided}  # after a resume a step may be there twice: the last line counts
    assert list(last.values()) == [{key: line[key] for key in line if key != "time"} for line in events(whole, "ramp")]
    assert state_at_end(run.directory)["progress"]["growth"] == [
        [line["step"], line["next_global_batch_size"]] for line in grown(whole)
    ]


FP64: dict[str, Any] = {"precision": "fp64", "model": {"name": "tiny_cnn", "channels": [4, 6], "norm": False}}


def decisions(run: Path) -> list[tuple[Any, ...]]:
    lines = {line["step"]: line for line in events(run, "ramp")}
    return [(step, line["examples_seen"], line["next_global_batch_size"]) for step, line in lines.items()]


def assert_alike(one: Path, other: Path) -> None:
    """The same decisions, and weights to the rounding of float64."""
    assert decisions(one) == decisions(other)
    assert len(grown(one)) >= 2
    noises = [[line["noise_scale"] for line in events(run, "ramp")] for run in (one, other)]
    if len(noises[0]) == len(noises[1]):
        assert noises[0] == pytest.approx(noises[1], rel=1e-8)
    for name, tensor in weights_at_end(one).items():
        torch.testing.assert_close(weights_at_end(other)[name], tensor, rtol=1e-10, atol=1e-10)


@pytest.mark.worlds
def test_two_ranks_and_other_micro_batches_decide_alike_and_take_over_from_each_other(tmp_path):
    """Parts of 25 examples: in every world, whatever a micro-batch is, as the ramp has them measured."""
    measured = {**KEYS["record"], "noise_scale": {"every_steps": 1, "smoothing": 0.7, "small_batch_size": 25}}
    ramp = {"global_batch_size": 50, "ramp": ADAPTIVE}
    one = trained(tmp_path / "one", **FP64, batch=ramp, record=measured)
    fives = trained(tmp_path / "fives", **FP64, batch={**ramp, "micro_batch_size": 5}, record=measured)
    assert_alike(one, fives)
    for name in ("two", "moved"):
        written = recipe_of(tmp_path / name, **FP64, batch=ramp, record=measured)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(written))
    ended = pool.ranks(2, "-m", "largebatch", "train", tmp_path / "two.yaml")
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert_alike(one, tmp_path / "two")
    first, second = (line["step"] for line in grown(one)[:2])
    ended = pool.ranks(2, "worlds.kills:killed_at_step", (first + second) // 2 + 1, tmp_path / "moved.yaml")
    assert ended.returncode == -9, ended.stderr[-3000:]
    assert train(config.load(tmp_path / "moved.yaml"), quiet=True).status == "finished"
    assert_alike(one, tmp_path / "moved")


# What is told, and what is refused


def decided_of(world: int = 1, examples: int = 1500, **keys: Any) -> Any:
    written = {**{key: value for key, value in KEYS.items() if key != "record"}, **keys}
    run = config.from_dict({"name": "adaptive", "device": "cpu", **TINY, **written})
    return decide(run, DataFacts(examples), world, "cpu")


def test_the_meter_is_switched_on_and_the_same_in_every_world():
    batch_of = {"global_batch_size": 48, "ramp": {**ADAPTIVE, "largest": 384}}
    for world in (1, 2, 4, 8):
        decided = decided_of(world, batch=batch_of)
        assert decided.methods["noise_scale"].small_batches == (6,)
        assert 48 % (decided.plan.micro_batch_size * world) == 0
    assert may_come_to(config.from_dict({"name": "a", **TINY, "batch": batch_of})) == (48, 96, 192, 384)


def test_what_it_says_beforehand():
    decided = decided_of()
    assert decided.budget_words == "at most 90 steps, as its noise scale turns out, 3 epochs"
    assert (
        "batch × 2 up to 400, lr as it is, where the noise scale is above 0.02 × the batch, asked every 0.25 epochs"
        in decided.beside_words
    )


def test_commands_say_that_it_is_an_upper_bound(front_door, recipe):
    path = recipe("adaptive", **KEYS)
    code, out, err = front_door("recipe", "show", path)
    assert (code, err) == (0, "")
    assert "at most 90" in out
    assert "50 → 100 → 200 → 400" in out
    code, out, err = front_door("train", path, "--dry-run")
    assert code == 0, err
    assert "at most 90 steps, as its noise scale turns out" in out
    code, _, err = front_door("plan", path, "--devices", "1..2", "--machine", "dgx-h100")
    assert code == 2
    assert "batch.ramp changes the batch during the run; a plan takes one batch" in err


RAMP = "batch.ramp.rule = adaptive"


@pytest.mark.parametrize(
    ("ramp", "keys", "sentence"),
    [
        ({"largest": None}, {}, f"{RAMP} needs batch.ramp.factor, and batch.ramp.largest"),
        ({"factor": None}, {}, f"{RAMP} needs batch.ramp.factor, and batch.ramp.largest"),
        ({"largest": 99}, {}, "batch.ramp.largest = 99 leaves no place to grow: batch.global_batch_size = 50 by"),
        ({"at_epochs": [1]}, {}, f"batch.ramp.at_epochs has no effect with {RAMP}"),
        ({"sizes": [100]}, {}, f"batch.ramp.sizes has no effect with {RAMP}"),
        ({"lr_factor": 2}, {}, f"batch.ramp.lr_factor has no effect with {RAMP}"),
        ({"above": 0}, {}, "batch.ramp.above = 0 should be greater than 0"),
        ({"rule": "epochs", "at_epochs": [1], "largest": None}, {}, f"batch.ramp.above has no effect without {RAMP}"),
        ({"largest": 1600}, {}, "batch.ramp = 1600 is larger than the training set"),
        ({"least_steps": 300}, {}, "batch.ramp.least_steps = 300 is never reached: record.noise_scale.smoothing"),
        ({}, {"epochs": None, "steps": 30}, "batch.ramp needs the budget in epochs"),
        ({}, {"phases": [{"until_epoch": 1}, {"lr.base": 0.1}]}, "phases and batch.ramp both say when the batch"),
        ({}, {"engine": {"name": "fsdp"}}, f"{RAMP} needs engine.name = ddp"),
        ({}, {"precision": "fp16"}, f"{RAMP} does not go with precision = fp16"),
        ({}, {"data": {"name": "digits", "repeats": 2}}, f"{RAMP} takes the examples of a batch for independent ones"),
        ({}, {"lr": {"base": 0.1, "warmup": {"steps": 5}}}, f"{RAMP} changes what a step is; state lr.warmup"),
        ({}, {"outer_momentum": {"every_steps": 4, "end_lr": 0.1}}, f"{RAMP} does not say beforehand how many steps"),
        ({}, {"batch": {"global_batch_size": 1, "ramp": {**ADAPTIVE}}}, "needs gradients of two batch sizes"),
        (
            {},
            {"lr": {"base": 0.1, "scaling": "adascale", "reference_batch_size": 10}},
            "lr.scaling = adascale and batch.ramp both change what a step is worth",
        ),
        (
            {},
            {"averaging": {"name": "post_local_sgd", "workers": 2, "period": 4, "from_epoch": 1}},
            f"{RAMP} asks for the noise of one set of weights; averaging.name = post_local_sgd has many",
        ),
        (
            {},
            {
                "averaging": {
                    "name": "swap", "stop_at_train_accuracy": 50, "workers": 2, "worker_batch_size": 10, "epochs": 1,
                    "lr": {"base": 0.1},
                }
            },
            f"{RAMP} asks for the noise of one set of weights; averaging.name = swap has many",
        ),
    ],
)  # fmt: skip
def test_what_it_does_not_go_with_is_one_sentence(ramp, keys, sentence):
    whole = {key: value for key, value in {**ADAPTIVE, **ramp}.items() if value is not None}
    with pytest.raises(UserError) as caught:
        decided_of(**{"batch": {**BATCH, "ramp": whole}, **keys})
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_world_that_cannot_share_the_parts_is_refused_before_the_first_step():
    """6 ranks have 8 examples of 48 each, and parts of 6 do not divide them."""
    with pytest.raises(UserError, match=r"batch.global_batch_size = 48 does not factor into 6 ranks with parts of"):
        decided_of(6, batch={"global_batch_size": 48, "ramp": ADAPTIVE})


@pytest.mark.worlds
def test_another_budget_or_meter_is_another_run(tmp_path, whole):
    for keys in ({"epochs": 4}, {"record": {**KEYS["record"], "noise_scale": {"every_steps": 2, "smoothing": 0.7}}}):
        run = config.from_dict(recipe_of(whole, **keys))
        with pytest.raises(UserError, match="belongs to another config"):
            train(run, quiet=True)

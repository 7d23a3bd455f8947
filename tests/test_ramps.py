"""Ramps of the batch with an lr of their own: Merrill's rule, and Seesaw derived from any decay, in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest

from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.recipes.decide import decide
from largebatch.recipes.decided import DataFacts, Decided

EXAMPLES = 6400
COSINE = {"base": 0.01, "warmup": {"epochs": 1}, "decay": {"name": "cosine"}}


def decided_of(ramp: dict[str, Any], lr: dict[str, Any], optimizer: str = "adamw", **more: Any) -> Decided:
    recipe = {
        "name": "ramps",
        "device": "cpu",
        "epochs": 10,
        "model": {"name": "mlp", "width": 8, "depth": 1},
        "data": {"name": "synthetic", "num_classes": 3, "image_shape": [1, 2, 2], "examples": EXAMPLES, "workers": 0},
        "batch": {"global_batch_size": 16, "ramp": ramp},
        "optimizer": {"name": optimizer},
        "lr": lr,
        **more,
    }
    return decide(config.from_dict(recipe), DataFacts(EXAMPLES), 1, "cpu")


def steps_of(decided: Decided) -> list[tuple[int, float, float]]:
    """Batch, epoch and lr of every step."""
    plan = decided.plan
    before = [plan.examples_before(step) for step in range(plan.steps)]
    return [(plan.at(step).global_batch_size, seen / EXAMPLES, decided.lr_at(seen)) for step, seen in enumerate(before)]


@pytest.mark.parametrize(("rule", "power"), [("sqrt", 0.5), ("linear", 1.0), ("stays", 0.0)])
@pytest.mark.parametrize("lr", [{"base": 0.01}, COSINE], ids=["constant", "cosine"])
def test_merrills_rule(rule, power, lr):
    """The lr of the constant batch times √ (or the whole) of the growth, from the step on at which it grows."""
    sizes = {"at_epochs": [2, 5.5], "factor": 2} if rule != "linear" else {"at_epochs": [2, 5.5], "sizes": [48, 80]}
    decided = decided_of({**sizes, "lr": rule}, lr)
    plain = decided_of({"at_epochs": [2, 5.5], "factor": 2}, lr)
    steps = steps_of(decided)
    assert [size for size, *_ in steps] == sorted(size for size, *_ in steps)
    assert len({size for size, *_ in steps}) == 3
    for size, epoch, rate in steps:
        of_constant_batch = plain.phases[0].lr.schedule(epoch * EXAMPLES)
        assert rate == pytest.approx(of_constant_batch * (size / 16) ** power, rel=1e-12)
    said = {"sqrt": "times √ of the batch's growth", "linear": "times the batch's growth", "stays": "no scaling: 0.01"}
    assert said[rule] in decided.lr.rule


def test_seesaw_of_a_cosine_in_closed_form():
    """(1 + cos πt)/2 = 2^−k at t = arccos(2^(1−k) − 1)/π: there B doubles and η is divided by √2."""
    decided = decided_of({"rule": "seesaw", "factor": 2, "largest": 128}, COSINE)
    cuts = [1 + 9 * math.acos(2 ** (1 - k) - 1) / math.pi for k in (1, 2, 3)]
    for size, epoch, rate in steps_of(decided):
        k = sum(epoch >= cut - 1e-9 for cut in cuts)
        assert size == 16 * 2**k
        if epoch < 1:
            assert rate == pytest.approx(0.01 * epoch, rel=1e-12)
        elif k < 3:
            assert rate == pytest.approx(0.01 / math.sqrt(2) ** k, rel=1e-12)
        else:
            assert rate == pytest.approx(0.01 * math.sqrt(8) * (1 + math.cos(math.pi * (epoch - 1) / 9)) / 2, rel=1e-9)
    constant = 10 * EXAMPLES / 16
    assert decided.plan.steps < constant
    assert "seesaw on cosine to 0: ÷1.414 with each growth of the batch by 2, at epochs 5.5, 7" in decided.lr.decay


def test_seesaw_keeps_the_size_of_noisy_steps():
    """What it rests on: lr/√B is that of the decay at the first batch, wherever it has just cut."""
    decided = decided_of({"rule": "seesaw", "factor": 4, "largest": 64}, {**COSINE, "decay": {"name": "linear"}})
    first_of: dict[int, tuple[float, float]] = {}
    for size, epoch, rate in steps_of(decided):
        first_of.setdefault(size, (epoch, rate))
    epoch, rate = first_of[64]
    assert epoch == pytest.approx(1 + 9 * 0.75, abs=16 / EXAMPLES)
    assert rate * math.sqrt(16 / 64) == pytest.approx(0.01 * (1 - (epoch - 1) / 9), rel=1e-9)


def test_seesaw_of_a_decay_that_jumps():
    """Goyal's tenths: with factor 10 each is 10 times the batch and 1/√10 of the lr; the end has the last one's."""
    lr = {"base": 0.01, "decay": {"name": "steps", "at_epochs": [3, 6, 8]}}
    decided = decided_of({"rule": "seesaw", "factor": 10, "largest": 1600}, lr)
    assert [(stage.global_batch_size, stage.first_example) for stage in decided.plan.stages] == [
        (16, 0), (160, 3 * EXAMPLES), (1600, 6 * EXAMPLES),
    ]  # fmt: skip
    for size, epoch, rate in steps_of(decided):
        expected = 0.01 / math.sqrt(size / 16)
        assert rate == pytest.approx(expected / 10 if epoch >= 8 else expected, rel=1e-12)


def test_a_larger_cut_takes_longer():
    """lr_factor 2 with factor 2: where the decay has come to 2√2 of it."""
    ramp = {"rule": "seesaw", "factor": 2, "largest": 32, "lr_factor": 2}
    decided = decided_of(ramp, {**COSINE, "decay": {"name": "linear"}})
    cut = 1 + 9 * (1 - 2**-1.5)
    assert decided.plan.stages[1].first_example / EXAMPLES == pytest.approx(cut, abs=16 / EXAMPLES)


def test_worlds_have_the_same_ramp():
    ramp = {"rule": "seesaw", "factor": 2, "largest": 128}
    recipe = {"base": 0.01, "decay": {"name": "cosine"}}
    one = decided_of(ramp, recipe)
    run = config.from_dict({
        "name": "ramps", "epochs": 10, "model": {"name": "mlp"}, "data": {"name": "digits"}, "device": "cpu",
        "batch": {"global_batch_size": 16, "ramp": ramp}, "optimizer": {"name": "adamw"}, "lr": recipe,
    })  # fmt: skip
    four = decide(run, DataFacts(EXAMPLES), 4, "cpu")
    places = [[(stage.first_step, stage.global_batch_size) for stage in of.plan.stages] for of in (one, four)]
    assert places[0] == places[1]
    assert [one.lr_at(seen) for seen in range(0, 64_000, 997)] == [four.lr_at(seen) for seen in range(0, 64_000, 997)]


SEESAW = {"rule": "seesaw", "factor": 2, "largest": 128}


@pytest.mark.parametrize(
    ("ramp", "lr", "more", "sentence"),
    [
        ({**SEESAW, "lr_factor": 1.3}, COSINE, {}, "batch.ramp.lr_factor = 1.3 is below √2 = 1.41421"),
        (SEESAW, COSINE, {"optimizer": "sgd"}, "optimizer.name = sgd has another measure of steps"),
        (SEESAW, {"base": 0.1}, {}, "lr.decay.name = constant has none"),
        ({**SEESAW, "largest": 31}, COSINE, {}, "batch.ramp.rule = seesaw finds no place to grow"),
        (SEESAW, {"base": 0.1, "decay": {"name": "linear", "end_lr": 0.09}}, {}, "finds no place to grow"),
        ({"rule": "seesaw", "factor": 2}, COSINE, {}, "seesaw needs batch.ramp.factor, and batch.ramp.largest"),
        ({**SEESAW, "at_epochs": [1]}, COSINE, {}, "batch.ramp.at_epochs has no effect with batch.ramp.rule = seesaw"),
        ({**SEESAW, "lr": "sqrt"}, COSINE, {}, "batch.ramp.lr has no effect with batch.ramp.rule = seesaw"),
        (SEESAW, COSINE, {"epochs": None, "steps": 100}, "batch.ramp needs the budget in epochs"),
        (SEESAW, {**COSINE, "warmup": {"steps": 9}}, {}, "state lr.warmup and lr.decay in epochs or shares"),
        (SEESAW, {**COSINE, "warmup": {"epochs": 11}}, {}, "must be below the run's 10"),
        ({"factor": 2}, COSINE, {}, "batch.ramp.at_epochs is missing"),
        ({"at_epochs": [1], "factor": 2, "lr_factor": 2}, COSINE, {}, "batch.ramp.lr_factor has no effect without"),
        ({"at_epochs": [1], "factor": 2, "largest": 9, "lr": "sqrt"}, COSINE, {}, "leave one out"),
        ({"at_epochs": [1], "factor": 2, "lr": "cube"}, COSINE, {}, "batch.ramp.lr = 'cube'"),
    ],
)
def test_bad_ramps_are_one_sentence(ramp, lr, more, sentence):
    with pytest.raises(UserError) as caught:
        decided_of(ramp, lr, **more)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)

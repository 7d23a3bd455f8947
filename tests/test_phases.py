"""Phases: the arithmetic of their edges and clocks, what is refused, and runs that change in the middle."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pool
import pytest
import torch
import yaml
from ends import different, events
from method_recipes import recipe_of
from PIL import Image
from programs import state_at_end, weights_at_end

from largebatch import report
from largebatch.data.sizes import sizes_of_phases
from largebatch.errors import UserError
from largebatch.plan.batch import MicroBatch
from largebatch.plan.order import epoch_order
from largebatch.plan.phases import PhaseWish, clocks, resolve
from largebatch.recipes import config, optimizers, strict_yaml
from largebatch.recipes.decide import decide
from largebatch.recipes.decided import DataFacts, Decided
from largebatch.report.read import read_runs
from largebatch.run.assemble import assemble
from largebatch.run.train import train
from largebatch.studies.bench.throughput import turns
from largebatch.studies.compare import Tuning, compare
from largebatch.studies.reading import as_plot, derived

THREE: list[dict[str, Any]] = [
    {"batch.global_batch_size": 240, "until_epoch": 0.7},
    {"batch.global_batch_size": 60, "steps": 11, "lr.base": 0.03, "lr.warmup.epochs": 0.1, "optimizer.momentum": 0.8},
    {"lr.warmup.epochs": 0.2, "weight_decay.value": 0.05},
]
DIGITS = DataFacts(1500, 64)


def written(phases: Any = THREE, **more: Any) -> dict[str, Any]:
    return {**recipe_of("ghost"), "model": {"name": "tiny_cnn"}, "batch": {"global_batch_size": 120}, **more,
            "phases": json.loads(json.dumps(phases))}  # fmt: skip


def decided(phases: Any = THREE, world: int = 1, **more: Any) -> Decided:
    return decide(config.from_dict(written(phases, **more)), DIGITS, world, "cpu")


def lr_of_steps(found: Decided) -> list[float]:
    return [found.lr_at(found.plan.examples_before(step)) for step in range(found.plan.steps)]


def asked(size: int, **end: Any) -> PhaseWish:
    return PhaseWish(size, MicroBatch(), **end)


# Arithmetic


def test_the_stream_goes_on_over_the_edges():
    plan, spans = resolve([asked(16, until_epoch=0.5), asked(8, steps=3), asked(32)], dataset_size=50, epochs=3, seed=7)
    sizes = [plan.at(step).global_batch_size for step in range(plan.steps)]
    assert sizes == [16] * 2 + [8] * 3 + [32] * 3  # 25 examples want two steps of 16; 150 − 56 want three of 32
    seen = np.concatenate([plan.examples_of(step).positions for step in range(plan.steps)])
    assert seen.tolist() == list(range(152))
    indices = np.concatenate([plan.examples_of(step).indices for step in range(plan.steps)])
    assert indices.tolist() == np.concatenate([epoch_order(50, 7, epoch) for epoch in range(4)])[:152].tolist()
    assert [(span.first_step, span.steps, span.first_example, span.until) for span in spans] == [
        (0, 2, 0, 25), (2, 3, 32, 56), (5, 3, 56, 150),
    ]  # fmt: skip
    assert plan.budget_examples == 150


@pytest.mark.parametrize("world", [2, 4])
def test_examples_of_a_step_do_not_depend_on_the_world(world):
    phases = [asked(16, until_share=0.3), asked(8, until_epoch=1.1), asked(24)]
    (alone, spans), (many, others) = (
        resolve(phases, dataset_size=50, world_size=w, epochs=3, seed=7) for w in (1, world)
    )
    assert spans == others
    for step in range(alone.steps):
        joined = np.concatenate([many.examples_of(step, rank).positions for rank in range(world)])
        assert joined.tolist() == alone.examples_of(step).positions.tolist()


@pytest.mark.parametrize(
    ("phases", "budget", "steps"),
    [
        ([asked(10, until_share=0.5), asked(10)], {"steps": 9}, [5, 4]),
        ([asked(10, until_epoch=1), asked(20)], {"steps": 9}, [10, None]),  # refused: nothing is left
        ([asked(10, steps=4), asked(20)], {"steps": 9}, [4, 5]),
        ([asked(10, until_share=0.5), asked(20, until_share=0.75), asked(50)], {"epochs": 2}, [10, 3, 1]),
        ([asked(30, until_epoch=1), asked(10, until_epoch=1.2), asked(40)], {"epochs": 2}, [4, None, 2]),
    ],
)
def test_a_phase_ends_where_it_says(phases, budget, steps):
    """100 examples. An end in examples is reached by the first step at whose end they have been seen."""
    if None in steps:
        number = steps.index(None) + 1
        with pytest.raises(UserError, match=f"phases.{number} leaves no step: it would begin at epoch"):
            resolve(phases, dataset_size=100, **budget)
        return
    _, spans = resolve(phases, dataset_size=100, **budget)
    assert [span.steps for span in spans] == steps


def test_a_clock_that_goes_on_ends_with_the_last_phase_that_follows_it():
    _, spans = resolve(
        [asked(10, steps=2), asked(20, steps=2), asked(10, steps=1), asked(10)], dataset_size=100, steps=9
    )
    found = clocks(spans, [False, True, False, True])
    assert [(clock.first_example, clock.budget, clock.steps) for clock in found] == [(0, 60, 4)] * 2 + [(60, 50, 5)] * 2


def test_each_phase_warms_up_and_decays_by_its_own_clock():
    found = decided()
    rates = lr_of_steps(found)
    edges = [span.first_step for span in (phase.span for phase in found.phases)]
    assert edges == [0, 5, 16]
    for phase, base, warmup in zip(found.phases, (0.05, 0.03, 0.05), (750, 150, 300), strict=True):
        begin, budget = phase.span.first_example, phase.span.until - phase.span.first_example
        for step in range(phase.span.first_step, phase.span.first_step + phase.span.steps):
            seen = found.plan.examples_before(step) - begin
            along = min(1.0, (seen - warmup) / (budget - warmup))
            expected = base * seen / warmup if seen < warmup else base * (1 + np.cos(np.pi * along)) / 2
            assert rates[step] == pytest.approx(expected, rel=1e-12)
    assert rates[0] == rates[5] == rates[16] == 0.0
    assert found.peak_lr == 0.05


def test_the_peak_follows_the_batch_of_the_phase():
    lr = {"base": 0.1, "scaling": "linear", "reference_batch_size": 60}
    found = decided([{"until_share": 0.5}, {"batch.global_batch_size": 300}], lr=lr)
    assert [phase.lr.schedule.peak for phase in found.phases] == [0.2, pytest.approx(0.5)]


@pytest.mark.parametrize("world", [1, 2])
def test_a_ramp_is_phases_of_one_clock(world):
    lr = {"base": 0.1, "warmup": {"epochs": 0.3}, "decay": {"name": "polynomial"}}
    ramp = {"global_batch_size": 60, "ramp": {"at_epochs": [0.5, 1.1, 7], "sizes": [120, 300, 600]}}
    short = decide(config.from_dict({**recipe_of("ghost"), "batch": ramp, "lr": lr}), DIGITS, world, "cpu")
    phases = [
        {"until_epoch": 0.5},
        {"batch.global_batch_size": 120, "until_epoch": 1.1, "clock": "goes_on"},
        {"batch.global_batch_size": 300, "clock": "goes_on"},
    ]
    long = decided(phases, world, batch={"global_batch_size": 60}, lr=lr)
    assert long.plan == short.plan
    assert lr_of_steps(long) == lr_of_steps(short)
    assert [phase.stage for phase in long.phases] == [phase.stage for phase in short.phases]


def test_a_side_for_each_phase():
    sizes = sizes_of_phases((16, 24, 20), evaluate=32)
    plan, _ = resolve([asked(10, steps=2), asked(20, steps=1), asked(10)], dataset_size=100, steps=5)
    assert [sizes.at(step, plan) for step in range(5)] == [16, 16, 24, 20, 20]
    assert (sizes.first, sizes.last, sizes.evaluate, sizes.all) == (16, 24, 32, [16, 20, 24])


def test_a_micro_batch_is_as_large_as_the_images_of_its_phase_let_it_be():
    data = {"name": "folder", "image_size": 224}
    phases = [{"data.image_size": 112, "until_share": 0.5}, {}]
    run = config.from_dict(written(phases, data=data, batch={"global_batch_size": 2048}))
    found = decide(run, DataFacts(10_000, 224**2), 1, "cuda")
    assert [stage.micro_batch_size for stage in found.plan.stages] == [1024, 256]


# What is written


def test_phases_read_back_to_themselves_and_decide_the_result():
    run = config.from_dict(written())
    text = strict_yaml.written(run.as_written(), "run.yaml")
    assert config.from_dict(strict_yaml.parse(text, "run.yaml")) == run
    assert run.as_written()["phases"] == THREE
    assert config.from_dict(written(None)).science() != run.science()
    of_second = config.of_phases(run)[1]
    assert (of_second.batch.global_batch_size, of_second.lr.base, of_second.optimizer.momentum) == (60, 0.03, 0.8)  # type: ignore[attr-defined]
    assert "until_share" in config.json_schema()["$defs"]["PhaseKeys"]["properties"]


LAST: dict[str, Any] = {}
CANNOT = "cannot change during a run; a phase may change batch.global_batch_size"


@pytest.mark.parametrize(
    ("phases", "sentence"),
    [
        ([], "phases = [] should be a list, each with keys as in {lr.base: 0.1"),
        ({"lr.base": 1}, "phases = {'lr.base': 1} should be a list"),
        ([3], "phases.1 = 3 should hold keys"),
        ([LAST, LAST], "phases.1 needs one of until_epoch, until_share and steps to end; it has none"),
        ([{"steps": 3, "until_epoch": 1}, LAST], "to end; not until_epoch and steps"),
        ([{"steps": 3}, {"until_share": 0.9}], "phases.2.until_share: the last phase ends with the run; leave it out"),
        ([{"until_share": 1.5}, LAST], "phases.1.until_share = 1.5 should be less than 1"),
        ([{"steps": 0}, LAST], "phases.1.steps = 0 should be greater than 0"),
        ([{"steps": 3, "clock": "goes_on"}, LAST], "phases.1.clock = goes_on has no phase before it"),
        ([{"steps": 3}, {"clock": "goes_on", "lr.base": 1}], "phases.2.lr.base makes another schedule"),
        ([{"model.name": "mlp"}], f"phases.1.model.name {CANNOT}"),
        ([{"task.name": "regression"}], f"phases.1.task.name {CANNOT}"),
        ([{"data.name": "mnist"}], f"phases.1.data.name {CANNOT}"),
        ([{"data": {"name": "mnist"}}], f"phases.1.data {CANNOT}"),
        ([{"seed": 1}], f"phases.1.seed {CANNOT}"),
        ([{"epochs": 1}], "a phase ends with until_epoch, until_share, steps"),
        ([{"optimizer.name": "lars"}], f"phases.1.optimizer.name {CANNOT}"),
        ([{"optimizer": {"name": "lamb"}}], f"phases.1.optimizer.name {CANNOT}"),
        ([{"data.image_size": {"from": 8, "to": 16}}], "phases.1.data.image_size = {'from': 8, 'to': 16} should be"),
        ([{"steps": 2, "data.image_size": 8}, LAST], "phases.2 has no data.image_size, and others have"),
        ([{"lr.bsae": 1}], "phases.1: unknown key lr.bsae; did you mean base?"),
        ([{"optimizer.momentum": 2}], "phases.1: optimizer.momentum = 2 should be less than 1"),
        ([{"steps": 3}, {"lr.scaling": "linear"}], "phases.2: lr.scaling = linear needs lr.reference_batch_size"),
        ([{"until_epoch": 1}, {"until_epoch": 0.5}, LAST], "phases.2 leaves no step: it would begin at epoch 1.04, "
         "after 13 steps, and it is to end at epoch 0.5; phases end one after another"),
        ([{"until_epoch": 5}, LAST], "phases.2 leaves no step: it would begin at epoch 5.04, after 63 steps, and the "
         "run ends at epoch 2"),
        ([{"steps": 2}, {"batch.global_batch_size": 1021}], "phases.2: batch.global_batch_size = 1021 leaves 1021"),
        ([{"steps": 2}, LAST], "phases.1: lr.warmup.epochs = 0.5 must be below the phase's 0.16 epochs"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_phases_is_one_sentence(phases, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        decided(phases)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"batch": {"global_batch_size": 120, "ramp": {"at_epochs": [1], "factor": 2}}}, "phases and batch.ramp both"),
        ({"lr": {"base": 0.1, "scaling": "adascale", "reference_batch_size": 60}}, "phases and lr.scaling = adascale"),
        ({"regime_adaptation": {"reference_batch_size": 60}}, "phases and regime_adaptation both say how long"),
        ({"data": {"name": "folder", "image_size": {"from": 8, "to": 16}}}, "phases and data.image_size that grows"),
        ({"averaging": {"name": "post_local_sgd", "workers": 2, "from_epoch": 1}}, "divides one batch among its"),
        ({"engine": {"name": "ddp", "cuda_graphs": True}}, "cuda_graphs = true does not go with phases"),
        ({"batch_norm": {"statistics": "last"}}, "batch_norm.statistics = last needs batch.bn_batch_size"),
        ({"batch": {"global_batch_size": 120, "bn_batch_size": 120}}, "cannot be shared by 2 ranks|phases that change"),
    ],
)  # fmt: skip
def test_what_phases_do_not_go_with_is_one_sentence(more, sentence):
    with pytest.raises(UserError, match=sentence):
        decided(world=2, **more)


def test_an_override_that_a_phase_would_hide_is_refused():
    whole = written()
    with pytest.raises(
        UserError, match=re.escape("lr.base would not hold where the recipe says phases.2.lr.base; set")
    ):
        config.overlay(whole, ["lr.base=0.2"])
    both = config.from_dict(config.overlay(whole, ["lr.base=0.2", "phases.2.lr.base=0.1"]))
    assert [laid.lr.base for laid in config.of_phases(both)] == [0.2, 0.1, 0.2]
    assert config.from_dict(config.overlay(whole, ["phases.2.until_share=0.6"])).phases[1].ends == {"until_share": 0.6}  # type: ignore[index]
    with pytest.raises(
        UserError, match=re.escape("phases.4.lr.base cannot be set; valid: phases.1.KEY to phases.3.KEY")
    ):
        config.overlay(whole, ["phases.4.lr.base=1"])
    with pytest.raises(UserError, match="phases.1.lr.base cannot be set: the recipe has no phases"):
        config.overlay(written(None), ["phases.1.lr.base=1"])


# What the optimizer is told

OTHER = {  # another value of each kind of key
    bool: lambda value: not value,
    float: lambda value: value / 2 + 0.01,
    int: lambda value: value + 1,
}
OTHER_WORDS = {"variant": None, "match": "none", "others": "adamw", "ramp": "printed"}
UNSET = {
    "eps": 1e-7, "bias_correction": False, "max_weight_norm": 1.0, "min_trust_ratio": 0.1, "max_trust_ratio": 5.0,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(optimizers.table()))
def test_every_key_that_a_phase_may_change_reaches_the_optimizer(name):
    """In its parameter groups, or in what it is told by the epoch."""
    kind = optimizers.table()[name]
    section = kind.model_validate({"name": name})
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
    names, parameters = zip(*model.named_parameters(), strict=True)
    around = optimizers.Surroundings("fp32", "ddp", model)

    def told(one: Any) -> tuple[Any, ...]:
        group = {"params": list(parameters), "names": list(names), "weight_decay": 0.0, "adapt": False}
        groups = one.build([group], 0.1, around).param_groups
        of_groups = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        return of_groups, [one.settings_at(epoch) for epoch in (0.0, 8.0, 11.0)]

    for key in kind.model_fields.keys() - kind.FIXED:
        value = getattr(section, key)
        other = UNSET[key] if value is None else OTHER_WORDS.get(key) or OTHER[type(value)](value)
        assert told(section.model_copy(update={key: other})) != told(section), key


def test_groups_have_the_settings_of_the_phase_and_none_of_another():
    job = assemble(config.from_dict(written()), torch.device("cpu"))
    groups = job.engine.optimizer.param_groups

    def seen() -> list[tuple[float, float]]:
        return sorted((group["momentum"], group["weight_decay"]) for group in groups)

    own = seen()
    assert own == [(0.9, 0.0), (0.9, 0.01)]
    for number, expected in ((0, own), (1, [(0.8, 0.0), (0.8, 0.01)]), (2, [(0.9, 0.0), (0.9, 0.05)]), (1, None)):
        job.settings.tell(groups, number)
        assert expected in (None, seen())
    job.settings.tell(groups, None)
    assert seen() == own


# What is shown


def test_phases_are_read_aloud_and_drawn(tmp_path):
    path = tmp_path / "three.yaml"
    path.write_text(yaml.safe_dump(written()))
    facts = derived(path, ["phases.2.optimizer.momentum=0.7"])
    rows = [tuple(row.values()) for row in facts["rows"]]
    assert ("phase 2", "epochs 0.8 to 1.24, steps 6 to 16", "steps = 11", "by hand") in rows
    assert ("  momentum", "0.7", "", "by hand") in rows
    assert ("  weight decay", "0.05", "", "recipe") in rows
    assert ("  warm-up", "0.2 epochs from 0", "from the first step of the phase", "recipe") in rows
    assert [phase["global_batch_size"] for phase in facts["phases"]] == [240, 60, 120]
    assert [(phase["epoch"], phase["step"], phase["steps"]) for phase in facts["phases"]][1] == (0.8, 5, 11)
    assert "global batch\n240 ┤" in as_plot(facts)


def test_a_comparison_refuses_to_search_a_rate_that_a_phase_hides(tmp_path):
    path = tmp_path / "three.yaml"
    path.write_text(yaml.safe_dump(written()))
    with pytest.raises(
        UserError, match="search.lr.base goes to .*: lr.base would not hold where the recipe says phases"
    ):
        compare([path], tmp_path / "out", tuning=Tuning(hold_out=100))
    assert not (tmp_path / "out").exists()


def test_a_bench_times_steps_of_the_first_phase():
    timed, said = turns.timed(config.from_dict(written()), steps=5)
    assert (timed.phases, timed.batch.global_batch_size) == (None, 240)
    assert said == ["phases: every step is one of the first phase"]


def test_swaps_workers_take_the_keys_of_the_recipe():
    averaging = {"name": "swap", "stop_at_train_accuracy": 50, "workers": 2, "worker_batch_size": 30, "epochs": 0.2,
                 "lr": {"base": 0.02}}  # fmt: skip
    found = decided(averaging=averaging)
    assert [stage.global_batch_size for stage in found.plan.stages] == [240, 60, 120]
    assert found.methods["swap"].plan.global_batch_size == 30  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="phases of several data.image_size need the whole plan"):
        decided(
            [{"steps": 2, "data.image_size": 8}, {}], averaging=averaging, data={"name": "folder", "image_size": 16}
        )


# Runs


PHOTOGRAPHS = 48
IN_PHASES: dict[str, Any] = {  # batch down, size up, warm-up again: 3, 4 and 3 steps
    **recipe_of("ghost"),
    "model": {"name": "resnet20"},
    "batch": {"global_batch_size": 24, "bn_batch_size": 3},
    "epochs": 4,
    "lr": {"base": 0.05, "decay": {"name": "cosine"}},
    "phases": [
        {"until_epoch": 1.25},
        {"batch.global_batch_size": 12, "optimizer.momentum": 0.8, "until_share": 0.6},
        {"data.image_size": 24, "lr.warmup.epochs": 0.5, "weight_decay.value": 0.05},
    ],
    "checkpoint": {"every_epochs": 0.25, "keep": 100, "asynchronous": False},  # after every step
    "record": {"to": [], "every_steps": 1},
}
EDGES, INSIDE = [3, 7], [1, 5, 8]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for split, count in (("train", PHOTOGRAPHS), ("val", 8)):
        for number in range(count):
            file = folder / split / ("cat", "dog")[number % 2] / f"{number:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (28, 32, 3), dtype=np.uint8)).save(file)
    return folder


def in_phases(folder: Path, photographs: Path) -> Path:
    data = {"name": "folder", "root": str(photographs), "image_size": 16, "workers": 0, "decode": "pillow"}
    record = {**IN_PHASES["record"], "dir": str(folder / "run")}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**IN_PHASES, "data": data, "record": record}))
    return folder / "recipe.yaml"


def trained(world: int, recipe: Path, *killed_at: int) -> Path:
    """Killed before each of these steps in turn, then to its end."""
    for step in killed_at:
        ended = pool.ranks(world, "worlds.kills:killed_at_step", step, recipe)
        assert ended.returncode == -9, ended.stderr[-3000:]
    ended = pool.ranks(world, "worlds.kills:train", recipe)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return recipe.parent / "run"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, photographs) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {world: trained(world, in_phases(folder / f"{world}", photographs)) for world in (1, 2, 4)}


@pytest.mark.worlds
@pytest.mark.parametrize("world", [2, 4])
def test_three_phases_are_the_same_on_any_number_of_ranks(whole, world):
    alone, many = (weights_at_end(whole[w]) for w in (1, world))
    for key in alone:
        torch.testing.assert_close(many[key], alone[key], rtol=1e-12, atol=1e-12)
    one, other = (events(whole[w], "train") for w in (1, world))
    assert [line["global_batch_size"] for line in one] == [24] * 3 + [12] * 4 + [24] * 3
    assert [line["lr"] == 0 for line in one] == [number == 7 for number in range(10)], "warm-up again"
    for here, there in zip(one, other, strict=True):
        for key in ("step", "examples_seen", "lr", "loss", "grad_norm"):
            assert there[key] == pytest.approx(here[key], rel=1e-10)


@pytest.mark.worlds
def test_killed_inside_each_phase_and_at_each_edge(whole, tmp_path, photographs):
    directory = trained(2, in_phases(tmp_path, photographs), *sorted(INSIDE + EDGES))
    assert [line["step"] for line in events(directory, "resume")] == sorted(INSIDE + EDGES)
    assert different(directory, whole[2]) == []


@pytest.mark.worlds
def test_a_phase_goes_on_in_another_world(whole, tmp_path, photographs):
    recipe = in_phases(tmp_path, photographs)
    for world, step in ((4, 2), (1, 3), (2, 8)):
        assert pool.ranks(world, "worlds.kills:killed_at_step", step, recipe).returncode == -9
    directory = trained(1, recipe)
    expected = weights_at_end(whole[1])
    for key, value in weights_at_end(directory).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-12)


@pytest.mark.worlds
def test_phases_go_with_methods_that_keep_the_plan(tmp_path):
    """The batch changes, then the weight decay: 60 to the first share, then each method's own batch."""
    more: dict[str, dict[str, Any]] = {"ema": {"record": {"noise_scale": True, "to": []}}}
    for method in ("swap", "ema", "sam_with_norm", "sam_of_examples", "last_statistics", "precise_statistics", "muon"):
        recipe = {**recipe_of(method), **more.get(method, {})}
        recipe["batch"] = {**recipe["batch"], "micro_batch_size": 20 if method == "ema" else None}
        recipe["phases"] = [{"batch.global_batch_size": 60, "until_share": 0.4}, {"weight_decay.value": 0.1}]
        recipe["record"] = {**recipe["record"], "dir": str(tmp_path / method)}
        result = train(config.from_dict(recipe), quiet=True)
        assert (result.status, result.reason) == ("finished", None), method
        sizes = [line["global_batch_size"] for line in events(tmp_path / method, "train")]
        assert (sizes[0], sizes[-1]) == (60, 120), method


@pytest.mark.worlds
def test_a_run_in_phases_says_so(whole, tmp_path):
    plan = json.loads((whole[1] / "plan.json").read_text())
    assert [(phase["step"], phase["steps"], phase["image_size"]) for phase in plan["phases"]] == [
        (0, 3, 16), (3, 4, 16), (7, 3, 24),
    ]  # fmt: skip
    assert plan["phases"][1]["optimizer"] == {"momentum": 0.8}
    groups = state_at_end(whole[1])["optimizer"]["groups"]
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.05]
    (group,) = read_runs([whole[1]]).groups
    assert group.runs[0].edges == (72 / PHOTOGRAPHS, 120 / PHOTOGRAPHS)
    assert report.write(whole[1], tmp_path).html.read_text().count("Dotted lines: another phase begins.") == 2

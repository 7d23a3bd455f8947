"""Killed at any moment, by any method, in any engine, and resumed: the end is that of a run never stopped.

The matrix is ENGINES × METHODS × worlds.kills.MOMENTS. A run lives through a list of moments: SIGKILL at the first, the
same command again, SIGKILL at the next, and so on; then to its end, which is compared bit by bit with the undisturbed
run of the same engine and world (ends.py). All are processes of one thread.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pool
import pytest
import torch
import yaml
from ends import different, events, leaves, result
from method_recipes import METHODS as BESIDE_THE_LOOP
from method_recipes import NORM, recipe_of
from programs import saved, state_at_end, weights_at_end
from worlds.kills import MOMENTS

from largebatch.checkpoint import step_of
from largebatch.checkpoint.pieces import whole
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.recipes import config
from largebatch.run.assemble import assemble

HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
RANDOM_KILLS = int(os.environ.get("LARGEBATCH_KILLS", "10"))


class Engine(NamedTuple):
    ranks: int
    overrides: tuple[str, ...] = ()


ENGINES = {
    "ddp alone": Engine(1),
    "ddp on 2": Engine(2),
    "fsdp on 2": Engine(2, ("engine.name=fsdp",)),
    "zero 1 on 2": Engine(2, ("engine.name=deepspeed", "engine.zero=1", "precision=fp32")),
    "zero 2 on 2": Engine(2, ("engine.name=deepspeed", "engine.zero=2", "precision=fp32")),
}
DRAWN = {  # batch norm of each rank's own images, dropout, augmentation; and every kind of optimizer state
    "model": {**NORM, "dropout": 0.3},
    "data": {"name": "digits", "augment": "crop_flip"},
    "precision": "fp32",
}
METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    **{name: {**DRAWN, "optimizer": {"name": name}} for name in ("heavy_ball", "lars", "lamb", "adamw")},
    **BESIDE_THE_LOOP,
}
OFTEN = {
    "checkpoint": {"every_epochs": 0.2, "keep": 2},
    "evaluate": {"every_epochs": 0.4},
    "record": {"every_steps": 1, "to": []},
}
WHOLE_WEIGHTS = "needs engine.name = ddp, which keeps whole weights on every rank"
WORKERS = ("post_local_sgd", "post_local_sgd_with_ema", "outer_momentum_of_workers")  # that step alone
REFUSED = {  # on every engine that cuts weights into shards, and in which words
    **dict.fromkeys(("sam", "sam_of_examples", "sam_with_norm", "mixed_by_batches_with_sam"), f"sam {WHOLE_WEIGHTS}"),
    "adascale": f"lr.scaling = adascale {WHOLE_WEIGHTS}",
    **dict.fromkeys(WORKERS, f"averaging.name = post_local_sgd {WHOLE_WEIGHTS}"),
    "swap": f"averaging.name = swap {WHOLE_WEIGHTS}",
    **dict.fromkeys(("shampoo", "shampoo_of_2018"), "optimizer.name = shampoo needs whole layers on every rank"),
    "soap": "optimizer.name = soap needs whole layers on every rank",
    "adaptive_ramp": f"record.noise_scale {WHOLE_WEIGHTS}",
}
SWAPS = [moment for moment in MOMENTS if "SWAP" in moment]
ONLY = {  # moments that other methods never come to
    **dict.fromkeys(SWAPS, ("swap",)),
    "at weights uphill": ("sam", "sam_of_examples", "sam_with_norm", "mixed_by_batches_with_sam"),
    "between the gain and its step": ("adascale",),
    "between a step and its moving average": (
        "ema",
        "ema_that_begins_small",
        "post_local_sgd_with_ema",
        "outer_momentum",
    ),
    "while statistics are recomputed": ("precise_statistics", "swap", "lawa", "schedule_free"),
    "before workers are averaged": WORKERS,
}
ORDER = [  # so that a run comes to each, from where the one before left it
    "at weights uphill", "between the gain and its step", "between a step and its moving average",
    "between a gradient and its step", "while a save is copied", "in the middle of a file", "in an evaluation",
    "between a save and its name", "before workers are averaged", "before old checkpoints go",
    "while an old checkpoint goes", "where SWAP's workers begin", "in the steps of a worker of SWAP",
    "between two workers of SWAP", "before SWAP's average", "while statistics are recomputed",
    "before the evaluation at the end", "between the last save and the result",
]  # fmt: skip
LATER = {"between two workers of SWAP": 2, "between a gradient and its step": 2}  # which occurrence, if not the first


def sharded(engine: str) -> bool:
    return not engine.startswith("ddp")


def cells() -> list[Any]:
    """(engine, method), but for what the product refuses."""
    without = pytest.mark.skipif(not HAS_DEEPSPEED, reason="DeepSpeed is not installed")
    return [
        pytest.param(engine, method, id=f"{engine}-{method}", marks=[without] if "zero" in engine else [])
        for engine in ENGINES for method in METHODS if not (sharded(engine) and method in REFUSED)
    ]  # fmt: skip


def moments_of(method: str) -> list[str]:
    return [moment for moment in ORDER if method in ONLY.get(moment, METHODS)]


CORE = [  # every engine, every method, every moment
    ("ddp alone", "plain", ["in the middle of a file", "between a save and its name", "before old checkpoints go"]),
    ("ddp on 2", "heavy_ball", ["while a save is copied", "while an old checkpoint goes"]),
    ("fsdp on 2", "lars", ["between a gradient and its step", "in the middle of a file"]),
    ("zero 1 on 2", "lamb", ["between a save and its name"]),
    ("zero 2 on 2", "adamw", ["in an evaluation"]),
    ("ddp alone", "ramp", ["between the last save and the result"]),
    ("fsdp on 2", "ramp_of_sizes", ["before the evaluation at the end"]),
    ("ddp on 2", "adaptive_ramp", ["between a gradient and its step", "between a save and its name"]),
    ("ddp alone", "adaptive_ramp", ["before old checkpoints go"]),
    ("ddp on 2", "phases", ["between a gradient and its step", "between a save and its name"]),
    ("ddp alone", "ghost", ["in an evaluation"]),
    ("ddp alone", "ghost_in_micro_batches", ["between a gradient and its step"]),
    ("ddp on 2", "synchronised", ["before old checkpoints go"]),
    ("ddp alone", "last_statistics", ["between a save and its name"]),
    ("ddp alone", "precise_statistics", ["while statistics are recomputed"]),
    ("ddp alone", "adascale", ["between the gain and its step", "between the last save and the result"]),
    ("ddp alone", "sam", ["at weights uphill"]),
    ("ddp alone", "sam_of_examples", ["between a save and its name"]),
    ("ddp on 2", "sam_with_norm", ["while a save is copied"]),
    ("ddp on 2", "post_local_sgd", ["before workers are averaged"]),
    ("ddp alone", "post_local_sgd_with_ema", ["before workers are averaged"]),
    ("ddp on 2", "swap", ["where SWAP's workers begin", "in the steps of a worker of SWAP", "before SWAP's average",
                          "before the evaluation at the end"]),
    ("ddp alone", "swap", ["between two workers of SWAP"]),
    ("fsdp on 2", "ema", ["between a step and its moving average"]),
    ("ddp on 2", "ema_that_begins_small", ["between a step and its moving average"]),
    ("fsdp on 2", "lawa", ["while statistics are recomputed", "between a save and its name"]),
    ("ddp alone", "lawa", ["in an evaluation"]),
    ("fsdp on 2", "outer_momentum", ["between a gradient and its step", "in an evaluation"]),
    ("zero 1 on 2", "outer_momentum", ["between a save and its name"]),
    ("fsdp on 2", "schedule_free", ["while a save is copied", "in an evaluation"]),
    ("zero 1 on 2", "schedule_free", ["between a save and its name"]),
    ("ddp alone", "schedule_free", ["while statistics are recomputed"]),
    ("ddp on 2", "looking_ahead", ["between a gradient and its step", "between a save and its name"]),
    ("fsdp on 2", "looking_ahead", ["in an evaluation"]),
    ("ddp on 2", "outer_momentum_of_workers", ["before workers are averaged", "between a save and its name"]),
    ("ddp alone", "outer_momentum_of_workers", ["in an evaluation"]),
    ("ddp alone", "regime_adaptation", ["while a save is copied"]),
    ("ddp alone", "lecture_adam", ["in the middle of a file"]),
    ("ddp on 2", "mixed", ["between a gradient and its step", "between a save and its name"]),
    ("ddp alone", "mixed_by_batches_with_sam", ["at weights uphill"]),
    ("fsdp on 2", "erased_and_repeated", ["in an evaluation"]),
    ("fsdp on 2", "regression", ["in an evaluation"]),
    ("zero 1 on 2", "multilabel", ["between a save and its name"]),
    ("zero 1 on 2", "masked_lm", ["in an evaluation"]),
    ("ddp on 2", "masked_lm", ["between a gradient and its step", "between a save and its name"]),
    ("fsdp on 2", "next_sentence", ["while a save is copied"]),
    ("ddp on 2", "target", ["in an evaluation", "between a save and its name", "in an evaluation",
                            "between the last save and the result"]),
    ("fsdp on 2", "target", ["in an evaluation"]),
    ("fsdp on 2", "muon_normalised", ["between a save and its name"]),
    ("zero 1 on 2", "muon_normalised", ["in an evaluation"]),
    ("fsdp on 2", "muon_with_trust_ratio", ["between a gradient and its step"]),
    ("zero 1 on 2", "muon_with_trust_ratio", ["between a save and its name"]),
    ("ddp alone", "muon", ["while an old checkpoint goes"]),
    ("fsdp on 2", "muon", ["in the middle of a file"]),
    ("zero 1 on 2", "muon", ["between a save and its name"]),
    ("ddp on 2", "shampoo", ["between a gradient and its step", "between a save and its name"]),
    ("ddp alone", "shampoo", ["in the middle of a file"]),
    ("ddp alone", "shampoo_of_2018", ["in an evaluation"]),
    ("ddp on 2", "soap", ["while a save is copied", "in an evaluation"]),
    ("ddp alone", "soap", ["between a save and its name"]),
]  # fmt: skip

Undisturbed = Callable[[str, str], Path]


def written(folder: Path, method: str, engine: str = "ddp alone", **more: Any) -> Path:
    options = {**METHODS[method], **OFTEN, **more}
    options["evaluate"] = {**METHODS[method].get("evaluate", {}), **options["evaluate"]}
    options["record"] = {**METHODS[method].get("record", {}), **options["record"]}
    if method not in BESIDE_THE_LOOP:
        recipe = {**recipe_of("ramp", **options), "name": method, "batch": {"global_batch_size": 120}}
        recipe["lr"] = more.get("lr", {"base": 0.02, "warmup": {"epochs": 0.5}, "decay": {"name": "cosine"}})
    else:
        recipe = recipe_of(method, **options)
    recipe["record"] = {**recipe["record"], "dir": str(folder / "run")}
    recipe = config.overlay(recipe, list(ENGINES[engine].overrides))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


NOT_JOINED = "connectFullMesh failed"  # gloo's, where somebody else has the port of a rank that was killed


class Started(NamedTuple):
    """As a user would: where the ranks did not find each other, the run says so, and the same command goes on."""

    codes: list[int | None]  # of all ranks
    stdout: str
    stderr: str
    starts: int


def started(engine: str, function: str, *arguments: Any, starts: int = 1) -> Started:
    ranks = pool.start_ranks(ENGINES[engine].ranks, f"worlds.kills:{function}", *arguments)
    pool.all_ended(ranks)
    stderr = "".join(rank.stderr for rank in ranks)
    if NOT_JOINED in stderr and starts == 1:
        assert "has lost the others, or did not find them" in stderr
        print("the ranks did not find each other; once more", file=sys.stderr)
        return started(engine, function, *arguments, starts=2)
    return Started([rank.returncode for rank in ranks], "".join(rank.stdout for rank in ranks), stderr, starts)


def to_the_end(engine: str, recipe: Path, *overrides: str) -> Started:
    ended = started(engine, "train", recipe, *overrides)
    assert not any(ended.codes), ended.stderr[-3000:]
    return ended


def killed(engine: str, recipe: Path, function: str, *arguments: Any) -> Started:
    return started(engine, function, *arguments, recipe)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    made: dict[tuple[str, str], Path] = {}

    def run(engine: str, method: str) -> Path:
        if (engine, method) not in made:
            recipe = written(tmp_path_factory.mktemp("undisturbed"), method, engine)
            to_the_end(engine, recipe)
            made[engine, method] = recipe.parent / "run"
        return made[engine, method]

    return run


def lives_through(engine: str, method: str, moments: list[str], folder: Path) -> Path:
    recipe, directory = written(folder, method, engine), folder / "run"
    for moment in moments:
        before = lives(directory)
        ended = killed(engine, recipe, "killed", moment, LATER.get(moment, 1))
        first = MOMENTS[moment].on_first
        assert ended.codes[0 if first else -1] == -9, f"it never came to the moment {moment!r}: {ended.codes}"
        assert not (directory / "result.json").exists()
        assert_nothing_lost(before, lives(directory), method, ended.starts)
    before = lives(directory)
    ended = to_the_end(engine, recipe)
    assert_nothing_lost(before, lives(directory), method, ended.starts)
    return directory


class Lives(NamedTuple):
    """The steps from which a run went on, and the newest checkpoint that it said to be on the disk."""

    resumed: list[int]
    acknowledged: int


def lives(directory: Path) -> Lives:
    written = [line["step"] for line in events(directory, "checkpoint") if line["written"]]
    return Lives([line["step"] for line in events(directory, "resume")], max(written, default=0))


def assert_nothing_lost(before: Lives, after: Lives, method: str, starts: int) -> None:
    """Between them one life began (of ``starts`` whose ranks met): from what was acknowledged, or newer."""
    went_on = after.resumed[len(before.resumed) :]
    assert bool(before.acknowledged) <= len(went_on) <= starts
    if method != "swap":  # whose checkpoints count the steps of workers, too
        assert max(went_on, default=0) >= before.acknowledged


def test_the_core_has_every_engine_method_and_moment():
    assert {engine for engine, *_ in CORE} == set(ENGINES)
    assert {method for _, method, _ in CORE} == set(METHODS)
    assert {moment for *_, moments in CORE for moment in moments} == set(MOMENTS) == set(ORDER)
    assert all(moment in moments_of(method) for _, method, moments in CORE for moment in moments)
    assert not [one for one in CORE if sharded(one[0]) and one[1] in REFUSED]


@pytest.mark.worlds
@pytest.mark.parametrize("engine", [name for name in ENGINES if sharded(name)])
def test_what_is_not_in_the_matrix_is_refused(tmp_path, engine):
    if "zero" in engine and not HAS_DEEPSPEED:
        pytest.skip("DeepSpeed is not installed")
    with distributed.group(torch.device("cpu"), alone=True):
        for method, words in REFUSED.items():
            run = config.load(written(tmp_path, method, engine))
            with pytest.raises(UserError, match=words):
                assemble(run, torch.device("cpu"))


@pytest.mark.worlds
@pytest.mark.parametrize(("engine", "method", "moments"), CORE, ids=[f"{one[0]}-{one[1]}" for one in CORE])
def test_killed_and_resumed_is_never_stopped(undisturbed, tmp_path, engine, method, moments):
    if "zero" in engine and not HAS_DEEPSPEED:
        pytest.skip("DeepSpeed is not installed")
    assert different(lives_through(engine, method, moments, tmp_path), undisturbed(engine, method)) == []


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "method"), cells())
def test_a_run_that_dies_at_every_moment(undisturbed, tmp_path, engine, method):
    assert different(lives_through(engine, method, moments_of(method), tmp_path), undisturbed(engine, method)) == []


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_killed_anywhere(undisturbed, tmp_path, engine):
    """A rank dies after any call of any function, in the loop or in the thread that saves."""
    if "zero" in engine and not HAS_DEEPSPEED:
        pytest.skip("DeepSpeed is not installed")
    seed = random.SystemRandom().randrange(10**6)
    print("seed of these kills:", seed)
    chance = random.Random(seed)
    method = chance.choice([cell.values[1] for cell in cells() if cell.values[0] == engine])
    steps = state_at_end(undisturbed(engine, method))["progress"]["step"]
    recipe = written(tmp_path, method, engine)
    for number in range(RANDOM_KILLS // 2):
        begun = max((line["step"] for line in events(tmp_path / "run", "train")), default=0)
        step = min(begun + chance.randrange(3), steps - 1)
        calls, rank = chance.randrange(3000), chance.randrange(ENGINES[engine].ranks)
        codes = killed(engine, recipe, "killed_after_calls", step, calls, rank).codes
        print(f"{method}, kill {number}: rank {rank}, {calls} calls after step {step}: {codes}")
        assert codes[rank] in (-9, 0), "0: it had ended before"
    to_the_end(engine, recipe)
    assert different(tmp_path / "run", undisturbed(engine, method)) == []


# Checkpoints know neither engine nor world: saved by one, continued by another, with the same examples

LARS, LAMB = {"name": "lars", "momentum_correction": True}, {"name": "lamb"}
NORMUON = {"name": "muon", "variant": "normuon", "iteration": "fp64", "others": "adamw", "others_lr_scale": 0.2}
SHAMPOO = {"name": "shampoo", "matrix_eps": 0.01, "roots": "svd", "grafting": "rmsprop"}
SOAP = {"name": "soap", "max_preconditioner_dim": 6}
NO_NORM = {"name": "tiny_cnn", "channels": [4, 6], "norm": False}  # batch norm sees other examples in another world
MOVES: list[tuple[dict[str, Any], float, list[str], str, float]] = [  # optimizer, lr, engines, precision, tolerance
    (LARS, 5.0, ["zero 1 on 2", "ddp alone"], "fp32", 1e-5),
    (LAMB, 0.05, ["ddp alone", "zero 2 on 2"], "fp32", 1e-5),
    (LAMB, 0.05, ["fsdp on 2", "ddp on 2", "fsdp alone"], "fp32", 1e-5),
    ({"name": "adamw"}, 0.002, ["zero 1 on 2", "ddp alone"], "fp32", 1e-5),
    ({"name": "sgd", "momentum": 0.9}, 0.1, ["fsdp alone", "ddp alone"], "fp32", 1e-5),  # other layouts in memory
    ({"name": "sgd", "momentum": 0.9}, 0.1, ["ddp on 2", "ddp alone"], "fp64", 1e-12),
    (NORMUON, 0.01, ["zero 1 on 2", "ddp on 2", "zero 2 on 2"], "fp32", 1e-5),
    (NORMUON, 0.01, ["fsdp on 2", "ddp alone", "fsdp alone"], "fp64", 1e-11),
    (SHAMPOO, 0.02, ["ddp on 2", "ddp alone"], "fp64", 1e-9),
    (SHAMPOO, 0.02, ["zero 0 on 2", "ddp alone"], "fp32", 1e-3),
    (SOAP, 0.01, ["ddp on 2", "ddp alone"], "fp64", 1e-4),
]
OUTER = {"outer_momentum": {"every_steps": 4}}
MOVES_WITH = [
    *((*move, {}) for move in MOVES),
    (NORMUON, 0.01, ["zero 1 on 2", "ddp alone", "fsdp on 2"], "fp32", 1e-5, OUTER),
    ({"name": "adamw"}, 0.002, ["fsdp on 2", "ddp alone"], "fp64", 1e-12, OUTER),
]
EVERYWHERE = {
    **ENGINES,
    "fsdp alone": Engine(1, ("engine.name=fsdp",)),
    "zero 0 on 2": Engine(2, ("engine.name=deepspeed", "engine.zero=0", "precision=fp32")),
}


@pytest.mark.worlds
@pytest.mark.parametrize(
    ("optimizer", "lr", "engines", "precision", "tolerance", "more"),
    MOVES_WITH,
    ids=[f"{'_with_'.join([move[0]['name'], *move[5]])}: {', '.join(move[2])}" for move in MOVES_WITH],
)
def test_a_run_goes_on_in_another_engine_and_world(recipe, optimizer, lr, engines, precision, tolerance, more):
    """Killed in the middle; momentum included, and the same examples: else the weights would differ."""
    if any("zero" in engine for engine in engines) and not HAS_DEEPSPEED:
        pytest.skip("DeepSpeed is not installed")
    changes = {
        "model": NO_NORM, "precision": precision, "epochs": 3, "optimizer": optimizer, "lr__base": lr,
        "lr__warmup": {"epochs": 1}, "weight_decay": {"value": 0.01}, "max_grad_norm": 1.0,
        "checkpoint": {"every_epochs": 1, "asynchronous": False}, **more,
    }  # fmt: skip
    whole, parts = recipe("whole", **changes), recipe("parts", **changes)
    to_the_end("ddp alone", whole)
    directory = config.load(parts).directory
    for number, engine in enumerate(engines):
        world, overrides = EVERYWHERE[engine]
        overrides = [word for word in overrides if not word.startswith("precision")]
        if number == 0:
            ended = pool.ranks(world, "worlds.kills:killed_at_step", 20, parts, *overrides)
            assert ended.returncode == -9, ended.stderr[-3000:]
            continue
        if number > 1:  # finished: take the last checkpoint away, so that the next goes on, too
            shutil.rmtree(saved(directory)[-1])
            (directory / "result.json").unlink()
        ended = pool.ranks(world, "worlds.kills:train", parts, *overrides)
        assert ended.returncode == 0, ended.stderr[-3000:]
    assert "resumed at step 15 of 45" in (directory / "train.log").read_text()
    end, expected = state_at_end(directory), state_at_end(config.load(whole).directory)
    assert_close(tensors_of(end), tensors_of(expected), tolerance)
    if optimizer["name"] == "adamw":
        assert {float(state["step"]) for state in end["optimizer"]["layers"].values()} == {45.0}


def tensors_of(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    layers = state["optimizer"]["layers"]
    outer = state["parts"].get("outer_momentum", {})
    kept = {f"{key} of {name}": whole(saved) for key, of in outer.items() for name, saved in of.items()}
    return {
        **state["model"],
        **kept,
        **leaves(layers),
    }


def assert_close(these: dict[str, torch.Tensor], those: dict[str, torch.Tensor], tolerance: float) -> None:
    assert these.keys() == those.keys()
    for name, value in those.items():
        distance = float((torch.as_tensor(these[name]).double() - torch.as_tensor(value).double()).norm())
        assert distance <= tolerance * float(torch.as_tensor(value).double().norm()), name


@pytest.mark.worlds
def test_statistics_of_batch_norm_are_averaged_over_ranks(undisturbed):
    """Each rank saw other images; that the statistics survive a kill is in the matrix."""
    directory = undisturbed("ddp on 2", "heavy_ball")
    own = [kept["statistics"] for kept in state_at_end(directory)["ranks"]]
    name = next(name for name in own[0] if name.endswith("running_mean"))
    assert not torch.equal(own[0][name], own[1][name])
    torch.testing.assert_close(weights_at_end(directory)[name], (own[0][name] + own[1][name]) / 2)
    assert result(directory)["status"] == "finished"


@pytest.mark.worlds
def test_what_was_acknowledged_is_gone_on_from(recipe):
    path = recipe("killed", epochs=6, checkpoint={"every_epochs": 0.1, "keep": 3})
    directory = config.load(path).directory
    assert killed("ddp alone", path, "killed", "before old checkpoints go", 3).codes == [-9]
    newest = saved(directory)[-1]
    assert step_of(newest) >= lives(directory).acknowledged > 0
    assert f"from {newest}" in to_the_end("ddp alone", path).stdout

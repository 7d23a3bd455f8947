"""batch.micro_batch_size = auto: what is tried, what is taken, and that nothing of a trial is left in the run."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pool
import pytest
import torch
from method_recipes import PLAIN
from programs import state_at_end
from worlds.memory import pretended_device

from largebatch.errors import UserError
from largebatch.plan.batch import MicroBatch
from largebatch.recipes import config
from largebatch.recipes.decide import decide
from largebatch.recipes.decided import DataFacts
from largebatch.run.assemble import assemble
from largebatch.run.micro_batch import OnRank, search
from largebatch.run.train import train
from largebatch.studies.dry_run import Cluster, dry_run
from largebatch.studies.reading.show import derived

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
NET = {"name": "tiny_cnn", "channels": [4, 6], "norm": True, "dropout": 0.2}
SMALL: dict[str, Any] = {
    **PLAIN, "model": NET, "batch": {"global_batch_size": 48, "bn_batch_size": 2, "micro_batch_size": "auto"},
    "epochs": None, "steps": 6, "lr": {"base": 0.05}, "checkpoint": {"every_epochs": 0.1},
    "evaluate": {"every_epochs": 100},
}  # fmt: skip


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    return {**SMALL, "name": folder.name, **changes, "record": {"tensorboard": False, "dir": str(folder)}}


def with_batch(**keys: Any) -> dict[str, Any]:
    batch = {**SMALL["batch"], **keys}
    return {"batch": {key: value for key, value in batch.items() if value is not None}}


def plan_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "plan.json").read_text())


def differences(one: Any, other: Any, key: str = "") -> list[str]:
    """The leaves of two saved states that are not equal to the last bit."""
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{key}: {one.keys() ^ other.keys()}"]
        return [line for name in one for line in differences(one[name], other[name], f"{key}.{name}")]
    if isinstance(one, (list, tuple)):
        return [
            line for n, pair in enumerate(zip(one, other, strict=True)) for line in differences(*pair, f"{key}.{n}")
        ]
    return [] if (torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other) else [key]


TIMES = {".progress.seconds", ".progress.device_seconds", ".progress.seconds_before"}
METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "adamw, averaged": {
        "optimizer": {"name": "adamw"}, "ema": {"decay": 0.9, "every_steps": 1},
    },
    "sam": {"sam": {"rho": 0.1}},
    "skipping": {"nonfinite_gradients": {"action": "skip"}, "max_grad_norm": 1.0},
    "recomputed": {
        "model": {"name": "resnet20", "depth": 8}, "engine": {"activation_checkpointing": "blocks"},
    },
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_trial_leaves_no_trace(tmp_path, monkeypatch, method):
    """Weights, statistics, optimizer, random states, losses: those of a run in which the number is stated."""
    pretended_device(monkeypatch, most=13)
    ends, random_numbers = [], []
    for name, micro in (("tried", "auto"), ("stated", 12)):
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        random.seed(1)
        folder = tmp_path / name
        assert (
            train(
                config.from_dict(recipe(folder, **{**METHODS[method], **with_batch(micro_batch_size=micro)})),
                quiet=True,
            ).status
            == "finished"
        )
        state = state_at_end(folder)
        ends.append(state)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        random_numbers.append(
            (
                [line["loss"] for line in lines if line["event"] == "train"],
                random.random(),
                np.random.rand(),  # noqa: NPY002
                torch.rand(1),
            )
        )
    assert set(differences(*ends)) <= TIMES
    assert random_numbers[0] == random_numbers[1]
    assert plan_of(tmp_path / "tried")["micro_batch_size"] == 12


def test_what_was_tried_is_recorded(tmp_path, monkeypatch):
    device = pretended_device(monkeypatch, most=13)
    folder = tmp_path / "run"
    assert train(config.from_dict(recipe(folder)), quiet=True).status == "finished"
    trial = plan_of(folder)["micro_batch_trial"]
    assert [(one["micro_batch_size"], one["fits"]) for one in trial["tried"]] == [
        (2, True), (4, True), (8, True), (16, False), (12, True),
    ]  # fmt: skip
    assert trial["largest"] == {"64": 12}
    assert trial["reserve"] == 0.1
    assert trial["tried"][3]["free_share"] is None
    assert trial["tried"][3]["ranks_without"] == [0]
    assert trial["tried"][0]["free_share"] == 0.5
    assert trial["circumstances"]["memory_bytes"] == device.bytes
    assert "micro-batches of up to 12 fit, with 10% of the memory free; 16 did not fit" in (
        told_of(folder, monkeypatch, tmp_path)
    )


def told_of(folder: Path, monkeypatch: Any, tmp_path: Path) -> str:
    import io

    import rich.console

    written = io.StringIO()
    other = recipe(tmp_path / "told")
    train(config.from_dict(other), console=rich.console.Console(file=written, width=200))
    return " ".join(written.getvalue().split())


def test_what_is_kept_free_counts(tmp_path, monkeypatch):
    pretended_device(monkeypatch, most=1000, free=lambda micro: 1 - micro / 50)
    found = {}
    for reserve in (None, 0.5, 0.9):
        folder = tmp_path / str(reserve)
        train(config.from_dict(recipe(folder, **with_batch(memory_reserve=reserve))), quiet=True)
        found[reserve] = plan_of(folder)["micro_batch_size"]
    assert found == {None: 24, 0.5: 24, 0.9: 4}


def test_a_resume_takes_what_was_recorded(tmp_path, monkeypatch):
    """And the run is the undisturbed one; in other circumstances it is tried anew."""
    pretended_device(monkeypatch, most=13)
    whole, folder = tmp_path / "whole", tmp_path / "resumed"
    train(config.from_dict(recipe(whole)), quiet=True)
    train(config.from_dict(recipe(folder, steps=3)), quiet=True)
    device = pretended_device(monkeypatch, most=5)  # would find 4
    train(config.from_dict(recipe(folder)), quiet=True)
    assert device.tried == []
    assert plan_of(folder)["micro_batch_size"] == 12
    assert plan_of(folder)["micro_batch_trial"] == plan_of(whole)["micro_batch_trial"]
    assert set(differences(state_at_end(whole), state_at_end(folder))) <= TIMES
    device = pretended_device(monkeypatch, most=5, whole=1)  # another device
    train(config.from_dict(recipe(folder, steps=8)), quiet=True)
    assert device.tried
    assert plan_of(folder)["micro_batch_size"] == 4


def test_where_nothing_fits_it_is_said(tmp_path, monkeypatch):
    pretended_device(monkeypatch, most=1)
    with pytest.raises(UserError, match=r"auto: not even 2 examples fit the .* GiB of rank 0 with 10% of it kept free"):
        train(config.from_dict(recipe(tmp_path / "run")), quiet=True)


def test_another_error_is_none_of_memory(tmp_path, monkeypatch):
    pretended_device(monkeypatch, most=1, error=RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(config.from_dict(recipe(tmp_path / "run")), quiet=True)


@pytest.mark.parametrize("words", ["CUDA out of memory. Tried", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"])
def test_libraries_have_other_words_for_it(tmp_path, monkeypatch, words):
    pretended_device(monkeypatch, most=5, error=RuntimeError(words))
    train(config.from_dict(recipe(tmp_path / "run")), quiet=True)
    assert plan_of(tmp_path / "run")["micro_batch_size"] == 4


def test_on_the_cpu_it_is_what_no_word_is(tmp_path):
    for name, micro in (("auto", "auto"), ("unset", None)):
        train(config.from_dict(recipe(tmp_path / name, **with_batch(micro_batch_size=micro))), quiet=True)
    auto, unset = (plan_of(tmp_path / name) for name in ("auto", "unset"))
    assert auto["micro_batch_size"] == unset["micro_batch_size"] == 48
    assert "micro_batch_trial" not in auto
    states = (state_at_end(tmp_path / name) for name in ("auto", "unset"))
    assert set(differences(*states)) <= TIMES


def test_phases_of_several_sizes_are_tried_by_themselves(tmp_path, monkeypatch):
    sides = {
        "data": {"name": "synthetic", "image_shape": [3, 8, 8], "num_classes": 4, "examples": 96},
    }
    written = recipe(
        tmp_path / "run", **sides, **with_batch(),
        phases=[{"batch.global_batch_size": 24, "steps": 2}, {"batch.global_batch_size": 96, "steps": 2},
                {"batch.micro_batch_size": 6}],
    )  # fmt: skip
    pretended_device(monkeypatch, most=40)
    train(config.from_dict(written), quiet=True)
    plan = plan_of(tmp_path / "run")
    assert [phase["micro_batch_size"] for phase in plan["phases"]] == [24, 32, 6]
    assert plan["micro_batch_trial"]["largest"] == {"64": 32}


# What is tried


@pytest.mark.parametrize("share", [1, 7, 12, 96, 97, 360, 1000, 2520])
@pytest.mark.parametrize("multiple", [1, 2, 8])
def test_the_search_finds_the_largest_that_fits(share, multiple):
    allowed = MicroBatch(multiple_of=multiple).all_of(share)
    for most in [0, *allowed, *(size - 1 for size in allowed)]:
        tried = [(size, on[0].enough) for size, on in search(allowed, lambda n, most=most: [OnRank(n <= most, None)])]
        sizes, fitting = [size for size, _ in tried], [size for size, fits in tried if fits]
        assert max(fitting, default=None) == max((size for size in allowed if size <= most), default=None)
        assert len(sizes) == len(set(sizes)), "none is tried twice"
        failed = next((n for n, (_, fits) in enumerate(tried) if not fits), len(tried))
        for before, now in itertools.pairwise(sizes[: failed + 1]):
            assert now <= 2 * before or not [size for size in allowed if before < size < now]


def test_all_of_a_share_are_those_that_it_may_be():
    assert MicroBatch().all_of(12) == [1, 2, 3, 4, 6, 12]
    assert MicroBatch(multiple_of=4).all_of(24) == [4, 8, 12, 24]
    assert MicroBatch(within=6).all_of(24) == [1, 2, 3, 6]
    assert MicroBatch(size=3).all_of(12) == [3]
    assert MicroBatch(size=5).all_of(12) == []


def test_the_sizes_are_those_of_every_stage():
    ramp = {"at_epochs": [0.1], "factor": 3}
    run = config.from_dict({**SMALL, "name": "x", "epochs": 1, "steps": None, **with_batch(ramp=ramp)})
    [sizes] = decide(run, DataFacts(1000, 64), 2, "cuda").trying.sizes  # type: ignore[union-attr]
    assert sizes.stage == 1
    assert sizes.share == 72
    assert sizes.allowed == (2, 4, 6, 8, 12, 18, 24, 36, 72)
    plan = decide(run, DataFacts(1000, 64), 2, "cuda", {64: 20}).plan
    assert [stage.micro_batch_size for stage in plan.stages] == [12, 18]


# What it does not go with


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            with_batch(bn_batch_size=None),
            "would let the device decide what the batch norms of model.name = tiny_cnn see",
        ),
        ({"engine": {"name": "fsdp"}}, "auto needs engine.name = ddp: with fsdp ranks communicate"),
        ({"engine": {"name": "deepspeed"}}, "auto needs engine.name = ddp: with deepspeed"),
        (
            {"engine": {"cuda_graphs": True}, **with_batch(bn_batch_size=None)},
            "does not go with batch.micro_batch_size",
        ),
        (
            {"batch_norm": {"statistics": "last"}, **with_batch(bn_batch_size=None)},
            "does not go with batch_norm.statistics = last",
        ),
        ({"sam": {"rho": 0.1, "m": 12}}, "auto has nothing to try: sam.m = 12 says it"),
        ({**with_batch(micro_batch_size=None, memory_reserve=0.2)}, "memory_reserve = 0.2 has no effect without"),
        (with_batch(micro_batch_size="half"), "batch.micro_batch_size = 'half' should be a whole number, or auto"),
        (with_batch(micro_batch_size=0), "batch.micro_batch_size = 0 should be greater than 0"),
        (with_batch(micro_batch_size=True), "batch.micro_batch_size = True should be a number"),
        (with_batch(memory_reserve=1), "batch.memory_reserve = 1 should be less than 1"),
        (
            {"record": {"noise_scale": {"small_batch_size": 4}}},
            "auto would let the device decide what record.noise_scale measures",
        ),
        (
            {"averaging": {"name": "post_local_sgd", "workers": 4, "from_epoch": 0}},
            "auto is tried without communication, and averaging",
        ),
        (
            {"phases": [{"steps": 2}, {"batch.micro_batch_size": "auto"}]},
            "phases.2.batch.micro_batch_size = auto: it is for the whole run",
        ),
    ],
)
def test_what_it_does_not_go_with_is_one_sentence(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        assemble(config.from_dict({**SMALL, "name": "wrong", **changes}), CPU)


def test_batch_norm_that_ranks_share_leaves_nothing_to_try():
    run = config.from_dict({**SMALL, "name": "x", **with_batch(bn_batch_size=48)})
    with pytest.raises(UserError, match="nothing to try: batch.bn_batch_size = 48 is more than a rank's 24"):
        decide(run, DataFacts(1000, 64), 2, "cuda")


def test_frozen_batch_norms_see_nobody():
    frozen = {**NET, "frozen": ["*1*", "*running*", "4"]}
    assemble(config.from_dict({**SMALL, "name": "x", "model": frozen, **with_batch(bn_batch_size=None)}), CPU)


def test_it_is_written_and_read_back(tmp_path):
    run = config.from_dict(recipe(tmp_path, **with_batch(memory_reserve=0.25)))
    assert run.as_written()["batch"]["micro_batch_size"] == "auto"
    assert config.from_dict(run.as_written()) == run
    assert "memory_reserve" not in json.dumps(run.science()), "a run may go on with another"
    assert config.json_schema()["$defs"]["Batch"]["properties"]["micro_batch_size"]["anyOf"][1]["const"] == "auto"


def test_recipe_show_says_that_nothing_is_tried_yet(recipe):
    path = recipe(batch={"global_batch_size": 4096, "micro_batch_size": "auto"}, data={"name": "imagenet"}, model={
        "name": "timm/vit_tiny_patch16_224"})  # fmt: skip
    [row] = [row for row in derived(path, [])["rows"] if row["what"] == "global batch"]
    assert row["value"] == "4,096 = 1 × 256 × 16"
    assert row["rule"].endswith("as on CUDA before anything is tried (batch.micro_batch_size = auto)")


@pytest.mark.worlds
def test_a_rank_without_memory_decides_for_all(tmp_path):
    """Two ranks, of which one alone runs out of it."""
    ended = pool.ranks(2, "worlds.memory:tried", tmp_path)
    assert ended.returncode == 0, ended.stderr[-3000:]
    tried, stated = (tmp_path / name for name in ("tried", "stated"))
    assert plan_of(tried)["micro_batch_size"] == 6
    failed = [one for one in plan_of(tried)["micro_batch_trial"]["tried"] if not one["fits"]]
    assert [(one["micro_batch_size"], one["ranks_without"]) for one in failed] == [(8, [1])]
    assert set(differences(state_at_end(stated), state_at_end(tried))) <= TIMES


@pytest.mark.worlds
def test_a_dry_run_takes_what_the_memory_holds(recipe):
    """The largest whose trace fits with the reserve; without --memory what no word would be."""
    model = {"name": "resnet20", "depth": 8}
    batch = {"global_batch_size": 96, "bn_batch_size": 4, "micro_batch_size": "auto", "memory_reserve": 0.25}
    path = recipe(model=model, batch=batch, evaluate={"batch_size": 1})
    whole = dry_run(config.load(path), Cluster(1, "cuda"))
    assert whole["micro_batch_size"] == 96
    passing = whole["memory_per_rank_mib"]["activations"]
    room = (whole["memory_total_per_rank_mib"] - passing * 66 / 96) / 0.75 / 1024  # about what 30 examples need
    facts = dry_run(config.load(path), Cluster(1, "cuda"), memory_gib=room)
    taken = facts["micro_batch_size"]
    sizes = [4, 8, 12, 16, 24, 32, 48, 96]
    assert taken in sizes[1:-1]
    next_one = sizes[sizes.index(taken) + 1]
    above = dry_run(
        config.load(path, [f"batch.micro_batch_size={next_one}", "batch.memory_reserve=null"]), Cluster(1, "cuda")
    )
    assert facts["memory_total_per_rank_mib"] <= 0.75 * room * 1024 < above["memory_total_per_rank_mib"]
    with pytest.raises(UserError, match="no smaller micro-batch would fit"):
        dry_run(config.load(path), Cluster(1, "cuda"), memory_gib=1e-4)

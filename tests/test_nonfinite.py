"""A gradient that is not finite: the step is skipped on all ranks and nothing of it stays, or the run stops."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import Killed, killed_at, saved, state_at_end, torchrun, weights_at_end
from worlds.nonfinite import POISONED, poisoned

from largebatch.plan.order import epoch_order
from largebatch.recipes import config
from largebatch.run.train import Result, train

SKIPS = {
    "precision": "fp64",
    "model": {"name": "mlp", "width": 16, "depth": 1, "norm": True},
    "epochs": None,
    "steps": 20,
    "nonfinite_gradients": {"action": "skip"},
    "weight_decay": {"value": 0.01, "skip": []},
    "record__every_steps": 1,
    "checkpoint": {"every_epochs": 0.2, "keep": 99},
}


def trained(path: Path, steps: tuple[int, ...] = POISONED, *overrides: str) -> Result:
    with poisoned(steps):
        return train(config.load(path, overrides), quiet=True)


def recorded(directory: Path, event: str) -> list[dict[str, Any]]:
    text = (directory / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, text) if line["event"] == event]


def dumb_loop(bn_batch_size: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(Weights and statistics, momentum) after 20 steps of plain PyTorch, of which two are not made."""
    from largebatch import data, models

    split = data.build("digits").train
    model = models.build("mlp", 10, (1, 8, 8), 0, {"width": 16, "depth": 1, "norm": True}).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.0, 0.9, weight_decay=0.01)
    placement = data.Placement(torch.device("cpu"), torch.float64, False)
    images, labels = next(iter(split.batches(0, 1, len(split), placement)))
    orders = [epoch_order(len(split), 0, epoch) for epoch in (0, 1)]
    for step in range(20):
        if step in POISONED:
            continue
        chosen = torch.from_numpy(orders[step // 15][100 * (step % 15) :][:100].copy())
        optimizer.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * step / 20)) / 2
        optimizer.zero_grad()
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        after: list[dict[str, torch.Tensor]] = []
        for part in chosen.split(bn_batch_size):
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])
            loss = torch.nn.functional.cross_entropy(model(images[part]), labels[part], reduction="sum") / 100
            loss.backward()
            after.append({name: buffer.clone() for name, buffer in model.named_buffers()})
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.stack([buffers[name] for buffers in after]).mean(0))
        optimizer.step()
    momentum = {name: optimizer.state[p]["momentum_buffer"] for name, p in model.named_parameters()}
    return dict(model.state_dict()), momentum


def assert_as_the_dumb_loop(directory: Path, bn_batch_size: int) -> None:
    expected, momentum = dumb_loop(bn_batch_size)
    found = weights_at_end(directory)
    for name, tensor in expected.items():
        if "num_batches_tracked" not in name or bn_batch_size == 100:  # sized norms do not count
            torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-12)
    layers = state_at_end(directory)["optimizer"]["layers"]
    for name, tensor in momentum.items():
        torch.testing.assert_close(layers[name]["momentum_buffer"], tensor, rtol=1e-10, atol=1e-12)
    assert [line["step"] for line in recorded(directory, "skipped")] == [6, 13]
    of_steps = {line["step"]: line for line in recorded(directory, "train")}
    assert sorted(of_steps) == list(range(1, 21))
    assert [step for step, line in of_steps.items() if line["loss"] is None] == [6, 13]
    log = (directory / "train.log").read_text()
    for step in (6, 13):
        assert f"step {step} is skipped on all ranks: its gradient is not finite" in log


@pytest.mark.worlds
@pytest.mark.parametrize("bn_batch_size", [None, 100, 50, 25], ids=lambda size: f"bn {size}")
def test_nothing_of_a_skipped_step_stays(recipe, bn_batch_size):
    changes = {**SKIPS, "batch__bn_batch_size": bn_batch_size} if bn_batch_size else SKIPS
    result = trained(recipe(**changes))
    assert result.status == "finished"
    assert_as_the_dumb_loop(result.directory, bn_batch_size or 100)


@pytest.mark.worlds
def test_clipping_is_none_the_wiser(recipe):
    """The norm of a gradient with a NaN is a NaN, and scales all others by it."""
    result = trained(recipe(**SKIPS, max_grad_norm=100.0))
    assert result.status == "finished"
    assert_as_the_dumb_loop(result.directory, 100)


@pytest.mark.worlds
@pytest.mark.parametrize("at", [6, 9, 13, 17])
def test_it_goes_on_exactly(recipe, at):
    """With dropout and augmentation; what was skipped before the kill is not forgotten."""
    changes = {
        **SKIPS,
        "model": {**SKIPS["model"], "dropout": 0.3},
        "data": {"name": "digits", "augment": "flip"},
    }
    whole = trained(recipe("whole", **changes)).directory
    victim = recipe("killed", **changes)
    with contextlib.suppress(Killed), killed_at(at):
        trained(victim)
    result = trained(victim)
    found, expected = weights_at_end(result.directory), weights_at_end(whole)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    skipped = [state_at_end(directory)["progress"]["skipped"] for directory in (whole, result.directory)]
    assert skipped == [list(POISONED)] * 2


def test_too_many_end_the_run(recipe):
    path = recipe(**SKIPS)
    result = trained(path, (3, 5, 7, 9), "nonfinite_gradients.at_most=3")
    assert result.status == "failed"
    told, _, good = str(result.reason).rpartition("; last good checkpoint: ")
    assert told == ("the gradient was not finite in 4 steps, the last of them step 10; nonfinite_gradients.at_most = 3")
    assert Path(good) in saved(result.directory)[-2:]  # the newest may have ended unheard
    assert len(recorded(result.directory, "skipped")) == 4


@pytest.mark.worlds
def test_the_bound_counts_over_sessions(recipe):
    path = recipe(**SKIPS)
    with contextlib.suppress(Killed), killed_at(11):
        trained(path, (3, 5, 12), "nonfinite_gradients.at_most=2")
    result = trained(path, (3, 5, 12), "nonfinite_gradients.at_most=2")
    assert result.status == "failed"
    assert "in 3 steps, the last of them step 13" in str(result.reason)


def test_without_the_key_the_run_stops(recipe):
    result = trained(recipe(**{**SKIPS, "nonfinite_gradients": {"action": "stop"}}))
    assert result.status == "failed"
    assert str(result.reason).startswith("the loss is nan in step 6 at lr ")
    assert not recorded(result.directory, "skipped")


@pytest.mark.worlds
def test_on_two_ranks_all_skip_what_one_cannot_use(recipe, tmp_path):
    sized = {**SKIPS, "batch__bn_batch_size": 50, "batch__micro_batch_size": 50}
    runs: dict[str, dict[str, Any]] = {
        "ddp": sized,
        "fsdp": {**sized, "engine": {"name": "fsdp"}},
        "parts": {**sized, "batch__bn_batch_size": 100},
        "own": SKIPS,
        "bound": {**SKIPS, "nonfinite_gradients": {"action": "skip", "at_most": 1}},
        "stop": {**SKIPS, "nonfinite_gradients": {"action": "stop"}},
    }
    for name, changes in runs.items():
        recipe(name, **changes)
    ended = torchrun(2, "worlds.nonfinite:train_poisoned", tmp_path, *runs)
    assert ended.returncode == 0, ended.stderr[-3000:]
    ends = json.loads((tmp_path / "ends.json").read_text())
    assert all(first == second for first, second in ends.values()), "all ranks end alike"
    status = {name: first[0] for name, (first, _) in ends.items()}
    assert status == {
        **dict.fromkeys(("ddp", "fsdp", "parts", "own"), "finished"),
        **dict.fromkeys(("bound", "stop"), "failed"),
    }
    directory = tmp_path / "runs"
    for name in ("ddp", "fsdp"):
        assert_as_the_dumb_loop(directory / name, 50)
    assert_as_the_dumb_loop(directory / "parts", 100)
    assert [line["step"] for line in recorded(directory / "own", "skipped")] == [6, 13]
    for of_rank in state_at_end(directory / "own")["ranks"]:
        statistics = of_rank["statistics"]
        assert statistics
        assert all(bool(torch.isfinite(tensor).all()) for tensor in statistics.values())
    assert "in 2 steps, the last of them step 13; nonfinite_gradients.at_most = 1" in ends["bound"][0][1]
    assert ends["stop"][0][1].startswith("the loss is nan in step 6 at lr ")

"""A dict of tokens, masks and numbers through every engine: only what is floating is cast, and nothing else differs."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pool
import pytest
import torch
from worlds.own_batches import GLOBAL, SETTINGS, STEPS, Named, Words, drawn

from largebatch.engines import graphs


@pytest.fixture(scope="module")
def by_hand() -> list[float]:
    """A loop without an engine."""
    torch.manual_seed(0)
    model, task = Words(), Named()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    losses = []
    for step in range(STEPS):
        loss = task.loss(task.forward(model, drawn(step)), drawn(step)) / GLOBAL
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.worlds
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.parametrize("world", [1, 2])
def test_every_engine_takes_it(tmp_path, by_hand, world):
    ended = pool.ranks(world, "worlds.own_batches:train_with_all", tmp_path)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads((tmp_path / f"world{world}.json").read_text())
    assert set(found) == set(SETTINGS)
    for name, told in found.items():
        halved = name.endswith("bf16")
        assert told["losses"] == pytest.approx(by_hand, rel=2e-2 if halved else 1e-5), name
        assert told["met"] == ["int64", "bool", "bfloat16" if halved else "float32"], name
        assert told["outputs"] == "torch.float32", "never in half precision"


def test_a_graph_is_captured_of_whatever_the_model_is_called_with(monkeypatch):
    """Positional and named tensors, nested: a replay gets them in one order."""
    captured: list[Any] = []

    def capture(model: torch.nn.Module, samples: tuple[torch.Tensor, ...], **_: object) -> None:
        own = model.forward
        model.forward = lambda *tensors: (captured.append(len(tensors)), own(*tensors))[1]

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: torch.set_rng_state(state))
    monkeypatch.setattr(graphs, "DEVICE", "cpu")
    torch.manual_seed(0)
    model, task = Words(), Named()
    wanted = task.forward(model, drawn(1))["logits"]
    arguments = graphs.arguments_of(model, task, drawn(0))
    graphs.capture(model, arguments, None)
    assert torch.equal(task.forward(model, drawn(1))["logits"], wanted)
    assert captured == [3]
    model.eval()
    task.forward(model, drawn(1))
    assert captured == [3], "an evaluation runs the model's own"

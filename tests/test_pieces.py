"""Pieces of use alone: the schedule, evaluation, the noise scale, batch norm; what their page shows runs.

The sampler's tests are tests/data/test_sampler.py.
"""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pool
import pytest
import torch
from programs import REPOSITORY
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from largebatch.data.sampler import ExactSampler, ShareSampler
from largebatch.diagnostics.noise import Averages, Squares
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.models import batch_norm
from largebatch.optim import Lamb
from largebatch.plan.batch import resolve
from largebatch.recipes.rates import schedule
from largebatch.steps import norms
from largebatch.steps.evaluate import exact_sums
from largebatch.steps.noise_meter import NoiseMeter
from largebatch.steps.scheduler import ExamplesLR

RATES: list[dict[str, Any]] = [
    {"base": 0.1},
    {"base": 0.1, "scaling": "linear", "reference_batch_size": 10, "decay": {"name": "cosine"}},
    {"base": 0.1, "scaling": "sqrt", "reference_batch_size": 10, "warmup": {"epochs": 2},
     "decay": {"name": "polynomial", "power": 2}},
    {"base": 0.1, "warmup": {"epochs": 1, "from": "base"}, "decay": {"name": "steps", "at_epochs": [2, 4]}},
]  # fmt: skip


def optimizer(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates])


@pytest.mark.parametrize("keys", RATES)
def test_a_scheduler_gives_each_step_the_rate_of_the_examples_before_it(keys):
    plan = resolve(dataset_size=50, global_batch_size=40, epochs=6, seed=0)
    rate = schedule(plan, **keys)
    trained, steps = optimizer(0.3), range(plan.steps)
    scheduler = ExamplesLR(trained, plan, rate)
    met: list[float] = []
    for step in steps:
        met.append(trained.param_groups[0]["lr"])
        trained.step()
        scheduler.step()
        if step == 3:  # gone on with in another world
            state, weights = json.loads(json.dumps(scheduler.state_dict())), copy.deepcopy(trained.state_dict())
            plan = resolve(dataset_size=50, global_batch_size=40, world_size=2, epochs=6, seed=0)
            trained = optimizer(0.7)
            scheduler = ExamplesLR(trained, plan, schedule(plan, **keys))
            trained.load_state_dict(weights)
            scheduler.load_state_dict(state)
    assert met == [rate(40 * step) for step in steps]
    assert scheduler.get_last_lr() == [rate(40 * plan.steps)]


def test_groups_keep_their_share_of_the_rate():
    plan = resolve(dataset_size=50, global_batch_size=25, steps=4)
    trained = optimizer(0.2, 0.05, 0.2)
    ExamplesLR(trained, plan, lambda seen: 1.0 + seen)
    assert [group["lr"] for group in trained.param_groups] == [1.0, 0.25, 1.0]


def test_a_scheduler_of_another_batch_is_refused():
    plans = [resolve(dataset_size=50, global_batch_size=size, steps=9) for size in (10, 20)]
    one, other = (ExamplesLR(optimizer(0.1), plan, lambda seen: seen) for plan in plans)
    one.optimizer.step()
    one.step()
    with pytest.raises(UserError, match="had seen 10 examples after 1 steps, and here they are 20"):
        other.load_state_dict(one.state_dict())


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "exactly one of lr.base and lr.table"),
        ({"base": 0.1, "wramup": {"epochs": 1}}, "unknown key wramup; did you mean warmup?"),
        ({"base": 0.1, "decay": {"name": "cosin"}}, "decay.name = cosin is not known; did you mean cosine?"),
        ({"base": -1.0}, "base = -1.0 should be greater than 0"),
        ({"base": 0.1, "scaling": "linear"}, "needs lr.reference_batch_size"),
        ({"base": 0.1, "warmup": {"epochs": 9}}, "lr.warmup.epochs = 9 must be below the run's 6 epochs"),
        ({"base": 0.1, "scaling": "adascale", "reference_batch_size": 10}, "valid: linear, sqrt, none"),
    ],
)
def test_a_slip_in_a_schedule_is_one_sentence(keys, words):
    plan = resolve(dataset_size=50, global_batch_size=40, epochs=6)
    with pytest.raises(UserError, match=re.escape(words)):
        schedule(plan, **keys)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()


def classified(count: int, seed: int = 0) -> TensorDataset:
    draws = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, generator=draws, dtype=torch.float64)
    return TensorDataset(inputs, (inputs @ torch.randn(6, 3, generator=draws, dtype=torch.float64)).argmax(1))


def test_the_sums_of_an_evaluation_are_those_of_every_example_and_leave_no_trace():
    model, test = network().train(), classified(23)
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())

    def tally(model: nn.Module, batch: Any) -> dict[str, Any]:
        outputs = model(batch[0])
        return {"outputs": outputs.sum(0), "examples": len(outputs), "loss": cross_entropy(outputs, batch[1]) * 0 + 1}

    found = exact_sums(model, DataLoader(test, sampler=ShareSampler(test), batch_size=5), tally)
    wanted = copy.deepcopy(model).eval()(test.tensors[0]).sum(0).detach()
    torch.testing.assert_close(found["outputs"], wanted, rtol=1e-12, atol=1e-12)
    assert (found["examples"], found["loss"]) == (23, 5)
    assert {tensor.dtype for tensor in found.values()} == {torch.float64}
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("every_steps", [1, 2])
def test_the_noise_scale_is_that_of_gradients_taken_one_by_one(every_steps, one_thread):
    """Second statement: every micro-batch's gradient by itself, and the whole batch's at once, at the same weights."""
    train, parts = classified(60), 3
    model = nn.Linear(6, 3).double()
    one = ExactSampler(train, 12, steps=6, micro_batch_size=4, rank=0, world_size=1)
    meter = NoiseMeter(model, micro_batch_size=4, global_batch_size=12, every_steps=every_steps, smoothing=1.0)
    stepped, averages = torch.optim.SGD(model.parameters(), lr=0.1), Averages(1.0)

    def square(inputs: torch.Tensor, classes: torch.Tensor) -> float:
        gradients = torch.autograd.grad(cross_entropy(model(inputs), classes), list(model.parameters()))
        return sum(float(gradient.square().sum()) for gradient in gradients)

    for micro_batches in one.steps(DataLoader(train, batch_sampler=one)):
        taken = list(micro_batches)
        of_parts = [square(*batch) for batch in taken]
        whole = [torch.cat(tensors) for tensors in zip(*taken, strict=True)]
        if one.step % every_steps == 0:
            averages.add(Squares(4, 12, sum(of_parts) / parts, square(*whole)))
        for number, (inputs, classes) in enumerate(taken, start=1):
            with meter.micro_batch(last=number == parts):
                (cross_entropy(model(inputs), classes) / parts).backward()
        gradients = torch.autograd.grad(cross_entropy(model(whole[0]), whole[1]), list(model.parameters()))
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14)  # the meter changes nothing
        stepped.step()
        stepped.zero_grad()
    found, wanted = meter.estimate(), averages.estimate()
    assert found[:4] == pytest.approx(wanted[:4], rel=1e-10)
    assert (found.high is None) == (wanted.high is None)
    assert averages.count == 6 // every_steps
    resumed = NoiseMeter(model, 4, 12, every_steps, smoothing=1.0)
    resumed.load_state_dict(json.loads(json.dumps(meter.state_dict())))
    assert (resumed.estimate(), resumed.step) == (meter.estimate(), 6)


def test_a_meter_of_one_size_is_refused():
    with pytest.raises(UserError, match="micro_batch_size = 12 must be smaller than global_batch_size = 12"):
        NoiseMeter(nn.Linear(1, 1), 12, 12)


def test_a_meter_of_several_ranks_wants_the_wrapped_model(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match="of 2 ranks is measured as their gradients are summed; valid: a model in Dist"):
        NoiseMeter(nn.Linear(1, 1), 6, 12)


def test_a_converted_model_moves_its_statistics_with_the_optimizer():
    train = classified(24)
    models = [network(), network()]
    lambs = [Lamb(model.parameters(), lr=0.01) for model in models]
    norms.convert_batch_norm(models[0], bn_batch_size=4, micro_batch_size=12, optimizer=lambs[0])
    batch_norm.sized(models[1], 4, 12)
    for first in (0, 12):
        for model in models:
            cross_entropy(model(train.tensors[0][first : first + 12]), train.tensors[1][first : first + 12]).backward()
    assert torch.equal(models[0][1].running_mean, torch.zeros(8, dtype=torch.float64))
    for stepped in lambs:
        stepped.step()
    batch_norm.commit(models[1])
    assert models[0][1].num_batches_tracked == 1
    for name, tensor in models[0].state_dict().items():
        torch.testing.assert_close(tensor, models[1].state_dict()[name], rtol=0, atol=0)


def test_statistics_are_recomputed_over_a_loader():
    model, train = network(), classified(30)
    norms.recompute_batch_norm(model, DataLoader(train, batch_size=7))
    hidden = model[0](train.tensors[0]).detach()
    torch.testing.assert_close(model[1].running_mean, hidden.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model[1].running_var, hidden.var(0, correction=0), rtol=1e-12, atol=1e-12)
    given: list[int] = []
    norms.recompute_batch_norm(
        model, [{"x": train.tensors[0]}], lambda model, batch: given.append(len(model(batch["x"])))
    )
    assert given == [30]


def test_what_the_page_shows_runs(capsys, one_thread):
    """From top to bottom, in one interpreter."""
    text = (REPOSITORY / "docs/pieces.md").read_text()
    blocks = re.findall("```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 8
    shown: dict[str, Any] = {"__name__": "the page"}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"docs/pieces.md, block {number}", "exec"), shown)
    [comment] = re.findall(r"print\(lr.words\)  # (.*)", text)
    assert comment in capsys.readouterr().out
    assert shown["saved"]["step"] == 5
    assert shown["accuracy"] <= 1
    missing = [name for name in re.findall(r"\]\((\.\./[\w/.]+)\)", text) if not (REPOSITORY / "docs" / name).exists()]
    assert not missing


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """The same work in worlds of 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("pieces")
    for world in (1, 2, 3):
        ended = pool.ranks(world, "worlds.pieces:work", folder)
        assert ended.returncode == 0, ended.stderr
    return {world: json.loads((folder / f"world{world}.json").read_text()) for world in (1, 2, 3)}


@pytest.mark.worlds
@pytest.mark.parametrize("world", [2, 3])
def test_the_machine_does_not_change_what_pieces_do(worlds, world):
    assert worlds[world].keys() == worlds[1].keys()
    for name, wanted in worlds[1].items():
        assert worlds[world][name] == pytest.approx(wanted, rel=1e-11, abs=1e-12), name


@pytest.mark.worlds
def test_a_loaders_workers_fetch_ahead_and_change_nothing(worlds):
    alone = worlds[1]
    assert alone["workers, trained"] == alone["no workers, trained"]
    assert alone["workers, handed out"][0] > 2 * 4, "more micro-batches than were trained on"
    assert alone["workers, steps"] == [2]

"""Pieces of use alone: the sampler, the schedule, evaluation, the noise scale, batch norm; what their page shows."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pool
import pytest
import torch
from programs import REPOSITORY
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset

from largebatch.data.dataset import Placement
from largebatch.data.items import ItemSplit
from largebatch.data.sampler import ExactSampler, InStream, SeededDataset, ShareSampler
from largebatch.diagnostics.noise import Averages, Squares
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.models import batch_norm
from largebatch.optim import Lamb
from largebatch.plan.batch import epoch_order, resolve
from largebatch.recipes.rates import schedule
from largebatch.steps import norms
from largebatch.steps.evaluate import exact_sums
from largebatch.steps.noise_meter import NoiseMeter
from largebatch.steps.scheduler import ExamplesLR

EXAMPLES = range(50)


def sampler(world: int = 1, rank: int = 0, **changes: Any) -> ExactSampler:
    """40 examples a step of 50, for 2.4 epochs: three steps, of which two cross an epoch's edge."""
    asked: dict[str, Any] = {"global_batch_size": 40, "epochs": 2.4, "micro_batch_size": 5, "seed": 3, **changes}
    return ExactSampler(EXAMPLES, rank=rank, world_size=world, **asked)


def joined(parts: Iterable[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(parts))


def of_world(world: int, state: dict[str, Any] | None = None, **changes: Any) -> list[list[int]]:
    """The examples of each step, those of all ranks one after another, from where the state stands."""
    by_rank = []
    for rank in range(world):
        one = sampler(world, rank, **changes)
        if state is not None:
            one.load_state_dict(state)
        by_rank.append([joined(micro_batches) for micro_batches in one.steps(one)])
    return [joined(parts) for parts in zip(*by_rank, strict=True)]


def test_a_world_of_any_size_has_the_same_steps_and_drops_nothing():
    stream = np.concatenate([epoch_order(50, 3, epoch) for epoch in range(3)])[:120].tolist()
    for world in (1, 2, 4, 8):
        assert joined(of_world(world)) == stream
    assert len(sampler(2)) == 3 * 4 == len(list(sampler(2)))
    assert {len(micro_batch) for micro_batch in sampler(2)} == {5}


def test_a_batch_that_grows():
    one = sampler(2, 1, micro_batch_size=None, epochs=4, global_batch_size=10, growth=((1, 20), (3, 40)))
    sizes = [sum(map(len, micro_batches)) for micro_batches in one.steps(one)]
    assert sizes == [5] * 5 + [10] * 5 + [20] * 2
    assert len(one) == len(list(sampler(2, 1, micro_batch_size=None, epochs=4, global_batch_size=10,
                                        growth=((1, 20), (3, 40)))))  # fmt: skip


def fetching_ahead(batches: Any, count: int) -> Iterator[list[int]]:
    """As a loader's workers do: asked for the first, it has taken ``count`` more."""
    waiting, left = [], iter(batches)
    for batch in left:
        waiting.append(batch)
        if len(waiting) > count:
            yield waiting.pop(0)
    yield from waiting


@pytest.mark.parametrize("ahead", [0, 1, 7, 30])
@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_what_counts_is_what_was_trained_on_and_not_what_was_fetched(done, ahead):
    whole = of_world(1)
    one, seen = sampler(2), []
    for micro_batches in one.steps(fetching_ahead(one, ahead)):
        if one.step == done:
            break
        seen.append(joined(micro_batches))
    state = json.loads(json.dumps(one.state_dict()))
    assert (state["step"], state["examples_seen"]) == (done, 40 * done)
    for world in (1, 2, 4):
        assert of_world(world, state, micro_batch_size=2) == whole[done:]


def test_a_step_that_was_not_taken_whole_is_not_done():
    one = sampler()
    steps = one.steps(one)
    micro_batches = next(steps)
    for _ in range(7):
        next(micro_batches)
        assert one.state_dict()["step"] == 0
    next(micro_batches)
    assert one.state_dict()["step"] == 1
    next(next(steps))
    assert one.state_dict()["step"] == 1, "the loop may save after it has begun with the next"


def test_a_pass_that_nobody_counts_asks_for_the_step():
    one = sampler()
    assert one.state_dict()["step"] == 0
    next(iter(one))
    with pytest.raises(UserError, match=r"does not know what of it was trained on.*state_dict\(step=...\)"):
        one.state_dict()
    assert one.state_dict(step=2)["examples_seen"] == 80
    one.load_state_dict(one.state_dict(step=1))
    assert one.state_dict()["step"] == 1


def test_positions_are_unique_and_follow_the_stream():
    places = [place for world in range(2) for batch in sampler(2, world, positions=True) for place in batch]
    alone = [place for batch in sampler(positions=True) for place in batch]
    assert sorted(place.position for place in places) == list(range(120))
    assert set(places) == set(alone)
    assert isinstance(alone[0], InStream)
    assert [place.index for place in alone] == joined(of_world(1))


class Noisy(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.rand(2) + index


class NoisyByGenerator(Noisy):
    def __getitem__(self, index: int, generator: torch.Generator | None = None) -> torch.Tensor:
        return torch.rand(2, generator=generator) + index


@pytest.mark.parametrize("items", [Noisy(), NoisyByGenerator()], ids=["global", "generator"])
def test_what_is_drawn_for_an_example_is_what_a_run_draws(items):
    seeded = SeededDataset(items, seed=3)
    of_run = ItemSplit(items, "training").steps(sampler().plan, 0, 0, Placement(torch.device("cpu")), seed=3)
    wanted = [torch.cat(list(micro_batches)) for micro_batches in of_run]
    for world in (1, 2):
        by_rank = []
        for rank in range(world):
            one = sampler(world, rank, positions=True)
            by_rank.append([torch.cat(list(part)) for part in one.steps(DataLoader(seeded, batch_sampler=one))])
        assert all(torch.equal(torch.cat(parts), step) for *parts, step in zip(*by_rank, wanted, strict=True))
    before = torch.get_rng_state()  # of which a loader takes a number itself
    assert torch.equal(seeded[7], seeded[7]), "an evaluation's, by a plain index"
    assert not torch.equal(seeded[7], seeded[8] - 1)
    assert torch.equal(before, torch.get_rng_state())


def unlike(**state: Any) -> Callable[[], None]:
    return lambda: sampler().load_state_dict({**sampler().state_dict(step=1), **state})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sampler(global_batch_size=41), "= 41 does not factor into 1 rank × micro-batches of 5; nearest"),
        (lambda: sampler(3), "does not factor into 3 ranks"),
        (lambda: sampler(epochs=None), "exactly one of epochs and steps"),
        (lambda: sampler(2, 2), "rank = 2 is none of 2 ranks; valid: 0 to 1"),
        (lambda: ExactSampler(EXAMPLES, 10, epochs=1, rank=1), "both of rank and world_size"),
        (lambda: ExactSampler((n for n in EXAMPLES), 10, epochs=1), "generator has no length"),
        (lambda: ShareSampler(n for n in EXAMPLES), "generator has no length"),
        (lambda: sampler().state_dict(step=4), "step = 4 is none of the run's; valid: 0 to 3"),
        (unlike(seed=4), "state has seed = 4 after 1 steps, and here it is 3"),
        (unlike(dataset_size=51), "state has dataset_size = 51"),
        (unlike(examples_seen=20), "state has examples_seen = 20 after 1 steps, and here it is 40"),
        (lambda: joined(sampler().steps([[0]] * 9)), "the loader ended in step 1 of 3; valid: one with this sampler"),
    ],
)  # fmt: skip
def test_a_slip_is_one_sentence(make, words):
    with pytest.raises(UserError, match=re.escape(words)):
        make()


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


def test_shares_differ_by_at_most_one_and_hold_each_example_once():
    for world in (1, 2, 3, 7, 60):
        shares = [ShareSampler(EXAMPLES, rank=rank, world_size=world) for rank in range(world)]
        assert sorted(index for share in shares for index in share) == list(EXAMPLES)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


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

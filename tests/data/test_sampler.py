"""The exact sampler: no example lost in any world, and a state that says what was trained on."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from largebatch.data.dataset import Placement
from largebatch.data.items import ItemSplit
from largebatch.data.sampler import ExactSampler, InStream, SeededDataset, ShareSampler
from largebatch.errors import UserError
from largebatch.plan.order import epoch_order

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


def test_shares_differ_by_at_most_one_and_hold_each_example_once():
    for world in (1, 2, 3, 7, 60):
        shares = [ShareSampler(EXAMPLES, rank=rank, world_size=world) for rank in range(world)]
        assert sorted(index for share in shares for index in share) == list(EXAMPLES)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1

"""Random states: what moves one is noticed, however little it moves; keys differ."""

import random

import numpy as np
import pytest
import torch

from largebatch.data import draws

# ruff: noqa: NPY002

MOVES = {
    "torch": (lambda: torch.rand(1), lambda: torch.manual_seed(5), lambda: torch.randn(3)),
    "numpy": (
        lambda: np.random.rand(),
        lambda: np.random.randn(),  # which keeps a second number for the next call
        lambda: np.random.randn(),  # which only takes it
        lambda: np.random.seed(5),
        lambda: np.random.set_state(np.random.RandomState(7).get_state()),
        lambda: np.random.bytes(1),
    ),
    "random": (lambda: random.random(), lambda: random.gauss(0, 1), lambda: random.gauss(0, 1), lambda: random.seed(5)),
}


@pytest.fixture(autouse=True)
def put_back():
    before = draws.states()
    yield
    draws.put_back(before)


@pytest.mark.parametrize("whose", draws.GLOBAL)
@pytest.mark.parametrize("looks", [1, 3])
def test_every_move_is_noticed_and_undone(whose, looks):
    for move in MOVES[whose]:
        for _ in range(looks):
            before = draws.states()
        move()
        assert draws.states().differing(before) == [whose]
        draws.put_back(before)
        assert draws.states().differing(before) == []
        move()  # and stays: the next begins elsewhere


def test_a_generator_of_another_kind_in_numpy_is_noticed():
    before, generator = draws.states(), np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(3))
        assert draws.states().differing(draws.states()) == []
        states = draws.states()
        np.random.rand()
        assert draws.states().differing(states) == ["numpy"]
    finally:
        np.random.set_bit_generator(generator)
    assert draws.states().differing(before) == []

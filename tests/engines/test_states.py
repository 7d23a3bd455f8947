"""Saved states by the layer's name become what an optimizer holds, whatever cuts it; nothing is read but that."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from largebatch.checkpoint import pieces
from largebatch.checkpoint.pieces import Piece, Pieces
from largebatch.engines import states
from largebatch.errors import UserError
from largebatch.optim.shards import Partition, Segment

A, B = torch.arange(6.0).reshape(2, 3), torch.arange(6.0, 10.0)
SHAPES = (("a", (2, 3)), ("b", (4,)), ("c", (5,)))


def in_pieces(tensor: Tensor, at: int) -> Pieces:
    flat = tensor.reshape(-1)
    return Pieces(tuple(tensor.shape), tensor.dtype, (Piece(0, flat[:at]), Piece(at, flat[at:])))


def partition() -> tuple[Tensor, states.Layout]:
    """A flat one of this rank: the end of a, all of b, the begin of c, and what pads it."""
    flat = torch.zeros(12)
    segments = (Segment(0, 0, 3, 3), Segment(1, 3, 4, 0), Segment(2, 7, 2, 0))
    return flat, states.Layout({}, {id(flat): Partition(SHAPES, segments, None)})


@pytest.mark.parametrize("of_b", [B, in_pieces(B, 1)])
@pytest.mark.parametrize("of_a", [A, in_pieces(A, 2), in_pieces(A, 5)])
def test_a_flat_partition_takes_its_ranges(of_a, of_b):
    """Of a layer that was never stepped, c, there are no states: zeros."""
    flat, layout = partition()
    saved = {
        "a": {"momentum": of_a, "step": torch.tensor(0.0), "word": "x"},
        "b": {"momentum": of_b, "step": torch.tensor(0.0), "word": "x"},
    }
    part = states.part_of(flat, saved, layout)
    assert part["momentum"].tolist() == [3, 4, 5, 6, 7, 8, 9, 0, 0, 0, 0, 0]
    assert (float(part["step"]), part["word"]) == (0.0, "x")


def test_layers_that_were_stepped_unequally_do_not_fit_one_count():
    flat, layout = partition()
    with pytest.raises(UserError, match=r"layers differ in 'step' \(0, 3\)"):
        states.part_of(flat, {"a": {"step": torch.tensor(3.0)}}, layout)


@pytest.mark.parametrize("laid_out", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("saved_in_pieces", [False, True])
def test_a_whole_layer_keeps_its_own_layout_and_the_states_their_type(laid_out, saved_in_pieces):
    layer = torch.zeros(2, 3, 4, 5, dtype=torch.bfloat16).to(memory_format=laid_out)
    saved = torch.arange(120.0).reshape(2, 3, 4, 5)
    taken = states.like(layer, in_pieces(saved, 50) if saved_in_pieces else saved)
    assert torch.equal(taken, saved)
    assert (taken.dtype, taken.stride()) == (torch.float32, layer.stride())
    pieces.take(layer, layer, in_pieces(saved, 50) if saved_in_pieces else saved)
    assert torch.equal(layer, saved.bfloat16())


def test_what_is_no_state_of_each_element_stays_as_it_is():
    layer = torch.zeros(2, 3)
    assert states.like(layer, 7) == 7
    assert states.like(layer, torch.tensor(3.0)).tolist() == 3.0
    assert torch.equal(states.like(layer, in_pieces(B, 2)), B), "its optimizer refuses it"


def test_numbers_of_rows_are_kept_by_the_layers_name_in_a_flat_partition():
    """Of a and b each row has one, of c there are none yet; they go in and come out as they are."""
    flat = torch.zeros(12)
    shapes = (("a", (2, 3)), ("b", (2, 2)), ("c", (5, 1)))
    segments = (Segment(0, 0, 3, 3), Segment(1, 3, 4, 0), Segment(2, 7, 2, 0))
    layout = states.Layout({}, {id(flat): Partition(shapes, segments, None)})
    saved = {"a": {"rows": torch.tensor([1.0, 2.0])}, "b": {"rows": torch.tensor([3.0, 4.0])}}
    part = states.part_of(flat, saved, layout)
    assert {name: rows.tolist() for name, rows in part["rows"].items()} == {"a": [1.0, 2.0], "b": [3.0, 4.0]}
    assert dict(states.held_values(flat, part["rows"], layout)) == part["rows"]

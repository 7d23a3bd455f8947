"""A state and its tree: what goes in comes out, bit for bit, and nothing else can go in."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch.checkpoint import tree

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
    torch.bool, torch.complex64,
)  # fmt: skip


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    content = draw(st.binary(min_size=(size := dtype.itemsize * math.prod(shape)), max_size=size))
    if dtype == torch.bool:
        content = bytes(byte & 1 for byte in content)
    if not content:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(content), dtype=dtype).reshape(shape)


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=4) | st.sampled_from(
    ["$tensor", "a/b", "a@1", "%2F"]
)
plain_numbers = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats()
hashable = words | st.integers() | st.booleans() | st.none() | st.tuples(st.integers(), words)
states = st.recursive(
    plain_numbers | words | tensors(),
    lambda below: (
        st.lists(below, max_size=3)
        | st.lists(below, max_size=3).map(tuple)
        | st.dictionaries(words, below, max_size=3)
        | st.dictionaries(hashable, below, max_size=3)
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Of one type, and equal to the last bit."""
    if type(one) is not type(other):
        return False
    match one:
        case torch.Tensor():
            alike = (one.dtype, one.shape) == (other.dtype, other.shape)
            return alike and (one.numel() == 0 or bytes_of(one) == bytes_of(other))
        case dict():
            return all(
                same(a, b) and same(one[a], other[b]) for a, b in zip(one, other, strict=True)
            )  # the order, too: optimizers go by it
        case list() | tuple():
            return len(one) == len(other) and all(map(same, one, other))
        case float():
            return struct.pack("d", one) == struct.pack("d", other) or (math.isnan(one) and math.isnan(other))
    return one == other


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tree") / "tensors.safetensors"


@pytest.mark.worlds
@settings(max_examples=150, deadline=None)
@given(state=states)
def test_what_goes_in_comes_out(file, state):
    """Through JSON's text and a file of tensors, as the writer and the reader do it."""
    found: tree.Tensors = {}
    text = json.dumps(tree.flatten(state, "state", found))
    safetensors.torch.save_file({name: t for name, t in found.items() if isinstance(t, torch.Tensor)}, file)
    with safetensors.safe_open(file, framework="pt") as opened:

        def tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            read = opened.get_tensor(name)
            assert (tuple(read.shape), read.dtype) == (shape, dtype)
            return read

        assert same(state, tree.restore(json.loads(text), tensor))


def test_tensors_at_different_places_never_have_the_same_name():
    one = torch.zeros(1)
    state = {
        "a": {"b": one, "b@3": one},
        "a/b": one,
        "a%2Fb": one,
        "c": {1: one, "1": one, "$": one},
        "b": [one, (one,)],
    }
    found: tree.Tensors = {}
    tree.flatten(state, "state", found)
    assert len(found) == 9
    assert not any("@" in name for name in found)


@pytest.mark.parametrize(
    "thing",
    [
        object(),
        {1, 2},
        b"bytes",
        range(3),
        1j,
        Path("x"),
        torch.float32,
        torch.nn.Linear(1, 1),
        print,
        {torch.ones(1): 1},
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_nothing_else_can_be_saved(thing):
    with pytest.raises(TypeError, match="state/here/0: a checkpoint holds no "):
        tree.flatten({"here": [thing]}, "state", {})


@pytest.mark.parametrize(
    "written",
    [
        {"$tensor": "a", "shape": [-1], "dtype": "float32"},
        {"$tensor": "a", "shape": [1.0], "dtype": "float32"},
        {"$tensor": "a", "shape": [True], "dtype": "float32"},
        {"$tensor": "a", "shape": [1], "dtype": "load"},
        {"$tensor": "a", "shape": [1], "dtype": "__name__"},
        {"$tensor": "a"},
        {"$tensor": "a", "shape": [1], "dtype": "float32", "more": 1},
        {"$tuple": 1},
        {"$items": [[1, 2, 3]]},
        {"$items": [1]},
        {"$object": "os.system"},
    ],
    ids=str,
)
def test_a_tree_that_nobody_made_is_refused(written):
    with pytest.raises((ValueError, TypeError)):
        tree.restore({"state": [written]}, lambda name, shape, dtype: torch.zeros(shape, dtype=dtype))

"""Reading: pieces come together again, nothing is run, and what cannot be is a sentence."""

from __future__ import annotations

import math
import os
import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch.checkpoint import manifest, reader, tree, writer
from largebatch.checkpoint.manifest import Damaged
from largebatch.checkpoint.pieces import Piece, Pieces, fill, whole
from largebatch.errors import UserError
from largebatch.records.files import sha256_of

MAPS = Path("/proc/self/maps")


@st.composite
def cuts(draw: st.DrawFn) -> tuple[torch.Tensor, list[list[tuple[int, int]]], list[int]]:
    """A tensor, for each of 1 to 5 ranks the ranges that it holds (some hold none, some are out of order), and the
    range that somebody wants of it."""
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]))
    size = math.prod(shape)
    ranks = draw(st.integers(1, 5))
    borders = sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=8))})
    of_ranks: list[list[tuple[int, int]]] = [[] for _ in range(ranks)]
    for begin, end in zip(borders, borders[1:], strict=False):
        of_ranks[draw(st.integers(0, ranks - 1))].append((begin, end))
    wanted = sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size))))
    return torch.arange(size).reshape(shape).to(dtype), of_ranks, wanted


@pytest.mark.worlds
@settings(max_examples=100, deadline=None)
@given(cut=cuts())
def test_pieces_of_any_ranks_come_together(cut):
    tensor, of_ranks, (start, stop) = cut
    with tempfile.TemporaryDirectory() as folder:
        written = {}
        the_tree = None
        for rank, ranges in enumerate(of_ranks):
            here = tuple(Piece(begin, tensor.reshape(-1)[begin:end]) for begin, end in ranges)
            of_all: tree.Tensors = {}
            the_tree = tree.flatten({"w": Pieces(tuple(tensor.shape), tensor.dtype, here)}, "state", of_all)
            own = {f"{name}@{piece.start}": piece.values for name, p in of_all.items() for piece in p.local}
            if own:
                written |= writer.write_tensors(Path(folder) / f"rank-{rank:05d}.safetensors", own)
        facts = {"files": written, "tree": {"state": the_tree, "ranks": []}}
        stored = reader.state_of(Path(folder), facts)["w"]
        found = whole(stored)
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found, tensor)
        wanted = torch.empty(stop - start, dtype=tensor.dtype)
        fill(wanted, stored, start)
        assert torch.equal(wanted, tensor.reshape(-1)[start:stop])


def leaf(shape: list[int], dtype: str = "float32", name: str = "state/w") -> dict:
    return {"state": {"w": {"$tensor": name, "shape": shape, "dtype": dtype}}, "ranks": []}


def test_what_was_forged_to_be_right_is_read(forge):
    path = forge(contents=[{"state/w@2": torch.ones(2)}, {"state/w@0": torch.zeros(2)}], tree=leaf([4]))
    assert read(path).tolist() == [0, 0, 1, 1]


def read(path: Path) -> torch.Tensor:
    return whole(reader.state_of(path, reader.checked(path))["w"])


ONES = torch.ones
WRONG = {
    "a gap": ([{"state/w@0": ONES(1), "state/w@2": ONES(2)}], leaf([4])),
    "an overlap": ([{"state/w@0": ONES(3)}, {"state/w@1": ONES(1)}], leaf([4])),
    "a piece twice": ([{"state/w@0": ONES(2)}, {"state/w@0": ONES(2)}], leaf([4])),
    "the begin is missing": ([{"state/w@2": ONES(2)}], leaf([2])),
    "too much": ([{"state/w@0": ONES(5)}], leaf([4])),
    "too little": ([{"state/w@0": ONES(3)}], leaf([4])),
    "nothing": ([{"state/v": ONES(3)}], leaf([4])),
    "a negative begin": ([{"state/w@-2": ONES(2), "state/w@0": ONES(2)}], leaf([2])),
    "a begin that is no number": ([{"state/w@x": ONES(2)}], leaf([2])),
    "a begin in other digits": ([{"state/w@٠": ONES(2)}], leaf([2])),
    "a huge begin": ([{f"state/w@{10**30}": ONES(2)}], leaf([2])),
    "a begin of 5,000 digits": ([{f"state/w@{'9' * 5000}": ONES(2)}], leaf([2])),
    "a huge shape": ([{"state/w@0": ONES(2)}], leaf([10**12, 10**12])),
    "a huge whole shape": ([{"state/w": ONES(2)}], leaf([10**12])),
    "a negative shape": ([{"state/w": ONES(2)}], leaf([-2])),
    "two negative sides": ([{"state/w@0": ONES(4)}], leaf([-2, -2])),
    "another shape": ([{"state/w": ONES(2)}], leaf([1, 2])),
    "another type": ([{"state/w": ONES(2)}], leaf([2], "float64")),
    "pieces of another type": ([{"state/w@0": ONES(2).int()}], leaf([2])),
    "whole and in pieces": ([{"state/w": ONES(2), "state/w@0": ONES(2)}], leaf([2])),
    "whole in two files": ([{"state/w": ONES(2)}, {"state/w": ONES(2)}], leaf([2])),
    "no type": ([{"state/w": ONES(2)}], leaf([2], "nn")),
    "no state": ([], {"ranks": []}),
    "no ranks": ([], {"state": {}}),
    "a state that is none": ([], {"state": [], "ranks": []}),
    "a tree that is none": ([], 7),
    "a deep tree": ([], {"state": {"w": {"$tuple": "x"}}, "ranks": []}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_together_is_damaged(forge, wrong):
    files, the_tree = WRONG[wrong]
    path = forge(contents=files, tree=the_tree)
    with pytest.raises(Damaged):
        read(path)
    with pytest.raises(UserError, match=r"the checkpoint \S+ cannot be read: .*; remove the folder to start anew"):
        reader.load_newest(path.parent)


class Payload:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("checksums_fit", [False, True])
@pytest.mark.parametrize("form", ["pickle", "torch"])
@pytest.mark.parametrize("where", ["manifest.json", "rank-00000.safetensors"])
def test_reading_runs_nothing(forge, tmp_path, form, where, checksums_fit):
    ran = tmp_path / "ran"
    poison = tmp_path / "poison"
    if form == "pickle":
        poison.write_bytes(pickle.dumps(Payload(ran)))
        pickle.loads(poison.read_bytes())
    else:
        torch.save(Payload(ran), poison)
        torch.load(poison, weights_only=False)
    assert ran.exists(), "the payload works"
    ran.rmdir()
    path = forge({"w": torch.ones(3)})
    facts = manifest.read(path)
    (path / where).write_bytes(poison.read_bytes())
    if checksums_fit and where != "manifest.json":
        facts["files"][where] = {"bytes": poison.stat().st_size, "sha256": sha256_of(poison)}
        manifest.write(path, facts)
    with pytest.raises(UserError, match="cannot be read"):
        reader.load_newest(tmp_path)
    assert not ran.exists()


def test_the_newest_that_is_whole_is_read_and_the_others_told(forge, tmp_path):
    for step in (10, 20, 30, 40):
        forge({"w": torch.full((3,), float(step))}, named=step)
    (tmp_path / "step-00000040" / "rank-00000.safetensors").unlink()
    (tmp_path / "step-00000030" / "manifest.json").write_text("{}")
    found = reader.load_newest(tmp_path)
    assert found is not None
    assert found.path.name == "step-00000020"
    assert found.state["w"].tolist() == [20, 20, 20]
    assert found.complaints == [
        "checkpoint step-00000040 cannot be read (rank-00000.safetensors is missing); the one before it is used",
        "checkpoint step-00000030 cannot be read (the checksum of manifest.json does not fit); the one before it is "
        "used",
    ]
    asked = reader.load_newest(tmp_path, 10)
    assert asked is not None
    assert asked.state["w"].tolist() == [10, 10, 10]
    with pytest.raises(UserError, match=r"step-00000030 cannot be read: .*; do this"):
        reader.load_newest(tmp_path, 30, "do this")


def test_where_all_are_damaged_nothing_starts_anew_unseen(forge, tmp_path):
    assert reader.load_newest(tmp_path) is None
    for step in (10, 20):
        (forge({}, named=step) / "manifest.json").unlink()
    with pytest.raises(UserError, match=f"no checkpoint in {tmp_path} can be read; remove the folder to start anew"):
        reader.load_newest(tmp_path)


def test_files_of_an_earlier_version_are_told(tmp_path):
    (tmp_path / "step-00000010.pt").touch()
    with pytest.raises(UserError, match="holds checkpoints of an earlier version"):
        reader.load_newest(tmp_path)


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux tells what is mapped where")
def test_what_is_read_lies_in_the_mapped_files(forge):
    """Neither a tensor nor a piece of one is copied before somebody takes it."""
    size = 100_000
    contents = [{"state/w@0": ONES(size), "state/v": ONES(size)}, {"state/w@100000": ONES(size)}]
    leaves = {"w": leaf([2 * size])["state"]["w"], "v": leaf([size], name="state/v")["state"]["w"]}
    path = forge(contents=contents, tree={"state": leaves, "ranks": []})
    state = reader.state_of(path, reader.checked(path))
    mapped = [line.split(maxsplit=5) for line in MAPS.read_text().splitlines() if str(path) in line]
    ranges = [[int(end, 16) for end in words[0].split("-")] for words in mapped]
    for tensor in (state["v"], *(piece.values for piece in state["w"].local)):
        assert any(begin <= tensor.data_ptr() < end for begin, end in ranges)


def test_pieces_that_are_not_all_there_fill_nothing_unseen():
    """What a rank is about to save holds its own pieces alone."""
    with pytest.raises(AssertionError, match="pieces are missing"):
        whole(Pieces((4,), torch.float32, (Piece(0, ONES(2)),)))


def test_small_tensors_outlive_their_file(forge, tmp_path):
    """And what is read may be written to: the file stays what it is."""
    path = forge({"small": torch.ones(3), "large": torch.ones(100_000)})
    state = reader.state_of(path, manifest.read(path))
    for tensor in state.values():
        if isinstance(tensor, torch.Tensor):
            tensor.add_(1)
    reader.checked(path)
    writer.remove(path)
    assert state["small"].tolist() == [2, 2, 2]
    assert bool((state["large"] == 2).all())

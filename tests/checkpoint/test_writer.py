"""Writing: beside the training, on the disk before it is acknowledged, and whatever fails harms nothing."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from largebatch.checkpoint import manifest, reader, writer
from largebatch.checkpoint.retention import Retention
from largebatch.checkpoint.writer import Outcome, Writer


def state(step: int) -> dict[str, Any]:
    return {"model": {"weight": torch.full((4,), float(step))}, "step": step}


def save(saves: Writer, step: int) -> Outcome:
    facts = {"epoch": step / 10, "accuracy_percent": None}
    saves.save(step, facts, state(step), {"random": torch.arange(step)})
    outcome = saves.take()
    assert outcome is not None
    return outcome


def there(directory: Path) -> list[int]:
    return [manifest.step_of(path) for path in manifest.existing(directory)]


def newest(directory: Path) -> int:
    found = reader.load_newest(directory)
    assert found is not None
    step = found.state["step"]
    assert torch.equal(found.state["model"]["weight"], state(step)["model"]["weight"])
    assert torch.equal(found.state["ranks"][0]["random"], torch.arange(step))
    return step


def test_saved_and_read(tmp_path):
    saves = Writer(tmp_path, Retention(last=2))
    for step in (1, 2, 3):
        outcome = save(saves, step)
        assert (outcome.step, outcome.problem, outcome.finite) == (step, None, True)
        assert outcome.path == manifest.path_of(tmp_path, step)
        assert outcome.bytes == sum(file.stat().st_size for file in outcome.path.glob("*.safetensors"))
        assert newest(tmp_path) == step
    assert there(tmp_path) == [3, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    assert saves.take() is None, "told once"
    saves.close()


def test_others_may_read_it(tmp_path):
    path = save(Writer(tmp_path, Retention()), 1).path
    assert path is not None
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in path.iterdir())


def test_what_is_written_is_what_was_there_when_it_was_asked_for(tmp_path, monkeypatch):
    """The training changes the weights before the thread has come to them; the second save waits for the first."""
    may_write = threading.Event()
    write = writer.write_tensors

    def waits(file: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        assert may_write.wait(60)
        return write(file, tensors)

    monkeypatch.setattr(writer, "write_tensors", waits)
    saves = Writer(tmp_path, Retention())
    weight = torch.zeros(3)
    facts = {"epoch": 0.0, "accuracy_percent": None}
    saves.save(1, facts, {"w": weight}, {})
    assert not saves.done()
    assert there(tmp_path) == []
    weight += 1
    may_write.set()
    saves.save(2, facts, {"w": weight}, {})
    weight += 1
    outcome = saves.take()
    assert outcome is not None
    for step, value in ((1, 0.0), (2, 1.0)):
        found = reader.load_newest(tmp_path, step)
        assert found is not None
        assert found.state["w"].tolist() == [value] * 3
    saves.close()


@pytest.mark.parametrize("where", ["shared", "own"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, where, value, dtype):
    saves = Writer(tmp_path, Retention())
    save(saves, 1)
    bad = {"here": [torch.tensor([0.0, value], dtype=dtype)]}
    saves.save(2, {}, bad if where == "shared" else {}, bad if where == "own" else {})
    outcome = saves.take()
    assert outcome is not None
    assert (outcome.path, outcome.finite) == (None, False)
    assert outcome.problem == f"{'state' if where == 'shared' else 'ranks/0'}/here/0 is not finite"
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_number_format_that_no_file_holds_is_told(tmp_path):
    saves = Writer(tmp_path, Retention())
    saves.save(1, {}, {"w": torch.zeros(2, dtype=torch.complex128)}, {})
    outcome = saves.take()
    assert outcome is not None
    assert outcome.path is None
    assert "complex128" in str(outcome.problem)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    outcome = save(Writer(tmp_path / "file" / "checkpoints", Retention()), 1)
    assert outcome.path is None
    assert outcome.problem == f"{tmp_path}/file/checkpoints/step-00000001: Not a directory"


def test_the_same_step_again_takes_the_place_of_the_damaged_one(tmp_path):
    saves = Writer(tmp_path, Retention())
    save(saves, 1)
    (tmp_path / "step-00000001" / "manifest.json").write_text("{}")
    save(saves, 1)
    assert newest(tmp_path) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_damaged_one_and_a_strangers_folder_stay(tmp_path):
    saves = Writer(tmp_path, Retention(last=1))
    save(saves, 1)
    (tmp_path / "step-00000001" / "manifest.json").write_text("{}")
    (tmp_path / "step-00000001.mine").mkdir()
    save(saves, 2), save(saves, 3)
    assert there(tmp_path) == [3, 1]
    assert (tmp_path / "step-00000001.mine").is_dir()


def test_one_of_a_later_step_is_not_removed_by_an_earlier_one(tmp_path):
    """A run that went on from a damaged newest checkpoint saves behind it, and must not lose what it has just saved."""
    saves = Writer(tmp_path, Retention(last=1))
    save(saves, 9), save(saves, 3)
    assert there(tmp_path) == [9, 3]
    save(saves, 4)
    assert there(tmp_path) == [9, 4]


CALLS = (
    (os, "fsync"), (os, "replace"), (os, "open"), (shutil, "rmtree"), (Path, "mkdir"), (Path, "write_text"),
    (Path, "chmod"), (writer.safetensors.torch, "save_file"),
)  # fmt: skip


@contextmanager
def meddled(meddle: Callable[[int, str, Any], None]) -> Iterator[list[str]]:
    """Inside, ``meddle`` is called before every change to the disk with its number, its name and what it is about."""
    calls: list[str] = []
    before = [(place, name, getattr(place, name)) for place, name in CALLS]

    def replaced(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            calls.append(name)
            meddle(len(calls) - 1, name, arguments)
            return original(*arguments, **more)

        return call

    for place, name, original in before:
        setattr(place, name, replaced(name, original))
    try:
        yield calls
    finally:
        for place, name, original in before:
            setattr(place, name, original)


def of_one_save(tmp_path: Path) -> list[str]:
    """What a save that removes an old one does, in order."""
    saves = Writer(tmp_path, Retention(last=1))
    save(saves, 1)
    with meddled(lambda *_: None) as calls:
        save(saves, 2)
    return calls


@pytest.mark.worlds
def test_a_disk_that_refuses_at_any_point_is_told_and_harms_nothing(tmp_path):
    calls = of_one_save(tmp_path / "whole")
    assert {"fsync", "replace", "rmtree", "save_file", "write_text"} <= set(calls)
    told = 0
    for number, name in enumerate(calls):
        directory = tmp_path / f"{number}-{name}"
        saves = Writer(directory, Retention(last=1))
        save(saves, 1)

        def refuse(now: int, *_: Any, number: int = number) -> None:
            if now == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with meddled(refuse):
            outcome = save(saves, 2)
        if outcome.path is None:
            told += 1
            assert outcome.problem == f"{directory}/step-00000002: No space left on device", name
            assert newest(directory) in (1, 2), name
        else:
            assert newest(directory) == 2, name
        writer.clear_up(directory)
        assert not manifest.left_over(directory)
        assert save(saves, 3).path is not None
        assert there(directory) == [3], name
    assert told > len(calls) / 2


class PowerCut(BaseException):
    pass


@pytest.mark.worlds
def test_a_power_cut_at_any_point_loses_nothing_that_was_acknowledged(tmp_path):
    """After it nothing runs any more; what the cut operation itself has half done is the next test's."""
    calls = of_one_save(tmp_path / "whole")
    survived = set()
    for number, name in enumerate(calls):
        directory = tmp_path / f"{number}-{name}"
        saves = Writer(directory, Retention(last=1))
        save(saves, 1)

        def cut(now: int, *_: Any, number: int = number) -> None:
            if now >= number:
                raise PowerCut

        copy = saves.copied(state(2), {"random": torch.arange(2)})
        with pytest.raises(PowerCut), meddled(cut):
            saves._write(2, {"epoch": 0.2, "accuracy_percent": None}, copy, 0.0)
        writer.clear_up(directory)
        assert not manifest.left_over(directory)
        survived.add(step := newest(directory))
        assert step == 2 or 2 not in there(directory), name
        assert save(Writer(directory, Retention(last=1)), 3).path is not None
        assert there(directory) == [3], name
    assert survived == {1, 2}


@pytest.mark.parametrize("stays", ["manifest", "tensors", "half of the manifest", "half of the tensors"])
def test_half_of_a_save_or_of_a_removal_is_cleared_up(tmp_path, stays):
    saves = Writer(tmp_path, Retention())
    save(saves, 1), save(saves, 2)
    for suffix in (manifest.UNFINISHED, manifest.REMOVED):
        shutil.copytree(tmp_path / "step-00000002", half := tmp_path / f"step-00000003{suffix}")
        for file in half.iterdir():
            if (file.suffix == ".json") == (stays == "tensors"):
                file.unlink()
            elif stays.startswith("half"):
                os.truncate(file, file.stat().st_size // 2)
    writer.clear_up(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
    assert newest(tmp_path) == 2


def test_a_whole_one_that_has_not_got_its_name_gets_it(tmp_path):
    saves = Writer(tmp_path, Retention())
    save(saves, 1), save(saves, 2)
    os.replace(tmp_path / "step-00000002", tmp_path / "step-00000002.unfinished")
    writer.clear_up(tmp_path)
    assert newest(tmp_path) == 2


def test_everything_is_on_the_disk_before_it_has_its_name_and_old_ones_go_afterwards(tmp_path):
    flushed: list[str] = []

    def note(number: int, name: str, arguments: Any) -> None:
        if name == "fsync":
            flushed.append(Path(os.readlink(f"/proc/self/fd/{arguments[0]}")).name)
        elif name == "replace":
            flushed.append(f"{Path(arguments[0]).name} -> {Path(arguments[1]).name}")

    saves = Writer(tmp_path, Retention(last=1))
    save(saves, 1)
    with meddled(note):
        save(saves, 2)
    assert flushed == [
        "rank-00000.safetensors", "ranks.safetensors", "manifest.json", "step-00000002.unfinished",
        "step-00000002.unfinished -> step-00000002", tmp_path.name, tmp_path.parent.name,
        "step-00000001 -> step-00000001.removed",
    ]  # fmt: skip

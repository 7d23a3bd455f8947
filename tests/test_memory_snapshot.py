"""``record.memory_snapshot``, whose torch functions are stand-ins here: when a history is kept, and what is written.

Not yet run on a CUDA device.
"""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from beside import beside
from programs import weights_at_end
from small_runs import recipe_of

from largebatch.errors import UserError
from largebatch.methods.memory_snapshot import MemorySnapshot, SnapshotOfRun
from largebatch.recipes import config
from largebatch.run.train import train


class Told:
    def __init__(self) -> None:
        self.sentences: list[str] = []

    def say(self, text: str) -> None:
        self.sentences.append(text)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What torch.cuda.memory was asked for, in its order; a snapshot is the text of what was kept."""
    made: list[Any] = []
    history: list[Any] = [None]

    def record(enabled: str | None = "all", **settings: Any) -> None:
        history[0] = enabled and {"enabled": enabled, **settings}
        made.append(("history", enabled))

    def dump(file: str) -> None:
        Path(file).write_text(json.dumps(history[0]))
        made.append("snapshot")

    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", record)
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", dump)
    return made


def part_of(folder: Path, **keys: Any) -> SnapshotOfRun:
    job: Any = types.SimpleNamespace(decided=types.SimpleNamespace(directory=folder))
    return SnapshotOfRun(MemorySnapshot(**keys), job)


def stepped(part: SnapshotOfRun, numbers: range) -> None:
    for number in numbers:
        step: Any = types.SimpleNamespace(number=number - 1)
        part.before(step)
        part.after(step)


def written(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "memory").glob("*"))


def test_a_history_of_these_steps_alone(tmp_path, calls):
    part, told = part_of(tmp_path, steps=(3, 4), out_of_memory=False), Told()
    stepped(part, range(1, 3))
    assert calls == []  # the steps before cost nothing
    stepped(part, range(3, 4))
    assert calls == [("history", None), ("history", "all")]
    stepped(part, range(4, 9))
    assert calls == [("history", None), ("history", "all"), "snapshot", ("history", None)]
    assert written(tmp_path) == ["steps-3-4-rank-0.pickle"]
    kept = json.loads((tmp_path / "memory" / "steps-3-4-rank-0.pickle").read_text())
    assert kept == {"enabled": "all", "max_entries": 100_000, "stacks": "python"}
    part.read(told)
    [sentence] = told.sentences
    assert "steps 3 to 4" in sentence
    assert "pytorch.org/memory_viz" in sentence
    part.close(told, None)
    assert calls[-1] == ("history", None)
    assert len(calls) == 4


def test_a_history_of_all_steps_where_memory_may_not_suffice(tmp_path, calls):
    part, told = part_of(tmp_path, steps=(3, 4), entries=50), Told()
    stepped(part, range(1, 3))
    assert calls == [("history", None), ("history", "all")]
    stepped(part, range(3, 8))  # anew with step 3, and on after step 4
    assert calls[2:] == [("history", None), ("history", "all"), "snapshot"]
    part.close(told, torch.OutOfMemoryError("CUDA out of memory"))
    assert calls[5:] == ["snapshot", ("history", None)]
    assert written(tmp_path) == ["out-of-memory-step-7-rank-0.pickle", "steps-3-4-rank-0.pickle"]
    assert "when memory did not suffice in step 7" in told.sentences[-1]


@pytest.mark.parametrize("problem", [None, ValueError("another"), KeyboardInterrupt()])
def test_no_other_end_writes_one(tmp_path, calls, problem):
    part = part_of(tmp_path, steps=(30, 40))
    stepped(part, range(1, 4))
    part.close(Told(), problem)
    assert calls == [("history", None), ("history", "all"), ("history", None)]
    assert written(tmp_path) == []


def test_nor_does_a_run_that_did_not_ask_for_it(tmp_path, calls):
    part = part_of(tmp_path, steps=(30, 40), out_of_memory=False)
    stepped(part, range(1, 4))
    part.close(Told(), torch.OutOfMemoryError("CUDA out of memory"))
    assert calls == []


def test_a_run_that_goes_on_in_the_middle_and_after(tmp_path, calls):
    part, told = part_of(tmp_path, steps=(3, 6), out_of_memory=False), Told()
    stepped(part, range(5, 9))
    part.read(told)
    assert written(tmp_path) == ["steps-5-6-rank-0.pickle"]
    assert "of steps 3 to 6 only steps 5 to 6 are recorded, for the run goes on with step 5" in told.sentences[0]
    part, told = part_of(tmp_path, steps=(3, 6), out_of_memory=False), Told()
    calls.clear()
    stepped(part, range(8, 10))
    part.read(told)
    assert calls == []
    assert "none is recorded now" in told.sentences[0]


def test_a_snapshot_that_cannot_be_written_ends_no_run(tmp_path, calls):
    (tmp_path / "memory").write_text("a file where the folder should be")
    part, told = part_of(tmp_path, steps=(1, 1), out_of_memory=False), Told()
    stepped(part, range(1, 3))
    part.read(told)
    assert "cannot be written" in told.sentences[0]


def test_on_the_cpu_it_is_refused_in_a_sentence(tmp_path):
    keys = recipe_of(tmp_path / "run", device="cpu")
    keys["record"] |= {"memory_snapshot": True}
    run = config.from_dict(keys)
    with pytest.raises(UserError, match=r"record\.memory_snapshot needs device = cuda, and this run would be on cpu"):
        train(run, quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.worlds
def test_a_dry_run_of_cuda_takes_it_and_one_of_the_cpu_does_not(tmp_path, front_door):
    recipe = tmp_path / "recipe.yaml"
    keys = recipe_of(tmp_path / "run")
    keys["record"] |= {"memory_snapshot": {"steps": [2, 3]}}
    recipe.write_text(json.dumps(keys))
    code, printed, complaint = front_door("train", recipe, "--dry-run", "--device", "cuda")
    assert code == 0, complaint
    assert "a memory snapshot of steps 2 to 3, and where memory does not suffice" in printed
    code, _, complaint = front_door("train", recipe, "--dry-run", "--device", "cpu")
    assert code == 2
    assert "record.memory_snapshot needs device = cuda" in complaint


@pytest.mark.worlds
def test_in_a_run_that_takes_the_cpu_for_cuda(tmp_path, calls, monkeypatch):
    """The whole way, with the stand-ins: the run is the same to the last bit; an out-of-memory error leaves a file."""
    monkeypatch.setattr(MemorySnapshot, "DEVICE", None)
    plain = recipe_of(tmp_path / "plain", epochs=1)
    looked = recipe_of(tmp_path / "looked", epochs=1)
    looked["record"] |= {"memory_snapshot": {"steps": [2, 3]}}
    for keys in (plain, looked):
        assert train(config.from_dict(keys), quiet=True).status == "finished"
    one, other = (weights_at_end(tmp_path / name) for name in ("plain", "looked"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert written(tmp_path / "looked") == ["steps-2-3-rank-0.pickle"]
    assert "memory_viz" in (tmp_path / "looked" / "train.log").read_text()
    assert calls[-1] == ("history", None)

    def fail(job: Any, step: Any) -> None:
        if step.number == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    failed = recipe_of(tmp_path / "failed", epochs=1)
    failed["record"] |= {"memory_snapshot": True}
    with pytest.raises(torch.OutOfMemoryError), beside(with_gradient=fail):
        train(config.from_dict(failed), quiet=True)
    assert written(tmp_path / "failed") == ["out-of-memory-step-5-rank-0.pickle", "steps-1-2-rank-0.pickle"]
    assert calls[-1] == ("history", None)

"""The process is killed (SIGKILL) at every moment of one save, the removal of the old checkpoint included.

One program loads everything once and forks a child for each moment: the child trains and kills itself there, the next
child goes on to the end.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from programs import environment

PROGRAM = r"""
import json, os, shutil, signal, sys, threading
from pathlib import Path

import safetensors.torch

from largebatch import checkpoint, config
from largebatch.checkpoint import manifest, writer
from largebatch.train import train

recipe, folder = Path(sys.argv[1]), Path(sys.argv[2])
SAVE = 30  # the step of the checkpoint that is cut off; that of step 15 is removed after it


def in_a_child(work):
    pid = os.fork()
    if not pid:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def half_of(name, arguments):
    if name == "save_file":
        tensors, file, _ = arguments
        content = safetensors.torch.save(tensors)
        file.write_bytes(content[: len(content) // 2])
    elif name == "write_text":
        file, text = arguments
        file.write_bytes(text.encode()[: len(text) // 2])
    elif name == "rmtree" and Path(arguments[0]).is_dir():
        sorted(Path(arguments[0]).iterdir())[0].unlink()


def dying_at(moment, said):
    '''Every call of the thread that writes this save counts once, and where it can be half done once more.'''
    writing, passed = [], [0]

    def pass_moment(name):
        if threading.get_ident() in writing:
            if passed[0] == moment:
                said.write_bytes(name.encode())
                os.kill(os.getpid(), signal.SIGKILL)
            passed[0] += 1

    def replaced(name, original):
        def call(*arguments, **more):
            pass_moment(f"before {name}")
            if threading.get_ident() in writing and name in ("save_file", "write_text", "rmtree"):
                if passed[0] == moment:
                    half_of(name, arguments)
                pass_moment(f"half of {name}")
            return original(*arguments, **more)
        return call

    for place, name in (
        (os, "fsync"), (os, "replace"), (shutil, "rmtree"), (Path, "mkdir"), (Path, "write_text"), (Path, "chmod"),
        (safetensors.torch, "save_file"),
    ):
        setattr(place, name, replaced(name, getattr(place, name)))
    write = writer.Writer._write

    def counted(self, step, *rest):
        if step == SAVE:
            writing.append(threading.get_ident())
        write(self, step, *rest)
        if step == SAVE:
            pass_moment("after everything")
            writing.clear()

    writer.Writer._write = counted


def run(directory):
    result = train(config.load(recipe, [f"record.dir={directory}"]), quiet=True)
    assert result.status == "finished"


def lines(directory, event):
    text = (directory / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, text) if line["event"] == event]


def end(directory):
    [newest] = checkpoint.existing(directory / "checkpoints")
    return {name: about["sha256"] for name, about in manifest.read(newest)["files"].items()}


run(folder / "whole")  # here, so that all children find everything loaded
found = []
for moment in range(200):
    directory, said = folder / f"cut{moment}", folder / f"said{moment}"

    def dies():
        dying_at(moment, said)
        run(directory)

    code = in_a_child(dies)
    if code == 0:
        break
    acknowledged = [line["step"] for line in lines(directory, "checkpoint") if line["written"]]
    resumed = in_a_child(lambda: run(directory))
    found.append({
        "where": said.read_text() if said.exists() else None,
        "code": code,
        "acknowledged": max(acknowledged, default=0),
        "went on": resumed,
        "from": [line["step"] for line in lines(directory, "resume")],
        "log": (directory / "train.log").read_text(),
        "same": end(directory) == end(folder / "whole"),
        "left": sorted(path.name for path in (directory / "checkpoints").iterdir()),
    })
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    import yaml
    from conftest import TINY

    folder = tmp_path_factory.mktemp("power")
    recipe = {
        **TINY,
        "model": {"name": "mlp", "width": 16, "depth": 1, "norm": True, "dropout": 0.3},
        "data": {"name": "digits", "augment": "flip"},
        "epochs": 3,
        "checkpoint": {"every_epochs": 1, "keep": 1},
        "record": {"every_steps": 1, "tensorboard": False},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "program.py").write_text(PROGRAM)
    ended = subprocess.run(
        [sys.executable, folder / "program.py", folder / "recipe.yaml", folder],
        capture_output=True, text=True, timeout=500, env=environment(OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1"),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout)


def test_every_stage_was_cut(cuts):
    where = [cut["where"] for cut in cuts]
    assert {
        "before mkdir", "before save_file", "half of save_file", "before fsync", "before write_text",
        "half of write_text", "before replace", "before rmtree", "half of rmtree", "after everything",
    } <= set(where)  # fmt: skip
    assert where.count("before replace") == 2, "the new one gets its name, the old one loses it"
    assert {cut["code"] for cut in cuts} == {-9}


def test_it_goes_on_from_what_was_acknowledged_or_newer_and_says_so(cuts):
    for cut in cuts:
        assert cut["went on"] == 0, cut
        [step] = cut["from"]
        assert step in (15, 30)
        assert step >= cut["acknowledged"], cut
        assert f"resumed at step {step} of 45" in cut["log"], cut
    by_stage = [cut["from"][0] for cut in cuts]
    assert by_stage == sorted(by_stage), "once the new one is there it stays"
    assert set(by_stage) == {15, 30}


def test_it_ends_with_the_same_bits_and_nothing_is_left_over(cuts):
    for cut in cuts:
        assert cut["same"], cut
        assert cut["left"] == ["step-00000045"], cut

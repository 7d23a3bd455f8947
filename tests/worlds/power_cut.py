"""Trains, and dies at every moment of one save: everything is loaded once, and each moment is of a child of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch

from largebatch import checkpoint
from largebatch.checkpoint import manifest, writer
from largebatch.recipes import config
from largebatch.run.train import train

SAVE = 30  # the step of the checkpoint that is cut off; that of step 15 is removed after it


def in_a_child(work: Callable[..., None], *arguments: Any) -> int:
    pid = os.fork()
    if not pid:
        try:
            work(*arguments)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def half_of(name: str, arguments: tuple[Any, ...]) -> None:
    if name == "save_file":
        tensors, file, _ = arguments
        content = safetensors.torch.save(tensors)
        file.write_bytes(content[: len(content) // 2])
    elif name == "write_text":
        file, text = arguments
        file.write_bytes(text.encode()[: len(text) // 2])
    elif name == "rmtree" and Path(arguments[0]).is_dir():
        sorted(Path(arguments[0]).iterdir())[0].unlink()


def dying_at(moment: int, said: Path) -> None:
    """Every call of the thread that writes this save counts once, and where it can be half done once more."""
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
        (os, "fsync"),
        (os, "replace"),
        (shutil, "rmtree"),
        (Path, "mkdir"),
        (Path, "write_text"),
        (Path, "chmod"),
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

    writer.Writer._write = counted  # type: ignore[method-assign]


def lines(directory: Path, event: str) -> list[dict[str, Any]]:
    text = (directory / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, text) if line["event"] == event]


def end(directory: Path) -> dict[str, str]:
    [newest] = checkpoint.existing(directory / "checkpoints")
    return {name: about["sha256"] for name, about in manifest.read(newest)["files"].items()}


def trained(recipe: Path, directory: Path) -> None:
    assert train(config.load(recipe, [f"record.dir={directory}"]), quiet=True).status == "finished"


def dies_in(run: Callable[[Path], None], directory: Path, moment: int, said: Path) -> None:
    dying_at(moment, said)
    run(directory)


def cut_everywhere(recipe_file: str, name: str) -> None:
    recipe, folder = Path(recipe_file), Path(name)

    def run(directory: Path) -> None:
        trained(recipe, directory)

    run(folder / "whole")  # here, so that all children find everything loaded
    found = []
    for moment in range(200):
        directory, said = folder / f"cut{moment}", folder / f"said{moment}"

        code = in_a_child(dies_in, run, directory, moment, said)
        if code == 0:
            break
        acknowledged = [line["step"] for line in lines(directory, "checkpoint") if line["written"]]
        resumed = in_a_child(run, directory)
        found.append(
            {
                "where": said.read_text() if said.exists() else None,
                "code": code,
                "acknowledged": max(acknowledged, default=0),
                "went on": resumed,
                "from": [line["step"] for line in lines(directory, "resume")],
                "log": (directory / "train.log").read_text(),
                "same": end(directory) == end(folder / "whole"),
                "left": sorted(path.name for path in (directory / "checkpoints").iterdir()),
            }
        )
    print(json.dumps(found))

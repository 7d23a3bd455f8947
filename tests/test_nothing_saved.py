"""A run that was trained to its end and could not keep what came out is no success: a sentence, and exit code 1."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from programs import saved
from typer.testing import CliRunner

from largebatch import cli
from largebatch.checkpoint import writer
from largebatch.recipes import config
from largebatch.records.lines import Lines
from largebatch.run import account, record
from largebatch.run.train import train


def command(*words: object) -> Result:
    return CliRunner().invoke(cli.app, list(map(str, words)), catch_exceptions=False)


def no_room(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "save_tensors", no_room)


def the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    write = account.write_json

    def but_for_it(path: Path, facts: dict[str, Any]) -> None:
        (no_room if path.name == "result.json" else write)(path, facts)

    monkeypatch.setattr(account, "write_json", but_for_it)


def the_last_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first evaluation on."""
    append = Lines.append

    def full(self: Lines, text: str) -> None:
        append(self, text)
        if '"evaluate"' in text:
            self._file.close()
            self._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115

    monkeypatch.setattr(Lines, "append", full)
    monkeypatch.setattr("largebatch.records.lines.os.truncate", lambda *_: None)


@pytest.mark.worlds
@pytest.mark.parametrize(
    ("without_room", "sentence"),
    [
        (checkpoints, "the checkpoint of step 30 could not be written"),
        (the_result, "result.json cannot be written"),
        (the_last_lines, "metrics.jsonl cannot be written"),
    ],
)
def test_what_found_no_room_is_told_and_the_same_command_goes_on(recipe, tmp_path, monkeypatch, without_room, sentence):
    path = recipe()
    with monkeypatch.context() as full:
        without_room(full)
        ended = command("train", path)
    assert ended.exit_code == 1
    last = ended.output.splitlines()[-1]
    assert last.startswith("stopped: the training is done, but ")
    assert sentence in last
    assert "No space left on device" in last
    run = config.load(path)
    result = record.read_result(run.directory)
    assert result is None or result.status == "stopped"
    again = command("train", path)
    assert again.exit_code == 0
    result = record.read_result(run.directory)
    assert result is not None
    assert result.status == "finished"
    assert [path.name for path in saved(run.directory)][-1] == "step-00000030"


@pytest.mark.worlds
def test_a_save_that_fails_loses_nothing_older(recipe, monkeypatch):
    path = recipe()
    write = writer.save_tensors

    def once(file: Path, *rest: Any) -> None:
        (write if file.parent.stem == "step-00000015" else no_room)(file, *rest)

    with monkeypatch.context() as full:
        full.setattr(writer, "save_tensors", once)
        result = train(config.load(path, ["record.every_steps=1", "checkpoint.every_epochs=1"]), quiet=True)
    assert result.status == "stopped"
    assert [path.name for path in saved(result.directory)] == ["step-00000015"]
    assert result.reason is not None
    assert result.reason.endswith(f"the last good one is {saved(result.directory)[0]}")


@pytest.mark.worlds
def test_a_file_in_the_place_of_the_checkpoints_is_told_before_the_first_step(recipe):
    path = recipe()
    directory = config.load(path).directory
    directory.mkdir(parents=True)
    (directory / "checkpoints").write_text("mine")
    ended = command("train", path)
    assert ended.exit_code == 1
    assert f"stopped: {directory}/checkpoints is a file" in ended.output
    assert ended.output.count("\n") == 1
    assert (directory / "checkpoints").read_text() == "mine"
    assert command("train", path, "checkpoint.every_epochs=0").exit_code == 0

"""The programs of kills.py with a task that is a file of this folder: own_tasks/weighted.py."""

from __future__ import annotations

from pathlib import Path

from worlds import kills

from largebatch import tasks


def known() -> None:
    tasks.__path__.append(str(Path(__file__).with_name("own_tasks")))


def train(*arguments: str) -> None:
    known()
    kills.train(*arguments)


def killed(moment: str, nth: str, *arguments: str) -> None:
    known()
    kills.killed(moment, nth, *arguments)

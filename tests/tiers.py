"""The tiers of the tests, by their marks, and what is asked of them.

quick    no mark: starts no process and takes well under a second; all of them together a minute on two cores
worlds   starts processes, mostly from the pool (pool.py), or takes more than a second
slow     kills, launchers, several hosts, power cuts, real training, whole matrices
"""

from __future__ import annotations

import multiprocessing.process
import random
import sys
from typing import Any

import pytest

MARKS = ("worlds", "slow")
EVENTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "os.exec"}
ALLOWED = {"git", "lscpu"}  # every run asks once which commit it is of; joblib, how many cores there are
started: list[str] = []  # since the test began


def ordered(items: list[pytest.Item], seed: int) -> list[pytest.Item]:
    """Files in an order of chance, tests within a file as they stand."""
    files: dict[Any, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    names = sorted(files)
    random.Random(seed).shuffle(names)
    return [item for name in names for item in files[name]]


def sampled(items: list[pytest.Item], count: int, seed: int) -> list[pytest.Item]:
    """``count`` of them, in their order."""
    chosen = set(random.Random(seed).sample(range(len(items)), min(count, len(items))))
    return [item for number, item in enumerate(items) if number in chosen]


def check(item: pytest.Item) -> None:
    """A quick test has started nothing."""
    if started and not any(item.get_closest_marker(mark) for mark in MARKS):
        pytest.fail(
            f"a test without a mark starts no process, and this one started {', '.join(started)}: mark it worlds"
        )


def _note(event: str, arguments: tuple[Any, ...], events: set[str] = EVENTS, allowed: set[str] = ALLOWED) -> None:
    """Bound to what it needs: it is still asked when this module has been taken apart."""
    if event in events and arguments and str(arguments[0]) not in allowed:
        started.append(f"{event} {arguments[0]}")


def _noted_start(process: multiprocessing.process.BaseProcess) -> None:
    started.append(type(process).__name__)
    _start(process)


_start = multiprocessing.process.BaseProcess.start
multiprocessing.process.BaseProcess.start = _noted_start  # type: ignore[method-assign]  (no audit event tells of it)
sys.addaudithook(_note)

"""SIGINT, SIGTERM and SIGUSR1: noted when they come, obeyed after the step; and told to whoever started this process.

A launcher such as torchrun starts workers anew when they end with a code other than 0, and ends with 1 itself. So a
launch script names a file in LARGEBATCH_STOP_FILE: there a run that a signal stopped leaves its exit code, with which
the script ends, and with which workers that are started nevertheless end at once. Only where torchrun stopped the
workers itself, because a machine joins, they go on: then it has counted no restart.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from largebatch.errors import Lost
from largebatch.machine import distributed
from largebatch.records.files import write_text

RESTARTS = "TORCHELASTIC_RESTART_COUNT"
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextmanager
def signals_noticed(quiet: bool = False) -> Iterator[list[int]]:
    """SIGINT, SIGTERM and SIGUSR1 are noted, to be obeyed after the step; a second SIGINT interrupts at once.

    In a thread beside the main one, which alone gets signals, none is.
    """
    noticed: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noticed
        return

    def notice(number: int, frame: FrameType | None) -> None:
        if noticed and number == signal.SIGINT:
            raise KeyboardInterrupt
        noticed.append(number)
        if distributed.is_first() and not quiet:
            print("finishing the step, then saving a checkpoint ...", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, notice) for number in STOPPING}
    try:
        yield noticed
    except Lost:
        before = dict.fromkeys(STOPPING, signal.SIG_IGN)  # a launcher's may not come before the reason is told
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped_with(number: int) -> int:
    """The exit code of a run that signal ``number`` stopped, left for the launch script, too."""
    code = 128 + number
    leave_exit_code(code)
    return code


def leave_exit_code(code: int) -> None:
    """Every rank does, for the first of a machine that ends makes torchrun act; each writes the same."""
    if file := os.environ.get("LARGEBATCH_STOP_FILE"):
        with suppress(OSError):
            write_text(Path(file), f"{code} {os.environ.get(RESTARTS, '')}\n")


def stopped_before() -> int | None:
    """The exit code that a worker before this one left, if it is to be the last word."""
    try:
        file = Path(os.environ["LARGEBATCH_STOP_FILE"])
        code, *restarts = file.read_text().split()
        if restarts and restarts[0] == os.environ.get(RESTARTS) and int(code) > 128:
            write_text(file, "")
            return None
        return int(code)
    except (KeyError, OSError, ValueError):
        return None

"""SIGINT and SIGTERM: noted when they come, obeyed after the step."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from largebatch import distributed

STOPPING = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def signals_noticed() -> Iterator[list[int]]:
    """SIGINT and SIGTERM are noted, to be obeyed after the step; a second SIGINT interrupts at once."""
    noticed: list[int] = []

    def notice(number: int, frame: FrameType | None) -> None:
        if noticed and number == signal.SIGINT:
            raise KeyboardInterrupt
        noticed.append(number)
        if distributed.is_first():
            print("finishing the step, then saving a checkpoint ...", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, notice) for number in STOPPING}
    try:
        yield noticed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

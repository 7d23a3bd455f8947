"""The program, slowed down so that a test can reach into the middle of a run or of a save.

``PACE`` names a file with two numbers, which the test may change while the run goes on: how many seconds every step
waits, and how many every flush to disk waits.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from largebatch.cli import main
from largebatch.run.loop import Loop

before, fsync = Loop.before_step, os.fsync


def pace() -> tuple[float, float]:
    step, flush = Path(os.environ["PACE"]).read_text().split()
    return float(step), float(flush)


def slow_step(self: Loop) -> None:
    time.sleep(pace()[0])
    before(self)


def slow_fsync(file: Any) -> None:
    time.sleep(pace()[1])
    fsync(file)


Loop.before_step, os.fsync = slow_step, slow_fsync  # type: ignore[method-assign]
main()

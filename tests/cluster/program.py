"""The program, slowed down so that a test can reach into the middle of a run or of a save.

``PACE`` names a file with two numbers, which the test may change while the run goes on: how many seconds every step
waits, and how many every flush to disk waits.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from beside import add

from largebatch.cli import main

fsync = os.fsync


def pace() -> tuple[float, float]:
    step, flush = Path(os.environ["PACE"]).read_text().split()
    return float(step), float(flush)


def slow_fsync(file: Any) -> None:
    time.sleep(pace()[1])
    fsync(file)


os.fsync = slow_fsync
add(before=lambda job, step: time.sleep(pace()[0]))
main()

"""``largebatch`` with a wait before every step, so that an hour of restarts is not one of heat (soak.py)."""

from __future__ import annotations

import os
import time
from typing import Any

from beside import add

from largebatch.cli import main


def wait(*_: Any) -> None:
    time.sleep(float(os.environ["SECONDS_PER_STEP"]))


if __name__ == "__main__":
    add(before=wait)
    main()

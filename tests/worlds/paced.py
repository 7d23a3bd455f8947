"""``largebatch`` with a wait before every step, so that an hour of restarts is not one of heat (soak.py)."""

from __future__ import annotations

import os
import time
from typing import Any

from worlds.kills import before

from largebatch.cli import main


def wait(*_: Any, **__: Any) -> None:
    time.sleep(float(os.environ["SECONDS_PER_STEP"]))


if __name__ == "__main__":
    before("largebatch.run.loop:Loop.before_step", wait)
    main()

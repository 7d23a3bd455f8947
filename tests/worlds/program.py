"""largebatch as a terminal starts it."""

from __future__ import annotations

import os
import sys

from largebatch import cli


def of_its_own_group(*words: str) -> None:
    """What ^C reaches: this process and those it starts."""
    os.setsid()
    sys.argv = ["largebatch", *words]
    cli.main()

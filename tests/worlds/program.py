"""largebatch as a terminal starts it."""

from __future__ import annotations

import os
import sys

from packs import slow_files

from largebatch import cli


def of_its_own_group(*words: str) -> None:
    """What ^C reaches: this process and those it starts. Its image files may be slow, as packs.py has it."""
    slow_files()
    os.setsid()
    sys.argv = ["largebatch", *words]
    cli.main()

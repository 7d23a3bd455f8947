"""largebatch with kinds of its own: ``python -m worlds.kinds FOLDER WORDS``.

FOLDER/optimizers and its like are further folders of the packages that are called so.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def main(folder: str, *words: str) -> None:
    for room in sorted(Path(folder).iterdir()):
        importlib.import_module(f"largebatch.{room.name}").__path__.append(str(room))
    from largebatch import cli  # reads the tables, as whoever knows the recipe

    sys.argv = ["largebatch", *words]
    cli.main()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""largebatch with kinds of its own: ``python -m worlds.kinds FOLDER WORDS``.

FOLDER/optimizers and its like are further folders of the packages that are called so.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from largebatch.recipes import kinds, methods

PACKAGES = {"decays": "largebatch.recipes.decays", "optimizers": "largebatch.optimizers", "tasks": "largebatch.tasks"}


def main(folder: str, *words: str) -> None:
    for room in sorted(Path(folder).iterdir()):
        if room.name == "methods":
            kinds.FURTHER["largebatch.methods"] = [str(room)]
            methods.ORDER = (*methods.ORDER, *(file.stem for file in sorted(room.glob("*.py"))))  # the table
        else:
            importlib.import_module(PACKAGES[room.name]).__path__.append(str(room))
    from largebatch import cli  # as whoever knows the recipe: reads the tables

    sys.argv = ["largebatch", *words]
    cli.main()


if __name__ == "__main__":
    main(*sys.argv[1:])

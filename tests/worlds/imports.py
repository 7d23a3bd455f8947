"""Every module of the package, imported before any other of it: each in a process of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import timm  # noqa: F401  # what takes long is there already
import torch  # noqa: F401
import torchvision  # noqa: F401

PACKAGE = Path(__file__).parent.parent.parent / "largebatch"


def names() -> list[str]:
    files = (path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in files if path.name != "__main__")


def main() -> None:
    failed = 0
    for name in names():
        child = os.fork()
        if not child:
            try:
                __import__(name)
            except BaseException as error:
                print(name, type(error).__name__, error, flush=True)
                os._exit(1)
            os._exit(0)
        failed += os.waitpid(child, 0)[1] != 0
    print(len(names()), "modules,", failed, "of which cannot be imported first")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()

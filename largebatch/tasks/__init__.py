"""What is learned, one file each: the loss, what it is a mean over, and the score that a run is judged by.

A file of this folder is a task; its name is the file's. ``task: {name: regression}`` in a recipe asks for it; left out,
a data set says itself what it is for. Imports no torch until one is built.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import TYPE_CHECKING, Any

from largebatch.errors import UserError, suggestion

if TYPE_CHECKING:
    from largebatch.tasks.task import Task

NO_TASKS = ("task",)  # the contract


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in NO_TASKS)


def keys_of(name: str) -> list[str]:
    """What the task of this name takes."""
    if name not in names():
        raise UserError(f"task.name = {name[:60]} is not known{suggestion(name, names())}")
    return list(inspect.signature(importlib.import_module(f"{__name__}.{name}").TASK).parameters)


def build(name: str, arguments: dict[str, Any] | None = None) -> Task:
    """The task called ``name`` with the keys it takes."""
    valid = keys_of(name)
    for key in arguments or {}:
        if key not in valid:
            takes = suggestion(key, valid) if valid else "; it takes none"
            raise UserError(f"unknown key task.{key} for {name}{takes}")
    return importlib.import_module(f"{__name__}.{name}").TASK(**(arguments or {}))

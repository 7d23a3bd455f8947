"""What is learned, one file each: the loss, what it is a mean over, and the score that a run is judged by.

A file of this folder is a task; its name is the file's. ``task: {name: regression}`` in a recipe asks for it; left out,
a data set says itself what it is for. Others may be registered. Imports no torch until one is built.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from largebatch.errors import UserError, suggestion
from largebatch.plan.score import Score
from largebatch.recipes.registry import Registry

if TYPE_CHECKING:
    from largebatch.tasks.task import Task

NO_TASKS = ("task",)  # the contract


def of_package() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in NO_TASKS)


def _makeable(name: str, thing: Any) -> Any:
    """What makes a task of its keys; a task stands for itself."""
    return thing if callable(thing) else lambda: thing


REGISTRY: Registry[Callable[..., Task]] = Registry("task.name", _makeable, of_package)
register = REGISTRY.register


def names() -> list[str]:
    return sorted([*of_package(), *REGISTRY.names()])


def made_by(name: str) -> Callable[..., Task]:
    """What makes the task of this name, of the keys it takes."""
    if (registered := REGISTRY.get(name)) is not None:
        return registered
    if name not in of_package():
        raise UserError(f"task.name = {name[:60]} is not known{suggestion(name, names())}")
    return importlib.import_module(f"{__name__}.{name}").TASK


def keys_of(name: str) -> list[str]:
    """What the task of this name takes."""
    return list(inspect.signature(made_by(name)).parameters)


def build(name: str, arguments: dict[str, Any] | None = None) -> Task:
    """The task called ``name`` with the keys it takes."""
    from largebatch.tasks.task import Task

    valid = keys_of(name)
    for key in arguments or {}:
        if key not in valid:
            takes = suggestion(key, valid) if valid else "; it takes none"
            raise UserError(f"unknown key task.{key} for {name}{takes}")
    task = made_by(name)(**(arguments or {}))
    if not isinstance(task, Task):
        raise UserError(f"task.name = {name} is a {type(task).__name__}; it should be a largebatch.Task")
    if not isinstance(getattr(task, "score", None), Score):
        raise UserError(f"task.name = {name} has no score; it should be a largebatch.Score: the number it is judged by")
    return task

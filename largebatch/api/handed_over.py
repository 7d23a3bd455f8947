"""Parts that a script hands over as objects: inside, they stand in a recipe under names of their own (``own/Net``)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from largebatch.api.recipes import ARGUMENTS, recipe
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.recipes.registry import HANDED_OVER, Code, code_of, handed_over

if TYPE_CHECKING:
    import torch
    from torch import nn

    from largebatch.data.own import Dataset
    from largebatch.tasks.task import Task

KEPT = {  # keys of a section that are not the replaced part's own
    "model": ("weights", "frozen"),
    "data": ("hold_out", "workers", "if_changed"),
}


class Handed(NamedTuple):
    """What stands in the place of the recipe's parts; None: the recipe's."""

    model: nn.Module | Callable[..., nn.Module] | None = None
    dataset: Dataset | None = None
    task: Task | Callable[[], Task] | None = None
    optimizer: Callable[..., torch.optim.Optimizer] | None = None


@contextlib.contextmanager
def standing_in(source: Any, handed: Handed) -> Iterator[config.Run]:
    """The run of a recipe, as :func:`recipe` takes or makes it, with these parts. Inside, their names mean them;
    published results of others are not expected of them."""
    from largebatch import models, tasks
    from largebatch.data import sets
    from largebatch.recipes import optimizers

    if isinstance(source, Mapping) and handed.optimizer is not None and "optimizer" not in source:
        source = {**source, "optimizer": {"name": "sgd"}}  # until the builder stands there
    run = recipe(source)
    _check(run, handed)
    dataset, task = handed.dataset, handed.task
    if dataset is not None:
        if task is None and run.task is None and not isinstance(dataset.task, str):
            task = dataset.task
        of_recipe = dataset.task if run.task is None else run.task.name
        dataset = dataclasses.replace(dataset, task=of_recipe if task is None else task)
    written = run.as_set()
    with contextlib.ExitStack() as stack:
        for key, table, thing in (
            ("model", models.REGISTRY, handed.model),
            ("data", sets.REGISTRY, dataset),
            ("task", tasks.REGISTRY, task),
            ("optimizer", optimizers.REGISTRY, handed.optimizer),
        ):
            if thing is None:
                continue
            name, code = _called(thing)
            stack.enter_context(table.holding(name, thing, code))
            section = written.get(key, {})
            written[key] = {"name": name, **{kept: section[kept] for kept in KEPT.get(key, ()) if kept in section}}
            written.pop("expect", None)
        yield config.from_dict(written, "the recipe with the parts that were handed over")


def _called(thing: Any) -> tuple[str, Code]:
    """Its name in a recipe, and where it is written; a data set's is what it trains on."""
    from largebatch.data.own import Dataset

    if isinstance(thing, Dataset):
        return f"{HANDED_OVER}/{thing.called}", code_of(thing.train)
    return handed_over(thing), code_of(thing)


def _check(run: config.Run, handed: Handed) -> None:
    for key, name, thing in (("model", run.model.name, handed.model), ("data", run.data.name, handed.dataset)):
        if name == HANDED_OVER and thing is None:
            raise UserError(f"the recipe names no {key}; give {ARGUMENTS[key]}=, or {key}.name")
    if handed.dataset is not None:
        from largebatch.data.own import Dataset

        if not isinstance(handed.dataset, Dataset):
            kind = type(handed.dataset).__name__
            raise UserError(f"dataset is a {kind}; it should be a largebatch.Dataset(train, test)")

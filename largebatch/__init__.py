"""Train with a large batch as fast as the machines allow, and prove that nothing was lost.

    import largebatch as lb

    run = lb.recipe("cifar10/momentum", {"batch.global_batch_size": 4096})
    result = lb.train(run, model=my_model, dataset=lb.Dataset(train, test), task=MyTask(), optimizer=my_builder)
    lb.load(result.directory).curve("test_accuracy_percent")

Names are imported when they are first asked for: ``import largebatch`` alone loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from largebatch import data, methods, models, optim, optimizers, tasks
    from largebatch.api.comparing import compare
    from largebatch.api.describing import layers
    from largebatch.api.diagnosing import critical_batch
    from largebatch.api.evaluating import evaluate, predict
    from largebatch.api.loading import load
    from largebatch.api.recipes import decide, recipe
    from largebatch.api.studying import study
    from largebatch.api.training import train
    from largebatch.data import sets as datasets
    from largebatch.data.own import Dataset
    from largebatch.data.sampler import ExactSampler, SeededDataset, ShareSampler
    from largebatch.errors import UserError
    from largebatch.methods import Method, Part
    from largebatch.optimizers import Optimizer
    from largebatch.plan.batch import BatchPlan
    from largebatch.plan.score import Score
    from largebatch.recipes.config import Run
    from largebatch.recipes.rates import schedule
    from largebatch.run.account import Result
    from largebatch.steps.evaluate import exact_sums
    from largebatch.steps.noise_meter import NoiseMeter
    from largebatch.steps.norms import convert_batch_norm, recompute_batch_norm
    from largebatch.steps.scheduler import ExamplesLR
    from largebatch.tasks.classification import Classification
    from largebatch.tasks.multilabel import Multilabel
    from largebatch.tasks.regression import Regression
    from largebatch.tasks.task import Task

__version__ = "0.1.0"

_ROOMS = {  # name -> the module that has it
    "BatchPlan": "largebatch.plan.batch",
    "Classification": "largebatch.tasks.classification",
    "Dataset": "largebatch.data.own",
    "ExactSampler": "largebatch.data.sampler",
    "ExamplesLR": "largebatch.steps.scheduler",
    "Method": "largebatch.methods",
    "Multilabel": "largebatch.tasks.multilabel",
    "NoiseMeter": "largebatch.steps.noise_meter",
    "Optimizer": "largebatch.optimizers",
    "Part": "largebatch.methods",
    "Regression": "largebatch.tasks.regression",
    "Result": "largebatch.run.account",
    "Run": "largebatch.recipes.config",
    "Score": "largebatch.plan.score",
    "SeededDataset": "largebatch.data.sampler",
    "ShareSampler": "largebatch.data.sampler",
    "Task": "largebatch.tasks.task",
    "UserError": "largebatch.errors",
    "compare": "largebatch.api.comparing",
    "convert_batch_norm": "largebatch.steps.norms",
    "critical_batch": "largebatch.api.diagnosing",
    "decide": "largebatch.api.recipes",
    "evaluate": "largebatch.api.evaluating",
    "exact_sums": "largebatch.steps.evaluate",
    "layers": "largebatch.api.describing",
    "load": "largebatch.api.loading",
    "predict": "largebatch.api.evaluating",
    "recipe": "largebatch.api.recipes",
    "recompute_batch_norm": "largebatch.steps.norms",
    "schedule": "largebatch.recipes.rates",
    "study": "largebatch.api.studying",
    "train": "largebatch.api.training",
}
_MODULES = {  # of parts by name, with ``register``; and the optimizers' algebra
    "data": "largebatch.data",
    "datasets": "largebatch.data.sets",
    "methods": "largebatch.methods",
    "models": "largebatch.models",
    "optim": "largebatch.optim",
    "optimizers": "largebatch.optimizers",
    "tasks": "largebatch.tasks",
}

__all__ = [
    "BatchPlan", "Classification", "Dataset", "ExactSampler", "ExamplesLR", "Method", "Multilabel", "NoiseMeter",
    "Optimizer", "Part", "Regression", "Result", "Run", "Score", "SeededDataset", "ShareSampler", "Task", "UserError",
    "compare", "convert_batch_norm", "critical_batch", "data", "datasets", "decide", "evaluate", "exact_sums", "layers",
    "load", "methods", "models", "optim", "optimizers", "predict", "recipe", "recompute_batch_norm", "schedule",
    "study", "tasks", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _ROOMS:
        return getattr(importlib.import_module(_ROOMS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

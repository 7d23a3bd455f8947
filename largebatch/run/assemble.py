"""Run -> what the loop needs. Here, and in the other assembly rooms, the config is read; nowhere else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from largebatch import data, engines, models, optim, tasks
from largebatch.checkpoint import Loaded
from largebatch.data import nested
from largebatch.data.sizes import sizes_of_phases
from largebatch.engines.engine import MOST_SHAPES
from largebatch.errors import UserError
from largebatch.machine import distributed, watchdog
from largebatch.models import batch_norm, recomputed
from largebatch.optim import Treatment
from largebatch.optimizers import Optimizer, Surroundings
from largebatch.plan.batch import BatchPlan
from largebatch.plan.score import ACCURACY
from largebatch.recipes import config, derive, refusals
from largebatch.recipes.config.model import FirstWeights
from largebatch.recipes.decide import decide, grown, precision_of, task_name
from largebatch.recipes.decided import DataFacts, Decided
from largebatch.records.run import EvaluateLine, MicroBatchTrial
from largebatch.records.saved import SavedRecord
from largebatch.records.typed import keys_of
from largebatch.run import first_examples, fit
from largebatch.run.phases import Settings
from largebatch.run.start import StartingPoint, opened, states_into, weights_into
from largebatch.tasks.task import Task, takes_soft_labels
from largebatch.terminal.console import Console, tell


@dataclasses.dataclass(eq=False)
class Job:
    """One run, built and ready: everything the loop touches. Nothing of it changes but where the batch grows."""

    run: config.Run  # for assembly alone: what is running reads ``decided``
    decided: Decided
    device: torch.device
    task: Task
    dataset: data.Splits
    placement: data.Placement
    treatments: list[Treatment]
    engine: engines.Engine
    settings: Settings  # of the optimizer, by phase
    starting_point: StartingPoint | None = None  # of a run that begins with another's weights, and only now
    trial: MicroBatchTrial | None = None  # of micro-batches, where the recipe asks for one and the device was tried

    @property
    def plan(self) -> BatchPlan:
        return self.decided.plan

    def grow(self, growth: Iterable[Sequence[int]]) -> None:
        """The batch has grown, if it has: (steps done, global batch from then on), since the run's first step."""
        if growth := [(step, size) for step, size in growth]:
            self.decided = grown(self.decided, self.run, growth)
            self.settings = self.settings.for_phases_of(self.decided, self.engine.optimizer)


def assemble(
    run: config.Run,
    device: torch.device,
    dataset: data.Splits | None = None,
    engines: Mapping[str, Callable[..., engines.Engine]] = engines.ENGINES,
    begun: bool = False,
    quiet: bool = False,
    loaded: Loaded | None = None,
    unread: bool = False,
    trial: MicroBatchTrial | None = None,
) -> Job:
    """Everything decided and built. A dry run has a ``dataset`` and ``engines`` of its own, and has ``loaded`` what the
    run is to begin with; ``quiet``: nothing is told; ``trial``: what the device was found to hold.

    A run that has ``begun`` goes on with the weights of its checkpoint, whatever became of ``model.weights``. Of a
    dataset that is ``unread`` no example is looked at.
    """
    refusals.check(run, precision_of(run.precision, device.type))
    dataset = dataset or dataset_of(run, quiet)
    check_shapes(run, dataset)
    check_lengths(run, dataset)
    task = task_of(run, dataset)
    held = None if trial is None else trial.by_pixels
    decided = decide(run, data_facts(dataset), distributed.world_size(), device.type, held)
    plan, precision = decided.plan, decided.precision
    model, point = begun_model(run, task, dataset, decided, begun, loaded, unread)
    channels_last = run.channels_last
    if channels_last is None:
        channels_last = any(isinstance(module, nn.Conv2d) for module in model.modules())
    keys = run.engine.model_dump(exclude={"name", "activation_checkpointing"})
    engine = engines[run.engine.name](device, precision, channels_last, run.compile, **keys)
    engine.skips_nonfinite = run.nonfinite_gradients.action == "skip"
    engine.shard_safe = run.optimizer.SHARD_SAFE
    for part in (decision.gradient_part for decision in decided.methods.values()):
        if part:
            engine.measure_parts(part)
            break
    rates = rates_of(run, model, plan)
    model = engine.place(model)
    table = optim.treatments(model, run.weight_decay.skip, run.optimizer.not_adapted)
    groups = optim.parameter_groups(model, run.weight_decay.value, table, rates, run.weight_decay.even)
    optimizer = optimizer_of(decided.optimizer, groups, decided.lr_at(0), precision, run.engine.name, model)
    matrices = optim.orthogonalised_names(optimizer)
    table = [row._replace(orthogonalised=row.name in matrices) for row in table]
    settings = Settings(decided, optimizer, table, Surroundings(precision, run.engine.name, model))
    engine.prepare(model, optimizer, plan, run.max_grad_norm)
    if point is not None:
        states_into(engine, point)
    placement = data.Placement(engine.device, engine.dtype, channels_last)
    return Job(run, decided, device, task, dataset, placement, table, engine, settings, point, trial)


def begun_model(
    run: config.Run, task: Task, dataset: data.Splits, decided: Decided, begun: bool, loaded: Loaded | None,
    unread: bool,
) -> tuple[nn.Module, StartingPoint | None]:  # fmt: skip
    """The model with the weights that it begins with, as :func:`assemble` has it, and where another run's are from."""
    weights = None if begun else run.model.weights
    model = model_of(run, task, dataset, weights, normalised_together(run, decided))
    moving = moving_buffers(run, model, task, dataset)
    point = None
    if run.start is not None and not begun:
        described = {**decided.model, "num_classes": dataset.outputs}
        point = weights_into(model, described, run.start, loaded or opened(run.start))
    if not (begun or unread or weights is not None or point is not None):
        first_examples.show(model, dataset)
    if run.model.name in models.REGISTRY.parts:  # a script's own module may begin otherwise on every rank
        distributed.same_as_on_first(model.state_dict().values())
    return recomputed_where_asked(run, with_batch_norm(run, model, decided.plan), moving), point


def rates_of(run: config.Run, model: nn.Module, plan: BatchPlan) -> dict[str, optim.TensorRate] | None:
    """What the lr of each tensor is multiplied by, and how long it is trained; None: all by the run's lr to the end."""
    decay, scales = run.lr.layer_decay, run.lr.scales
    if decay is None and not scales:
        return None
    layers = {} if decay is None else models.layer_scales(model, run.model.name, decay)
    stated = {
        pattern: optim.TensorRate(
            one.factor, None if one.until_epoch is None else one.until_epoch * run.stretch * plan.dataset_size
        )
        for pattern, one in scales.items()
    }
    return optim.tensor_rates(model, stated, layers)


def check_shapes(run: config.Run, dataset: data.Splits) -> None:
    """Each is compiled for itself."""
    if run.compile and dataset.sizes is not None and len(dataset.sizes.all) > MOST_SHAPES:
        raise UserError(
            f"data.image_size has {len(dataset.sizes.all)} sides, and compile = true takes at most {MOST_SHAPES}; set "
            "data.image_size.multiple_of higher"
        )


def check_lengths(run: config.Run, dataset: data.Splits) -> None:
    """Refuse a script's own data set that is another one on another rank. Collective."""
    if run.data.name not in data.sets.REGISTRY.parts:
        return
    lengths = distributed.gather((len(dataset.train), len(dataset.test)))
    for rank, length in enumerate(lengths):
        if length != lengths[0]:
            raise UserError(
                f"data.name = {run.data.name} has {length[0]} examples to train and {length[1]} to test on at rank "
                f"{rank}, {lengths[0][0]} and {lengths[0][1]} at rank 0; every rank needs the whole set, of which the "
                "plan gives it its share"
            )


def data_facts(dataset: data.Splits) -> DataFacts:
    return DataFacts(len(dataset.train), dataset.pixels_per_example, dataset.task)


def task_arguments(run: config.Run, name: str) -> dict[str, Any]:
    """Of the task ``name``: its own section's, and those that the section ``loss`` says."""
    arguments = run.task.arguments if run.task is not None else {}
    for written, value in run.loss.changed().items():
        key = "kind" if written == "name" else written
        if key not in tasks.keys_of(name):
            raise UserError(f"loss.{written} = {value} has no effect on task.name = {name}")
        if key in arguments:
            raise UserError(f"loss.{written} and task.{key} are the same number; leave one out")
        arguments = {**arguments, key: value}
    return arguments


def task_of(run: config.Run, dataset: data.Splits) -> Task:
    """What is learned: as the recipe says, else what the data set is for."""
    name = task_name(run, dataset.task)
    task = tasks.build(name, task_arguments(run, name))
    if run.data.mix is not None and not takes_soft_labels(task):
        raise UserError(
            f"data.mix makes soft labels, and the loss of task.name = {name} takes none; valid: classification, "
            "multilabel, or no data.mix"
        )
    blank = dataset.blank(1)
    nested.check(blank, f"data.name = {run.data.name}")
    check_views(run, dataset)
    task.check_data(blank, run.data.name)
    for method in run.methods.values():
        if method.EQUAL_UNITS and task.units_vary:
            raise UserError(f"{method.where} needs examples that count alike; those of task.name = {name} do not")
        for sentence in (
            *method.check_score(task.score),
            *method.check_inputs(run.data.name, dataset.input_shape),
        ):
            raise UserError(sentence)
    return task


def check_views(run: config.Run, dataset: data.Splits) -> None:
    """Refuse views of tests that the inputs have not."""
    shape, shift = dataset.input_shape, run.evaluate.shift
    for asked, what in ((run.evaluate.flips, "flips = true mirrors"), (shift, f"shift = {shift} moves")):
        if asked and len(shape) != 3:
            inputs = "×".join(map(str, shape)) or "one number"
            raise UserError(
                f"evaluate.{what} images, and data.name = {run.data.name} has inputs of {inputs}; leave it out"
            )
    if shift and shift >= min(shape[1:]):
        raise UserError(
            f"evaluate.shift = {shift} is as far as an image of {min(shape[1:])} pixels reaches; at most "
            f"{min(shape[1:]) - 1}"
        )


def model_of(
    run: config.Run,
    task: Task,
    dataset: data.Splits,
    weights: FirstWeights | None = None,
    normalised_together: int = 2,
) -> nn.Module:
    """The model as it begins, known to fit the data; on the CPU, its batch norms those of its builder, or frozen.

    Freshly initialised, or with ``weights`` of a file. Each batch norm sees ``normalised_together`` examples.
    """
    arguments = run.model.arguments
    classes = arguments.pop("num_classes", dataset.outputs)
    if classes != dataset.outputs:
        what = "classes" if dataset.task == "classification" else "outputs"
        raise UserError(
            f"model.num_classes = {classes} does not fit data.name = {run.data.name}, which has "
            f"{dataset.outputs} {what}"
        )
    model = models.build(run.model.name, dataset.outputs, dataset.input_shape, run.seed, arguments)
    if weights is not None:
        models.begin_with(model, run.model.name, weights)
    models.freeze(model, run.model.name, run.model.frozen)
    for size in dataset.extremes:
        blank = dataset.blank(2, size)
        numbers = fit.check(model, run.model.name, task, blank, dataset.outputs, normalised_together)
        check_numbers(run, task_name(run, dataset.task), numbers)
    return model


def check_numbers(run: config.Run, task: str, numbers: list[str]) -> None:
    """Refuse what waits for, or expects, a number that evaluations of the task do not give."""
    name = f"task.name = {task}"
    if taken := (keys_of(EvaluateLine) | {*keys_of(SavedRecord), "files", "tree", "format"}) & set(numbers):
        raise UserError(
            f"an evaluation of {name} has a number called {min(taken)}, as a line of its record has already; call it "
            "otherwise"
        )
    for method in run.methods.values():
        for sentence in method.check_task(name, numbers):
            raise UserError(sentence)
    if run.expect is None:
        return
    for key, rows in (
        ("expect", run.expect),
        *((f"expect.by_batch_size.{s}", r) for s, r in run.expect.by_batch_size.items()),
    ):
        asked = {f"{key}.numbers.{number}": number for number in rows.numbers}
        asked |= {f"{key}.top1": ACCURACY.key} if rows.top1 is not None else {}
        for which, number in asked.items():
            if number not in numbers:
                raise UserError(f"{which} is no number of {name}; its numbers: {', '.join(numbers)}")


def normalised_together(run: config.Run, decided: Decided) -> int:
    """The examples that a batch norm sees in training, where they are fewest."""
    if run.batch.bn_batch_size is not None:
        return run.batch.bn_batch_size
    beside = (size for decision in decided.methods.values() for size in decision.micro_batches)
    return min([*(stage.micro_batch_size for stage in decided.plan.stages), *beside])


def dataset_of(run: config.Run, quiet: bool = False) -> data.Splits:
    return data.built(asked_of(run, quiet))


def asked_of(run: config.Run, quiet: bool = False) -> data.Asked:
    report = (lambda _: watchdog.alive()) if quiet else _told_once
    lengths = derive.lengths_of(run)
    return data.Asked.of(
        run.data,
        image_size=sizes_of(run),
        length=None if lengths is None else sizes_of_phases(*lengths),
        max_predictions=derive.predictions_of(run),
        report=report,
    )


def _told_once(text: str) -> None:
    """Of what takes long before the run has a log."""
    watchdog.alive()
    if distributed.is_first():
        tell(Console(stderr=True), text)


def sizes_of(run: config.Run) -> data.Sizes | None:
    section, stretch = run.data.image_size, run.stretch
    if (of_phases := derive.sides_of(run)) is not None:
        return sizes_of_phases(*of_phases)
    if section is None:
        return None
    until = None if section.until_epoch is None else section.until_epoch * stretch
    return data.Sizes(
        section.first,
        section.last,
        evaluate=section.evaluate or section.last,
        from_epoch=section.from_epoch * stretch,
        until_epoch=until,
        multiple_of=section.multiple_of,
    )


def with_batch_norm(run: config.Run, model: nn.Module, plan: BatchPlan) -> nn.Module:
    """The model with batch norms of the stated batch and statistics."""
    size, section = run.batch.bn_batch_size, run.batch_norm
    asked = size is not None or section.statistics != "running" or section.momentum is not None
    if asked and not any(True for _ in batch_norm.batch_norms(model)):
        key = "batch.bn_batch_size" if size is not None else "batch_norm"
        none = "has no batch norm" if not run.model.frozen else "has no batch norm that is not frozen"
        raise UserError(f"{key} has nothing to act on: model.name = {run.model.name} {none}; leave it out")
    if size is None and run.batch.tries_micro_batches and any(True for _ in batch_norm.batch_norms(model)):
        raise UserError(
            f"batch.micro_batch_size = auto would let the device decide what the batch norms of model.name = "
            f"{run.model.name} see; state batch.bn_batch_size, or a number"
        )
    if size is None and section.statistics == "last":
        size = plan.micro_batch_size  # torch's own would keep the last micro-batch, not the last step
    if size is not None:
        ranks = derive.synchronised_ranks(run, plan.world_size)
        group = distributed.consecutive(ranks) if ranks > 1 else None
        model = batch_norm.sized(model, size, plan.micro_batch_size, group, ranks)
    if section.statistics == "last":
        batch_norm.set_momentum(model, 1.0)
    elif section.momentum is not None:
        batch_norm.set_momentum(model, section.momentum)
    return model


def moving_buffers(run: config.Run, model: nn.Module, task: Task, dataset: data.Splits) -> set[str]:
    """Those that a training pass moves, where that matters: nothing else of the model is changed to know."""
    if run.engine.activation_checkpointing is None:
        return set()
    return fit.moving_buffers(model, run.model.name, task, dataset.blank(2))


def recomputed_where_asked(run: config.Run, model: nn.Module, moving: set[str]) -> nn.Module:
    """The model with activation checkpointing."""
    if (section := run.engine.activation_checkpointing) is not None:
        recomputed.recompute(model, run.model.name, section.modules, section.every)
        recomputed.check_moving(model, run.model.name, moving)
    return model


def optimizer_of(
    section: Optimizer, groups: Iterable[dict[str, Any]], lr: float, precision: str, engine: str, model: nn.Module
) -> torch.optim.Optimizer:
    groups = list(groups)
    if not groups:
        raise UserError("the model has no trainable parameters")
    return section.build(groups, lr, Surroundings(precision, engine, model))

"""A run directory -> its trained model and its data, ready to be looked at.

Whatever engine and world trained it: checkpoints hold whole weights, the mean of all workers where there were several.
Looked at are the trained weights, never their moving average.
The model is the plain one, in evaluation mode (nothing is dropped), in float32 without autocast unless asked for
float64. Training images come unaugmented, in a fixed random order, cut into the same batches in any world.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from largebatch import checkpoint, data
from largebatch.data.nested import Batch
from largebatch.data.resident import TensorSplit
from largebatch.diagnostics.objective import Objective
from largebatch.engines.engine import check_names
from largebatch.engines.states import whole_model
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.models import batch_norm
from largebatch.plan import batch
from largebatch.recipes import config
from largebatch.records import names
from largebatch.records.circumstances import circumstances_of
from largebatch.records.diagnoses import DiagnosisRecord
from largebatch.records.facts import write_json
from largebatch.records.typed import content
from largebatch.run import record
from largebatch.run.assemble import dataset_of, model_of, task_of
from largebatch.tasks.task import Task

SAMPLE_SEED = 20161609  # of the order in which training examples are looked at
ENOUGH = 10_000  # examples looked at unless asked for another number
DTYPES = {"fp32": torch.float32, "fp64": torch.float64}


@dataclasses.dataclass(frozen=True)
class Opened:
    """A run at one of its checkpoints."""

    directory: Path
    run: config.Run
    step: int
    checkpoint: Path
    task: Task
    dataset: data.Splits
    model: nn.Module
    placement: data.Placement

    @property
    def global_batch_size(self) -> int:
        """Of its first step."""
        return config.of_phases(self.run)[0].batch.global_batch_size

    @property
    def title(self) -> str:
        return self.run.title or self.run.name

    @property
    def has_batch_norm(self) -> bool:
        return any(True for _ in batch_norm.batch_norms(self.model))

    def mode(self, asked: str) -> str:
        """``none`` for a model without batch norm, else what was asked: ``batch`` or ``running`` statistics."""
        return asked if self.has_batch_norm else "none"

    def loss(self, batch: Batch) -> Tensor:
        """The training loss, summed, without weight decay."""
        return self.task.loss(self.task.forward(self.model, batch), batch)

    @contextlib.contextmanager
    def normalised_by(self, mode: str) -> Iterator[None]:
        """Inside, batch norms use the statistics of each batch (``batch``), or those that were kept (``running``)."""
        norms = list(batch_norm.batch_norms(self.model)) if mode == "batch" else []
        for norm in norms:
            norm.train()
        try:
            with batch_norm.frozen_statistics(self.model) if norms else contextlib.nullcontext(), enough_to_normalise():
                yield
        finally:
            for norm in norms:
                norm.eval()

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Inside, passes are those of training and leave no trace in batch norm."""
        self.model.train()
        try:
            with batch_norm.frozen_statistics(self.model), enough_to_normalise():
                yield
        finally:
            self.model.eval()

    def sample(self, examples: int | None, batch_size: int) -> TrainingSample:
        """The first ``examples`` of a fixed random order, in batches of equal size, at most ``batch_size``.

        Unless stated, they are 10,000, or all there are up to whole batches.
        """
        size = len(self.dataset.train)
        if examples is None:
            examples = min(ENOUGH, size)
            examples -= examples % batch_size if examples > batch_size else 0
        if not 1 <= examples <= size:
            raise UserError(f"--examples {examples} is out of range; {self.run.data.name} has 1 to {size} to train on")
        each = batch.largest_divisor(examples, batch_size)
        if 4 * each < min(examples, batch_size):
            near = batch.multiples_near(examples, batch_size, size)
            raise UserError(
                f"--examples {examples} cannot be cut into equal batches of about --batch-size {batch_size}; nearest "
                f"that can: {near}"
            )
        plan = batch.resolve(
            dataset_size=size, global_batch_size=examples, micro_batch_size=each, steps=1, seed=SAMPLE_SEED
        )
        return TrainingSample(self, plan)

    def objective(self, sample: TrainingSample) -> Objective:
        """The mean training loss over the sample as a function of the weights. Collective."""
        forward = functools.partial(self.task.forward, self.model)
        pairs = lambda: ((batch, batch) for batch in sample.mine())  # noqa: E731
        return Objective(self.model, pairs, sample.examples, self.task.loss, distributed.sum_, forward, self.task.units)

    def facts(self, command: str) -> dict[str, Any]:
        """What every measurement of these weights says of where it was made."""
        return {
            "run": self.run.name,
            "title": f"{self.title}, batch {self.global_batch_size:,}",
            "weights": ", not ".join(
                ["trained", *(method.BESIDE for method in self.run.methods.values() if method.BESIDE)]
            ),
            "directory": str(self.directory),
            "step": self.step,
            "model": self.run.model.name,
            "data": self.run.data.name,
            "precision": "fp64" if self.placement.dtype == torch.float64 else "fp32",
            **circumstances(self.placement.device, command),
        }


@dataclasses.dataclass
class TrainingSample:
    """Training examples as they are looked at, again and again: batches that do not depend on the world."""

    opened: Opened
    plan: batch.BatchPlan  # of one process: one step, whose micro-batches are the batches
    kept: list[Batch] | None = None  # this rank's, where they come from files: read once

    @property
    def batch_size(self) -> int:
        return self.plan.micro_batch_size

    def all(self) -> Iterator[Batch]:
        for step in self.opened.dataset.train.steps(self.plan, 0, 0, self.opened.placement, SAMPLE_SEED):
            yield from step

    @property
    def examples(self) -> int:
        return self.plan.global_batch_size

    def mine(self) -> Iterable[Batch]:
        """Every world-th batch."""
        if self.kept is not None:
            return self.kept
        batches = itertools.islice(self.all(), distributed.rank(), None, distributed.world_size())
        if isinstance(self.opened.dataset.train, TensorSplit):
            return batches
        self.kept = list(batches)
        return self.kept


@contextlib.contextmanager
def enough_to_normalise() -> Iterator[None]:
    """Inside, a batch norm that gets one value for a channel is a user's mistake."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "a batch of one example leaves batch norm one value per channel; take at least 2 (--batch-size, "
            "--examples, --small)"
        ) from None


def check_norm(asked: str, valid: tuple[str, ...] = ("batch", "running")) -> None:
    if asked not in valid:
        raise UserError(f"--batch-norm {asked} is not known; valid: {', '.join(valid)}")


def circumstances(device: torch.device, command: str) -> dict[str, Any]:
    return {"ranks": distributed.world_size(), **circumstances_of(command, device)}


def recipe_of(directory: Path) -> config.Run:
    """The recipe of a run directory."""
    file = directory / names.RECIPE
    if not file.is_file():
        raise UserError(f"{directory} is no run: it has no {names.RECIPE}; name a run directory, such as runs/baseline")
    return config.from_dict(config.read(file), str(file))


def opened(
    directory: Path,
    device: torch.device,
    precision: str = "fp32",
    step: int | None = None,
    augmented: bool = False,
) -> Opened:
    """The run in ``directory`` at its newest checkpoint, or at ``step``. Collective."""
    if precision not in DTYPES:
        raise UserError(f"--precision {precision} is not known; valid: {', '.join(DTYPES)}")
    run = recipe_of(directory)
    saved = [checkpoint.step_of(path) for path in checkpoint.existing(directory / names.CHECKPOINTS)]
    if step is not None and saved and step not in saved:
        raise UserError(
            f"{directory} has no checkpoint of step {step}; there are {', '.join(map(str, sorted(saved)))} "
            "(checkpoint.keep says how many stay)"
        )
    found = checkpoint.load_newest(directory / names.CHECKPOINTS, step, "train it again, or name another step or run")
    if found is None:
        raise UserError(
            f"{directory} has no checkpoint to look at; train it with checkpoint.every_epochs above 0, which saves "
            "the last weights, too"
        )
    plain = run.data.model_copy(
        update={"augment": "none", "color_jitter": 0.0, "policy": None, "mix": None, "erase": None}
    )
    dataset = dataset_of(run if augmented else run.model_copy(update={"data": plain}))
    task = task_of(run, dataset)
    model = model_of(run, task, dataset)
    weights = whole_model(found.state)
    check_names(weights, {name: tuple(value.shape) for name, value in model.state_dict().items()})
    model.load_state_dict(weights)
    dtype = DTYPES[precision]
    model = model.to(device=device, dtype=dtype).eval()
    done = found.facts["step_of_loop"]
    return Opened(directory, run, done, found.path, task, dataset, model, data.Placement(device, dtype))


def keep(directory: Path, measured: DiagnosisRecord) -> None:
    """Write it to ``RUN/diagnostics/<kind>.json``, on rank zero. Collective."""
    file = directory / names.DIAGNOSTICS / f"{measured.kind}.json"

    def write() -> None:
        file.parent.mkdir(exist_ok=True)
        write_json(file, content(measured))

    record.on_first_rank(write, str(file))

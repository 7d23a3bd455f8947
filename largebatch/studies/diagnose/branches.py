"""Branches of a training: from one of its checkpoints on, at k times its batch, over one stretch of examples.

A branch is a recipe: the run's, with its steps up to the checkpoint as a first phase and those of the branch as a
second one. So its batch plan, its examples, its micro-batches and the β of Adam's kind are those that a run with this
batch would have there, and its steps are made by what makes a run's. The weights, the optimizer's state, the random
states and what methods remember are the checkpoint's. The learning rate is the run's at the checkpoint times f(k), and
stays: what is asked is what the batch does to this rate, and a schedule that went on would mix its decay into it.
Order 0 of the data is the run's own, others are permutations by other seeds; all k of an order see the same examples in
the same order. Losses are those of training, each before its step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from largebatch import checkpoint, data
from largebatch.checkpoint import manifest
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.plan import schedules
from largebatch.plan.batch import BatchPlan
from largebatch.recipes import config, moments
from largebatch.recipes.decide import decide
from largebatch.records import names
from largebatch.records.diagnoses import BranchRecord
from largebatch.records.facts import write_json
from largebatch.records.files import sha256_of
from largebatch.records.typed import content, read
from largebatch.run import record
from largebatch.run.assemble import Job, assemble, data_facts, dataset_of
from largebatch.run.loop import Steps
from largebatch.run.measure import Measure
from largebatch.run.older import of_today
from largebatch.run.parts import Parts
from largebatch.run.saving import taken_up
from largebatch.studies.diagnose.opened import circumstances

OTHER_ORDERS = 0xB7A4C  # the seeds of orders that are not the run's own
LR_RULES = ("linear", "sqrt", "none")


class Branch(NamedTuple):
    factor: float  # k
    order: int  # of the data
    global_batch_size: int
    lr: float
    lr_rule: str
    window: int  # examples

    @property
    def steps(self) -> int:
        return self.window // self.global_batch_size


@dataclasses.dataclass(frozen=True)
class Trunk:
    """A run at one of its checkpoints, where branches begin."""

    directory: Path
    run: config.Run
    step: int
    checkpoint: Path
    lr: float  # of the step that the run makes there, or would
    dataset: data.Splits
    device: torch.device

    @property
    def global_batch_size(self) -> int:
        return self.run.batch.global_batch_size

    @property
    def examples_seen(self) -> int:
        return self.step * self.global_batch_size

    def branch(self, factor: float, order: int, lr_rule: str, window: int) -> Branch:
        size = round(factor * self.global_batch_size)
        lr = schedules.scaled_lr(self.lr, lr_rule, size, self.global_batch_size)
        return Branch(factor, order, size, lr, lr_rule, window)

    def recipe(self, branch: Branch) -> config.Run:
        """Its two phases; what only looks on is left out."""
        written = self.run.as_set()
        looking_on = [method.KEY for method in self.run.methods.values() if not method.CHANGES]
        for key in ("epochs", "expect", "record", "search", "engine.cuda_graphs", *looking_on):
            _without(written, key)
        seed = self.run.seed if not branch.order else (self.run.seed ^ OTHER_ORDERS) + branch.order
        written |= {
            "seed": seed % 2**32,
            "steps": self.step + branch.steps,
            "lr": {"base": branch.lr},
            "phases": [
                {"steps": self.step, **_moments(self.run, self.global_batch_size)},
                {"batch.global_batch_size": branch.global_batch_size, **_moments(self.run, branch.global_batch_size)},
            ],
        }
        return config.from_dict(written, "the branch")

    def plan(self, branch: Branch) -> BatchPlan:
        """Raises UserError where its batch cannot be cut."""
        facts, world = data_facts(self.dataset), distributed.world_size()
        return decide(self.recipe(branch), facts, world, self.device.type).plan

    @contextlib.contextmanager
    def told_of(self, branch: Branch) -> Iterator[None]:
        """A refusal inside says which branch it is about."""
        try:
            yield
        except UserError as error:
            reason = str(error).removeprefix("phases.2: ").replace("phases.2: batch", "batch")
            raise UserError(
                f"{branch.factor:g} times the batch, {branch.global_batch_size}, at step {self.step}: {reason}"
            ) from None


def trunks(directory: Path, run: config.Run, steps: list[int], device: torch.device) -> list[Trunk]:
    """The run at these checkpoints; if none is named at all of them, but where its lr has come to 0. Collective."""
    check(run)
    folder = directory / names.CHECKPOINTS
    saved = sorted(checkpoint.step_of(path) for path in checkpoint.existing(folder))
    if not saved:
        raise UserError(
            f"{directory} has no checkpoint to branch from; train it with checkpoint.every_epochs above 0 and "
            "checkpoint.keep.last or keep.every_epochs for several"
        )
    if missing := [step for step in steps if step not in saved]:
        raise UserError(
            f"--steps {missing[0]}: {directory} has no checkpoint of this step; there are "
            f"{', '.join(map(str, saved))} (checkpoint.keep says how many stay)"
        )
    dataset, made = _dataset(run), []
    decided = decide(run, data_facts(dataset), distributed.world_size(), device.type)
    for step in sorted(set(steps or saved)):
        lr = decided.lr_at(decided.plan.examples_before(step))
        if lr > 0:
            found = checkpoint.load_newest(folder, step, "name other steps")
            assert found is not None
            made.append(Trunk(directory, run, step, found.path, lr, dataset, device))
        elif step in steps or len(saved) == 1:
            raise UserError(f"--steps {step}: the lr is 0 there, with which no branch moves; name an earlier step")
    return made


def check(run: config.Run) -> None:
    """Refuse a run of whose steps none can be said to have one batch and one rate."""
    for key, there in (
        ("phases", run.phases is not None),
        ("batch.ramp", run.batch.ramp is not None),
        ("regime_adaptation", run.regime_adaptation is not None),
        ("data.image_size that grows", run.data.image_size is not None and not run.data.image_size.is_constant),
    ):
        if there:
            raise UserError(
                f"diagnose critical asks what k times the batch of a run would lose, and {key} makes several runs of "
                "it; take a run of one batch, such as one of its phases alone"
            )
    for method in run.methods.values():
        if method.ALONE:
            raise UserError(
                f"diagnose critical has one batch for all, and {method.where} lets workers go alone with batches of "
                "their own; take a run without it"
            )
        if method.clock(run) is not None:
            raise UserError(
                f"diagnose critical sets the lr of each batch, and {method.where} does so at every step; take a run "
                "without it"
            )


def _dataset(run: config.Run) -> data.Splits:
    """As branches read it, whatever their batch: in two phases."""
    written = {**run.as_set(), "phases": [{"until_share": 0.5}, {}]}
    return dataset_of(config.from_dict(written, "the branches"))


def _without(written: dict[str, Any], key: str) -> None:
    *above, name = key.split(".")
    section: Any = written
    for part in above:
        section = section.get(part)
        if not isinstance(section, dict):
            return
    section.pop(name, None)


def _moments(run: config.Run, size: int) -> dict[str, Any]:
    """What lr.scaling = adam_sqrt makes of β and ε at this batch; its rule leaves the branch with its lr section."""
    stated, at_batch = run.optimizer.moments, moments.at_batch(run, size).optimizer.moments
    if run.lr.scaling != moments.RULE or stated is None or at_batch is None:
        return {}
    return {f"optimizer.{key}": value for key, value in at_batch._asdict().items() if value is not None}


def kept_or_trained(trunk: Trunk, branch: Branch, held_out: bool, command: str) -> tuple[BranchRecord, bool]:
    """Its record, and whether it was trained for it now. Collective."""
    file = (
        trunk.directory / names.DIAGNOSTICS / "critical" / f"step-{trunk.step}" / f"{branch.window}-{branch.lr_rule}"
    ) / f"k{branch.factor:g}-order{branch.order}.json"
    digest = distributed.from_first(sha256_of(trunk.checkpoint / manifest.MANIFEST))
    kept = distributed.from_first(_kept(file) if distributed.is_first() else None)
    same = kept is not None and (kept.checkpoint, kept.lr, kept.global_batch_size, kept.window) == (
        digest, branch.lr, branch.global_batch_size, branch.window,
    )  # fmt: skip
    if kept is not None and same and (kept.held_out_loss is not None or kept.diverged or not held_out):
        return kept, False
    made = trained(trunk, branch, held_out, digest, command)

    def write() -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, content(made))

    record.on_first_rank(write, str(file))
    return made, True


def _kept(file: Path) -> BranchRecord | None:
    """None for what cannot be read as one: it is trained again."""
    try:
        return read(BranchRecord, json.loads(file.read_bytes()), file)
    except (OSError, ValueError, UserError):
        return None


def trained(trunk: Trunk, branch: Branch, held_out: bool, digest: str, command: str = "") -> BranchRecord:
    """The branch, step by step as its run would make them. Collective."""
    with trunk.told_of(branch):
        job, parts = built(trunk, branch)
    clock = time.perf_counter()
    losses = losses_of(job, parts, trunk.step)
    seconds = time.perf_counter() - clock
    held_out_loss = None
    if held_out:
        with contextlib.closing(Measure(job, parts).during(job.plan.steps)) as evaluations:
            held_out_loss = next(evaluations)[1].loss
    return BranchRecord(
        run=trunk.run.name,
        directory=str(trunk.directory),
        step=trunk.step,
        checkpoint=digest,
        factor=branch.factor,
        order=branch.order,
        global_batch_size=branch.global_batch_size,
        micro_batch_size=job.plan.at(trunk.step).micro_batch_size,
        lr=branch.lr,
        lr_rule=branch.lr_rule,
        window=branch.window,
        losses=losses,
        held_out_loss=held_out_loss,
        seconds=seconds,
        **circumstances(trunk.device, command),
    )


def built(trunk: Trunk, branch: Branch) -> tuple[Job, Parts]:
    """The job of a branch at its beginning. Collective."""
    job = assemble(trunk.recipe(branch), trunk.device, trunk.dataset, begun=True, quiet=True)
    parts = Parts(job)
    state = checkpoint.state_of(trunk.checkpoint, manifest.read(trunk.checkpoint))  # read anew: branches step on it
    taken_up(job, parts, of_today(state, job.plan), trunk.step)
    if branch.order:
        checkpoint.seed_rank(job.decided.seed, trunk.step)
    return job, parts


def losses_of(job: Job, parts: Parts, first: int) -> list[float]:
    """Train from step ``first`` to the plan's end: the loss of each step, of all ranks. Collective."""
    steps, plan = Steps(job, parts), job.plan
    stream = job.dataset.train.steps(plan, distributed.rank(), first, job.placement, job.decided.seed)
    job.engine.model.train()
    losses = []
    for number in range(first, plan.steps):
        loss = steps.make(steps.begin(number), next(stream)).loss
        assert loss is not None
        losses.append(loss.double())
    return distributed.sum_(torch.stack(losses)).tolist()

"""Dry runs of a step, kept between plans: a file for each trace, named by all that it depends on.

What a trace depends on is the recipe (without its name, its folder and what it expects), the data's size, the batch
on how many ranks, and the source of this package with torch's version.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.records.facts import write_json
from largebatch.records.plan import KeptTrace, TracedCollective
from largebatch.records.typed import content, read

PACKAGE = Path(__file__).parents[2]
ROOMS = (
    "optim", "plan", "recipes", "data", "models", "tasks", "optimizers", "machine", "engines", "steps", "methods",
    "run", "studies/dry_run",
)  # fmt: skip
NO_MATTER = (
    "name", "title", "seed", "record", "checkpoint", "expect", "search", "resume", "timeout_minutes", "epochs", "steps",
    "lr",
)  # fmt: skip
"""Keys that change no trace."""
RATES = ("optimizer", "weight_decay")
"""Sections of whose real numbers only matters whether they are zero."""


@dataclass(frozen=True)
class TracedShape:
    """How a global batch is cut; of many micro-batches a dry run makes two."""

    world: int
    micro: int
    accumulation: int = 1

    @property
    def batch(self) -> int:
        return self.world * self.micro * self.accumulation


class Traces:
    """Of one recipe, without phases, at one of its batches."""

    def __init__(
        self, run: config.Run, device: str, examples: int | None, classes: int | None, note: Callable[[str], None],
        folder: Path | None = None,
    ) -> None:  # fmt: skip
        self.run, self.device, self.examples, self.classes, self.note = run, device, examples, classes, note
        self.folder = folder or folder_of_traces()
        self.known: dict[TracedShape, KeptTrace] = {}

    def at(self, shape: TracedShape) -> KeptTrace:
        """Kept, or traced now; UserError where ``train`` would refuse."""
        if shape not in self.known:
            file = self.folder / f"{self._key(shape)}.json"
            self.known[shape] = _kept(file) or self._trace(shape, file)
        return self.known[shape]

    def alike(self, other: Traces) -> bool:
        """Whether both find the same files."""
        shape = TracedShape(1, 1)
        return self._key(shape) == other._key(shape)

    def _key(self, shape: TracedShape) -> str:
        written = {key: value for key, value in self.run.as_written().items() if key not in NO_MATTER}
        written["batch"] = {**written["batch"], **_sizes(shape)}
        for section in RATES:
            written[section] = {key: _whether(value) for key, value in written[section].items()}
        text = json.dumps([written, self.device, self.examples, self.classes, shape.world, version()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _trace(self, shape: TracedShape, file: Path) -> KeptTrace:
        self.note(f"tracing a step of micro-batch {shape.micro:,} on {shape.world:,} ranks; the trace is kept")
        from largebatch.studies.dry_run import Cluster, of_step
        from largebatch.studies.dry_run.job import pretended

        run = self.run.model_copy(update={"batch": self.run.batch.model_copy(update=_sizes(shape))})
        with pretended(shape.world):
            job, traced = of_step(run, Cluster(shape.world, self.device, self.examples, self.classes))
        examples = traced.micro_batch_size * traced.accumulation_steps
        made = KeptTrace(
            micro_batch_size=shape.micro, accumulation_steps=shape.accumulation, world_size=shape.world,
            bytes_by_part=traced.bytes_by_part, evaluation_bytes=traced.evaluation_bytes,
            evaluation_batch_size=job.decided.evaluating.batch_size, test_examples=len(job.dataset.test),
            flops=traced.flops / examples, convolutions=traced.convolutions / traced.flops if traced.flops else 0.0,
            collectives=_counted(traced.collectives, shape.accumulation),
        )  # fmt: skip
        with contextlib.suppress(OSError):  # a plan needs no folder that can be written
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, content(made))
        return made


def _sizes(shape: TracedShape) -> dict[str, int]:
    return {"global_batch_size": shape.batch, "micro_batch_size": shape.micro}


def _whether(value: object) -> object:
    return bool(value) if isinstance(value, float) else value


def _counted(calls: list[tuple[Any, int]], accumulation: int) -> list[TracedCollective]:
    """Where a trace stands for more than two micro-batches, its first stands for all but the last."""
    counts: collections.Counter[tuple[str, str, int, int, bool]] = collections.Counter()
    for call, _ in calls:
        counts[call.name, call.what_for, call.ranks, call.bytes, accumulation > 1 and call.moment == 1] += 1
    return [
        TracedCollective(collective=name, what_for=what, ranks=ranks, bytes=size, calls=number, repeated=repeated)
        for (name, what, ranks, size, repeated), number in counts.items()
    ]


def _kept(file: Path) -> KeptTrace | None:
    """None where there is none, or one that cannot be read."""
    try:
        return read(KeptTrace, json.loads(file.read_text(encoding="utf-8")), file)
    except (OSError, ValueError, UserError):
        return None


def folder_of_traces() -> Path:
    """``$LARGEBATCH_CACHE``, else below that of the user."""
    if stated := os.environ.get("LARGEBATCH_CACHE"):
        return Path(stated).expanduser() / "traces"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "largebatch" / "traces"


@functools.cache
def version() -> str:
    """Of torch, and of every source file that a step is made by."""
    digest = hashlib.sha256(importlib.metadata.version("torch").encode())
    for room in ROOMS:
        for file in sorted((PACKAGE / room).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()

"""A picture of the first examples of a training batch as the network sees them (``record.pictures``).

After everything that is done to them: crop, policy, erasing, mixup and cutmix, on whichever device; only the
normalisation is undone. What is shown is copied from the batch that is trained on, by rank 0 of its own share, so
nothing is read or drawn for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from largebatch.methods import Built, Method, Part, PartRecorder
from largebatch.recipes.keys import PositiveInt

if TYPE_CHECKING:
    from torch import Tensor

    from largebatch.data.nested import Batch
    from largebatch.recipes.config import Run
    from largebatch.steps.step import Step

KEY = "record.pictures"
CHANNELS = (1, 3)


class Pictures(Method):
    """Of the first batch; of the session's first where the run goes on and has none yet."""

    KEY = KEY
    SECTION = False
    CHANGES = False
    OF_RUN = True

    count: PositiveInt

    @classmethod
    def asked(cls, run: Run) -> Pictures | None:
        return cls(count=run.record.pictures) if run.record.pictures else None

    def check_inputs(self, data: str, shape: tuple[int, ...]) -> Iterator[str]:
        if len(shape) != 3 or shape[0] not in CHANNELS:
            told = "×".join(map(str, shape)) or "one number"
            yield (
                f"{KEY} = {self.count} shows images of 1 or 3 channels, and data.name = {data} has inputs of {told}; "
                "leave it out"
            )

    def part(self, job: Built) -> PicturesOfRun:
        return PicturesOfRun(self, job)


class PicturesOfRun(Part):
    """Copies the first examples on their way to the network, and draws them at the next mark."""

    def __init__(self, method: Pictures, job: Built) -> None:
        from largebatch.machine import distributed

        self.job, self.count = job, method.count
        self.folder = Path(job.decided.directory)
        self.missing = method.count if distributed.is_first() else 0
        self.inputs: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.step: int | None = None  # whose they are

    def turns(self, turns: Iterator[Step]) -> Iterator[Step]:
        return self._watched(turns) if self.missing and self.step is None else turns

    def _watched(self, turns: Iterator[Step]) -> Iterator[Step]:
        for turn in turns:
            if self.step is None:
                self.step = turn.number + 1
                if turn.number and self._drawn_before():
                    self.missing = 0
                else:
                    turn.micro_batches = self._copied(turn.micro_batches)
            yield turn

    def _drawn_before(self) -> bool:
        from largebatch.records import names

        return any((self.folder / names.PICTURES).glob("*.json"))

    def _copied(self, micro_batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in micro_batches:
            if self.missing:
                self._copy(batch)
            yield batch
        self.missing = 0

    def _copy(self, batch: Batch) -> None:
        import torch

        from largebatch.data.nested import tensors_of

        inputs, *others = (tensor[: self.missing].detach().clone() for tensor in tensors_of(batch))
        self.inputs.append(inputs)
        if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], torch.Tensor):
            self.labels.append(others[-1])
        self.missing -= len(inputs)

    def read(self, recorder: PartRecorder) -> None:
        if not self.inputs or self.step is None:
            return
        import torch

        from largebatch.methods import _batch_pictures as drawing

        inputs = torch.cat(self.inputs).cpu()
        labels = torch.cat(self.labels).cpu() if self.labels else None
        self.inputs, self.labels = [], []
        try:
            record, pixels = drawing.write(self.folder, self.step, inputs, labels, self.job.dataset, self.job.task)
        except OSError as problem:
            recorder.say(f"{KEY}: the picture cannot be written ({problem.strerror or problem}); the run goes on")
            return
        recorder.picture("batch/training", pixels, self.step)
        less = f", all that rank 0 has in step {self.step}" if record.examples < self.count else ""
        place = self.folder / drawing.at(record)
        recorder.say(f"{KEY}: {record.examples} examples as the network sees them{less}, in {place}")

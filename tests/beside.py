"""A part that a test adds to every run of its process: what is to happen at a step, whoever started the run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from largebatch.run import parts
from largebatch.run.assemble import Job
from largebatch.run.loop import Steps
from largebatch.steps.part import Part, Running
from largebatch.steps.step import Step


def steps_of(job: Job) -> Steps:
    """The steps of a job, with its methods' parts, and no run around them."""
    return Steps(job, parts.Parts(job))


def stepped(steps: Steps, number: int, micro_batches: Any) -> Step:
    return steps.make(steps.begin(number), micro_batches)


Act = Callable[[Job, Step], Any]


class Acts(Part):
    def __init__(
        self,
        job: Job,
        before: Act | None = None,
        turn: Act | None = None,
        with_gradient: Act | None = None,
        after: Act | None = None,
        afterwards: Callable[[Job, Running], Any] | None = None,
        shown: Callable[[Job], Any] | None = None,
    ) -> None:
        self.job = job
        self.acts = {
            "before": before, "turn": turn, "with_gradient": with_gradient, "after": after, "afterwards": afterwards,
        }  # fmt: skip
        self.looks = shown

    def act(self, moment: str, subject: Any) -> None:
        if (act := self.acts[moment]) is not None:
            act(self.job, subject)

    def before(self, step: Step) -> None:
        self.act("before", step)

    def turns(self, turns: Iterator[Step]) -> Iterator[Step]:
        for turn in turns:
            self.act("turn", turn)
            yield turn

    def with_gradient(self, turn: Step) -> None:
        self.act("with_gradient", turn)

    def after(self, step: Step) -> None:
        self.act("after", step)

    def afterwards(self, run: Running) -> None:
        self.act("afterwards", run)

    def shown(self) -> contextlib.AbstractContextManager[Any]:
        if self.looks is not None:
            self.looks(self.job)
        return contextlib.nullcontext()


def add(**acts: Any) -> str:
    """From now on every run calls these: before, turn, with_gradient, after, afterwards, shown; with its job.

    The name of the part.
    """
    name = f"test {len(parts.everywhere)}"
    parts.everywhere[name] = lambda job: Acts(job, **acts)
    return name


@contextlib.contextmanager
def beside(**acts: Any) -> Iterator[None]:
    """Inside, every run that begins does."""
    name = add(**acts)
    try:
        yield
    finally:
        del parts.everywhere[name]

"""The parts of a run, by name, in the order in which they are called: those of its methods, then any that are added."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from largebatch.errors import UserError
from largebatch.recipes.registry import code_of
from largebatch.run.assemble import Job
from largebatch.steps.part import Beyond, Part
from largebatch.steps.step import Step

Added = Mapping[str, Callable[[Job], Part]]  # name -> what makes one
WANTED = "{name: function of the built job that makes a largebatch.Part}"

everywhere: dict[str, Callable[[Job], Part]] = {}  # parts of every run of this process: of who starts it, or looks on


class Parts(dict[str, Part]):
    """Name -> part, and what all of them together say.

    ``of_run``: they stand beside a run, and not beside steps of a dry run, a bench or a diagnosis.
    """

    def __init__(
        self, job: Job, added: Added | None = None, of_run: bool = False, of_methods_alone: bool = False
    ) -> None:
        super().__init__()
        self.code = told_code(job, added)
        for name, decision in job.decided.methods.items():
            if decision.OF_RUN and not of_run:
                continue
            if (part := decision.part(job)) is not None:
                self[name] = part
        if of_methods_alone:
            return
        self.update({name: _made(name, make, job) for name, make in _makers(added).items()})

    def turns(self, step: Step) -> Iterator[Step]:
        """What the optimizer steps on in a step of the run."""
        turns = iter([step])
        for part in self.values():
            turns = part.turns(turns)
        return turns

    @property
    def over(self) -> bool:
        return any(part.over for part in self.values())

    @property
    def stale_statistics(self) -> bool:
        return any(part.stale_statistics for part in self.values())

    @property
    def beyond(self) -> Beyond:
        """Of all of them."""
        return Beyond(*(sum(numbers) for numbers in zip(*(part.beyond for part in self.values()), strict=True)))


def _makers(added: Added | None) -> Added:
    if not isinstance(added or {}, Mapping):
        raise UserError(f"parts is a {type(added).__name__}; it should be {WANTED}")
    return {**(added or {}), **everywhere}


def _made(name: str, make: Callable[[Job], Part], job: Job) -> Part:
    part = make(job) if callable(make) else make
    if not callable(make) or not isinstance(part, Part):
        raise UserError(f"parts: {name} is {'made ' * callable(make)}a {type(part).__name__}; it should be {WANTED}")
    return part


def told_code(job: Job, added: Added | None) -> dict[str, dict[str, str | None]]:
    """Where parts that are not the package's are written, by the key that names each, as records have it."""
    beside = {f"parts.{name}": code_of(make) for name, make in _makers(added).items()}
    return {key: code._asdict() for key, code in {**job.decided.code, **beside}.items()}

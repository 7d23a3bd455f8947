"""What a method of a recipe is, and all of them by name: one file each in the folder ``largebatch/methods``, and those
that are registered.

A file holds the method's keys with their ranges, what it does not go with, its words, and the part that it is of a run.
Reading one loads no torch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

import pydantic
from pydantic import BeforeValidator

from largebatch.errors import UserError
from largebatch.recipes import kinds
from largebatch.recipes.keys import Section
from largebatch.recipes.registry import Registry

if TYPE_CHECKING:
    from largebatch.plan.batch import BatchPlan
    from largebatch.plan.score import Score
    from largebatch.recipes.config import LearningRate, Run

# The table: their parts stand in a run in this order.
ORDER = (
    "pictures", "step_times", "adascale", "post_local_sgd", "sam", "layers", "directions", "noise_scale",
    "outer_momentum", "schedule_free", "ema", "lawa", "swap", "target", "memory_snapshot", "profile",
)  # fmt: skip


class MicroBatchWish(NamedTuple):
    """What a method asks of the micro-batch: ``size`` examples, or a divisor of ``within`` of them; and the key."""

    why: str
    size: int | None = None
    within: int | None = None


class GainClock(NamedTuple):
    """A step counts as many steps of ``reference`` examples as its gain says, 1 to ``parts``."""

    parts: int
    reference: int


class AveragedEvery(NamedTuple):
    """From an epoch on workers step alone, and have the same weights after every ``period`` steps."""

    from_epoch: float
    period: int


class Decision:
    """What was decided of a method; frozen, without torch."""

    OF_RUN: ClassVar[bool] = False  # whether its part stands beside a run alone, and not beside steps that are tried

    @property
    def words(self) -> str | None:
        """What it does, in a sentence, printed before time is spent."""
        return None

    @property
    def gradient_part(self) -> int:
        """Examples of the parts of the first step whose gradients are measured; 0: none are."""
        return 0

    @property
    def micro_batches(self) -> tuple[int, ...]:
        """In which it trains beside the plan's."""
        return ()

    @property
    def sets(self) -> int:
        """Sets of weights and optimizer states that all ranks together hold at a time."""
        return 1

    @property
    def passes(self) -> int:
        """Forward and backward passes over each example of a step."""
        return 1

    def first_difference(self, now: Any, steps: int) -> str | None:
        """What it did in the first ``steps``, and ``now``, decided of the same method for another budget, would not
        have done, in words that follow its name; None: nothing."""
        return None if self == now else "is planned over the whole run"

    def grown(self, plan: BatchPlan) -> Decision:
        """The same from where the batch has grown: ``plan`` is that of the run from there on. It refuses nothing."""
        return self

    def part(self, job: Any) -> Any:
        """A :class:`~largebatch.steps.part.Part` of a run; None: it needs none."""
        return None


class Method(Section, Decision):
    """A method, as a recipe asks for it."""

    KEY: ClassVar[str]  # where it stands in a recipe; several that share one are told apart by their ``name``
    SECTION: ClassVar[bool] = True  # whether its own keys stand there
    ROW: ClassVar[str | None] = None  # what its row of `recipe show` is called
    SWITCH: ClassVar[bool] = False  # whether true and false may be written for its section
    CHANGES: ClassVar[bool] = True  # whether by it the weights become others
    WHOLE: ClassVar[bool] = False  # whether it needs whole weights on every rank, and gradients that are not scaled
    REPLAYED: ClassVar[bool] = True  # whether forward and backward are the same in every step
    AT_WEIGHTS: ClassVar[bool] = False  # whether it measures gradients, and means those at the weights
    ONE_STEP: ClassVar[bool] = False  # whether it looks at the one step that all take together
    ALONE: ClassVar[str | None] = None  # "by turns", "at the end": whether, and when, workers go alone
    BESIDE: ClassVar[str | None] = None  # other weights that are evaluated beside the trained ones
    RECOMPUTES: ClassVar[bool] = False  # whether it evaluates weights whose batch-norm statistics are recomputed
    STALE_STATISTICS: ClassVar[bool] = False  # whether batch norm's are never those of the weights that are judged
    ENDS_EARLY: ClassVar[bool] = False  # whether its plan may end early; a target cuts what comes after it
    MEASURES_MICRO_BATCHES: ClassVar[bool] = False  # whether what it records is of the micro-batch
    EQUAL_UNITS: ClassVar[bool] = False  # whether it needs examples that count alike
    DEVICE: ClassVar[str | None] = None  # the one kind that it has something to do on: cuda

    @classmethod
    def written(cls, value: Any) -> Any:
        """What is validated in place of what was written."""
        return {True: {}, False: None}[value] if cls.SWITCH and isinstance(value, bool) else value

    @classmethod
    def asked(cls, run: Run) -> Method | None:
        """As the recipe asks for it; None where it does not."""
        value = _stands_at(run, cls.KEY)
        return value if isinstance(value, cls) else None

    @classmethod
    def rule(cls, lr: LearningRate, global_batch_size: int) -> str:
        """The words of the lr, where the method is asked for by ``lr.scaling`` and sets it."""
        raise NotImplementedError

    @property
    def where(self) -> str:
        """The key that asks for it: ``averaging.name = swap``."""
        return f"{self.KEY}.name = {name}" if (name := getattr(self, "name", None)) else self.KEY

    def refusals(self, run: Run, precision: str) -> Iterator[str]:
        """What of the recipe it does not go with: a sentence for each, with the keys and what would be valid."""
        yield from ()

    @property
    def counts_on_steps(self) -> bool:
        """Whether what it does at a step depends on how many there will be."""
        return False

    def check_task(self, name: str, numbers: list[str]) -> Iterator[str]:
        """The same of the task called ``name``, whose evaluations give these ``numbers``."""
        yield from ()

    def check_inputs(self, data: str, shape: tuple[int, ...]) -> Iterator[str]:
        """The same of the data set called ``data``, whose examples begin with a tensor of this ``shape``."""
        yield from ()

    def check_score(self, score: Score) -> Iterator[str]:
        """The same of the number that the run is judged by."""
        yield from ()

    def micro_batch(self, run: Run, world_size: int) -> MicroBatchWish | None:
        """Raises UserError for numbers that do not fit."""
        return None

    def clock(self, run: Run) -> GainClock | None:
        """The one of the run, where it is not the examples seen."""
        return None

    def averages(self, run: Run) -> AveragedEvery | None:
        """Of workers that step by turns, where it has any."""
        return None

    def saved(self, states: float) -> float:
        """Tensors as large as the weights that a checkpoint has for it; ``states`` are those of the optimizer."""
        return 0

    def decide(self, run: Run, plan: BatchPlan, largest_micro_batch: int) -> Decision:
        """Raises UserError for numbers that do not fit."""
        return self


class Recorded(Method):
    """A method that looks on, and whose key holds how often: every so many steps, 0 for never."""

    SECTION = False
    CHANGES = False

    every_steps: int

    @classmethod
    def asked(cls, run: Run) -> Recorded | None:
        every = _stands_at(run, cls.KEY)
        return cls(every_steps=every) if every else None

    def first_difference(self, now: Any, steps: int) -> str | None:
        return None  # of the steps themselves


def _stands_at(run: Run, key: str) -> Any:
    value: Any = run
    for name in key.split("."):
        value = getattr(value, name, None)
    return value


class NoMethod(Section):
    """Where one of several methods could stand, and none does."""

    name: Literal["none"] = "none"


PACKAGE = "largebatch.methods"


@functools.cache
def of_package() -> dict[str, type[Method]]:
    """By name, in the order of their parts."""
    files = kinds.modules(PACKAGE, kinds.folders(PACKAGE))
    if files.keys() != set(ORDER):
        odd = ", ".join(sorted(files.keys() ^ set(ORDER)))
        raise AssertionError(f"{odd}: largebatch.recipes.methods.ORDER names the files of {PACKAGE}, and no other")
    return {name: _method_in(files[name]()) for name in ORDER}


def _a_method(name: str, thing: Any) -> type[Method]:
    if not (isinstance(thing, type) and issubclass(thing, Method)):
        raise UserError(
            f"{name} is registered as a method, which should be a class that is a largebatch.methods.Method"
        )
    return thing


REGISTRY: Registry[type[Method]] = Registry("methods", _a_method, lambda: list(ORDER))


def table() -> dict[str, type[Method]]:
    """Every method by its name, in the order of their parts: registered ones last."""
    return {**of_package(), **REGISTRY.known()}


def _method_in(module: Any) -> type[Method]:
    """The one that the module defines."""
    (method,) = (
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Method) and kind.__module__ == module.__name__
    )
    return method


def of(run: Run) -> Mapping[str, Method]:
    """Those that a recipe asks for, by name, in their order."""
    return {name: method for name, kind in table().items() if (method := kind.asked(run)) is not None}


Holding = TypeVar("Holding", bound=Section)


def holding(section: type[Holding], key: str = "") -> type[Holding]:
    """The ``section`` that stands at ``key`` of a recipe, with the keys of the methods that stand in it."""
    fields: Any = fields_at(key)
    return pydantic.create_model(section.__name__, __base__=section, __module__=section.__module__, **fields)


def fields_at(key: str) -> dict[str, tuple[Any, Any]]:
    """The keys of methods that stand at ``key`` of a recipe: the type of each, and what it is where it is left out."""
    choices: dict[str, list[type[Method]]] = {}
    for kind in table().values():
        above, _, name = kind.KEY.rpartition(".")
        if kind.SECTION and above == key:
            choices.setdefault(name, []).append(kind)
    return {name: _field(kinds) for name, kinds in choices.items()}


def _field(choices: list[type[Method]]) -> tuple[Any, Any]:
    if "name" in choices[0].model_fields:
        named = kinds.one_of({"none": NoMethod, **{str(kind): kind for kind in choices}})
        none_is_null = BeforeValidator(lambda written: {"name": "none"} if written is None else written)
        return Annotated[named, none_is_null], NoMethod()
    (only,) = choices
    return Annotated[only | None, BeforeValidator(only.written)], None


def in_steps(count: int) -> str:
    return "step" if count == 1 else f"{count} steps"

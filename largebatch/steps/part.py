"""What stands beside the steps of a run: it follows them, looks at them, or makes another step of them. No torch.

All that a part may do is here, and all of it is optional. The run holds its parts in one list, in the order of
:data:`largebatch.recipes.methods.ORDER`, and calls every one on every rank, so a part may communicate:

    before          the step has its number and its rates, and no examples yet
    turns           other micro-batches for it, or several steps in its place
    with_gradient   the gradient of all ranks is there, and the weights are those that it was taken at
    after           the step is done
    read            what waits on the device is recorded
    evaluated       there is an evaluation, of the weights that are judged or of others
    afterwards      the steps are over; the evaluation at the end is still to come
    close           the run ends here, however it does
    save, load      what it remembers between two steps, in tensors, numbers and text
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from largebatch.checkpoint.pieces import State
    from largebatch.data import Placement, Splits
    from largebatch.engines import Engine
    from largebatch.plan.batch import BatchPlan
    from largebatch.recipes.decided import Decided
    from largebatch.records.target import AtScore
    from largebatch.steps.evaluate import Evaluation
    from largebatch.steps.step import Step
    from largebatch.tasks.task import Task


class Diverged(Exception):
    """The loss is not finite any more."""


class Beyond(NamedTuple):
    """What was trained after the steps of the plan."""

    executed: int = 0  # steps of this rank, one after another
    steps: int = 0  # one after another, that the weights to be judged have seen; and examples
    examples: int = 0


class Built(Protocol):
    """What a part is made of: everything that was decided and built."""

    @property
    def decided(self) -> Decided: ...
    @property
    def plan(self) -> BatchPlan:
        """Another from where an adaptive ramp has the batch grow: to be asked for anew at each step."""
        ...

    @property
    def device(self) -> torch.device: ...
    @property
    def task(self) -> Task: ...
    @property
    def dataset(self) -> Splits: ...
    @property
    def placement(self) -> Placement: ...
    @property
    def engine(self) -> Engine: ...


class PartRecorder(Protocol):
    """Where a part records what it has seen."""

    def event(self, event: str, /, **facts: Any) -> None: ...
    def layers(self, step: int, examples_seen: int, summary: dict[str, float], by_layer: dict[str, Any]) -> None: ...
    def say(self, text: str, /) -> None: ...
    def picture(self, tag: str, pixels: Any, step: int) -> None: ...


class Running(Protocol):
    """The run, to a part that goes on after its steps."""

    @property
    def recorder(self) -> PartRecorder: ...
    @property
    def step(self) -> int: ...
    def take(self, turn: Step) -> Tensor: ...
    def stoppable(self, doing: str) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """What is called inside, after each step: it raises where a rank was asked to stop. Collective."""
        ...

    def spent(self, seconds: float) -> None:
        """Training took so long."""
        ...

    def new_weights(self) -> None:
        """Evaluations so far were of other weights than those that will be judged."""
        ...

    def save(self) -> None: ...


class Part:
    """Made before a checkpoint is loaded, where the weights are the first."""

    over: bool = False  # whether the steps end here, before the plan does
    stale_statistics: bool = False  # batch norm's do not belong to the weights: an evaluation recomputes them
    stale_views: bool = False  # the same of the weights of its views
    beyond: Beyond = Beyond()

    def before(self, step: Step) -> None: ...

    def turns(self, turns: Iterator[Step]) -> Iterator[Step]:
        """What the optimizer steps on, one after another; each is taken before the next is asked for."""
        return turns

    def with_gradient(self, turn: Step) -> None:
        """Not called where a rank is alone with its weights."""

    def after(self, step: Step) -> None: ...

    def read(self, recorder: PartRecorder) -> None: ...

    def evaluated(self, name: str, evaluation: Evaluation, at: AtScore) -> None:
        """``name``: test or held_out, of the weights that are judged; train; or that of a view.

        ``at``: the score by which the run would be judged now. A resumed run may repeat the evaluation at its end.
        """

    def afterwards(self, run: Running) -> None: ...

    def close(self, recorder: PartRecorder, problem: BaseException | None) -> None:
        """Whatever it has changed in the process is as it was. Called once, at an end of any kind.

        ``problem``: the exception that ended the run, if one did. Not collective: other ranks may be gone.
        """

    def shown(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, the model is the one to be judged and saved; afterwards everything is as it was."""
        return contextlib.nullcontext()

    def views(self) -> Mapping[str, contextlib.AbstractContextManager[Any]]:
        """Other weights that are evaluated as well, by the name of the evaluation: inside, the model has them."""
        return {}

    def results(self, evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
        """What stands in the run's result."""
        return {}

    def kept(self) -> list[Tensor]:
        """What it holds on the device from its first step to its last."""
        return []

    def save(self) -> State:
        """The same on every rank, but for pieces of tensors. Not copied."""
        return {}

    def save_own(self) -> State:
        """This rank's."""
        return {}

    def load(self, state: State, of_ranks: list[State]) -> str | None:
        """What :meth:`save` gave, and :meth:`save_own` on every rank; a sentence where it cannot go on from there."""
        return None

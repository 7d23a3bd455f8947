"""What an optimizer of a recipe is, and all of them by name: those of ``optimizers/``, and registered ones."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import pydantic

from largebatch.errors import UserError, first_words
from largebatch.recipes import kinds
from largebatch.recipes.keys import Number, PositiveInt, Section, Switch
from largebatch.recipes.registry import Registry

if TYPE_CHECKING:
    import torch


class Surroundings(NamedTuple):
    """Of an optimizer that is built."""

    precision: str
    engine: str  # its name
    model: torch.nn.Module

    @property
    def fused(self) -> bool | None:
        """What torch's optimizers are told.

        Its fused SGD leaves an uninitialised momentum buffer behind when the loss scaler skips the first step (seen
        with torch 2.15 on the CPU), so fp16 takes the foreach form.
        """
        return True if self.precision != "fp16" else None


class Averaged(NamedTuple):
    """A step that is lr times an average of gradients, and nothing else."""

    momentum: float
    nesterov: bool


class Moments(NamedTuple):
    """Decay rates of the averages of Adam's kind, and what keeps its root from 0; None: there is none."""

    beta1: float
    beta2: float
    eps: float | None


class HalfLife(Section):
    """β2 is stated at this batch; at another it forgets as much in as many examples (:mod:`recipes.moments`)."""

    reference_batch_size: PositiveInt


class AtTimm(NamedTuple):
    """What timm calls an optimizer of the same kind, and what else ``timm.optim.create_optimizer_v2`` is told."""

    name: str
    arguments: dict[str, Any]


class Optimizer(Section):
    """An optimizer of a recipe."""

    STATES: ClassVar[int] = 2  # tensors kept of each weight, as large as it
    SHARD_SAFE: ClassVar[bool] = False  # whether a shard of a layer steps as it would in the whole
    FIXED: ClassVar[frozenset[str]] = frozenset(
        {"name", "variant", "skip_adaptation", "beta2_half_life"}
    )  # keys that no phase changes
    LR_RULE: ClassVar[Literal["linear", "sqrt"] | None] = None  # how its lr follows the batch; None: nobody knows
    SIGN_LIKE: ClassVar[bool] = False  # whether an element's step is as long as that of a gradient's sign: Adam's kind
    REFERENCE: ClassVar[dict[str, Any]] = {}  # key -> its value in MLPerf's reference; what is not listed may be any

    name: str

    def build(self, groups: list[dict[str, Any]], lr: float, around: Surroundings) -> torch.optim.Optimizer:
        """``groups`` carry their ``names``, their own ``weight_decay`` and whether they are to ``adapt``."""
        raise NotImplementedError

    def kept(self, shape: Sequence[int]) -> int:
        """Numbers that it keeps of a weight of this shape."""
        return self.STATES * math.prod(shape)

    @property
    def words(self) -> str:
        """What is printed before time is spent."""
        variant = getattr(self, "variant", None)
        return f"{self.name}, variant {variant}" if variant else self.name

    @property
    def not_adapted(self) -> tuple[str, ...] | None:
        """Kinds and patterns of tensors that get no trust ratio; None: nobody gets one."""
        return None

    @property
    def averaged(self) -> Averaged | None:
        """None: the step is scaled layer by layer, element by element or so."""
        return None

    @property
    def moments(self) -> Moments | None:
        """As they are stated; None: it has none."""
        return None

    @property
    def half_life(self) -> HalfLife | None:
        """Of β2, where it is to be kept."""
        return None

    def with_moments(self, moments: Moments) -> Optimizer:
        """The same with these."""
        own = self.moments
        return self.model_copy(update={k: value for k, value in moments._asdict().items() if value != getattr(own, k)})

    @property
    def at_timm(self) -> AtTimm | None:
        """timm's; None: it has none."""
        return None

    def settings_at(self, epoch: float) -> dict[str, Any]:
        """What beside the lr a parameter group is told anew at every step; ``epoch`` is a fractional one."""
        return {}

    def beside_the_reference(self) -> tuple[str, ...]:
        """The keys by which it is another optimizer than that of MLPerf's reference."""
        own = {key: getattr(self, key) for key in self.REFERENCE}
        return tuple(
            f"optimizer.{key} = {value}" if isinstance(value, str) else f"optimizer.{key}"
            for key, value in own.items()
            if value != self.REFERENCE[key]
        )


PACKAGE = "largebatch.optimizers"
# torch's that step each element by itself, so that a shard of a layer steps as it would in the whole.
ELEMENT_BY_ELEMENT = (
    "SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "ASGD", "Rprop",
)  # fmt: skip
GIVEN = ("params", "lr", "weight_decay")  # that a builder gets beside its keys; the groups hold their own weight decay


UNTIL_A_STEP = 1.0  # the rate where a warm-up begins at none, which builders refuse; each step sets its own


class FromBuilder(Optimizer):
    """An optimizer of a builder that takes parameter groups and ``lr``, such as torch's classes."""

    BUILDER: ClassVar[Callable[..., Any]]

    def build(self, groups: list[dict[str, Any]], lr: float, around: Surroundings) -> torch.optim.Optimizer:
        keys = self.model_dump(exclude={"name"}, exclude_unset=True)
        try:
            optimizer = type(self).BUILDER(groups, lr=lr or UNTIL_A_STEP, **keys)
        except UserError:
            raise
        except Exception as error:  # a builder of another project may raise anything
            raise UserError(f"optimizer.name = {self.name} cannot be built: {first_words(error)}") from error
        return _checked(self.name, optimizer, groups)


def _checked(name: str, optimizer: Any, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    import torch

    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(
            f"optimizer.name = {name} is built as a {type(optimizer).__name__}; it should be a torch.optim.Optimizer"
        )
    given, held = ([set(map(id, group["params"])) for group in those] for those in (groups, optimizer.param_groups))
    if held != given or any("names" not in group for group in optimizer.param_groups):
        raise UserError(
            f"optimizer.name = {name} is built with other parameter groups than its builder was given, so that "
            "weight_decay, or some of the weights, would be left out; hand the groups on as they are"
        )
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UserError(f"optimizer.name = {name} asks for a closure at each step, which no engine here can give it")
    return optimizer


def section_of(name: str, thing: Any, shard_safe: bool | None = None, states: int = 2) -> type[Optimizer]:
    """What stands in a recipe for what is registered: a section as it is, or one with the keys of a builder.

    ``shard_safe``: whether a shard of a layer steps as it would in the whole, element by element; unset: known of
    torch's own, else not known, and engines that cut layers refuse it. ``states``: tensors that it keeps of each
    weight, as large as it, for dry runs.
    """
    if inspect.isclass(thing) and issubclass(thing, Optimizer):
        return thing
    if not callable(thing):
        raise UserError(f"optimizer.name = {name} is a {type(thing).__name__}; it should take parameter groups and lr")
    try:
        fields: dict[str, Any] = {"name": (Literal[name], ...), **dict(_keys_of(thing))}  # type: ignore[valid-type]
    except ValueError as error:  # of inspect
        raise UserError(f"optimizer.name = {name} is no builder that takes parameter groups and lr: {error}") from None
    section = pydantic.create_model(f"{name}Section", __base__=FromBuilder, __module__=__name__, **fields)
    section.BUILDER = staticmethod(thing)
    section.SHARD_SAFE = _is_of_torch(thing) if shard_safe is None else shard_safe
    section.STATES = states
    return section


def _keys_of(builder: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """Name -> type and value unless set, of those parameters that a recipe can hold; not those whose names a section
    has for something else."""
    for number, (key, parameter) in enumerate(inspect.signature(builder).parameters.items()):
        if number == 0 or key in GIVEN or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if key == "name" or key.startswith(("_", "model_")) or hasattr(FromBuilder, key):
            continue
        match parameter.default:
            case bool() as default:
                yield key, (Switch, default)
            case int() | float() as default:
                yield key, (AnyNumber, default)
            case str() as default:
                yield key, (str, default)
            case tuple() | list() as default if all(isinstance(one, (bool, int, float)) for one in default):
                yield key, (tuple[pydantic.JsonValue, ...], tuple(default))
            case default if default is None or default is parameter.empty:
                yield key, (pydantic.JsonValue, ... if default is parameter.empty else None)


AnyNumber = Annotated[int | float, Number]


def _is_of_torch(builder: Any) -> bool:
    while isinstance(builder, functools.partial):
        builder = builder.func
    module, name = getattr(builder, "__module__", ""), getattr(builder, "__name__", "")
    return module.startswith("torch.optim.") and name in ELEMENT_BY_ELEMENT


def of_package() -> dict[str, type[Optimizer]]:
    return kinds.sections_by_name(PACKAGE, kinds.folders(PACKAGE), Optimizer)


REGISTRY: Registry[type[Optimizer]] = Registry("optimizer.name", section_of, lambda: list(of_package()))


def table() -> dict[str, type[Optimizer]]:
    """Every kind by its name."""
    return {**of_package(), **REGISTRY.known()}

"""What every engine is: the verbs of a step, and the state that decides what comes next.

    place      the model where and how it is trained       forward    outputs of one micro-batch
    prepare    wrapped once, with its optimizer            backward   its gradients
    save, load                                             step       clip, update, clear

The gradient is the mean over the global batch, whatever the engine: the loop hands ``backward`` a loss already divided
by the units of the global batch; every engine averages over ranks, so it is multiplied by the world size once more.
Only the last micro-batch of a step communicates (ZeRO 2 excepted). Running batch-norm statistics stay each rank's own
until somebody looks at them: :meth:`Engine.averaged_statistics`.

What :meth:`Engine.save` returns knows no engine and no world: weights and optimizer states by the layer's name, whole
or in pieces that are ranges of it. A run saved by one engine goes on in another.
"""

from __future__ import annotations

import abc
import contextlib
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from largebatch.checkpoint import pieces
from largebatch.checkpoint.pieces import Pieces, State
from largebatch.data.nested import Batch, cast
from largebatch.engines import states
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.models.frozen import FrozenNorm
from largebatch.models.weights import belongs
from largebatch.optim.groups import is_norm
from largebatch.optim.sharded import ShardedOptimizer
from largebatch.plan.batch import BatchPlan
from largebatch.tasks.task import Task

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
TRACES_ONCE = "skip_fwd_side_effects_in_bwd_under_checkpoint"  # of torch's compiler
MOST_SHAPES = 64  # of micro-batches that one run may compile; beyond them torch would silently run eagerly


class Engine(abc.ABC):
    """``model`` is always the plain module: its names are those of checkpoints and tables."""

    NAME: str
    SEPARABLE = False  # whether computing and communicating can be told apart from outside
    STRIDED_WEIGHTS = True  # whether weights may lie in memory as channels-last; images may with every engine

    def __init__(self, device: torch.device, precision: str, channels_last: bool, compile: bool) -> None:
        self.device = device
        self.dtype = torch.float64 if precision == "fp64" else torch.float32
        self.channels_last = channels_last
        self.compile = compile
        self.compile_mode = "default"
        self.half = AUTOCAST.get(precision)
        self.autocast = torch.autocast(device.type, self.half or torch.bfloat16, enabled=self.half is not None)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.parts: Any = None  # whose gradients are measured: engines/ddp.py
        self.skips_nonfinite = False
        self.skipped = False  # whether the last step was
        self.shard_safe = False  # whether the optimizer is known to step a shard as it would the whole

    @property
    def description(self) -> str:
        return self.NAME

    def place(self, model: nn.Module) -> nn.Module:
        """The model where and how it will be trained; the optimizer is made of its parameters."""
        model = model.to(device=self.device, dtype=self.dtype)
        return model.to(memory_format=torch.channels_last) if self.channels_last and self.STRIDED_WEIGHTS else model

    def prepare(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, plan: BatchPlan, max_grad_norm: float | None
    ) -> None:
        """Wrap ``model``, as :meth:`place` returned it, and the optimizer made of its parameters."""
        self.model = model
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self.parallel: Any = self.wrap(plan)
        if self.compile:
            self.parallel = self.compiled()

    @abc.abstractmethod
    def wrap(self, plan: BatchPlan) -> nn.Module:
        """What the forward pass of training calls."""

    def compiled(self) -> Any:
        """Each shape is compiled for itself, once: a run has few (data.image_size), and fixed ones run faster."""
        import torch._dynamo

        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, MOST_SHAPES)
        if hasattr(limits, TRACES_ONCE):  # of recomputed modules: sized norms then count no part twice
            setattr(limits, TRACES_ONCE, True)
        return torch.compile(self.parallel, dynamic=False, mode=self.compile_mode)

    def communicate(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around a forward pass: whether its gradients are summed over ranks."""
        return contextlib.nullcontext()

    def forward(self, task: Task, batch: Batch, last: bool = True) -> Any:
        """What ``task`` has the model make of one micro-batch, never in half precision; its gradients are summed over
        ranks only if it is the step's ``last``."""
        with self.communicate(last), self.autocast:
            outputs = task.forward(self.parallel, batch)
        return self._in_full(outputs)

    @contextlib.contextmanager
    def whole_model(self) -> Iterator[None]:
        """Inside, :meth:`predict` communicates nothing; buffers are the means over ranks. Collective."""
        with self.averaged_statistics():
            yield

    def predict(self, task: Task, batch: Batch) -> Any:
        """Outputs without communication: for an evaluation, or of a worker that is alone with its weights."""
        with self.autocast:
            outputs = task.forward(self.model, batch)
        return self._in_full(outputs)

    def _in_full(self, outputs: Any) -> Any:
        return cast(outputs, self.dtype)

    def backward(self, loss: Tensor) -> None:
        """``loss``: this micro-batch's summed loss over the units of the *global* batch."""
        self.scaler.scale(loss * distributed.world_size() if distributed.world_size() > 1 else loss).backward()

    def step(self, measure: bool = False, alone: bool = False) -> Tensor | None:
        """Clip, update, clear. The global gradient norm before clipping, on the device, if it was measured.

        ``alone``: the gradients are this rank's, and so are the weights; nothing is communicated.

        With ``skips_nonfinite`` a gradient that is not finite is thrown away on all ranks, and nothing is updated; to
        know, the host waits for the device.
        """
        self.deal(alone)
        norm = None
        if self.max_grad_norm is not None or measure or self.skips_nonfinite:
            self.scaler.unscale_(self.optimizer)
            parameters = [p for p in self.model.parameters() if p.grad is not None]
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            if self.max_grad_norm is not None:
                nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        self.skipped = self.skips_nonfinite and norm is not None and not math.isfinite(float(whole(norm)))
        if not self.skipped:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def deal(self, alone: bool) -> None:  # noqa: B027, most have nothing to tell
        """Before each update: tell an optimizer that deals layers among which ranks. Layers that are cut say it."""

    def averaged_statistics(self) -> contextlib.AbstractContextManager[None]:
        """Training does not depend on when somebody evaluated: see the function of this name."""
        return averaged_statistics(self.model)

    def take_up_weights(self) -> None:  # noqa: B027, most step the model's own
        """After the model's weights were made others: what the optimizer steps in their place follows."""

    def take_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """From now on this one steps, over the same parameters."""
        self.optimizer = optimizer

    def measure_parts(self, examples: int) -> None:
        """From now on the gradients of parts of so many examples are measured, before :meth:`prepare`."""
        raise NotImplementedError(f"{self.NAME} has no whole gradients of parts")

    def squares_of_parts(self) -> Tensor | None:
        """After the last backward: squared norms of the gradients of parts of the batch, where any were measured."""
        return None

    def layout(self) -> states.Layout:
        """Which layers the optimizer's parameters hold."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return states.Layout(names, {})

    def save(self) -> State:
        """Everything that decides what comes next, by name: references to what this rank holds, not copies."""
        parameters, statistics = self._parameter_names(), self.statistics()
        buffers = {
            name: tensor
            for name, tensor in self.model.state_dict().items()
            if name not in parameters and name not in statistics
        }
        return {
            "model": {**self.held_weights(), **buffers},
            "optimizer": states.held(self.optimizer, self.layout()),
            "scaler": self.scaler.state_dict(),
        }

    def held_weights(self) -> dict[str, Tensor | Pieces]:
        """What this rank holds of them."""
        return states.held_weights(self.model)

    def load(self, state: State) -> None:
        """Continue from :meth:`save` of any engine in any world, all pieces there; ``state["ranks"]`` holds what ranks
        kept to themselves, which in the same world is this rank's again. Read is what this rank takes."""
        model = states.judged_model(state)
        check_names(model, self._shapes())
        states.check(self.optimizer, self.layout(), state["optimizer"])
        with torch.no_grad():
            of_optimizer = states.scattered(self.optimizer, self.layout(), state["optimizer"])
        self._take_weights(model)
        self.optimizer.load_state_dict(of_optimizer)
        self.scaler.load_state_dict(state["scaler"])
        own = state["ranks"]
        if len(own) == distributed.world_size():
            model |= own[distributed.rank()]["statistics"]
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                if name in model:
                    buffer.copy_(pieces.whole(model[name]))

    def begin_with_states(self, saved: State, fresh: Collection[str]) -> None:
        """The states of another run's optimizer, but for those of the ``fresh`` layers; after :meth:`prepare`.

        What a recipe tells the optimizer stays this run's; what stepping adds to its groups is taken.
        """
        states.check(self.optimizer, self.layout(), saved)
        told = {key for group in self.optimizer.param_groups for key in group}
        groups = [
            {key: value for key, value in group.items() if key == "names" or key not in told}
            for group in saved["groups"]
        ]
        layers = {name: state for name, state in saved["layers"].items() if not belongs(name, fresh)}
        with torch.no_grad():
            taken = states.scattered(self.optimizer, self.layout(), {**saved, "layers": layers, "groups": groups})
        self.optimizer.load_state_dict(taken)

    def _take_weights(self, saved: dict[str, Tensor | Pieces]) -> None:
        states.take_weights(self.model, saved)

    def _parameter_names(self) -> set[str]:
        return {name for name, _ in self.model.named_parameters(remove_duplicate=False)}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}

    def statistics(self) -> dict[str, Tensor]:
        return statistics(self.model)


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """Running means and variances that move; other buffers are constants, or rank zero's."""
    of_norms = [
        (prefix, module)
        for prefix, module in model.named_modules()
        if is_norm(module) and not isinstance(module, FrozenNorm)
    ]
    return {
        f"{prefix}.{name}" if prefix else name: buffer
        for prefix, module in of_norms
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point()
    }


@contextlib.contextmanager
def averaged_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, the running statistics of norm layers are the means over ranks; afterwards each rank's own again.

    Collective.
    """
    if distributed.world_size() == 1:
        yield
        return
    own = [(buffer, buffer.clone()) for buffer in statistics(model).values()]
    distributed.mean_all_([buffer for buffer, _ in own])
    try:
        yield
    finally:
        for buffer, value in own:
            buffer.copy_(value)


def whole(norm: Tensor) -> Tensor:
    """A norm of sharded gradients is a number of which every rank holds a part."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def check_names(saved: Mapping[str, Tensor | Pieces], wanted: dict[str, tuple[int, ...]]) -> None:
    """The checkpoint's model is this one: the same names and shapes."""
    found = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    for name in wanted:
        if found.get(name) != wanted[name]:
            there = f"has {name} of shape {found[name]}" if name in found else f"has no {name}"
            raise UserError(
                f"the checkpoint belongs to another model: it {there}, this model has {name} of shape {wanted[name]}"
            )
    if extra := sorted(found.keys() - wanted.keys()):
        raise UserError(f"the checkpoint belongs to another model: this one has no {extra[0]}")


def check_cut(model: nn.Module, engine: str) -> None:
    """Refuse what cannot be divided among ranks."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 0:
            raise UserError(
                f"engine.name = {engine} cannot divide {name}, which is a single number; give it the shape (1,), or "
                "use engine.name = ddp"
            )


def check_exact(optimizer: torch.optim.Optimizer, engine: str, shard_safe: bool = False) -> None:
    """Refuse an optimizer whose result would depend on how its tensors are cut; ours are told where they lie."""
    if not (shard_safe or isinstance(optimizer, ShardedOptimizer)):
        kind = f"{type(optimizer).__module__}.{type(optimizer).__name__}"
        raise UserError(
            f"engine.name = {engine} cuts layers into shards, and {kind} is not known to give the same result on them; "
            "valid: engine.name = ddp, or largebatch.optim's Lars, Lamb and Muon"
        )

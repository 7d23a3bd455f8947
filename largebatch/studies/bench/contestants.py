"""Who steps in ``bench optimizer``: torch's, timm's, DeepSpeed's and our optimizers on the same weights and gradients.

Weights are decayed and adapted, norms and biases neither, for everyone: timm leaves a group without weight decay
unadapted, as ours is told to (DeepSpeed's FusedLamb adapts all). Nobody clips; timm's Lamb would by default. The
learning rate is tiny, so that however many steps there are the weights stay what they are.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from largebatch.errors import UserError
from largebatch.optim import Lamb, Lars, parameter_groups, treatments

LR, MOMENTUM, WEIGHT_DECAY = 1e-6, 0.9, 0.01
NEITHER = ("norm", "bias")  # decayed nor adapted
COPIED_BYTES = 1 << 29  # at least; larger than any cache
PASSES = {"SGD": (5, 5), "AdamW": (7, 7), "LARS": (7, 5), "LAMB": (10, 7), "Muon": (5, 5)}  # adapted, not adapted


class Arena:
    """A model's parameters on the device, drawn gradients, and two buffers to copy between.

    The buffers are at least the model's size; ``source`` begins with the gradients as they were drawn.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model = model.to(device)
        self.device = device
        self.rows = treatments(model, NEITHER, NEITHER)
        named = dict(model.named_parameters())
        self.parameters = [named[row.name] for row in self.rows]
        self.elements = sum(p.numel() for p in self.parameters)
        generator = torch.Generator(device).manual_seed(0)
        self.source = torch.empty(max(self.elements, COPIED_BYTES // 4), device=device)
        self.source.normal_(0.0, 0.01, generator=generator)
        self.target = torch.empty_like(self.source)
        pieces = self.source[: self.elements].split([p.numel() for p in self.parameters])
        self.drawn = [piece.view(p.shape) for piece, p in zip(pieces, self.parameters, strict=True)]
        for parameter in self.parameters:
            parameter.grad = torch.empty_like(parameter)
        self.restore()

    def groups(self) -> list[dict[str, Any]]:
        """New ones for every optimizer: torch writes its defaults into them."""
        return parameter_groups(self.model, WEIGHT_DECAY, self.rows)

    def copy(self) -> None:
        self.target.copy_(self.source)

    def restore(self) -> None:
        for parameter, drawn in zip(self.parameters, self.drawn, strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(drawn)

    def untouched(self) -> bool:
        """Whether every gradient is, bit for bit, the one that was drawn."""
        return all(
            p.grad is not None and torch.equal(p.grad, d) for p, d in zip(self.parameters, self.drawn, strict=True)
        )

    def gigabytes_that_must_move(self, algebra: str) -> float:
        """The least traffic of one step: every tensor too large for a cache, nothing read twice that need not be.

            SGD     reads w, g, v; writes w, v                                              5 passes
            AdamW   reads w, g, m, v; writes w, m, v                                        7
            LARS    adapted: reads w, g for the norms, then as SGD                          7, not adapted 5
            LAMB    adapted: reads w, g, m, v for ‖u‖, writes m, v; reads w, m, v, writes w  10, not adapted 7
            Muon    as SGD; its products are far more than its traffic                      5

        Layers that stay in a cache between the two parts of a step need less.
        """
        adapted, others = PASSES[algebra]
        passes = ((adapted if row.adapted else others) for row in self.rows)
        return sum(n * p.numel() * p.element_size() for n, p in zip(passes, self.parameters, strict=True)) / 1e9


class Family(NamedTuple):
    """One optimizer in several forms.

    On the CPU they share one state, so that a large model fits; on CUDA, where forms keep their counters in different
    places and would make each other wait, each has its own.
    """

    name: str
    algebra: str
    forms: tuple[str, ...]
    build: Callable[[list[dict[str, Any]], Any], Optimizer]  # groups, lr
    switch: Callable[[Optimizer, str], None]
    states: int  # copies of the model that stay, for each state
    temporaries: int  # and that a step needs at most
    peer: str | None = None  # whose time it is measured by
    default: str | None = None  # the form that it takes by itself


@dataclasses.dataclass
class TimedOptimizer:
    family: Family
    form: str
    optimizer: Optimizer
    step: Callable[[], Any]
    launches: int = 0
    edits_gradients: bool = False

    def prepare(self) -> None:
        self.family.switch(self.optimizer, self.form)

    @property
    def name(self) -> str:
        return f"{self.family.name}, {self.form}"


def families(device: torch.device) -> list[Family]:
    """In the order of the table, except DeepSpeed's, which must be built."""
    import timm.optim

    can_foreach = "foreach" in inspect.signature(timm.optim.Lars).parameters
    timm_forms = ("plain", "foreach") if can_foreach else ("plain",)
    timm_default = "foreach" if can_foreach and device.type == "cuda" else "plain"
    ours = ("plain", "foreach", "fused")
    return [
        Family("torch SGD", "SGD", ("foreach", "fused"), _sgd, _switch_torch, 1, 1),
        Family("torch AdamW", "AdamW", ("foreach", "fused"), _adamw, _switch_torch, 2, 2),
        Family("timm Lars", "LARS", timm_forms, _timm_lars, _switch_timm, 1, 1, "timm Lars", timm_default),
        Family("timm Lamb", "LAMB", timm_forms, _timm_lamb, _switch_timm, 2, 2, "timm Lamb", timm_default),
        Family("Lars", "LARS", ours, _lars, _switch_ours, 1, 1, "timm Lars"),
        Family("Lamb", "LAMB", ours, _lamb, _switch_ours, 2, 2, "timm Lamb"),
    ]


FIRST_TO_GO = (("torch Muon", "Muon"), ("torch AdamW",), ("torch SGD",), ("timm Lamb", "Lamb"), ("timm Lars", "Lars"))


def that_fit(entered: list[Family], model: nn.Module, device: torch.device) -> tuple[list[Family], str | None]:
    """Those for whom there is memory, and a sentence about the others; none if there is not enough for any."""
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    there = 0 if device.type == "cpu" else size  # on the CPU the weights already take their memory
    fixed = there + size + 2 * max(size, COPIED_BYTES)

    def copies(family: Family) -> int:
        several = 1 if device.type == "cpu" else len(family.forms) + 1  # a captured one
        return family.states * several

    def needed(those: list[Family]) -> float:
        return 1.05 * (fixed + size * (sum(map(copies, those)) + max(f.temporaries for f in those)))

    free, kept, gone = free_bytes(device), entered, []
    for names in FIRST_TO_GO:
        if not kept or needed(kept) <= free:
            break
        kept, gone = [f for f in kept if f.name not in names], [*gone, *names]
    if not gone:
        return kept, None
    who = f"{', '.join(gone)} left out" if kept else "the model is left out"
    return kept, f"{who}: all need {needed(entered) / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free"


def free_bytes(device: torch.device) -> int:
    """What can still be allocated; on Linux the page cache counts as free."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def contestants_of(family: Family, arena: Arena) -> tuple[list[TimedOptimizer], list[str]]:
    """One per form, each after its first step, and sentences about forms that this device has not."""
    optimizer = None
    entered, missing = [], []
    for form in family.forms:
        if optimizer is None or arena.device.type != "cpu":
            optimizer = family.build(arena.groups(), LR)
        contestant = TimedOptimizer(family, form, optimizer, optimizer.step)
        contestant.prepare()
        try:
            contestant.step()
        except UserError as error:
            missing.append(f"{contestant.name} is not in the table: {error}")
            continue
        contestant.edits_gradients = not arena.untouched()
        if contestant.edits_gradients:
            arena.restore()
        entered.append(contestant)
    return entered, missing


def captured(family: Family, arena: Arena) -> TimedOptimizer:
    """Our fused step in a CUDA graph, with the learning rate on the device and a state of its own."""
    optimizer = family.build(arena.groups(), torch.tensor(LR, device=arena.device))
    family.switch(optimizer, "fused")
    side = torch.cuda.Stream(arena.device)
    side.wait_stream(torch.cuda.current_stream(arena.device))
    with torch.cuda.stream(side):
        for _ in range(3):
            optimizer.step()
    torch.cuda.current_stream(arena.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    stays = family._replace(switch=lambda optimizer, form: None)
    return TimedOptimizer(stays, "fused, CUDA graph", optimizer, graph.replay)


def deepspeed_lamb() -> Family:
    """DeepSpeed's FusedLamb, compiled where it was not yet; raises whatever stands in the way."""
    from deepspeed.ops.lamb import FusedLamb

    def build(groups: list[dict[str, Any]], lr: float) -> Optimizer:
        return FusedLamb(groups, lr=lr, eps=1e-6)

    def switch(optimizer: Optimizer, form: str) -> None: ...

    return Family("DeepSpeed FusedLamb", "LAMB", ("fused",), build, switch, 2, 1, "timm Lamb")


def _sgd(groups: list[dict[str, Any]], lr: float) -> Optimizer:
    return torch.optim.SGD(groups, lr=lr, momentum=MOMENTUM)


def _adamw(groups: list[dict[str, Any]], lr: float) -> Optimizer:
    return torch.optim.AdamW(groups, lr=lr)


def _timm_lars(groups: list[dict[str, Any]], lr: float) -> Optimizer:
    import timm.optim

    return timm.optim.Lars(groups, lr=lr, momentum=MOMENTUM)  # type: ignore[arg-type]  # its default is the int 0


def _timm_lamb(groups: list[dict[str, Any]], lr: float) -> Optimizer:
    import timm.optim

    return timm.optim.Lamb(groups, lr=lr, max_grad_norm=None)


def _lars(groups: list[dict[str, Any]], lr: float) -> Optimizer:
    return Lars(groups, lr=lr, momentum=MOMENTUM)


def _lamb(groups: list[dict[str, Any]], lr: float) -> Optimizer:
    return Lamb(groups, lr=lr)


def _switch_torch(optimizer: Optimizer, form: str) -> None:
    for group in optimizer.param_groups:
        group["foreach"], group["fused"] = form == "foreach", form == "fused"


def _switch_timm(optimizer: Optimizer, form: str) -> None:
    for group in optimizer.param_groups:
        if "foreach" in group:
            group["foreach"] = form == "foreach"


def _switch_ours(optimizer: Any, form: str) -> None:
    optimizer.form = form

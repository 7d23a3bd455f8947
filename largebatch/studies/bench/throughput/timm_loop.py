"""timm's model of the same architecture in the loop that timm's train.py runs with the options it recommends.

Autocast in the run's precision, channels-last images, ``torch.compile`` (its default mode), an optimizer of the same
kind from ``timm.optim.create_optimizer_v2`` with timm's own weight-decay groups, accumulation over the same
micro-batches. It gets ready batches and neither reads a loss nor logs nor steps a schedule, which train.py does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from largebatch import models
from largebatch.data.nested import examples_of
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.run.assemble import Job
from largebatch.studies.bench.throughput.bare_loop import Batches
from largebatch.tasks.task import Task


class Peer(NamedTuple):
    model: Any
    optimizer: torch.optim.Optimizer
    autocast: torch.autocast
    what: str  # in words


def peer(job: Job, compile: bool) -> Peer:
    """Ready to train where the job trains. A UserError says why there is none."""
    run, engine = job.run, job.engine
    if job.decided.precision == "fp16":
        raise UserError("timm's loop is run without a loss scaler, which fp16 needs")
    if run.model.arguments.get("aux_logits"):
        raise UserError("timm's loop trains no auxiliary classifiers")
    plain = name_at_timm(run.model.name)
    arguments = {key: value for key, value in run.model.arguments.items() if key != "num_classes"}
    model = models.build(f"timm/{plain}", job.dataset.outputs, job.dataset.input_shape, run.seed, arguments)
    ours, theirs = (sum(p.numel() for p in each.parameters()) for each in (engine.model, model))
    if ours != theirs:
        raise UserError(
            f"timm's {plain} has {theirs:,} parameters and {run.model.name} {ours:,}: it is another network"
        )
    layout = torch.channels_last if engine.channels_last else torch.preserve_format
    model = model.to(device=job.device, dtype=engine.dtype).to(memory_format=layout)
    optimizer, words = optimizer_of(run, model)
    if compile:
        model = torch.compile(model)
    model.train()
    what = ", ".join([
        f"timm's {plain}", job.decided.precision if job.decided.precision not in ("bf16",) else "autocast to bf16",
        "channels-last" if engine.channels_last else "contiguous images",
        "torch.compile" if compile else "not compiled", words,
    ])  # fmt: skip
    return Peer(model, optimizer, engine.autocast, what)


def name_at_timm(name: str) -> str:
    """What timm calls the architecture."""
    import timm

    source, _, plain = name.rpartition("/")
    if (source == "" and plain in models.SMALL) or not timm.is_model(plain):
        raise UserError(f"timm has no model called {plain}")
    return plain


def optimizer_of(run: config.Run, model: nn.Module) -> tuple[torch.optim.Optimizer, str]:
    import timm.optim

    theirs = run.optimizer.at_timm
    if theirs is None:
        raise UserError(f"timm's optimizers hold none like optimizer.name = {run.optimizer.name}")
    optimizer = timm.optim.create_optimizer_v2(
        model, opt=theirs.name, lr=1e-4, weight_decay=run.weight_decay.value, **theirs.arguments
    )
    return optimizer, f"timm's optimizer {theirs.name}"


def timm_loop(peer: Peer, steps: Iterable[Batches], accumulation_steps: int, task: Task) -> None:
    for micro_batches in steps:
        for batch in micro_batches:
            with peer.autocast:
                loss = task.loss(task.forward(peer.model, batch), batch) / examples_of(batch)
            (loss / accumulation_steps).backward()
        peer.optimizer.step()
        peer.optimizer.zero_grad()

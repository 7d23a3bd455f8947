"""The same steps by any engine, in a world of any size."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import torch
from timm.optim import nadamw
from torch import nn

from largebatch import checkpoint, engines, optim
from largebatch.checkpoint import manifest
from largebatch.checkpoint.pieces import whole
from largebatch.machine import distributed
from largebatch.optim import shards
from largebatch.plan import batch
from largebatch.tasks.classification import Classification

STEPS, GLOBAL = 24, 24
TASK = Classification()
OPTIMIZERS = {
    "lars": lambda g, model, kind: optim.Lars(g, 0.5, trust_coefficient=0.02, momentum_correction=True),
    "vissl": lambda g, model, kind: optim.Lars(g, 0.5, trust_coefficient=0.02, variant="vissl", nesterov=True),
    "lamb": lambda g, model, kind: optim.Lamb(g, 0.01),
    "sgd": lambda g, model, kind: torch.optim.SGD(g, 0.05, 0.9),
    "adamw": lambda g, model, kind: torch.optim.AdamW(g, 1e-3),
    "muon": lambda g, model, kind: optim.Muon(optim.muon_groups(g, model), 0.02, iteration=kind),
    "normuon": lambda g, model, kind: optim.Muon(
        optim.muon_groups(g, model), 0.01, iteration=kind, variant="normuon", others="adamw", others_lr_scale=0.05
    ),
    "normalised": lambda g, model, kind: optim.Muon(
        optim.muon_groups(g, model), 0.03, 0.6, iteration=kind, ns_steps=3, match="none", normalised=True
    ),  # airbench's
    "nadamw": lambda g, model, kind: nadamw.NAdamW(g, 4e-3),
    "orscale_lm": lambda g, model, kind: optim.Muon(
        optim.muon_groups(g, model), 0.015, iteration=kind, variant="orscale_lm", others="adamw", others_lr_scale=0.05
    ),
}


def network() -> nn.Module:
    """Convolutions, norms (of layers: batch norm sees other examples in another world), biases, a tensor whose first
    axis no world divides, and one smaller than the world."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.GroupNorm(3, 6),
        nn.ReLU(),
        nn.Conv2d(6, 7, 3),
        nn.GroupNorm(1, 7),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(7 * 16, 5),
        nn.LayerNorm(5),
        nn.Linear(5, 3),
    )
    return model


def lr_of(step: int) -> float:
    return 0.5 * min(1, (step + 1) / 4) * (0.1 if step >= 16 else 1.0)


def note_reductions(optimizer: Any) -> list[int]:
    """Sizes of what one of our optimizers sums over ranks in its next step; take ``step`` off it afterwards."""
    sizes: list[int] = []
    if not isinstance(optimizer, optim.Lars | optim.Lamb):
        return sizes
    all_reduce, step = shards.dist.all_reduce, optimizer.step

    def counted(tensor: torch.Tensor, *arguments: Any, **more: Any) -> Any:
        sizes.append(tensor.numel())
        return all_reduce(tensor, *arguments, **more)

    def step_counted(*arguments: Any, **more: Any) -> Any:
        shards.dist.all_reduce = counted
        try:
            return step(*arguments, **more)
        finally:
            shards.dist.all_reduce = all_reduce

    optimizer.step = step_counted
    return sizes


def work(folder: str, asked: str) -> None:
    device = torch.device("cpu")
    out = Path(folder)
    jobs = json.loads(asked)
    with distributed.group(device, alone=True):
        world, rank = distributed.world_size(), distributed.rank()
        end = {}
        for (engine_name, settings, precision, accumulation), name in itertools.product(jobs, OPTIMIZERS):
            if precision != "fp32" and engine_name == "deepspeed":
                continue
            engine = engines.ENGINES[engine_name](device, precision, False, False, **settings)
            model = engine.place(network())
            table = optim.treatments(model, ("norm", "bias"), ("norm", "bias"))
            optimizer = OPTIMIZERS[name](optim.parameter_groups(model, 0.01, table), model, precision)
            base = optimizer.param_groups[0]["lr"]
            micro = GLOBAL // world // accumulation
            plan = batch.resolve(
                dataset_size=1000,
                global_batch_size=GLOBAL,
                micro_batch_size=micro,
                largest_micro_batch=64,
                world_size=world,
                epochs=None,
                steps=STEPS,
                seed=0,
            )
            engine.shard_safe = True  # the recipe says so of SGD and AdamW
            engine.prepare(model, optimizer, plan, 0.9)
            reduced = []
            norms = []
            for step in range(STEPS):
                generator = torch.Generator().manual_seed(step)
                images = torch.randn(GLOBAL, 3, 8, 8, generator=generator, dtype=torch.float64).to(engine.dtype)
                labels = torch.randint(3, (GLOBAL,), generator=generator)
                for group in optimizer.param_groups:
                    group["lr"] = base * lr_of(step)
                for part in range(accumulation):
                    mine = slice((rank * accumulation + part) * micro, (rank * accumulation + part + 1) * micro)
                    given = images[mine], labels[mine]
                    outputs = engine.forward(TASK, given, last=part == accumulation - 1)
                    engine.backward(TASK.loss(outputs, given) / GLOBAL)
                inside = note_reductions(optimizer)
                norm = engine.step(measure=True)
                assert norm is not None
                if isinstance(optimizer, optim.Lars | optim.Lamb):
                    del optimizer.step
                reduced.append(inside)
                norms.append(float(norm))
            key = "-".join([engine_name, *map(str, settings.values()), precision, str(accumulation), name])
            writer = checkpoint.Writer(out / f"saved{world}" / key, checkpoint.Retention())
            writer.save(1, {}, engine.save(), {"statistics": engine.statistics()})
            saved = writer.take()
            assert saved is not None
            assert saved.path is not None
            writer.close()
            state = checkpoint.state_of(saved.path, manifest.read(saved.path))
            with engine.whole_model(), torch.no_grad():
                outputs = engine.predict(TASK, (images[: rank + 1],))  # unequal shares: nobody waits for anybody
            end[key] = {
                "model": {name: whole(saved) for name, saved in state["model"].items()},
                "layers": {
                    name: {key: whole(saved) for key, saved in of_layer.items()}
                    for name, of_layer in state["optimizer"]["layers"].items()
                },
                "reduced": reduced,
                "norms": norms,
                "outputs": outputs[:1],
                "finite": saved.finite,
            }
        if rank == 0:
            torch.save(end, out / f"world{world}.pt")

"""Steps with gradients that are given, on layers cut into shards in many ways, and on whole ones.

Gradients are eighths: exact in bfloat16, and so is their mean over ranks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from largebatch.engines import states
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.optim import Lamb, Lars

SHAPES = {"conv": (6, 3, 3, 3), "norm": (7,), "fc": (5, 11), "small": (2, 3), "bias": (3,)}
ADAPTED = ("conv", "fc", "small")
STEPS = 20


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in SHAPES.items():
            value = torch.randn(shape, generator=generator).bfloat16().float()
            setattr(self, name, nn.Parameter(value))

    def forward(self, directions):
        return sum((p * directions[n].to(p.dtype)).sum() for n, p in self.named_parameters())


def directions(step):
    generator = torch.Generator().manual_seed(step + 1)
    return {n: torch.randint(-16, 16, shape, generator=generator) / 8 for n, shape in SHAPES.items()}


def groups(named):
    named = dict(named)
    return [
        {"params": [named[n] for n in ADAPTED], "names": list(ADAPTED), "weight_decay": 0.01},
        {"params": [p for n, p in named.items() if n not in ADAPTED], "adapt": False},
    ]


def joined(held):
    """Whole layers out of the pieces of all ranks."""
    whole = {}
    for name, pieces in held:
        flat = torch.zeros(pieces.shape).flatten()
        for start, values in pieces.local:
            flat[start : start + len(values)] = values
        whole[name] = distributed.sum_(flat).view(pieces.shape)
    return whole


OPTIMIZERS = {
    "lars": lambda g: Lars(g, 0.5, trust_coefficient=0.02),
    "nus": lambda g: Lars(g, 0.5, trust_coefficient=0.02, variant="nus"),
    "lamb": lambda g: Lamb(g, 0.01),
    "clipped lamb": lambda g: Lamb(g, 0.01, max_grad_norm=0.5, variant="apex"),
    "bounded lamb": lambda g: Lamb(g, 0.01, variant="deepspeed", min_trust_ratio=0.21),
}


def alone(make, dtype=torch.float32):
    model = Bag().to(dtype)
    optimizer = make(groups(model.named_parameters()))
    for step in range(STEPS):
        for name, parameter in model.named_parameters():
            parameter.grad = directions(step)[name].to(dtype)
        optimizer.step()
    if dtype is torch.float32:
        return {n: p.detach().clone() for n, p in model.named_parameters()}
    for parameter in model.parameters():
        assert torch.equal(optimizer.state[parameter]["master_weight"].to(dtype), parameter)
    return {n: optimizer.state[p]["master_weight"].clone() for n, p in model.named_parameters()}


def cut(tensor: torch.Tensor, where: Any) -> torch.Tensor:
    return tensor if where is None else distribute_tensor(tensor, *where)


def dtensors(folder: str) -> None:
    out = Path(folder)
    with distributed.group(torch.device("cpu")):
        line = init_device_mesh("cpu", (4,))
        square = init_device_mesh("cpu", (2, 2))
        layouts = {
            "rows": lambda n: (line, [Shard(0)]),
            "columns": lambda n: (line, [Shard(len(SHAPES[n]) - 1)]),
            "hybrid": lambda n: (square, [Replicate(), Shard(0)]),
            "both": lambda n: (square, [Shard(0), Shard(len(SHAPES[n]) - 1)]),
            "mixed": lambda n: None if n in ("fc", "bias") else (line, [Shard(0)]),
            "several": lambda n: {"conv": (line, [Shard(0)]), "fc": (square, [Replicate(), Shard(0)])}.get(n),
        }
        end = {}
        for name, make in OPTIMIZERS.items():
            end[f"alone {name}"] = alone(make)
            for layout, place in layouts.items():
                model = Bag()

                parameters = {n: nn.Parameter(cut(p.detach(), place(n))) for n, p in model.named_parameters()}
                optimizer = make(groups(parameters.items()))
                for step in range(STEPS):
                    for n, parameter in parameters.items():
                        parameter.grad = cut(directions(step)[n], place(n))
                    optimizer.step()
                whole = {n: getattr(p, "full_tensor", lambda p=p: p)() for n, p in parameters.items()}
                end[f"{layout} {name}"] = {n: p.detach().clone() for n, p in whole.items()}
        if distributed.is_first():
            torch.save(end, out / "dtensors.pt")


def zero(folder: str) -> None:
    import deepspeed

    from largebatch.engines.deepspeed import quiet, show_layers

    out = Path(folder)
    with distributed.group(torch.device("cpu")):
        deepspeed.init_distributed(dist_backend="gloo")
        end = {}

        def start(optimizer, model, **settings):
            config = {
                "train_batch_size": 2,
                "train_micro_batch_size_per_gpu": 1,
                "zero_allow_untested_optimizer": True,
                "gradient_clipping": 0.0,
                **settings,
            }  # DeepSpeed clips at 1.0 where nothing is said
            with quiet():
                return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]

        for name, make in OPTIMIZERS.items():
            if name == "clipped lamb":
                continue
            end[f"alone {name}"] = alone(make, torch.bfloat16)
            for stage, accumulated in ((1, "bf16"), (1, "fp32"), (2, "bf16"), (2, "fp32"), (3, "fp32")):
                model = Bag()
                optimizer = make(groups(model.named_parameters()))
                small = {"sub_group_size": 100} if stage == 3 else {}  # several sub-groups of one parameter group
                engine = start(
                    optimizer,
                    model,
                    zero_optimization={"stage": stage, **small},
                    bf16={"enabled": True},
                    data_types={"grad_accum_dtype": accumulated},
                )
                partitions = show_layers(engine)
                zero: Any = engine.optimizer
                flats = (
                    zero.fp32_partitioned_groups_flat
                    if stage == 3
                    else [group["params"][0] for group in optimizer.param_groups]
                )
                for step in range(STEPS):
                    engine.backward(engine(directions(step)))
                    engine.step()
                found = {}
                for flat in flats:
                    found |= joined(states.held_values(flat, flat.detach(), states.Layout({}, partitions)))
                end[f"zero {stage} {accumulated} {name}"] = found
                end[f"flats {stage}"] = {str(len(flats)): torch.zeros(1)}
        told = {}
        model = Bag()
        engine = start(
            Lars(groups(model.named_parameters()), 0.1, momentum_correction=True),
            model,
            zero_optimization={"stage": 3, "sub_group_size": 100},
        )
        try:
            show_layers(engine)
        except UserError as error:
            told["several sub-groups"] = str(error)
        for key, make in {
            "not shown": lambda g: Lars(g, 0.1),
            "clipped": lambda g: Lamb(g, 0.1, max_grad_norm=1.0),
        }.items():
            model = Bag()
            engine = start(make(groups(model.named_parameters())), model, zero_optimization={"stage": 1})
            try:
                if key == "clipped":
                    show_layers(engine)
                engine.backward(engine(directions(0)))
                engine.step()
            except UserError as error:
                told[key] = str(error)
        if distributed.is_first():
            torch.save({"ends": end, "told": told}, out / "zero.pt")

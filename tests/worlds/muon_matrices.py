"""Steps of Muon with gradients that are given, on matrices cut in many ways, and on whole ones.

Gradients are eighths: exact in bfloat16, and so is their mean over ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from largebatch.engines import states
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.optim import Muon, newton_schulz

SHAPES = {
    "conv": (6, 3, 3, 3),
    "norm": (7,),
    "fc": (5, 11),
    "tall": (13, 4),
    "again": (4, 13),
    "small": (2, 3),
    "bias": (3,),
}
MATRICES = ("conv", "fc", "tall", "again", "small")
STEPS = 6
BESIDE = {"rows": "row_second_moment", "c": "trust_calibration"}  # what is kept of a layer, not of its shape
SETTINGS: dict[str, dict[str, Any]] = {
    "jordan": {"lr": 0.05},
    "moonlight": {"lr": 0.05, "variant": "moonlight2025", "others": "adamw", "form": "plain"},
    "normuon": {"lr": 0.05, "variant": "normuon", "others": "adamw"},
    "normalised": {"lr": 0.05, "momentum": 0.6, "ns_steps": 3, "match": "none", "normalised": True},
    "orscale": {"lr": 0.05, "variant": "orscale", "max_trust_ratio": 9.0},
    "orscale_lm": {"lr": 0.05, "variant": "orscale_lm", "others": "adamw"},
}
STAGES = [  # of ZeRO, the type of the weights, that in which gradients are accumulated
    (0, "fp32", "fp32"), (1, "fp32", "fp32"), (2, "fp32", "fp32"),
    (1, "bf16", "bf16"), (1, "bf16", "fp32"), (2, "bf16", "bf16"), (2, "bf16", "fp32"), (3, "bf16", "fp32"),
]  # fmt: skip
COLLECTIVES = (
    "all_to_all_single",
    "all_gather_into_tensor",
    "all_reduce",
    "all_gather",
    "broadcast",
    "all_gather_object",
)


def stages_of(kind: str) -> list[tuple[int, str, str]]:
    """All of them where more than matrices travels."""
    return STAGES if kind in ("normuon", "normalised") else STAGES[:1] + STAGES[3:4]


class Weights(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in SHAPES.items():
            value = torch.randn(shape, generator=generator).bfloat16().to(dtype)
            setattr(self, name, nn.Parameter(value))

    def forward(self, directions):
        return sum((p * directions[n].to(p.dtype)).sum() for n, p in self.named_parameters())


def directions(step, dtype=torch.float32):
    generator = torch.Generator().manual_seed(step + 1)
    return {n: (torch.randint(-16, 16, shape, generator=generator) / 8).to(dtype) for n, shape in SHAPES.items()}


def groups(named):
    named = dict(named)
    rest = [n for n in named if n not in MATRICES]
    return [
        {"params": [named[n] for n in MATRICES], "names": list(MATRICES), "weight_decay": 0.1, "muon": True},
        {"params": [named[n] for n in rest], "names": rest, "muon": False},
    ]


class Counted:
    """What is called of torch.distributed, and how many matrices this rank puts through the iteration."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.matrices = 0


@contextmanager
def counted() -> Iterator[Counted]:
    seen = Counted()
    real = {name: getattr(dist, name) for name in COLLECTIVES}
    iterate = newton_schulz.orthogonalised

    def noting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **more: Any) -> Any:
            seen.calls.append(name)
            return call(*arguments, **more)

        return noted

    def orthogonalised(matrices: list[torch.Tensor], *arguments: Any) -> list[torch.Tensor]:
        seen.matrices += len(matrices)
        return iterate(matrices, *arguments)

    for name, call in real.items():
        setattr(dist, name, noting(name, call))
    newton_schulz.orthogonalised = orthogonalised
    try:
        yield seen
    finally:
        newton_schulz.orthogonalised = iterate
        for name, call in real.items():
            setattr(dist, name, call)


def alone(settings: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The weights, or their masters, of one process after the same steps; and what NorMuon keeps of rows."""
    model = Weights(dtype)
    optimizer = Muon(groups(model.named_parameters()), **settings)
    for step in range(STEPS):
        for name, parameter in model.named_parameters():
            parameter.grad = directions(step, dtype)[name]
        optimizer.step()
    found = {n: optimizer.state[p].get("master_weight", p).detach().clone() for n, p in model.named_parameters()}
    return found | beside(optimizer, model.named_parameters())


def beside(optimizer: Muon, named: Any) -> dict[str, torch.Tensor]:
    kept = {f"{n}.{short}": optimizer.state[p].get(key) for n, p in named for short, key in BESIDE.items()}
    return {name: value.clone() for name, value in kept.items() if value is not None}


def cut(tensor: torch.Tensor, where: Any) -> torch.Tensor:
    return tensor if where is None else distribute_tensor(tensor, *where)


def dtensors(folder: str) -> None:
    """Every layout of DTensors, and plain tensors that are the same on all ranks, dealt and not."""
    with distributed.group(torch.device("cpu")):
        line, square = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
        pairs = init_device_mesh("cpu", (2, 1, 2), mesh_dim_names=("pipe", "replicas", "shards"))["replicas", "shards"]
        half = dist.new_group([0, 1])
        layouts: dict[str, Callable[[str], Any]] = {
            "rows": lambda n: (line, [Shard(0)]),
            "columns": lambda n: (line, [Shard(len(SHAPES[n]) - 1)]),
            "hybrid": lambda n: (square, [Replicate(), Shard(0)]),
            "both": lambda n: (square, [Shard(0), Shard(len(SHAPES[n]) - 1)]),
            "twice": lambda n: (square, [Shard(0), Shard(0)]),
            "pairs": lambda n: (pairs, [Replicate(), Shard(0)]),
            "replicated": lambda n: (line, [Replicate()]),
            "mixed": lambda n: None if n in ("fc", "bias") else (line, [Shard(0)]),
            "several": lambda n: {"conv": (line, [Shard(0)]), "fc": (square, [Replicate(), Shard(0)])}.get(n),
            "whole": lambda n: None,
            "dealt": lambda n: None,
        }
        ends: dict[str, Any] = {}
        seen: dict[str, Any] = {}
        for (kind, settings), iteration, dtype in (
            *((one, "fp32", torch.float32) for one in SETTINGS.items()),
            *((one, "fp64", torch.float64) for one in SETTINGS.items()),
            (("jordan", SETTINGS["jordan"]), "bf16", torch.float32),
        ):
            settings = {**settings, "iteration": iteration}
            ends[f"alone {kind} {iteration}"] = alone(settings, dtype)
            for layout, place in layouts.items():
                model = Weights(dtype)
                parameters = {n: nn.Parameter(cut(p.detach(), place(n))) for n, p in model.named_parameters()}
                optimizer = Muon(groups(parameters.items()), **settings)
                if layout in ("mixed", "several", "dealt"):
                    optimizer.deal_among(dist.group.WORLD)
                calls = []
                for step in range(STEPS):
                    for n, parameter in parameters.items():
                        parameter.grad = cut(directions(step, dtype)[n], place(n))
                    with counted() as of_step:
                        optimizer.step()
                    everywhere = distributed.gather(of_step.matrices)
                    calls.append((of_step.calls, sum(everywhere)))
                whole = {n: getattr(p, "full_tensor", lambda p=p: p)().detach().clone() for n, p in parameters.items()}
                whole |= beside(optimizer, parameters.items())
                ends[f"{layout} {kind} {iteration}"] = whole
                seen[f"{layout} {kind} {iteration}"] = calls
                carried = [name for names, _ in calls for name in names if name != "all_reduce"]  # of norms: no matrix
                assert optimizer.traffic.collectives == len(carried), layout
        seen["among half"] = among(half)
        if distributed.is_first():
            torch.save({"ends": ends, "seen": seen}, Path(folder) / "dtensors.pt")


def among(half: Any) -> Any:
    """Two ranks share out what the others do alone."""
    model = Weights()
    optimizer = Muon(groups(model.named_parameters()), 0.05, iteration="fp32")
    if dist.get_rank() < 2:
        optimizer.deal_among(half)
    for name, parameter in model.named_parameters():
        parameter.grad = directions(0)[name]
    with counted() as seen:
        optimizer.step()
    return distributed.gather(seen.matrices)


def zero(folder: str) -> None:
    """DeepSpeed's stages, with gradients accumulated in bfloat16 and in float32; what is refused."""
    import deepspeed

    from largebatch.engines.deepspeed import quiet, show_layers

    with distributed.group(torch.device("cpu")):
        deepspeed.init_distributed(dist_backend="gloo")

        def start(optimizer: Any, model: nn.Module, **settings: Any) -> Any:
            config = {
                "train_batch_size": 2,
                "train_micro_batch_size_per_gpu": 1,
                "zero_allow_untested_optimizer": True,
                "gradient_clipping": 0.0,
                **settings,
            }  # DeepSpeed clips at 1.0 where nothing is said
            with quiet():
                return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]

        ends: dict[str, Any] = {}
        seen: dict[str, Any] = {}
        for kind, settings in SETTINGS.items():
            settings = {**settings, "iteration": "fp32"}
            ends[f"alone bf16 {kind}"] = alone(settings, torch.bfloat16)
            ends[f"alone fp32 {kind}"] = alone(settings)
            for stage, weights, accumulated in stages_of(kind):
                model = Weights()
                optimizer = Muon(groups(model.named_parameters()), **settings)
                small = {"sub_group_size": 100} if stage == 3 else {}  # several sub-groups of one parameter group
                engine = start(
                    optimizer,
                    model,
                    zero_optimization={"stage": stage, **small},
                    bf16={"enabled": weights == "bf16"},
                    data_types={"grad_accum_dtype": accumulated},
                )
                partitions = show_layers(engine)
                calls = []
                for step in range(STEPS):
                    engine.backward(engine(directions(step)))
                    with counted() as of_step:
                        engine.step()
                    calls.append((of_step.calls, sum(distributed.gather(of_step.matrices))))
                name = f"zero {stage} {weights} {accumulated} {kind}"
                ends[name] = masters(engine, optimizer, stage, partitions)
                seen[name] = calls
        told = refused(start, show_layers)
        if distributed.is_first():
            torch.save({"ends": ends, "seen": seen, "told": told}, Path(folder) / "zero.pt")


def masters(engine: Any, optimizer: Muon, stage: int, partitions: Any) -> dict[str, torch.Tensor]:
    """The whole float32 weights, and what is kept of rows."""
    if stage == 0:
        found = {n: p.detach().clone() for n, p in engine.module.named_parameters()}
        return found | beside(optimizer, engine.module.named_parameters())
    flats = (
        engine.optimizer.fp32_partitioned_groups_flat
        if stage == 3
        else [group["params"][0] for group in optimizer.param_groups]
    )
    found = {}
    for flat in flats:
        for name, pieces in states.held_values(flat, flat.detach(), states.Layout({}, partitions)):
            whole = torch.zeros(pieces.shape).flatten()
            for start, values in pieces.local:
                whole[start : start + len(values)] = values
            found[name] = distributed.sum_(whole).view(pieces.shape)
        for short, key in BESIDE.items():
            kept = optimizer.state[flat].get(key, {})
            found |= {f"{name}.{short}": value.clone() for name, value in kept.items()}
    return found


def refused(start: Callable[..., Any], show_layers: Callable[..., Any]) -> dict[str, str]:
    """What cannot be exact, in the words of its refusal."""
    import deepspeed

    from largebatch.optim import muon_groups, parameter_groups, treatments

    told = {}
    model = Weights()
    engine = start(Muon(groups(model.named_parameters()), 0.1), model, zero_optimization={"stage": 1})
    try:
        engine.backward(engine(directions(0)))
        engine.step()
    except UserError as error:
        told["not shown"] = str(error)
    with deepspeed.zero.Init(config_dict_or_path={"train_batch_size": 2, "zero_optimization": {"stage": 3}}):
        model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 2))
    try:
        muon_groups(parameter_groups(model, 0.1, treatments(model, (), None)), model)
    except UserError as error:
        told["zero.Init"] = str(error)
    return told

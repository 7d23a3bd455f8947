"""One process, DDP, FSDP2 and DeepSpeed ZeRO: the same weights and states after the same steps."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from programs import torchrun

HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None

# A network with convolutions, norms (of layers: batch norm sees other examples in another world), biases, a tensor
# whose first axis no world divides, and one smaller than the world.
WORK = """
import itertools, json, os, sys
from pathlib import Path
import torch
import torch.nn.functional as F
from torch import nn
from largebatch import batch, checkpoint, distributed, engines, optim
from largebatch.checkpoint import manifest
from largebatch.optim import shards

STEPS, GLOBAL = 24, 24
OPTIMIZERS = {
    "lars": lambda g: optim.Lars(g, 0.5, trust_coefficient=0.02, momentum_correction=True),
    "vissl": lambda g: optim.Lars(g, 0.5, trust_coefficient=0.02, variant="vissl", nesterov=True),
    "lamb": lambda g: optim.Lamb(g, 0.01),
    "sgd": lambda g: torch.optim.SGD(g, 0.05, 0.9),
    "adamw": lambda g: torch.optim.AdamW(g, 1e-3),
}

def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.GroupNorm(3, 6), nn.ReLU(), nn.Conv2d(6, 7, 3), nn.GroupNorm(1, 7),
        nn.Tanh(), nn.Flatten(), nn.Linear(7 * 16, 5), nn.LayerNorm(5), nn.Linear(5, 3),
    )
    return model

def lr_of(step):
    return 0.5 * min(1, (step + 1) / 4) * (0.1 if step >= 16 else 1.0)

device = torch.device("cpu")
out = Path(sys.argv[1])
jobs = json.loads(sys.argv[2])
with distributed.group(device, alone=True):
    world, rank = distributed.world_size(), distributed.rank()
    end = {}
    for (engine_name, settings, precision, accumulation), name in itertools.product(jobs, OPTIMIZERS):
        if precision != "fp32" and engine_name == "deepspeed":
            continue
        engine = engines.ENGINES[engine_name](device, precision, False, False, **settings)
        model = engine.place(network())
        table = optim.treatments(model, ("norm", "bias"), ("norm", "bias"))
        optimizer = OPTIMIZERS[name](optim.parameter_groups(model, 0.01, table))
        base = optimizer.param_groups[0]["lr"]
        micro = GLOBAL // world // accumulation
        plan = batch.resolve(dataset_size=1000, global_batch_size=GLOBAL, micro_batch_size=micro,
                             largest_micro_batch=64, world_size=world, epochs=None, steps=STEPS, seed=0)
        engine.prepare(model, optimizer, plan, 0.9)
        reduced = []
        original = shards.dist.all_reduce
        norms = []
        for step in range(STEPS):
            generator = torch.Generator().manual_seed(step)
            images = torch.randn(GLOBAL, 3, 8, 8, generator=generator, dtype=torch.float64).to(engine.dtype)
            labels = torch.randint(3, (GLOBAL,), generator=generator)
            for group in optimizer.param_groups:
                group["lr"] = base * lr_of(step)
            for part in range(accumulation):
                mine = slice((rank * accumulation + part) * micro, (rank * accumulation + part + 1) * micro)
                outputs = engine.forward(images[mine], last=part == accumulation - 1)
                engine.backward(F.cross_entropy(outputs, labels[mine], reduction="sum") / GLOBAL)
            inside = []
            def counted(tensor, *a, **k):
                inside.append(tensor.numel())
                return original(tensor, *a, **k)
            if isinstance(optimizer, optim.Lars | optim.Lamb):
                step_of = optimizer.step
                def step_counted(*a, **k):
                    shards.dist.all_reduce = counted
                    try:
                        return step_of(*a, **k)
                    finally:
                        shards.dist.all_reduce = original
                optimizer.step = step_counted
            norm = engine.step(measure=True)
            if isinstance(optimizer, optim.Lars | optim.Lamb):
                del optimizer.step
            reduced.append(inside)
            norms.append(float(norm))
        key = "-".join([engine_name, *map(str, settings.values()), precision, str(accumulation), name])
        writer = checkpoint.Writer(out / f"saved{world}" / key, checkpoint.Keep())
        writer.save(1, {}, engine.save(), {"statistics": engine.statistics()})
        saved = writer.take()
        writer.close()
        state = checkpoint.state_of(saved.path, manifest.read(saved.path))
        with engine.whole_model(), torch.no_grad():
            outputs = engine.predict(images[: rank + 1])  # unequal shares: nobody waits for anybody
        end[key] = {"model": state["model"], "layers": state["optimizer"]["layers"], "reduced": reduced, "norms": norms,
                    "outputs": outputs[:1], "finite": saved.finite}
    if rank == 0:
        torch.save(end, out / f"world{world}.pt")
"""
ONE = [["ddp", {}, "fp64", 1], ["ddp", {}, "fp32", 2]]
TWO = [["ddp", {}, "fp64", 2], ["ddp", {}, "fp32", 1], ["fsdp", {}, "fp64", 2], ["fsdp", {}, "fp32", 1]]
ZERO = [["deepspeed", {"zero": stage}, "fp32", parts] for stage, parts in ((0, 2), (1, 2), (2, 2), (1, 1))]
FOUR = [["fsdp", {}, "fp64", 1], ["fsdp", {}, "fp32", 1]]
OPTIMIZERS = ["lars", "vissl", "lamb", "sgd", "adamw"]
CASES = [
    (world, "-".join([engine, *map(str, settings.values()), precision, str(accumulation)]))
    for world, jobs in ((2, TWO), (2, ZERO), (4, FOUR))
    for engine, settings, precision, accumulation in jobs
]


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """The same 24 steps in worlds of 1, 2 and 4, one start each."""
    import json

    folder = tmp_path_factory.mktemp("engines")
    (folder / "work.py").write_text(WORK)
    found = {}
    for world, jobs in ((1, ONE), (2, TWO + (ZERO if HAS_DEEPSPEED else [])), (4, FOUR)):
        ended = torchrun(world, folder / "work.py", folder, json.dumps(jobs))
        assert ended.returncode == 0, ended.stderr[-4000:]
        found[world] = torch.load(folder / f"world{world}.pt", weights_only=True)
    return found


def distance(these: dict[str, torch.Tensor], those: dict[str, torch.Tensor]) -> float:
    """Of all tensors together, relative."""
    assert these.keys() == those.keys()
    differences = [(these[key].double() - those[key].double()).norm() for key in those]
    lengths = [tensor.double().norm() for tensor in those.values()]
    return float(torch.stack(differences).norm() / torch.stack(lengths).norm())


def of_state(end: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value for name, state in end["layers"].items() for key, value in state.items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("world", "job"), CASES)
def test_weights_and_states_are_those_of_one_process(ends, world, job, optimizer):
    if "deepspeed" in job and not HAS_DEEPSPEED:
        pytest.skip("DeepSpeed is not installed")
    alone = ends[1][f"ddp-fp64-1-{optimizer}"]
    many = ends[world][f"{job}-{optimizer}"]
    tolerance = 1e-12 if "fp64" in job else 1e-6
    assert distance(many["model"], alone["model"]) < tolerance
    assert distance(of_state(many), of_state(alone)) < tolerance
    assert many["finite"]
    assert many["norms"] == pytest.approx(alone["norms"], rel=1e-11 if "fp64" in job else 1e-5)
    torch.testing.assert_close(many["outputs"].double(), alone["outputs"].double(), rtol=1e-4, atol=1e-5)


def test_the_steps_moved_the_weights_and_one_process_in_float32_is_as_close(ends):
    """What the tolerances mean: the weights moved by far more, and float32 itself stays within them."""
    for optimizer in OPTIMIZERS:
        exact, rounded = ends[1][f"ddp-fp64-1-{optimizer}"], ends[1][f"ddp-fp32-2-{optimizer}"]
        assert 0 < distance(rounded["model"], exact["model"]) < 1e-6
        others = [ends[1][f"ddp-fp64-1-{other}"]["model"] for other in OPTIMIZERS if other != optimizer]
        assert min(distance(other, exact["model"]) for other in others) > 1e-2


@pytest.mark.parametrize(("world", "job"), CASES)
@pytest.mark.parametrize("optimizer", ["lars", "vissl", "lamb"])
def test_one_small_all_reduce_a_step_for_all_ratios(ends, world, job, optimizer):
    if "deepspeed" in job and not HAS_DEEPSPEED:
        pytest.skip("DeepSpeed is not installed")
    adapted = 4  # two convolutions, two linear layers
    whole_here = job.startswith("ddp") or "deepspeed-0" in job
    expected = [] if whole_here else [2 * adapted]
    assert ends[world][f"{job}-{optimizer}"]["reduced"] == [expected] * 24

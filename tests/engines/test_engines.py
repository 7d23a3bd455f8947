"""One process, DDP, FSDP2 and DeepSpeed ZeRO: the same weights and states after the same steps."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest
import torch
from programs import torchrun

pytestmark = pytest.mark.worlds
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None

ONE = [["ddp", {}, "fp64", 1], ["ddp", {}, "fp32", 2]]
TWO = [["ddp", {}, "fp64", 2], ["ddp", {}, "fp32", 1], ["fsdp", {}, "fp64", 2], ["fsdp", {}, "fp32", 1]]
ZERO = [["deepspeed", {"zero": stage}, "fp32", parts] for stage, parts in ((0, 2), (1, 2), (2, 2), (1, 1))]
FOUR = [["fsdp", {}, "fp64", 1], ["fsdp", {}, "fp32", 1]]
OPTIMIZERS = ["lars", "vissl", "lamb", "sgd", "adamw", "muon", "normuon", "orscale_lm", "normalised", "nadamw"]
CASES = [
    (world, "-".join([engine, *map(str, settings.values()), precision, str(accumulation)]))
    for world, jobs in ((2, TWO), (2, ZERO), (4, FOUR))
    for engine, settings, precision, accumulation in jobs
]


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """The same 24 steps in worlds of 1, 2 and 4, one start each."""
    folder = tmp_path_factory.mktemp("engines")
    found = {}
    for world, jobs in ((1, ONE), (2, TWO + (ZERO if HAS_DEEPSPEED else [])), (4, FOUR)):
        ended = torchrun(world, "worlds.same_steps:work", folder, json.dumps(jobs))
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

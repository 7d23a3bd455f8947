"""Given gradients on matrices cut in every way: each is orthogonalised whole, once in the world, as by one process."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from programs import torchrun
from worlds.muon_matrices import MATRICES, SETTINGS, STEPS, stages_of

pytestmark = pytest.mark.worlds
TOLERANCE = {"fp32": 1e-6, "fp64": 1e-12, "bf16": 1e-6}  # what is iterated in bfloat16 is the same everywhere, too
CUT = ["rows", "columns", "hybrid", "both", "twice", "mixed", "several"]
NORMS = {  # all-reduces of sums of squares: one for each mesh and axis that cuts
    "rows": 1, "columns": 1, "hybrid": 1, "both": 2, "twice": 2, "mixed": 1, "several": 2, "pairs": 1,
}  # fmt: skip
KINDS = [*((kind, iteration) for iteration in ("fp32", "fp64") for kind in SETTINGS), ("jordan", "bf16")]


def run(folder: Any, world: int, function: str) -> Any:
    ended = torchrun(world, f"worlds.muon_matrices:{function}", folder)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return torch.load(folder / f"{function}.pt", weights_only=True)


@pytest.fixture(scope="module")
def dtensors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("dtensors"), 4, "dtensors")


@pytest.fixture(scope="module")
def zero(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    return run(tmp_path_factory.mktemp("zero"), 2, "zero")


def assert_same(these: dict[str, torch.Tensor], those: dict[str, torch.Tensor], tolerance: float) -> None:
    assert these.keys() == those.keys()
    for name in those:
        assert these[name].dtype == those[name].dtype
        assert float((these[name] - those[name]).norm() / those[name].norm()) < tolerance, name


@pytest.mark.parametrize(("kind", "iteration"), KINDS)
@pytest.mark.parametrize("layout", [*CUT, "pairs", "replicated", "whole", "dealt"])
def test_weights_are_those_of_one_process(dtensors, layout, kind, iteration):
    """Shards of unequal size, of none, along any axis, replicated or not, two meshes in one optimizer."""
    ends = dtensors["ends"]
    assert_same(ends[f"{layout} {kind} {iteration}"], ends[f"alone {kind} {iteration}"], TOLERANCE[iteration])


@pytest.mark.parametrize(("kind", "iteration"), KINDS)
def test_each_matrix_is_computed_once_in_the_world_and_few_collectives_carry_them(dtensors, kind, iteration):
    def steps(layout: str) -> list[Any]:
        return [(sorted(calls), matrices) for calls, matrices in dtensors["seen"][f"{layout} {kind} {iteration}"]]

    def twice(layout: str) -> list[str]:
        """And the norms of cut matrices, where they are asked for."""
        norms = NORMS[layout] if kind in ("orscale", "orscale_lm", "normalised") else 0
        return ["all_reduce"] * norms + ["all_to_all_single"] * 2

    for layout in CUT:
        assert steps(layout) == [(twice(layout), len(MATRICES))] * STEPS, layout
    assert steps("pairs") == [(twice("pairs"), 2 * len(MATRICES))] * STEPS, (
        "two pairs of ranks that know nothing of each other"
    )
    for layout in ("replicated", "dealt"):
        assert steps(layout) == [(["all_gather_into_tensor"], len(MATRICES))] * STEPS, layout
    assert steps("whole") == [([], 4 * len(MATRICES))] * STEPS, "nobody has said that the ranks have the same"


def test_a_group_of_ranks_shares_out_what_others_do_alone(dtensors):
    *shared, third, fourth = dtensors["seen"]["among half"]
    assert sum(shared) == third == fourth == len(MATRICES)
    assert min(shared) > 0


@pytest.mark.parametrize(
    ("kind", "stage", "weights", "accumulated"),
    [(kind, *row) for kind in SETTINGS for row in stages_of(kind)],
)
def test_zero_keeps_the_masters_of_one_process(zero, kind, stage, weights, accumulated):
    name = f"zero {stage} {weights} {accumulated} {kind}"
    assert_same(zero["ends"][name], zero["ends"][f"alone {weights} {kind}"], TOLERANCE["fp32"])
    for number, (calls, matrices) in enumerate(zero["seen"][name]):
        assert matrices == len(MATRICES), "each once in the world"
        ours = [call for call in calls if call != "all_reduce"]  # DeepSpeed's
        sub_groups = 2 if stage == 3 else 1
        expected = ["all_gather_into_tensor"] if stage == 0 else ["all_to_all_single"] * 2 * sub_groups
        tables = 0 if number or not stage else sub_groups  # at the first step: who holds what
        assert sorted(ours) == sorted(expected + ["all_gather_object"] * tables)


def test_what_cannot_be_exact_is_one_sentence(zero):
    assert "Muon was given layers of shapes" in zero["told"]["not shown"]
    assert "tell where the layers lie with use_partition" in zero["told"]["not shown"]
    assert (
        "Muon cannot tell the matrices of a model made under deepspeed.zero.Init, where 0.weight of shape (5, 4) is an "
        "empty tensor"
    ) in zero["told"]["zero.Init"]

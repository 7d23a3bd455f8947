"""Given gradients on given shards: whatever cuts the layers, the masters are those of whole layers in one process."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from programs import torchrun

pytestmark = pytest.mark.worlds
NAMES = ["lars", "nus", "lamb", "clipped lamb", "bounded lamb"]


def run(folder: Any, world: int, function: str) -> Any:
    ended = torchrun(world, f"worlds.given_gradients:{function}", folder)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return torch.load(folder / f"{function}.pt", weights_only=True)


@pytest.fixture(scope="module")
def dtensors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    return run(tmp_path_factory.mktemp("dtensors"), 4, "dtensors")


@pytest.fixture(scope="module")
def zero(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    return run(tmp_path_factory.mktemp("zero"), 2, "zero")


def assert_same(these: dict[str, torch.Tensor], those: dict[str, torch.Tensor]) -> None:
    assert these.keys() == those.keys()
    for name in those:
        assert these[name].dtype == torch.float32
        assert float((these[name] - those[name]).norm() / those[name].norm()) < 1e-6, name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", ["rows", "columns", "hybrid", "both", "mixed", "several"])
def test_dtensors_on_any_mesh_and_mixed_with_plain_tensors(dtensors, layout, name):
    """Shards of unequal size, of none, along any axis; replicas counted once; two meshes in one optimizer."""
    assert_same(dtensors[f"{layout} {name}"], dtensors[f"alone {name}"])


@pytest.mark.parametrize("name", NAMES[:3])
@pytest.mark.parametrize(("stage", "accumulated"), [(1, "bf16"), (1, "fp32"), (2, "bf16"), (2, "fp32"), (3, "fp32")])
def test_zero_with_bf16_weights_keeps_the_masters_of_one_process(zero, stage, accumulated, name):
    assert_same(zero["ends"][f"zero {stage} {accumulated} {name}"], zero["ends"][f"alone {name}"])
    if stage == 3:
        assert int(next(iter(zero["ends"]["flats 3"]))) > 2, "more sub-groups than parameter groups"


def test_flat_partitions_without_their_table_are_refused_before_a_step(zero):
    assert "an engine has put flat partitions in their place" in zero["told"]["not shown"]


def test_a_clip_that_would_see_one_group_at_a_time_is_refused(zero):
    assert "max_grad_norm = 1.0 of Lamb would see one parameter group at a time" in zero["told"]["clipped"]


def test_momentum_correction_over_several_sub_groups_is_refused(zero):
    assert (
        "momentum_correction under ZeRO 3 needs each parameter group in one sub-group"
        in (zero["told"]["several sub-groups"])
    )

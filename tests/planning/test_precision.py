"""A pace in one precision for a recipe in another; hosts of a rack; machines where nothing is launched."""

from __future__ import annotations

import pytest
from planning.clusters import machine, point

from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.studies.cluster import machine as machines
from largebatch.studies.cluster.machine import Link
from largebatch.studies.cluster.step import cards_of, collective_time
from largebatch.studies.planning.devices import devices_of, nearest
from largebatch.studies.planning.legs import PlannedRecipe
from largebatch.studies.planning.lines import lines_of
from largebatch.studies.planning.pace import SecondsBetween
from largebatch.studies.planning.precision import precision_on, precision_ratio, said_of

PEAKS = {"bf16": 8e14, "fp16": 8e14, "tf32": 4e14, "fp32": 1e14}


def cluster(**pace):
    return machine(peaks=PEAKS, workloads={"mlp": {"per_example": 1e-3, "precision": "bf16", **pace}})


@pytest.mark.parametrize(
    ("precision", "convolutions", "ratio", "basis"),
    [
        ("bf16", 0.5, 1.0, "same"),
        ("fp16", 0.5, 1.0, "same"),
        ("fp32", 0.0, 8.0, "at most"),
        ("fp32", 1.0, 2.0, "at most"),
        ("fp32", 0.5, 8e14 * (0.5 / 4e14 + 0.5 / 1e14), "at most"),
    ],
)
def test_the_ratio_of_peaks(precision, convolutions, ratio, basis):
    found = precision_ratio(cluster(), "mlp", precision, convolutions)
    assert (found.ratio, found.basis) == (pytest.approx(ratio), basis)
    said = said_of("mlp", cluster(), precision, found.ratio, found.basis)
    assert (said is None) == (basis == "same")


def test_a_faster_precision_is_bounded_from_below():
    found = precision_ratio(cluster(precision="fp32"), "mlp", "bf16", 1.0)
    assert (found.ratio, found.basis) == (0.5, "at least")


def test_what_was_measured_counts_before_peaks():
    found = precision_ratio(cluster(times={"fp32": 5.0}), "mlp", "fp32")
    assert (found.ratio, found.basis) == (5.0, "measured")
    assert "5 times the seconds of an example, as was measured" in (
        said_of("mlp", cluster(), "fp32", found.ratio, found.basis) or ""
    )


def test_nothing_said_is_taken_as_it_stands_and_told():
    found = precision_ratio(machine(), "mlp", "fp32")
    assert (found.ratio, found.basis) == (1.0, "not said")
    assert "nothing says in which precision" in (said_of("mlp", machine(), "fp32", 1.0, "not said") or "")


def test_without_peaks_another_precision_is_refused():
    alone = machine(workloads={"mlp": {"per_example": 1e-3, "precision": "fp16"}})
    assert precision_ratio(alone, "mlp", "bf16").basis == "same"
    with pytest.raises(UserError, match="its pace of mlp in fp16, and the recipe computes in fp64: say peaks.fp16"):
        precision_ratio(alone, "mlp", "fp64")
    with pytest.raises(UserError, match=r"of which a device of dgx-v100 has no peak; precision=fp16 is what it has"):
        precision_ratio(machines.find("dgx-v100"), "resnet50", "bf16")


def test_published_ratios_are_below_those_of_the_peaks():
    """NVIDIA DeepLearningExamples on A100: TF32 over mixed precision; FP8 on H100."""
    known = machines.find("dgx-a100")
    for name in ("bert_large_128", "bert_large_512"):
        assert 1.8 < known.pace(name).times["tf32"] < known.peaks["fp16"] / known.peaks["tf32"]
    hopper = machines.find("dgx-h100")
    assert 1 < hopper.pace("bert").times["bf16"] < hopper.peaks["fp8"] / hopper.peaks["bf16"]


def test_an_interval_reaches_to_the_bound():
    assert SecondsBetween(0.9, 1.1).reaching(0.5, 1.0) == SecondsBetween(0.5, 1.1)
    assert SecondsBetween(0.9, 1.1).reaching(2.0, 1.0) == SecondsBetween(0.9, 2.0)
    assert SecondsBetween(None, None).reaching(0.5, 1.0) == SecondsBetween(0.5, None)


RACK = machine(devices_per_node=72, devices_per_host=4, inside={"bandwidth": 1e11}, between={"bandwidth": 7.2e11})


def test_a_rack_is_filled_by_whole_hosts():
    assert devices_of("2,4,8,60,72,76,512", RACK) == [2, 4, 8, 60, 72, 76, 512]
    with pytest.raises(UserError, match="a host of cluster has 4 devices, and 74 are no whole hosts; nearest: 72 or 7"):
        devices_of("74", RACK)
    assert nearest(100, [360], RACK) == [72, 120]
    assert [RACK.nodes(n) for n in (4, 72, 76, 512)] == [1, 1, 2, 8]
    assert [RACK.in_a_node(n) for n in (3, 4, 72, 76, 144, 512)] == [3, 4, 72, 40, 72, 64]
    assert [RACK.hosts(n) for n in (3, 4, 6, 72, 512)] == [1, 1, 2, 18, 128]


def test_a_rack_that_is_not_full_sends_by_the_cards_of_its_hosts():
    assert cards_of(RACK, 144) == Link(bandwidth=7.2e11)
    assert cards_of(RACK, 128).bandwidth == pytest.approx(7.2e11 * 64 / 72)
    size = 1e9
    inside, between = 2 * 63 / 64 * size / 1e11, min(2 * 1 / 2, 2) * size / (7.2e11 * 64 / 72)
    assert collective_time(RACK, "all_reduce", size, 128) == pytest.approx(inside + between)


WRITTEN = "name: x\nmodel: {name: mlp}\ndata: {name: digits}\nbatch: {global_batch_size: 96}\nepochs: 1\n"
WRITTEN += "optimizer: {name: sgd}\nlr: {base: 0.1}\n"


def test_lines_are_of_hosts_and_of_what_launches(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(WRITTEN)
    recipe = PlannedRecipe(file, [], 1500)
    (line,) = lines_of(recipe, RACK, point(96, 96, 1.0))
    assert line.startswith("NNODES=24 RDZV_ENDPOINT=HOST:29500 NPROC_PER_NODE=4 launch/torchrun.sh train")
    (line,) = lines_of(recipe, RACK, point(2, 96, 1.0))
    assert line.startswith("NPROC_PER_NODE=2 launch/torchrun.sh")
    (line,) = lines_of(recipe, machines.find("tpu-v3"), point(96, 96, 1.0))
    assert line == "# nothing: largebatch does not run on tpu-v3, of which its file has times alone"
    assert precision_on(recipe.run, "cuda") == "bf16"
    assert precision_on(config.load(file, ["precision=fp64"]), "cuda") == "fp64"


def test_what_was_measured_in_one_half_precision_is_of_both():
    quarter = {"per_example": 1e-3, "precision": "fp8", "times": {"bf16": 1.59}}
    one = machine(peaks={**PEAKS, "fp8": 1.6e15}, workloads={"mlp": quarter})
    for half in ("bf16", "fp16"):
        found = precision_ratio(one, "mlp", half)
        assert (found.ratio, found.basis) == (1.59, "measured")


@pytest.mark.parametrize(
    ("times", "sentence"),
    [
        ({"fp32": 1e-6}, r"workloads.mlp: flops over per_example are 1e\+18 FLOP/s, and .* times.fp32 too small"),
        ({"bf16": 2.0}, "workloads.mlp.times has bf16, in which the pace itself was measured; leave it out"),
    ],
)
def test_times_of_a_pace_are_held_to_the_peak(times, sentence):
    with pytest.raises(ValueError, match=sentence):
        cluster(flops=1e9, times=times)

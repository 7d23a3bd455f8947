"""The bench measures loops that do the same work, and reckons as its docstrings say; no test here says how fast."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import blanks
import pytest
import rich.console
import torch
from PIL import Image
from programs import largebatch
from torch import nn

from largebatch import models
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.run import assemble
from largebatch.studies.bench.throughput import (
    dataloader_loop,
    flops,
    machine_load,
    show,
    timm_loop,
    turns,
)
from largebatch.studies.bench.throughput import (
    measure as throughput,
)
from largebatch.studies.bench.throughput.bare_loop import bare_loop, gathered
from largebatch.studies.bench.throughput.ready import Ready, ready
from largebatch.studies.bench.throughput.verdict import Measurements, verdict
from largebatch.tasks.classification import Classification

CPU = torch.device("cpu")
OFF = torch.autocast("cpu", enabled=False)
CNN = {"name": "tiny_cnn", "channels": [4, 8]}


def job_of(path: Path, *overrides: str) -> assemble.Job:
    return assemble.assemble(turns.timed(config.load(path, overrides), 4)[0], CPU)


def shown(facts: dict[str, Any]) -> str:
    console = rich.console.Console(file=io.StringIO(), width=160)
    for table in show.tables(facts):
        console.print(table)
    for sentence in show.notes(facts):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Any]:
    """A recipe of eight small images to train on."""
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (40, 36), (60 * number, 9, 99)).save(tmp_path / split / name / f"{number}.jpg")
    return {
        "data": {"name": "folder", "root": str(tmp_path), "image_size": 32, "workers": 0},
        "batch": {"global_batch_size": 4, "micro_batch_size": 2},
        "model": CNN,
    }


# ---- what the contestants do ----


def test_the_bare_loop_trains_on_every_image_with_the_global_mean():
    """Against one big batch: micro-batches add up to the gradient of the global batch."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (12, 1, 4, 4), dtype=torch.uint8)
    labels = torch.arange(12) % 3
    mean, std = torch.full((1, 1, 1), 100.0), torch.full((1, 1, 1), 50.0)
    ends = []
    for micro in (12, 4):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
        stream = gathered(images, labels, mean, std, 12, micro, 3, torch.float32, torch.contiguous_format)
        bare_loop(model, Classification(), optimizer, stream, 12, OFF)
        ends.append(model[1].weight.detach().clone())
    torch.testing.assert_close(ends[0], ends[1])


def test_the_bare_loop_picks_each_example_once_an_epoch():
    images = torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1)
    one = torch.ones(1, 1, 1)
    steps = gathered(images, torch.arange(12), 0 * one, one, 6, 3, 4, torch.float32, torch.contiguous_format)
    picked = [torch.cat([part.flatten() for part, _ in step]) for step in steps]
    assert sorted(torch.cat(picked[:2]).tolist()) == sorted(torch.cat(picked[2:]).tolist()) == list(range(12))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch__micro_batch_size": 20},
        {"model": CNN, "loss": {"label_smoothing": 0.1}},
        {"model": CNN, "batch__bn_batch_size": 25, "batch__micro_batch_size": 50},
        {"optimizer": {"name": "lamb"}, "weight_decay": {"value": 0.01}},
    ],
)
def test_the_bare_loop_ends_where_the_trainer_ends(recipe, changes):
    """On the same examples: both do all of the work. Batch norm's running statistics too, but where they are sized."""
    path = recipe(precision="fp64", **changes)
    trained, other = job_of(path), job_of(path)
    start = [parameter.clone() for parameter in other.engine.model.parameters()]
    turns.trainer_seconds(trained)
    other.engine.model.train()
    stream = other.dataset.train.steps(other.plan, 0, 0, other.placement, other.run.seed)
    throughput.train_barely(other, stream)
    for before, wanted, found in zip(
        start, trained.engine.model.parameters(), other.engine.model.parameters(), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
        assert not torch.equal(found, before)


def test_timms_loop_takes_the_steps_of_plain_sgd():
    """Against the bare loop: the mean over accumulated micro-batches is that over the global batch."""
    ends = []
    images, labels = torch.randn(12, 1, 4, 4), torch.arange(12) % 3
    steps = [list(zip(images.split(4), labels.split(4), strict=True))] * 3
    for timm in (True, False):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
        if timm:
            timm_loop.timm_loop(timm_loop.Peer(model, optimizer, OFF, ""), steps, 3, Classification())
        else:
            bare_loop(model, Classification(), optimizer, steps, 12, OFF)
        ends.append(model[1].weight.detach().clone())
    torch.testing.assert_close(ends[0], ends[1])


@pytest.mark.worlds
@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [
        ({"name": "sgd", "momentum": 0.9}, "SGD"),
        ({"name": "sgd", "momentum": 0.9, "nesterov": True}, "SGD"),
        ({"name": "lars"}, "Lars"),
        ({"name": "lamb"}, "Lamb"),
        ({"name": "adamw"}, "AdamW"),
    ],
)
def test_timms_model_and_optimizer_are_of_the_same_kind(recipe, optimizer, kind):
    path = recipe(
        optimizer=optimizer,
        model={"name": "resnet18", "zero_init_residual": True},
        data={"name": "synthetic", "image_shape": [3, 32, 32], "examples": 20},
        batch={"global_batch_size": 4, "micro_batch_size": 2},
    )
    job = job_of(path)
    peer = timm_loop.peer(job, compile=False)
    assert type(peer.optimizer).__name__ == kind
    assert type(peer.model).__module__.startswith("timm.")
    assert "timm's resnet18, fp32, channels-last, not compiled" in peer.what
    if kind == "SGD":
        assert {group["nesterov"] for group in peer.optimizer.param_groups} == {optimizer.get("nesterov", False)}
    if kind == "Lamb":
        assert {group["max_grad_norm"] for group in peer.optimizer.param_groups} == {None}
    before = [parameter.clone() for parameter in peer.model.parameters()]
    timm_loop.timm_loop(peer, throughput.ready_steps(job, ready(job)), job.plan.accumulation_steps, job.task)
    moved = [not torch.equal(one, other) for one, other in zip(before, peer.model.parameters(), strict=True)]
    assert any(moved)


@pytest.mark.worlds
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "timm has no model called mlp"),
        ({"model": {"name": "resnet20"}}, "timm has no model called resnet20"),
        ({"model": {"name": "timm/resnet18"}, "optimizer": {"name": "adagrad"}}, "none like optimizer.name = adagrad"),
        ({"model": {"name": "timm/resnet18"}, "precision": "fp16"}, "without a loss scaler, which fp16 needs"),
        ({"model": {"name": "squeezenet1_0"}}, "timm has no model called squeezenet1_0"),
    ],
)
def test_where_timm_has_no_counterpart(recipe, changes, reason):
    data = {"name": "synthetic", "image_shape": [3, 32, 32], "examples": 20}
    job = job_of(recipe(data=data, batch={"global_batch_size": 4}, **changes))
    with pytest.raises(UserError, match=reason):
        timm_loop.peer(job, compile=False)


@pytest.mark.worlds
@pytest.mark.parametrize(("workers", "name"), [(0, "digits"), (2, "digits"), (0, "digit_pairs")])
def test_the_dataloader_reads_what_the_set_holds(recipe, workers, name):
    """Each example once an epoch, and as the model gets it from the set itself."""
    job = job_of(recipe(batch={"global_batch_size": 500, "micro_batch_size": 250}), f"data.name={name}")
    split = job.dataset.train
    source = dataloader_loop.loader(split, 250, workers, job.placement)
    steps = [list(step) for step in dataloader_loop.loaded(source, 3, 2, job.placement)]
    assert [[len(labels) for _, labels in step] for step in steps] == [[250, 250]] * 3
    found = torch.cat([images for step in steps for images, _ in step]).flatten(1)
    labels = torch.cat([labels for step in steps for _, labels in step])
    ((wanted, in_order),) = split.batches(0, 1, 1500, job.placement)

    def sorted_rows(images, classes):
        return torch.tensor(sorted(torch.cat([images.double(), classes.view(len(images), -1)], dim=1).tolist()))

    ours, theirs = sorted_rows(wanted.flatten(1), in_order), sorted_rows(found, labels)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


# ---- ready batches and the clock ----


@pytest.mark.parametrize("kind", ["resident", "cropped", "folder", "fp64"])
def test_ready_batches_are_made_like_the_real_ones(recipe, pictures, kind):
    changes = {
        "resident": {"batch__micro_batch_size": 50},
        "cropped": {"model": CNN, "data": {"name": "digits", "augment": "crop"}},
        "folder": pictures,
        "fp64": {"precision": "fp64"},
    }[kind]
    job = job_of(recipe(**changes))
    lists = [
        [list(step) for step in split.steps(job.plan, 0, 0, job.placement, job.run.seed)]
        for split in (job.dataset.train, ready(job))
    ]
    real, laid = lists
    assert len(real) == len(laid) == job.plan.steps
    for one, other in zip(real, laid, strict=True):
        assert len(one) == len(other) == job.plan.accumulation_steps
        for (images, labels), (there, theirs) in zip(one, other, strict=True):
            assert images.shape == there.shape
            assert images.stride() == there.stride()
            assert (images.dtype, labels.dtype) == (there.dtype, theirs.dtype)
            assert labels.shape == theirs.shape
    torch.testing.assert_close(laid[0][0][0], real[0][0][0])
    assert len(ready(job)) == len(job.dataset.train)


def test_ready_batches_do_not_fill_the_device(recipe, monkeypatch):
    job = job_of(recipe(batch__micro_batch_size=10))
    assert len(ready(job).kept) == 8
    monkeypatch.setattr("largebatch.studies.bench.throughput.ready.MOST_BYTES", 3 * 10 * (64 * 4 + 8))
    assert len(ready(job).kept) == 3
    monkeypatch.setattr("largebatch.studies.bench.throughput.ready.MOST_BYTES", 1)
    assert len(ready(job).kept) == 1


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_the_clock_starts_after_the_lead_in(steps):
    seen: list[Any] = []

    def stream():
        for number in range(steps):
            seen.append(number)
            yield number

    assert list(turns.started(stream(), lambda: seen.append("begin"))) == list(range(steps))
    wanted: list[Any] = list(range(steps))
    if steps >= turns.LEAD_IN:
        wanted.insert(turns.LEAD_IN, "begin")
    assert seen == wanted


def test_what_is_timed_has_steps_of_one_kind(recipe):
    path = recipe(
        epochs=4,
        batch={"global_batch_size": 50, "ramp": {"at_epochs": [1], "factor": 2}},
        data={"name": "synthetic", "image_size": {"from": 16, "to": 32, "multiple_of": 8}, "examples": 200},
        model=CNN,
        evaluate={"stop_at": {"score": 90}},  # of which nothing is timed
    )
    fixed, said = turns.timed(config.load(path), 3)
    job = assemble.assemble(fixed, CPU)
    assert (job.plan.steps, len(job.plan.stages)) == (3 + turns.LEAD_IN, 1)
    assert fixed.data.image_size is not None
    assert fixed.data.image_size.first == fixed.data.image_size.last == 32
    assert said == [
        "batch.ramp: every step has the first size, 50",
        "data.image_size: every step has the largest side, 32; data.image_size=N measures another",
    ]
    assert not turns.timed(config.load(recipe()), 3)[1]


@pytest.mark.worlds
def test_the_parts_add_up_to_the_step(recipe):
    for changes in ({}, {"batch__micro_batch_size": 25}, {"sam": {"rho": 0.05}}):
        found = turns.split_of_step(job_of(recipe(**changes)), 4)
        assert list(found) == [
            "data_seconds", "forward_seconds", "backward_seconds", "communication_seconds", "optimizer_seconds",
            "step_seconds", "other_seconds",
        ]  # fmt: skip
        step = found.pop("step_seconds")
        assert step == pytest.approx(sum(found.values()), rel=1e-6)
        assert min(found["data_seconds"], found["forward_seconds"], found["backward_seconds"]) > 0


def test_parts_of_several_steps_are_means():
    parts = ("data", "forward", "backward", "communication", "optimizer")
    lines = [{f"{part}_seconds_median": 1.0 + step for part in parts} | {"step_seconds_median": 9.0} for step in (0, 1)]
    assert turns.mean_parts(lines) == {
        **{f"{part}_seconds": 1.5 for part in parts}, "step_seconds": 9.0, "other_seconds": 1.5
    }  # fmt: skip
    for line in lines:
        line["forward_seconds_median"] = None
    found = turns.mean_parts(lines)
    assert found["forward_seconds"] is found["other_seconds"] is None
    assert turns.mean_parts([])["step_seconds"] is None


# ---- arithmetic, memory, the verdict ----


def test_flops_are_those_counted_by_hand():
    """Multiply-adds count two. A backward has two products of a layer's size; the first has no gradient to pass on."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 5)
    )
    convolution, linear = 2 * 3 * 8 * 9 * 16, 2 * 8 * 16 * 5
    assert flops.of_one_example(model, Classification(), blanks.images(2, (3, 4, 4))) == (
        convolution + linear,
        convolution + 2 * linear,
    )


@pytest.mark.worlds
@pytest.mark.parametrize(("name", "multiply_adds"), [("resnet50", 4.09e9), ("timm/vit_small_patch16_224", 4.60e9)])
def test_flops_of_known_networks(name, multiply_adds):
    """He et al. 2015 with the stride in the 3×3 convolution; DeiT's small ViT (Touvron et al. 2021)."""
    model = models.build(name, 1000, (3, 224, 224))
    found = flops.of_one_example(model, Classification(), blanks.images(2, (3, 224, 224)))
    assert found.forward == pytest.approx(2 * multiply_adds, rel=0.01)
    assert found.total == pytest.approx(3 * found.forward, rel=0.02)


@pytest.mark.parametrize(
    ("device", "precision", "tera"),
    [
        ("NVIDIA H200", "bf16", 989.5),
        ("NVIDIA H200 NVL", "fp16", 835.5),
        ("NVIDIA H100 80GB HBM3", "fp32", 494.5),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("Tesla V100-PCIE-16GB", "fp32", 14),
        ("Tesla V100-SXM2-16GB", "bf16", None),
        ("NVIDIA B200", "bf16", 2250),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "bf16", None),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("NVIDIA GeForce RTX 4090 D", "bf16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA H200", "fp64", None),
    ],
)
def test_datasheets(device, precision, tera):
    found = flops.datasheet_peak(device, precision)
    assert (found and found[0]) == (tera and pytest.approx(tera * 1e12))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
def test_the_measured_peak_leaves_torch_as_it_was(precision, monkeypatch):
    """Two products a step of the clock: the fastest counts, 2 n³ over its seconds."""
    monkeypatch.setattr(flops, "SECONDS", 0.0)
    monkeypatch.setattr(flops, "_seconds_of_product", lambda one, other: 0.5)
    before = torch.get_float32_matmul_precision()
    assert flops.measured_peak(CPU, precision, side=8) == 2 * 8**3 / 0.5
    assert torch.get_float32_matmul_precision() == before


def test_the_share_in_which_a_device_is_busy():
    assert machine_load.covered([(0, 1), (3, 4), (0.5, 2)]) == 0.75
    assert machine_load.covered([(2, 4), (1, 2), (1, 3)]) == 1
    assert machine_load.covered([]) is None


@pytest.mark.worlds
def test_memory_grows_by_what_is_taken():
    memory = machine_load.Memory(CPU)
    taken = torch.ones(machine_load.resident_peak() // 4 + 2**24)  # float32: more than there ever was, by 64 MiB
    assert memory.facts()["peak_resident_growth_bytes"] > 2**25
    del taken


KNOWN = Measurements(trainer_over_synthetic=[1.0], exposed_share=0.0, busy_share=None, utilisation=0.6, device="cpu")


@pytest.mark.parametrize(
    ("changes", "bound", "words"),
    [
        ({}, "device", "The processor's arithmetic bounds it: 60 % of the rate of a large matrix product is reached."),
        ({"utilisation": 0.49}, "device", "by its memory and the operations between"),
        ({"utilisation": None, "device": "cuda"}, "device", "The GPU bounds it; how much"),
        ({"trainer_over_synthetic": [0.9, 0.9, 0.96, 1.2]}, "data", "reaches 93 % of the same loop"),
        ({"trainer_over_synthetic": [0.9, 0.9, 0.98, 1.2]}, "device", "arithmetic"),  # twice of four may be chance
        ({"trainer_over_synthetic": [0.97]}, "device", "arithmetic"),
        ({"trainer_over_synthetic": None}, "device", "arithmetic"),
        (
            {"trainer_over_synthetic": [0.8, 0.8], "data_share": 0.01},
            "data",
            "though it waits for them 1 % of a step: who reads them takes its processors",
        ),
        ({"exposed_share": 0.16}, "communication", "16 % of a step is an all-reduce"),
        ({"exposed_share": 0.15}, "device", "arithmetic"),
        ({"exposed_share": None}, "device", "arithmetic"),
        ({"busy_share": 0.84, "device": "cuda"}, "host", "busy for 84 % of a step"),
        ({"busy_share": 0.85, "device": "cuda"}, "device", "The GPU's arithmetic"),
        (
            {"trainer_over_synthetic": [0.5], "exposed_share": 0.3},
            "data",
            "reaches 50 % of the same loop on batches that lie ready. Without them: communication bounds it: 30 %",
        ),
    ],
)
def test_the_verdict_follows_its_rules(changes, bound, words):
    found = verdict(KNOWN._replace(**changes))
    assert found.bound == bound
    assert words in found.sentence


# ---- the command ----


@pytest.mark.worlds
def test_the_command_writes_its_numbers_with_units_and_circumstances(recipe, tmp_path):
    file = tmp_path / "bench.json"
    path = recipe(batch__micro_batch_size=50)
    ended = largebatch("bench", "throughput", path, "--pairs", 3, "--steps", 4, "--json", file, COLUMNS="120")
    assert ended.returncode == 0, ended.stderr
    facts = json.loads(file.read_text())
    assert [c["name"] for c in facts["contestants"]] == ["trainer", "synthetic", "bare_loop", "dataloader_loop"]
    assert facts["left_out"] == {"timm": "timm has no model called mlp"}
    for name in ("synthetic", "bare_loop", "dataloader_loop"):
        ratios = facts[f"trainer_over_{name}"]
        assert facts["pairs"] == len(ratios) == 3
        assert facts[f"trainer_over_{name}_median"] == sorted(ratios)[1]
        speeds = facts["trainer_examples_per_second"], facts[f"{name}_examples_per_second"]
        for trainer, other, ratio in zip(*speeds, ratios, strict=True):
            assert math.isclose(trainer / other, ratio, rel_tol=1e-9)
    assert facts["command"].startswith("largebatch bench throughput")
    assert facts["machine"]["cores"] >= 1
    assert facts["kind"] == "throughput"
    assert facts["memory"]["peak_resident_growth_bytes"] >= 0  # importing torch may have taken more than such a run
    assert facts["verdict"]["bound"] in ("data", "device")
    assert facts["device_busy_share"] is None
    found = facts["arithmetic"]
    hand = 2 * (64 * 16 + 16 * 10)
    assert (found["forward_flop_per_image"], found["backward_flop_per_image"]) == (hand, 2 * hand - 2 * 64 * 16)
    rate = sorted(facts["trainer_examples_per_second"])[1] * (3 * hand - 2 * 64 * 16)
    assert found["model_flop_per_second"] == pytest.approx(rate)
    assert found["utilisation_of_measured_peak"] == pytest.approx(rate / found["measured_peak_flop_per_second"])
    assert found["datasheet"] is found["share_of_mlperf_rate"] is None
    for words in ("bare loop: picks and normalises", "timm: left out, timm has no model", "exposed all-reduce",
                  "DataLoader loop", "verdict: ", "batch 100 = 2 × 50", "memory: "):  # fmt: skip
        assert words in ended.stdout


def test_a_set_without_images_has_no_dataloader_loop(recipe):
    """What enters, and what is left out with the reason."""
    job = job_of(recipe(data={"name": "diabetes"}, batch={"global_batch_size": 38}))
    entered, left_out = throughput.others(job, ready(job), 2, dataloader=True, compile_timm=False)
    assert [c.name for c in entered] == ["synthetic", "bare_loop"]
    assert left_out["dataloader_loop"] == "diabetes has no images"
    assert all(contestant.seconds() > 0 for contestant in entered)


@pytest.mark.worlds
def test_a_set_of_files_is_measured_against_ready_batches(recipe, pictures):
    facts = throughput.measure(config.load(recipe(**pictures)), 1, 2, "", dataloader=True)
    compared = {c["name"]: c["compared_with"] for c in facts["contestants"]}
    assert compared == {"trainer": "trainer", "synthetic": "trainer", "bare_loop": "synthetic"}
    assert facts["left_out"]["dataloader_loop"].startswith("folder does not live on the device")
    (ratio,) = facts["synthetic_over_bare_loop"]
    assert ratio == facts["synthetic_examples_per_second"][0] / facts["bare_loop_examples_per_second"][0]
    assert "bare loop: ready batches" in shown(facts)


@pytest.mark.worlds
def test_an_augmented_set_gets_ready_batches_too(recipe):
    job = job_of(recipe(model=CNN, data={"name": "digits", "augment": "crop"}))
    assert throughput.bare_contestant(job, ready(job), 400).beside == "synthetic"
    plain = job_of(recipe())
    assert throughput.bare_contestant(plain, Ready([], 1), 400).beside == "trainer"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"max_grad_norm": 1.0}, "it has no max_grad_norm"),
        ({"sam": {"rho": 0.05}}, "it has no sam"),
        ({"ema": {"decay": 0.9}, "max_grad_norm": 1.0}, "it has no max_grad_norm, no ema"),
        ({"nonfinite_gradients": {"action": "skip"}}, "it has no nonfinite_gradients.action = skip"),
        ({}, None),
    ],
)
def test_what_a_bare_loop_does_not_do_keeps_it_out(recipe, changes, reason):
    job = job_of(recipe(**changes))
    entered, left_out = throughput.others(job, ready(job), 2, dataloader=False, compile_timm=False)
    assert left_out.get("bare_loop") == reason
    assert [c.name for c in entered] == ["synthetic", *(["bare_loop"] if reason is None else [])]


def test_two_gradients_of_sam_count_twice(recipe, monkeypatch):
    monkeypatch.setattr(flops, "measured_peak", lambda device, precision: 1e9)
    once, twice = (throughput.arithmetic(job_of(recipe(**changes)), 1000.0) for changes in ({}, {"sam": {"rho": 0.05}}))
    assert twice["model_flop_per_second"] == 2 * once["model_flop_per_second"]
    assert once["utilisation_of_measured_peak"] == once["model_flop_per_second"] / 1e9


def test_who_begins_alternates():
    order: list[str] = []

    def contestant(name: str, seconds: float) -> throughput.TimedLoop:
        return throughput.TimedLoop(name, 100, lambda: order.append(name) or seconds)

    facts = throughput.of_contest([contestant("trainer", 2.0), contestant("synthetic", 1.0), contestant("x", 4.0)], 2)
    assert order == ["trainer", "synthetic", "x"] * 2 + ["x", "synthetic", "trainer"], "a warm-up, then two rounds"
    assert facts["trainer_over_synthetic"] == [0.5, 0.5]
    assert (facts["trainer_over_x_median"], facts["synthetic_over_x_median"]) == (2.0, 4.0)
    assert "synthetic_over_trainer" not in facts


def test_the_trainer_stands_beside_itself_under_other_keys(recipe, monkeypatch):
    """Four steps of 100 examples in two seconds, and of 50 in half a second: 200 and 400 examples per second."""
    seconds = {100: 2.0, 50: 0.5}
    order = []

    def seconds_of(job):
        order.append(job.plan.global_batch_size)
        assert job.plan.steps == 4 + turns.LEAD_IN
        assert job.run.record.layers_every_steps == (2 if order[-1] == 50 else 0)
        return seconds[order[-1]]

    monkeypatch.setattr(turns, "trainer_seconds", seconds_of)
    keys = ["batch.global_batch_size=50", "record.layers_every_steps=2"]
    run = config.load(recipe(max_grad_norm=1.0))  # which keeps a bare loop out
    facts = throughput.measure(run, 2, 4, "bench", beside=keys)
    assert order == [100, 50, 100, 50, 50, 100], "both warm up, then who goes first alternates"
    assert facts["beside"] == keys
    assert facts["trainer_examples_per_second"] == [200.0, 200.0]
    assert facts["beside_examples_per_second"] == [400.0, 400.0]
    assert facts["trainer_over_beside"] == [0.5, 0.5]
    assert facts["trainer_over_beside_median"] == 0.5
    assert not any("bare" in key for key in facts)
    text = shown(facts)
    assert f"with {' '.join(keys)}" in text
    assert "bare" not in text


@pytest.mark.worlds
def test_both_trainers_train(recipe):
    facts = throughput.measure(config.load(recipe()), 1, 3, "", beside=["record.layers_every_steps=1"])
    (ratio,) = facts["trainer_over_beside"]
    assert ratio == facts["trainer_examples_per_second"][0] / facts["beside_examples_per_second"][0] > 0


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ("record.layers_every_step=1", "tiny with --beside: unknown key record.layers_every_step; did you mean"),
        ("lr.base=1", "--beside lr.base=1 has no effect: bench throughput fixes the learning rate"),
    ],
)
def test_what_stands_beside_must_be_a_recipe_with_another_time(recipe, beside, words):
    with pytest.raises(UserError, match=words):
        throughput.measure(config.load(recipe()), 1, 1, "", beside=[beside])


def test_numbers_have_the_prefixes_of_units():
    found = [show.scaled(number) for number in (0.5, 12, 999.4, 1000, 4.09e9, 989.5e12, 2.25e15)]
    assert found == ["0.5 ", "12 ", "999 ", "1 k", "4.09 G", "990 T", "2,250 T"]


@pytest.mark.gpu
def test_on_a_device_everything_is_there(recipe):
    path = recipe(
        model={"name": "resnet18"},
        data={"name": "synthetic", "image_shape": [3, 64, 64], "examples": 512},
        batch={"global_batch_size": 128, "micro_batch_size": 64},
        precision="bf16",
    )
    facts = throughput.measure(config.load(path), 2, 4, "", dataloader=False, compile_timm=False)
    assert [c["name"] for c in facts["contestants"]] == ["trainer", "synthetic", "bare_loop", "timm"]
    assert facts["memory"]["peak_allocated_bytes"] > 2**24
    assert 0 < facts["device_busy_share"] <= 1
    assert 0 < facts["arithmetic"]["utilisation_of_measured_peak"] < 1
    assert facts["verdict"]["bound"] in ("data", "host", "device")

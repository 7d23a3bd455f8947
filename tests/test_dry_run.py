"""A dry run against closed forms, against real tensors, and against what two real ranks do."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pool
import pytest
import torch
import yaml
from method_recipes import PLAIN, recipe_of
from programs import REPOSITORY, largebatch
from torch._subclasses.fake_tensor import FakeTensorMode

from largebatch import models
from largebatch.data.sets.imagenet import Imagenet
from largebatch.engines import DeepSpeed
from largebatch.errors import UserError
from largebatch.recipes import config, derive
from largebatch.run.assemble import assemble
from largebatch.run.beforehand import decisions
from largebatch.run.train import train
from largebatch.studies.dry_run import MIB, Cluster, dry_run
from largebatch.studies.dry_run.engines import FakeZero, buckets_of
from largebatch.studies.dry_run.job import job_of, outputs_of, pretended

pytestmark = [pytest.mark.worlds, pytest.mark.usefixtures("one_thread")]
STATES = {"sgd": 1, "lars": 1, "lamb": 2, "adamw": 2}  # of a parameter's size
TINY_CNN = {"name": "tiny_cnn", "channels": [16, 32]}
PHOTOS = {"name": "synthetic", "image_shape": [3, 32, 32], "examples": 1000, "num_classes": 1000}
WIDE = {"name": "mlp", "width": 512, "depth": 3}  # more than one of DDP's buckets and of FSDP's blocks


def of(path: Path, world: int = 1, device: str = "cpu", overrides: tuple[str, ...] = (), **cluster):
    return dry_run(config.load(path, overrides), Cluster(world, device, **cluster))


def parameters_of(path: Path) -> list[torch.Tensor]:
    return list(assemble(config.load(path), torch.device("cpu")).engine.model.parameters())


def memory(facts: dict, part: str) -> float:
    return facts["memory_per_rank_mib"][part] * MIB


@pytest.mark.parametrize(
    ("model", "optimizer"), [*(("tiny_cnn", optimizer) for optimizer in STATES), ("resnet50", "lamb")]
)
def test_weights_gradients_and_states_are_their_closed_forms(recipe, model, optimizer):
    photos = {"data": PHOTOS, "batch": {"global_batch_size": 16}} if model == "resnet50" else {}
    momentum = {"momentum": 0.9} if optimizer in ("sgd", "lars") else {}
    path = recipe(model={"name": model}, optimizer={"name": optimizer, **momentum}, **photos)
    facts = of(path, world=2)
    weights = 4 * sum(p.numel() for p in parameters_of(path))
    assert memory(facts, "weights") == memory(facts, "gradients") == weights
    assert memory(facts, "optimizer states") == STATES[optimizer] * weights
    gradients = [row for row in facts["collectives_per_step"] if row["what_for"] == "gradients"]
    assert [row["bytes"] for row in gradients] == [weights]
    assert gradients[0]["ring_bytes"] == weights  # 2 · (w − 1)/w at w = 2


def test_fsdp_holds_the_first_rows_of_every_parameter(recipe):
    path = recipe(model=TINY_CNN, optimizer={"name": "lamb"}, engine={"name": "fsdp"}, batch={"global_batch_size": 80})
    facts = of(path, world=8)
    whole = parameters_of(recipe("whole", model=TINY_CNN))
    shards = 4 * sum(math.ceil(len(p) / 8) * math.prod(p.shape[1:]) for p in whole)
    assert memory(facts, "weights") == memory(facts, "gradients") == shards
    assert memory(facts, "optimizer states") == 2 * shards
    assert memory(facts, "gathered blocks") > 0


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_zero_divides_what_its_stage_says(recipe, zero):
    changes = {"model": TINY_CNN, "optimizer": {"name": "adamw"}, "batch": {"global_batch_size": 80}}
    path = recipe(engine={"name": "deepspeed", "zero": zero}, weight_decay={"value": 0.1}, **changes)
    facts = of(path, world=8)
    whole = parameters_of(recipe("whole", **changes))
    decayed = sum(p.numel() for p in whole if p.dim() > 1)
    groups = [decayed, sum(p.numel() for p in whole) - decayed]
    parts = 4 * sum(math.ceil(size / 16) * 2 for size in groups)  # 2 elements to a rank at least
    everything = 4 * sum(groups)
    assert memory(facts, "optimizer states") == (2 * parts if zero else 2 * everything)
    assert memory(facts, "master weights") == (parts if zero else 0)
    assert memory(facts, "gradients") == {0: everything, 1: everything + parts, 2: parts}[zero]
    assert memory(facts, "weights") == (8 * parts if zero else everything)
    gathered = [row["bytes"] for row in facts["collectives_per_step"] if row["collective"] == "all_gather"]
    assert gathered == ([8 * parts] if zero else [])


def test_zero_2_sums_gradients_for_every_micro_batch(recipe):
    batch = {"global_batch_size": 80, "micro_batch_size": 10}
    for zero, times in ((1, 1), (2, 4)):
        path = recipe(f"zero{zero}", model=TINY_CNN, engine={"name": "deepspeed", "zero": zero}, batch=batch)
        facts = of(path, world=2)
        [row] = [row for row in facts["collectives_per_step"] if row["what_for"] == "gradients"]
        assert row["calls"] == times
        assert row["bytes"] == times * 4 * sum(p.numel() for p in parameters_of(recipe("whole", model=TINY_CNN)))


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("model", [TINY_CNN, {"name": "mlp", "width": 300, "depth": 2}], ids=["tiny_cnn", "mlp"])
def test_activations_are_what_a_real_step_allocates(recipe, model, accumulation):
    """Saved tensors are the least; torch's own record of a real step's memory is the whole."""
    batch = {"global_batch_size": 100 * accumulation, "micro_batch_size": 100}
    path = recipe(model=model, batch=batch, optimizer={"name": "sgd", "momentum": 0.9})
    facts = of(path)
    job = assemble(config.load(path), torch.device("cpu"))
    images, labels = next(iter(next(iter(job.dataset.train.steps(job.plan, 0, 0, job.placement, 0)))))
    kept = {t.untyped_storage().data_ptr() for t in (*job.engine.model.parameters(), *job.engine.model.buffers())}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if (storage := tensor.untyped_storage()).data_ptr() not in kept:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = torch.nn.functional.cross_entropy(job.engine.forward(job.task, (images,)), labels, reduction="sum")
    activations = memory(facts, "activations")
    assert activations >= sum(saved.values())
    loss.backward()
    job.engine.model.zero_grad(set_to_none=True)
    del loss
    saved.clear()
    most = 0
    watched = {"activities": [torch.profiler.ProfilerActivity.CPU], "profile_memory": True, "acc_events": True}
    with torch.profiler.profile(**watched) as profile:
        for _ in range(accumulation):
            loss = torch.nn.functional.cross_entropy(
                job.engine.forward(job.task, (images.clone(),)), labels, reduction="sum"
            )
            loss.backward()
            del loss
    now = 0
    recorded: Any = profile.profiler
    for event in recorded.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    gradients = memory(facts, "gradients")
    scratch = 0.1 if model is TINY_CNN else 0.02  # of convolutions: it differs with threads and processors
    assert most <= (1 + scratch) * (activations + gradients)
    assert most >= 0.95 * (activations + (gradients if accumulation > 1 else 0))


def test_bf16_halves_what_convolutions_keep(recipe):
    path = recipe(model={"name": "tiny_cnn", "channels": [64, 64]}, data={**PHOTOS, "num_classes": 10})
    half, single = (of(path, device="cuda", overrides=(f"precision={p}",)) for p in ("auto", "fp32"))
    assert half["precision"] == "bf16"
    assert 0.5 < memory(half, "activations") / memory(single, "activations") < 0.65
    assert memory(half, "weights") == memory(single, "weights")
    assert half["flops_per_step_and_rank"] == single["flops_per_step_and_rank"]


def test_flops_are_those_of_the_matrix_products(recipe):
    facts = of(recipe(model={"name": "mlp", "width": 16, "depth": 1}), world=2)
    first, second = 64 * 16, 16 * 10
    assert facts["flops_per_step_and_rank"] == 2 * 50 * (2 * first + 3 * second)  # images need no gradient


def test_collectives_are_those_of_two_real_ranks(recipe, tmp_path):
    """Bucket by bucket for DDP, call by call for FSDP with LARS, whose layer norms are summed."""
    batch = {"global_batch_size": 100, "micro_batch_size": 25}
    lars = {"name": "lars", "momentum": 0.9}
    paths = {
        name: recipe(name, model=WIDE, batch=batch, optimizer=lars, engine={"name": name}) for name in ("ddp", "fsdp")
    }
    ended = pool.ranks(2, "worlds.dry_run:counted", tmp_path)
    assert ended.returncode == 0, ended.stderr
    real = json.loads((tmp_path / "found.json").read_text())
    assert len(real["ddp"]) > 1
    dry = {name: of(path, world=2) for name, path in paths.items()}
    rows = {
        name: {
            (row["collective"], row["what_for"]): (row["calls"], row["bytes"])
            for row in facts["collectives_per_step"]
            if row["what_for"] not in ("loss record", "stop flag (gloo)")
        }
        for name, facts in dry.items()
    }
    assert rows["ddp"] == {("all_reduce", "gradients"): (len(real["ddp"]), sum(size for _, size in real["ddp"]))}
    by_call: dict[str, list[int]] = {}
    for call, size in real["fsdp"]:
        by_call.setdefault(call, []).append(size)
    of_call = {key: (len(by_call[key]), sum(by_call[key])) for key in by_call}
    assert rows["fsdp"] == {
        ("all_gather", "weights"): of_call["all_gather"],
        ("reduce_scatter", "gradients"): of_call["reduce_sca"],
        ("all_reduce", "layer norms"): of_call["all_reduce"],
    }
    assert real["gradients beside the buckets"]
    weights = memory(dry["ddp"], "weights")
    assert memory(dry["ddp"], "gradients") == 2 * weights, "while micro-batches accumulate, beside the buckets"


LOCAL = {"name": "post_local_sgd", "workers": 2, "period": 1, "from_epoch": 0}
PURPOSES = {  # beside the loss record and the stop flag
    "synchronised": (recipe_of("synchronised"), {"gradients", "batch norm"}),
    "adascale": (recipe_of("adascale"), {"gradients", "methods"}),
    "sam": (recipe_of("sam"), {"gradients", "methods"}),
    "local": ({**PLAIN, "averaging": LOCAL}, {"averaging of workers"}),
    "fsdp": (
        {**PLAIN, "engine": {"name": "fsdp"}, "optimizer": {"name": "lars"}}, {"gradients", "weights", "layer norms"},
    ),
    "muon": (recipe_of("muon"), {"gradients", "matrices"}),
    "muon on fsdp": ({**recipe_of("muon"), "engine": {"name": "fsdp"}}, {"gradients", "weights", "matrices"}),
    "muon on zero": (
        {**recipe_of("muon"), "precision": "fp32", "engine": {"name": "deepspeed", "zero": 2}},
        {"gradients", "weights", "matrices"},
    ),
    "zero": ({**PLAIN, "precision": "fp32", "engine": {"name": "deepspeed", "zero": 1}}, {"gradients", "weights"}),
}  # fmt: skip


@pytest.mark.parametrize("name", PURPOSES)
def test_every_collective_has_its_purpose(tmp_path, name):
    """Known by the modules on the call stack: whatever moves to another one must take its words along."""
    written, purposes = PURPOSES[name]
    (path := tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**written, "name": name}))
    found = {row["what_for"] for row in of(path, world=2)["collectives_per_step"]}
    assert found == purposes | {"loss record", "stop flag (gloo)"}


def test_buckets_begin_small():
    parameters = [torch.nn.Parameter(torch.empty(300_000, device="meta")) for _ in range(60)]
    sizes = [len(members) for members in buckets_of(parameters)]
    assert sizes == [1, 22, 22, 15]


def test_half_precision_gradients_are_half_the_bytes(recipe):
    whole, half = (
        of(recipe(name, model=WIDE, engine={"name": "ddp", "all_reduce": name}), world=2) for name in ("fp32", "fp16")
    )
    sizes = [facts["collectives_per_step"][0]["bytes"] for facts in (whole, half)]
    assert sizes[0] == 2 * sizes[1]


def test_batch_norm_shared_by_ranks_is_counted_on_their_group(recipe):
    path = recipe(model=TINY_CNN, batch={"global_batch_size": 80, "bn_batch_size": 20})
    rows = {(r["collective"], r["what_for"]): r for r in of(path, world=16)["collectives_per_step"]}
    gathered, summed = rows["all_gather", "batch norm"], rows["all_reduce", "batch norm"]
    assert gathered["ranks"] == summed["ranks"] == 4
    channels = sum(TINY_CNN["channels"])
    assert gathered["bytes"] == 4 * 2 * 4 * channels  # means and variances of four ranks in float32
    assert summed["bytes"] == 2 * 4 * channels


def test_the_learning_rate_is_that_of_the_training(recipe):
    path = recipe(lr={"base": 0.1, "warmup": {"epochs": 0.5}, "decay": {"name": "cosine"}}, record={"every_steps": 1})
    run = config.load(path, [f"record.dir={path.parent / 'run'}", "record.to=[]"])
    train(run, quiet=True)
    lines = map(json.loads, (path.parent / "run" / "metrics.jsonl").read_text().splitlines())
    used = [line["lr"] for line in lines if line["event"] == "train"]
    facts = of(path)
    assert [lr for _, lr in facts["schedule"]] == used
    assert facts["evaluated_after_steps"] == facts["saved_after_steps"] == [15, 30]
    assert facts["steps"] == len(used) == 30


def test_it_decides_what_train_decides(recipe):
    run = config.load(recipe(model=TINY_CNN, optimizer={"name": "lars"}))
    told = decisions(assemble(run, torch.device("cpu")), run.directory)
    dry = dry_run(run, Cluster(1, "cpu"))["decisions"]
    assert {key: text for key, text in dry.items() if key != "data"} == {k: t for k, t in told.items() if k != "data"}
    assert dry["data"].startswith("digits: 1,500 to train, 297 to evaluate")


@pytest.mark.parametrize(
    ("world", "changes", "sentence"),
    [
        (2, {"batch": {"global_batch_size": 101}}, "= 101 does not factor into 2 ranks; nearest that do: 100 or 102"),
        (1024, {}, "batch.global_batch_size = 100 does not factor into 1024 ranks"),
        (128, {"model": TINY_CNN, "batch": {"global_batch_size": 100, "bn_batch_size": 10}}, "into 128 ranks"),
        (4, {"model": TINY_CNN, "batch": {"global_batch_size": 100, "bn_batch_size": 40}}, "bn_batch_size = 40"),
        (4, {"averaging": {"name": "post_local_sgd", "workers": 2, "from_epoch": 1}}, "workers = 2 does not fit 4"),
        (2, {"engine": {"name": "fsdp"}, "sam": {"rho": 0.1}}, "sam needs engine.name = ddp"),
        (2, {"engine": {"name": "deepspeed"}, "precision": "fp64"}, "fp64 runs on engine.name = ddp or fsdp"),
        (2, {"engine": {"name": "deepspeed", "zero": 3}}, "engine.zero = 3"),
        (2, {"batch": {"global_batch_size": 2000}}, "larger than the training set"),
        (2, {"data": {"name": "digits", "augment": "resized_crop_flip"}}, "does not suit data set digits"),
        (2, {"data": {"name": "folder"}, "model": TINY_CNN}, "--examples N"),
        (2, {"data": {"name": "digit"}}, "is not a data set; did you mean digits"),
    ],
)  # fmt: skip
def test_it_refuses_what_would_fail_on_the_cluster(recipe, world, changes, sentence):
    with pytest.raises(UserError) as refusal:
        of(recipe(**changes), world=world)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("precision", "weights"), [("fp64", "fp32"), ("fp16", "fp32"), ("fp32", "bf16")])
def test_zero_refuses_in_deepspeeds_own_words(precision, weights):
    arguments = (torch.device("cpu"), precision, False, False)
    with pytest.raises(UserError) as real:
        DeepSpeed(*arguments, weights=weights)
    with pytest.raises(UserError) as dry:
        FakeZero(FakeTensorMode(), *arguments, weights=weights)
    assert str(dry.value) == str(real.value)


def test_too_little_memory_is_one_sentence_with_a_micro_batch_that_fits(recipe):
    path = recipe(
        model={"name": "tiny_cnn", "channels": [64, 64]},
        data={**PHOTOS, "num_classes": 10},
        batch={"global_batch_size": 512},
    )
    run, cluster = config.load(path), Cluster(1, "cpu")
    needed = dry_run(run, cluster)["memory_total_per_rank_mib"] / 1024
    assert dry_run(run, cluster, memory_gib=needed * 1.001)
    limit = needed * 0.6
    with pytest.raises(
        UserError, match=r"GiB per rank, of which activations .* at micro-batch 512; .* would fit"
    ) as no:
        dry_run(run, cluster, memory_gib=limit)
    fits = int(str(no.value).partition("micro_batch_size = ")[2].split()[0])
    assert 128 <= fits < 512
    assert dry_run(config.load(path, [f"batch.micro_batch_size={fits}"]), cluster, memory_gib=limit)
    with pytest.raises(UserError, match="no smaller micro-batch would fit"):
        dry_run(run, cluster, memory_gib=1e-4)


class OwnNet(torch.nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.flat, self.last = torch.nn.Flatten(), torch.nn.Linear(64, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.flat(images))


def test_a_model_of_ones_own_on_ranks_that_are_pretended(recipe):
    """Its first weights are rank zero's on every rank, which nobody is there to receive."""
    with models.REGISTRY.holding("own_net", OwnNet):
        facts = of(recipe(model={"name": "own_net"}), world=4)
    assert memory(facts, "weights") == 4 * (64 * 10 + 10)
    assert not torch.distributed.is_initialized()


def test_of_phases_the_one_that_needs_most_is_traced(recipe):
    """Its micro-batch times its pixels; as a run of that phase alone."""
    data = {"name": "folder", "root": "/nowhere/at/all", "image_size": 16}
    sizes = {"small": (16, 100), "large": (48, 40)}  # side, micro-batch
    phases = [
        {"data.image_size": side, "batch.global_batch_size": 4 * micro, "batch.micro_batch_size": micro}
        for side, micro in sizes.values()
    ]
    phases[0]["until_share"] = 0.5
    changes = {"model": {"name": "resnet20"}, "data": data, "epochs": 2}
    facts = of(recipe("phased", **changes, phases=phases), world=4, examples=5000, classes=7)
    alone = of(
        recipe("large", **{**changes, "data": {**data, "image_size": 48}}, batch={"global_batch_size": 160}),
        world=4, examples=5000, classes=7,
    )  # fmt: skip
    assert facts["traced_micro_batch_size"] == 40
    assert facts["memory_per_rank_mib"]["activations"] == alone["memory_per_rank_mib"]["activations"]
    assert [(phase["step"], phase["image_size"]) for phase in facts["phases"]] == [(0, 16), (13, 48)]


def test_a_folder_that_is_not_here_needs_its_numbers_alone(recipe):
    path = recipe(model=TINY_CNN, data={"name": "folder", "root": "/nowhere/at/all", "image_size": 16})
    facts = of(path, world=10, examples=5000, classes=7)
    assert facts["dataset_size"] == 5000
    assert facts["steps"] == 100
    with pytest.raises(UserError, match="--classes N"):
        of(path, world=10, examples=5000)


def test_the_program_prints_it_writes_the_numbers_and_nothing_else(recipe, tmp_path):
    path = recipe(model=TINY_CNN)
    before = set(tmp_path.rglob("*"))
    ended = largebatch("train", path, "--dry-run", "--world", "4", "--json", "numbers.json", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    for words in (
        "100 = 4 × 25 × 1",
        "cuda, bf16, engine ddp",
        "total",
        "activations",
        "all_reduce",
        "evaluated after",
    ):
        assert words in ended.stdout
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "numbers.json"}
    facts = json.loads((tmp_path / "numbers.json").read_text())
    assert facts["kind"] == "dry_run"
    assert {"machine", "versions", "commit", "command"} <= set(facts)
    refused = largebatch("train", path, "--dry-run", "--world", "3", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("largebatch: batch.global_batch_size = 100 does not factor into 3 ranks")
    assert largebatch("train", path, "--world", "4", cwd=tmp_path).stderr == "largebatch: --world 4 needs --dry-run\n"
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "numbers.json"}


def test_the_quickstart_on_four_ranks():
    offenders = []
    for path in sorted((REPOSITORY / "configs/quickstart").glob("*.yaml")):
        facts = of(path, world=4, device="cuda")
        whole, activations = facts["memory_total_per_rank_mib"], facts["memory_per_rank_mib"]["activations"]
        if not whole > activations > 0:
            offenders.append((path.stem, f"{activations} of {whole} MiB are activations"))
        if facts["steps"] != facts["evaluated_after_steps"][-1]:
            offenders.append((path.stem, "the end is not evaluated"))
    assert not offenders


@pytest.mark.worlds
def test_every_imagenet_recipe_is_assembled_at_a_published_batch():
    """Built, wrapped and planned for a cluster; a step of each would take minutes."""
    offenders = []
    for path in sorted((REPOSITORY / "configs/imagenet").glob("*.yaml")):
        written = yaml.safe_load(path.read_text())
        published = {int(size) for size in written.get("expect", {}).get("by_batch_size", {})} & set(
            written.get("table") or {}
        )
        run = config.load(path, [f"batch.global_batch_size={max(published)}"] if published else [])
        offenders += [(path.stem, wrong) for wrong in wrong_at(run, largest_world(run))]
    assert not offenders


def largest_world(run: config.Run) -> int:
    """Of up to 1024 ranks, the most that its batch and its methods allow."""
    for world in (1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1):
        with contextlib.suppress(UserError):
            if world > run.batch.global_batch_size:
                continue
            plan = derive.plan_of(run, Imagenet.examples, world, 256)
            derive.learning_rate_of(run, plan)
            for method in run.methods.values():
                method.decide(run, plan, 256)
            return world
    raise AssertionError(f"{run.name} suits no world")


def wrong_at(run: config.Run, world: int) -> Iterator[str]:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with pretended(world):
        job = job_of(run, Cluster(world, "cuda"), mode)
        if not outputs_of(run, Cluster()) == job.dataset.outputs == 1000:
            yield f"{outputs_of(run, Cluster())} and {job.dataset.outputs} classes"
        told = decisions(job, run.directory)
        batch = "; ".join(text for key, text in told.items() if key == "batch" or key.startswith("phase "))
        if f"{run.batch.global_batch_size:,} = {world}" not in batch:
            yield f"batch: {batch}"
        if job.decided.precision not in ("bf16", run.precision):
            yield f"precision {job.decided.precision}"
        del job

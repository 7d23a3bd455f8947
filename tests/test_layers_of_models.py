"""``largebatch recipe model``: against torchvision's and timm's counts, the bench's and the dry run's, and by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torchvision
from conftest import TINY

from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.records.looking import LayerRow, ModelRecord
from largebatch.records.typed import content, read
from largebatch.run.assemble import assemble, model_of
from largebatch.studies import layers
from largebatch.studies.bench.throughput import flops
from largebatch.studies.dry_run import Cluster, dry_run


def recipe_of(**keys: Any) -> dict[str, Any]:
    return {"name": "a model", **TINY, **keys}


def measured(device: str = "cpu", **keys: Any) -> ModelRecord:
    return layers.measured(config.from_dict(recipe_of(**keys)), Cluster(1, device))


def imagenet(name: str, **arguments: Any) -> dict[str, Any]:
    return {
        "model": {"name": name, **arguments}, "data": {"name": "imagenet"},
        "batch": {"global_batch_size": 4, "micro_batch_size": 2},
    }  # fmt: skip


def by_name(model: ModelRecord) -> dict[str | None, LayerRow]:
    return {row.name: row for row in model.layers}


@pytest.mark.worlds
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet50",
        "mobilenet_v2",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("vit_b_16", "convnext_tiny")),
    ],
)
def test_torchvisions_published_counts(name):
    """Its weights say how many parameters they have, and 1e9 multiply-adds of an image."""
    meta = torchvision.models.get_model_weights(name).DEFAULT.meta
    side = 224
    if name == "resnet50":
        meta = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta
        assert meta["num_params"] == 25_557_032
    if name == "mobilenet_v2":
        meta = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.meta
    if name == "vit_b_16":
        meta = torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1.meta
    model = measured(**imagenet(f"torchvision/{name}"))
    assert model.input_shape == [2, 3, side, side]
    assert model.trainable == meta["num_params"]
    assert model.forward_flops / 2 / 1e9 == pytest.approx(meta["_ops"], abs=6e-4)


@pytest.mark.worlds
@pytest.mark.filterwarnings("ignore")  # timm's own
def test_a_vision_transformer_of_timm():
    """vit_small_patch16_224: 22.05 M parameters and 4.6 GMAC with attention (timm's table of results)."""
    model = measured(**imagenet("timm/vit_small_patch16_224"))
    assert model.trainable == 22_050_664
    assert round(model.forward_flops / 2e9, 1) == 4.6
    tokens, width, depth = 197, 384, 12
    products = 12 * width * width + 2 * tokens * width  # of a token and block: projections and MLP, attention
    by_hand = depth * tokens * products + 196 * 3 * 256 * width + width * 1000
    assert model.forward_flops == 2 * by_hand
    block = by_name(model)["blocks.0"]
    assert block.forward_flops == 2 * tokens * products


@pytest.mark.worlds
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"model": {"name": "tiny_cnn"}, "batch": {"global_batch_size": 100, "micro_batch_size": 20}},
        {"model": {"name": "resnet20"}, "data": {"name": "cifar10"}},
        {"model": {"name": "mlp"}, "data": {"name": "diabetes"}, "batch": {"global_batch_size": 20}},
        {"model": {"name": "tiny_cnn"}, "data": {"name": "digit_pairs"}},
        {
            "model": {"name": "tiny_cnn"},
            "batch": {"global_batch_size": 100, "micro_batch_size": 20, "bn_batch_size": 10},
        },
    ],
)
def test_totals_are_those_of_the_dry_run_and_of_the_bench(keys):
    run = config.from_dict(recipe_of(**keys))
    model = layers.measured(run, Cluster(1, "cpu"))
    facts = dry_run(run, Cluster(1, "cpu"))
    of_step = (model.forward_flops + model.backward_flops) * facts["global_batch_size"]
    assert facts["flops_per_step_and_rank"] == of_step
    assert facts["micro_batch_size"] == model.micro_batch_size
    assert model.activation_bytes <= facts["memory_per_rank_mib"]["activations"] * 2**20
    if run.data.name != "cifar10":  # which need not be here
        job = assemble(run, torch.device("cpu"), quiet=True)
        of_one = flops.of_one_example(model_of(run, job.task, job.dataset), job.task, job.dataset.largest(2))
        assert (of_one.forward, of_one.backward) == (model.forward_flops, model.backward_flops)


def test_a_perceptron_by_hand():
    """64 → 16 → 10: what each linear layer multiplies, and what the backward pass needs again."""
    model = measured(batch={"global_batch_size": 100, "micro_batch_size": 20})
    assert model.trainable == 64 * 16 + 16 + 16 * 10 + 10
    assert model.forward_flops == 2 * (64 * 16 + 16 * 10)
    assert model.backward_flops == 2 * (64 * 16 + 2 * 16 * 10)  # the input needs no gradient
    linear = [row for row in model.layers if row.type == "Linear"]
    assert [row.output_shape for row in linear] == [[20, 16], [20, 10]]
    assert [row.trainable for row in linear] == [64 * 16 + 16, 16 * 10 + 10]
    assert [row.forward_flops for row in linear] == [2 * 64 * 16, 2 * 16 * 10]
    # the input, what ReLU gives, which the second layer needs too; of the loss its log-softmax, labels and their weight
    assert model.activation_bytes == 20 * (64 * 4 + 16 * 4 + 10 * 4 + 8) + 4
    assert model.layers[0].activation_bytes == 20 * (64 * 4 + 16 * 4)
    assert linear[1].activation_bytes == 0


@pytest.mark.worlds
def test_a_module_has_what_is_below_it():
    model = measured(**imagenet("torchvision/resnet18"))
    rows = by_name(model)
    for name in ("", "layer1", "layer2.0"):
        above = rows[name]
        below = [row for row in model.layers if row.depth == above.depth + 1 and f"{row.name}".startswith(f"{name}"
                 + "." * bool(name))]  # fmt: skip
        assert above.forward_flops == sum(row.forward_flops or 0 for row in below)
        assert above.trainable == sum(row.trainable for row in below)
        kept = above.activation_bytes or 0
        assert sum(row.activation_bytes or 0 for row in below) <= kept
    assert sum(row.share_percent or 0 for row in model.layers if row.depth == 1) == pytest.approx(100)
    assert rows["layer1"].calls == 1
    assert rows["layer1"].output_shape == [2, 64, 56, 56]
    assert rows["fc"].forward_flops == 2 * 512 * 1000


@pytest.mark.worlds
def test_frozen_parameters_are_counted_apart():
    keys = {"model": {"name": "tiny_cnn"}}
    whole, part = measured(**keys), measured(model={"name": "tiny_cnn", "frozen": ["0"]})
    assert part.frozen > 0
    assert part.trainable + part.frozen == whole.trainable
    assert part.forward_flops == whole.forward_flops
    assert part.backward_flops < whole.backward_flops
    assert part.activation_bytes <= whole.activation_bytes


@pytest.mark.worlds
def test_half_precision_of_cuda_keeps_half_the_bytes_of_an_example():
    """Beside them autograd keeps the copies of the weights in half precision, once for the micro-batch."""
    kept = {}
    for device in ("cpu", "cuda"):
        few, many = (
            measured(device, **imagenet("torchvision/resnet18") | {"batch": {"global_batch_size": n}}) for n in (2, 6)
        )
        kept[device] = (many.activation_bytes - few.activation_bytes) / 4, few
    (whole, one), (of_half, half) = kept["cpu"], kept["cuda"]
    assert (one.precision, half.precision) == ("fp32", "bf16")
    assert 0.45 < of_half / whole < 0.6
    copies = half.activation_bytes - 2 * of_half
    assert copies == pytest.approx(2 * half.trainable, rel=0.02)
    assert half.forward_flops == one.forward_flops


@pytest.mark.worlds
def test_of_text(tmp_path):
    from texts import shared_pack

    keys = {
        "model": {"name": "bert", "layers": 2, "width": 16, "heads": 2, "positions": 32, "dropout": 0.0},
        "data": {"name": "text", "root": str(shared_pack()), "length": 32},
        "batch": {"global_batch_size": 8, "micro_batch_size": 4},
    }
    model = measured(**keys)
    facts = dry_run(config.from_dict(recipe_of(**keys)), Cluster(1, "cpu"))
    assert model.task == "masked_lm"
    assert facts["flops_per_step_and_rank"] == (model.forward_flops + model.backward_flops) * 8
    assert model.layers[0].forward_flops == model.forward_flops - model.outside_flops


@pytest.mark.worlds
def test_the_command(tmp_path, front_door, recipe):
    path = recipe(model={"name": "tiny_cnn"})
    code, printed, complaint = front_door("recipe", "model", path, "--depth", "1", "--json", tmp_path / "model.json")
    assert code == 0, complaint
    written = json.loads((tmp_path / "model.json").read_text())
    model = read(ModelRecord, written, "model.json")
    assert content(model) == written
    assert f"{model.trainable:,} trainable parameters" in printed
    deeper = [row for row in model.layers if row.depth > 1]
    code, whole, _ = front_door("recipe", "model", path, "model.name=tiny_cnn", "--depth", "9")
    assert code == 0
    assert len(whole.splitlines()) > len(printed.splitlines()) or not deeper
    assert front_door("recipe", "model", path, "--depth", "-1")[0] == 2
    code, _, complaint = front_door("recipe", "model", path, "--device", "tpu")
    assert code == 2
    assert "--device tpu is not known; valid: cuda, cpu" in complaint
    code, _, complaint = front_door("recipe", "model", path, "model.name=nobody")
    assert code == 2
    assert "nobody" in complaint


PARTS = """
import largebatch as lb
from torch import nn

@lb.models.register("own_net")
class OwnNet(nn.Module):
    def __init__(self, num_classes, image_shape):
        super().__init__()
        self.shared = nn.Linear(64, 64)
        self.aside = nn.Linear(3, 3)
        self.last = nn.Linear(64, num_classes)

    def forward(self, images):
        x = images.flatten(1)
        return self.last(self.shared(self.shared(x)).relu())
"""


@pytest.mark.worlds
def test_a_model_of_ones_own_and_a_layer_that_is_called_twice(tmp_path, front_door, recipe):
    from largebatch import models

    (tmp_path / "parts.py").write_text(PARTS)
    path = recipe(model={"name": "own_net"})
    try:
        code, printed, complaint = front_door(
            "recipe", "model", path, "--with", tmp_path / "parts.py", "--json", tmp_path / "model.json"
        )
    finally:
        models.REGISTRY.parts.pop("own_net", None)
    assert code == 0, complaint
    rows = by_name(read(ModelRecord, json.loads((tmp_path / "model.json").read_text()), "model.json"))
    assert rows["shared"].calls == 2
    assert rows["shared"].forward_flops == 2 * 2 * 64 * 64
    assert rows["shared"].trainable == 64 * 64 + 64
    assert rows["aside"].calls == 0
    assert "not called" in printed


def test_started_by_a_launcher_it_is_refused(monkeypatch):
    from largebatch.machine import distributed

    monkeypatch.setattr(distributed, "joined", lambda: True)
    with pytest.raises(UserError, match="start it without a launcher"):
        measured()

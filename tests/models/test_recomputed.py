"""Activation checkpointing: gradients, running statistics, random numbers and names are those of a model without."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from largebatch import models
from largebatch.engines.fsdp import blocks as gathered
from largebatch.errors import UserError
from largebatch.models.batch_norm import commit, frozen_statistics, sized
from largebatch.models.recomputed import Recomputed, blocks, check_moving, recompute, words_of

pytestmark = pytest.mark.usefixtures("one_thread")
TIMM = {"drop_path_rate": 0.3}
MODELS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "ours": ("resnet20", (3, 16, 16), {"depth": 8}),
    "ours with dropout": ("wide_resnet", (3, 16, 16), {"depth": 10, "width": 1, "dropout": 0.4}),
    "torchvision": ("resnet18", (3, 32, 32), {}),
    "torchvision, stochastic depth": ("torchvision/efficientnet_b0", (3, 32, 32), {"stochastic_depth_prob": 0.5}),
    "timm": ("timm/test_resnet", (3, 32, 32), TIMM),
    "timm, norms with activations": ("timm/test_efficientnet", (3, 32, 32), TIMM),
    "vit": ("timm/test_vit", (3, 32, 32), {**TIMM, "img_size": 32, "drop_rate": 0.2}),
    "convnext": ("timm/test_convnext", (3, 32, 32), TIMM),
}


def built(which: str) -> nn.Module:
    name, shape, arguments = MODELS[which]
    return models.build(name, 4, shape, seed=3, arguments=arguments).double().train()


def passes(model: nn.Module, shape: tuple[int, ...], count: int = 2) -> list[Tensor]:
    """Everything that passes leave, after the same draws."""
    torch.manual_seed(11)
    images = torch.randn(4, *shape, dtype=torch.float64, requires_grad=True)
    outputs = [model(images) for _ in range(count)]  # both forwards before a backward, as SAM and GANs may do
    for output in outputs:
        output.square().sum().backward()
    assert images.grad is not None
    after = torch.rand(3)  # the generator is where it would have been
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [*outputs, images.grad, *gradients, *(buffer.clone() for buffer in model.buffers()), after]


def alike(these: list[Tensor], those: list[Tensor]) -> bool:
    return len(these) == len(those) and all(map(torch.equal, these, those))


LONGER = "torchvision, stochastic depth"


@pytest.mark.parametrize(
    "which", [pytest.param(which, marks=pytest.mark.worlds) if which == LONGER else which for which in MODELS]
)
def test_a_recomputed_model_is_the_model_bit_by_bit(which):
    plain, again = built(which), built(which)
    names, keys = [name for name, _ in plain.named_modules()], list(plain.state_dict())
    chosen = recompute(again, which)
    assert chosen
    assert [name for name, _ in again.named_modules()] == names
    assert list(again.state_dict()) == keys
    shape = MODELS[which][1]
    assert alike(passes(plain, shape), passes(again, shape))


def test_the_trap_is_there():
    """torch's checkpoint alone moves running statistics twice; else the test above could not fail."""
    from torch.utils.checkpoint import checkpoint

    norm = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.ReLU())
    x = torch.randn(5, 3, requires_grad=True)
    checkpoint(norm, x, use_reentrant=False).sum().backward()
    assert norm[0].num_batches_tracked == 2
    block = nn.Sequential(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.ReLU()))
    recompute(block, "", ["0"])
    block(x).sum().backward()
    assert block[0][0].num_batches_tracked == 1


@pytest.mark.parametrize("bn", [1, 2, 4])
def test_ghost_batch_norm_counts_no_part_twice(bn):
    plain, again = (sized(built("ours"), bn, 4) for _ in range(2))
    recompute(again, "ours")
    for model in (plain, again):
        model.results = passes(model, (3, 16, 16))  # type: ignore[assignment]
        commit(model)
    assert alike(plain.results, again.results)
    assert alike(list(plain.buffers()), list(again.buffers()))
    assert plain[1].num_batches_tracked == 1


@pytest.mark.parametrize("make", [lambda model: model, lambda model: sized(model, 2, 4)], ids=["torch", "ghost"])
def test_statistics_that_stay_in_the_first_pass_stay_in_the_second(make):
    plain, again = make(built("ours")), make(built("ours"))
    recompute(again, "ours")
    begun = [buffer.clone() for buffer in plain.buffers()]
    results = []
    for model in (plain, again):
        with frozen_statistics(model):
            results.append(passes(model, (3, 16, 16)))
    assert alike(*results)
    torch.manual_seed(0)
    with frozen_statistics(again):
        output = again(torch.randn(4, 3, 16, 16, dtype=torch.float64))
    output.sum().backward()  # outside of it: the second pass is what the first was
    assert alike(begun, list(again.buffers()))
    assert all(norm.track_running_stats for norm in again.modules() if isinstance(norm, nn.BatchNorm2d))


def test_frozen_norms_go_on_by_their_statistics():
    results = []
    for again in (False, True):
        model = built("ours")
        models.freeze(model, "resnet20", ["3", "*.last_norm"])
        if again:
            recompute(model, "resnet20")
        results.append(passes(model, (3, 16, 16)))
    assert alike(*results)


class Drawing(nn.Module):
    """Noise from a generator of its own, and from a list that its caller goes on filling."""

    def __init__(self) -> None:
        super().__init__()
        self.draws = torch.Generator().manual_seed(5)
        self.inner, self.outer = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, given: list[Tensor]) -> Tensor:
        noise = torch.rand(given[0].shape, generator=self.draws, dtype=given[0].dtype)
        return self.outer(torch.tanh(self.inner(torch.stack(given).sum(0)) * noise))


class Growing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Drawing() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for part in self.parts:
            seen.append(part(seen))
        return seen[-1]


def test_own_generators_and_lists_are_those_of_the_first_pass():
    torch.manual_seed(0)
    plain = Growing().double()
    again = Growing().double()
    again.load_state_dict(plain.state_dict())
    assert recompute(again, "own") == ["parts.0", "parts.1", "parts.2"]
    assert alike(passes(plain, (6,)), passes(again, (6,)))
    assert all(torch.equal(a.draws.get_state(), b.draws.get_state()) for a, b in zip(plain.parts, again.parts))  # noqa: B905


class InPlace(nn.Module):
    """Changes its own input, or has it changed."""

    def __init__(self, who: str) -> None:
        super().__init__()
        self.who, self.inner, self.outer = who, nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x.add_(1) if self.who == "itself" else x)))


@pytest.mark.parametrize("who", ["itself", "its caller"])
def test_an_input_that_was_changed_in_place_is_refused(who):
    """By torch, and loudly: the second pass would see another."""
    model = nn.Sequential(nn.Sequential(InPlace(who)))
    recompute(model, "own", ["0.0"])
    x = torch.randn(2, 4, requires_grad=True) * 1
    y = model(x)
    if who == "its caller":
        with torch.no_grad():
            x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def saved_bytes(model: nn.Module, images: Tensor) -> int:
    """Of tensors that wait for the backward pass, the model's own apart."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        waiting = model(images)
    del waiting
    return sum(kept.values())


@pytest.mark.parametrize("which", ["ours", "vit"])
def test_fewer_tensors_wait_for_the_backward_pass(which):
    images = torch.randn(8, *MODELS[which][1], dtype=torch.float64)
    found = {}
    for every in (None, 2, 1):
        model = built(which)
        if every is not None:
            recompute(model, which, every=every)
        found[every] = saved_bytes(model, images)
    assert found[1] < found[2] < found[None]
    assert found[1] < 0.5 * found[None]


@pytest.mark.parametrize(
    ("name", "shape", "first", "count"),
    [
        ("resnet50", (3, 64, 64), "layer1.0", 16),
        ("timm/resnet50", (3, 64, 64), "layer1.0", 16),
        ("torchvision/vit_b_16", (3, 224, 224), "encoder.layers.encoder_layer_0", 12),
        ("timm/vit_tiny_patch16_224", (3, 224, 224), "blocks.0", 12),
        ("timm/swin_tiny_patch4_window7_224", (3, 224, 224), "layers.0.blocks.0", 12),
        ("torchvision/swin_t", (3, 224, 224), "features.1.0", 15),
        ("timm/convnext_atto", (3, 64, 64), "stages.0.blocks.0", 12),
        ("torchvision/efficientnet_b0", (3, 64, 64), "features.1.0", 16),
        ("torchvision/densenet121", (3, 64, 64), "features.denseblock1", 4),
        ("timm/nf_resnet26", (3, 64, 64), "stages.0.0", 8),
        ("resnet20", (3, 16, 16), "3", 9),
    ],
)
def test_blocks_are_what_a_model_repeats(name, shape, first, count):
    with torch.device("meta"):
        found = blocks(models.build(name, 4, shape))
    assert next(iter(found)) == first
    assert len(found) == count


@pytest.mark.worlds
def test_blocks_of_transformers_and_bert():
    from transformers import BertConfig, BertModel, T5Config, T5Model

    bert = models.build("bert", 50, (8,), arguments={"layers": 3, "width": 8, "heads": 2})
    assert list(blocks(bert)) == ["layers.0", "layers.1", "layers.2"]
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    assert list(blocks(BertModel(BertConfig(**sizes)))) == ["encoder.layer.0", "encoder.layer.1"]
    t5 = T5Model(T5Config(d_model=8, d_ff=8, d_kv=4, num_heads=2, num_layers=2, vocab_size=9))
    assert list(blocks(t5)) == ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"]


def test_what_is_gathered_may_be_larger_than_what_is_recomputed():
    with torch.device("meta"):
        model = models.build("timm/swin_tiny_patch4_window7_224", 4, (3, 224, 224))
    assert len(gathered(model)) == 4
    assert len(blocks(model)) == 12


def test_modules_by_their_names_and_one_in_several():
    def resnet() -> nn.Module:
        with torch.device("meta"):
            return models.build("resnet18", 4, (3, 32, 32))

    model = resnet()
    assert recompute(model, "resnet18", ["layer1", "layer2.*", "layer2.0.conv1"]) == ["layer1", "layer2.0", "layer2.1"]
    assert words_of(model) == "activations inside of 3 modules (Sequential, BasicBlock) are computed again"
    assert words_of(resnet()) == ""
    model = resnet()
    assert recompute(model, "resnet18", every=3) == ["layer1.0", "layer2.1", "layer4.0"]
    assert sum(isinstance(module, Recomputed) for module in model.modules()) == 3


@pytest.mark.parametrize(
    ("name", "patterns", "sentence"),
    [
        (
            "vgg11",
            None,
            "blocks: model.name = vgg11 has no blocks .*; valid: .* a list of its modules: features, classif",
        ),
        ("resnet18", ["layr1"], "no module of model.name = resnet18 has a name like 'layr1'.*did you mean layer1"),
        ("timm/test_convnext", ["stages.9.*"], "no module of .* has a name like 'stages.9"),
    ],
)
def test_what_cannot_be_recomputed_is_one_sentence(name, patterns, sentence):
    with torch.device("meta"):
        model = models.build(name, 4, (3, 64, 64))
    with pytest.raises(UserError, match=sentence):
        recompute(model, name, patterns)


def test_a_list_of_modules_computes_nothing():
    with pytest.raises(UserError, match=r"parts of model.name = own is a ModuleList.*write parts\.\* for its entries"):
        recompute(Growing(), "own", ["parts"])


def test_buffers_that_move_are_refused_and_batch_norms_are_not():
    block = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)), nn.BatchNorm1d(3))
    model = nn.Sequential(block, nn.Linear(3, 2))
    recompute(model, "own", ["0"])
    check_moving(model, "own", ["0.1.running_mean", "0.1.num_batches_tracked"])
    with pytest.raises(UserError, match=r"0\.0\.parametrizations\.weight\.0\._u of model.name = own moves with every"):
        check_moving(model, "own", ["0.0.parametrizations.weight.0._u"])


def test_a_copy_is_recomputed_by_itself():
    model = built("ours")
    recompute(model, "ours")
    copied = copy.deepcopy(model)
    copied(torch.randn(4, 3, 16, 16, dtype=torch.float64)).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in copied.parameters())


def test_half_precision_is_recomputed_in_half_precision():
    results = []
    for again in (False, True):
        model = built("ours").float()
        if again:
            recompute(model, "ours")
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(torch.randn(4, 3, 16, 16))
        output.float().square().sum().backward()
        results.append([parameter.grad for parameter in model.parameters()])
    assert alike(*results)

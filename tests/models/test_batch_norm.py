"""Batch norm over a stated number of examples: part by part it is torch's, and one process is as good as many."""

from __future__ import annotations

import copy
import json

import pool
import pytest
import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from largebatch import models
from largebatch.errors import UserError
from largebatch.models import batch_norm
from largebatch.models.batch_norm import commit, frozen_statistics, recomputed_statistics, set_momentum, sized
from largebatch.optim.groups import is_norm

SHAPES = {"2-D": (12, 3), "3-D": (12, 3, 5), "4-D": (12, 3, 4, 2), "5-D": (12, 3, 2, 3, 2)}
CLASSES = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def examples(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=generator) + 3


def norm_for(x: Tensor, **arguments) -> _BatchNorm:
    """torch's, with γ and β that are not 1 and 0."""
    norm = CLASSES[x.dim()](x.shape[1], dtype=torch.float64, **arguments)
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.5, 2, x.shape[1]))
            norm.bias.copy_(torch.linspace(-1, 1, x.shape[1]))
    return norm


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.Flatten(),
    ).double()  # fmt: skip


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Output, and the gradients by input and parameters of a loss that no normalisation makes constant."""
    x = x.clone().requires_grad_()
    y = model(x)
    loss = (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum()
    return y.detach(), *torch.autograd.grad(loss, [x, *model.parameters()])


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def sums(model: nn.Module) -> list[Tensor]:
    return [m.sums for m in model.modules() if isinstance(m, batch_norm.SizedNorm)]


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


class PartByPart(nn.Module):
    """What ghost batch norm is by definition: torch's, shown one part after the other."""

    def __init__(self, norm: nn.Module, size: int) -> None:
        super().__init__()
        self.norm, self.size = norm, size

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.norm(part) for part in x.split(self.size)])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_part_has_mean_0_and_variance_1(shape):
    x = examples(*shape)
    y = sized(norm_for(x, affine=False, eps=1e-30), 4, 12)(x)
    dims = [0, *range(2, x.dim())]
    for part in y.split(4):
        close(part.mean(dims), torch.zeros(3, dtype=torch.float64))
        close(part.var(dims, correction=0), torch.ones(3, dtype=torch.float64))
    assert y[:6].mean(dims).abs().max() > 0.01, "and no other cut has"


@pytest.mark.worlds
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("size", [2, 4, 12])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_outputs_and_gradients_are_those_of_torch_part_by_part(shape, size, affine):
    x = examples(*shape)
    norm = norm_for(x, affine=affine)
    wanted = gradients(PartByPart(copy.deepcopy(norm), size), x)
    found = gradients(sized(norm, size, 12), x)
    assert len(found) == len(wanted) == (4 if affine else 2)
    for one, other in zip(found, wanted, strict=True):
        close(one, other)


@pytest.mark.worlds
def test_its_own_gradient_is_right_by_finite_differences():
    norm = sized(norm_for(examples(6, 2)), 3, 6)
    assert torch.autograd.gradcheck(norm, examples(6, 2).requires_grad_())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_one_process_has_the_running_statistics_of_four_workers(shape):
    """Two micro-batches of two parts a step; the workers are torch's, averaged at the end."""
    norm = norm_for(examples(*shape), momentum=0.3)
    workers = [copy.deepcopy(norm) for _ in range(4)]
    sized(norm, 6, 12)
    for step in range(3):
        for micro in range(2):
            x = examples(*shape, seed=10 * step + micro) * (step + micro + 1)
            norm(x)
            for part, examples_of_part in enumerate(x.split(6)):
                workers[2 * micro + part](examples_of_part)
        commit(norm)
        close(norm.running_mean, torch.stack([w.running_mean for w in workers]).mean(0))
        close(norm.running_var, torch.stack([w.running_var for w in workers]).mean(0))
        assert norm.num_batches_tracked == step + 1 == workers[0].num_batches_tracked
    assert not torch.equal(workers[0].running_mean, workers[3].running_mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_part_as_large_as_the_micro_batch_is_torch_exactly(dtype):
    plain = network().to(dtype)
    model = sized(copy.deepcopy(plain), 8, 8)
    for step in range(3):
        x = examples(8, 2, 9, 9, seed=step).to(dtype)
        for found, wanted in zip(gradients(model, x), gradients(plain, x), strict=True):
            assert torch.equal(found, wanted)
        commit(model)
        for name, wanted in plain.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], wanted, rtol=2 * torch.finfo(dtype).eps, atol=0)
    x = examples(5, 2, 9, 9, seed=9).to(dtype)
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model.eval()(x), plain.eval()(x)), "any number of examples in evaluation"


def test_commit_without_a_pass_or_twice_changes_nothing():
    model = sized(network(), 2, 4)
    before = state(model)
    commit(model)
    model.eval()(examples(4, 2, 9, 9))
    commit(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.train()(examples(4, 2, 9, 9))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "not before the step"
    commit(model)
    after = state(model)
    commit(model)
    assert all(torch.equal(tensor, after[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(after["1.running_mean"], before["1.running_mean"])


def test_momentum_1_keeps_the_last_step_alone():
    x = [examples(4, 3, 4, 2, seed=seed) for seed in range(2)]
    norm = sized(norm_for(x[0]), 4, 4)
    set_momentum(norm, 1)
    for batch in x:
        norm(batch)
        commit(norm)
    close(norm.running_mean, x[1].mean((0, 2, 3)))
    close(norm.running_var, x[1].var((0, 2, 3)))


def test_set_momentum_reaches_sized_and_plain_norms_and_must_be_possible():
    for model in (network(), sized(network(), 2, 4)):
        set_momentum(model, 0.25)
        assert [m.momentum for m in batch_norm.batch_norms(model)] == [0.25, 0.25]
    for momentum in (0, -0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match=f"momentum = {momentum} "):
            set_momentum(network(), momentum)


@pytest.mark.parametrize("sizes", [None, (2, 4)], ids=["torch's", "sized"])
def test_frozen_statistics_leave_no_trace(sizes):
    model = sized(network(), *sizes) if sizes else network()
    model(examples(4, 2, 9, 9))
    before, pending = state(model), [s.clone() for s in sums(model)]
    x = examples(4, 2, 9, 9, seed=1)
    usual = gradients(copy.deepcopy(model), x)
    with frozen_statistics(model):
        inside = gradients(model, x)
        model.eval()
        in_evaluation = model(x)
        model.train()
    for found, wanted in zip(inside, usual, strict=True):
        assert torch.equal(found, wanted), "normalised by the batch as ever"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(*pair) for pair in zip(sums(model), pending, strict=True))
    assert torch.equal(in_evaluation, model.eval()(x))
    with pytest.raises(KeyError), frozen_statistics(model):
        raise KeyError
    model.train()(x)
    commit(model)
    assert not torch.equal(model.state_dict()["1.running_mean"], before["1.running_mean"]), "and then they move again"


def by_definition(batches: list[Tensor]) -> tuple[Tensor, Tensor]:
    everything = torch.cat([x.transpose(0, 1).flatten(1) for x in batches], dim=1)
    return everything.mean(1), everything.var(1, correction=0)


@pytest.mark.worlds
@pytest.mark.parametrize("sizes", [None, (2, 4)], ids=["torch's", "sized"])
def test_recomputed_statistics_are_those_of_the_population_in_every_layer(sizes):
    """Batches of 8, 4 and 2: each example counts the same; the second norm's inputs come of batch statistics."""
    model = sized(network(), *sizes) if sizes else network()
    model.insert(3, nn.Dropout(0.5))
    model[5].eval()  # whoever froze it gets it back as it was
    batches = [examples(n, 2, 9, 9, seed=n) * n for n in (8, 4, 2)]
    with torch.no_grad():
        plain = PartByPart(norm_of(model[1]), 2) if sizes else norm_of(model[1])
        inputs = [model[0](x) for x in batches]
        second = [model[4](F.relu(plain(x))) for x in inputs]
    model(examples(8, 2, 9, 9, seed=9))
    pending = None if sizes is None else model[1].sums.clone()
    tracked = model[1].num_batches_tracked.clone()
    with recomputed_statistics(model):
        outputs = [model(x) for x in batches]
    assert not outputs[0].requires_grad
    for norm, wanted in ((model[1], by_definition(inputs)), (model[5], by_definition(second))):
        close(norm.running_mean, wanted[0])
        close(norm.running_var, wanted[1])
    assert torch.equal(model[1].num_batches_tracked, tracked)
    assert pending is None or torch.equal(model[1].sums, pending)
    assert [m.training for m in model] == [True] * 5 + [False, True]
    assert model.training


def norm_of(norm: _BatchNorm) -> nn.BatchNorm2d:
    plain = nn.BatchNorm2d(norm.num_features).double()
    plain.load_state_dict(norm.state_dict())
    return plain


def test_recomputed_statistics_are_summed_over_ranks_in_one_vector():
    whole, parts = network(), [network(), network()]
    batches = [examples(n, 2, 9, 9, seed=n) * n for n in (8, 4)]
    with recomputed_statistics(whole):
        for x in batches:
            whole(x)
    seen: list[Tensor] = []
    for model, x in zip(parts, batches, strict=True):
        with recomputed_statistics(model, lambda vector: seen.append(vector.clone()) or vector):
            model(x)
    assert len(seen) == 2, "one call of each rank"
    assert seen[0].dtype == torch.float64
    with recomputed_statistics(parts[0], lambda vector: vector + seen[1]):
        parts[0](batches[0])
    with recomputed_statistics(parts[1], lambda _: seen[0] + seen[1]):
        pass  # a rank without examples of its own
    for model in parts:
        for name, wanted in whole.state_dict().items():
            close(model.state_dict()[name], wanted)


def test_recomputed_statistics_need_examples_and_survive_a_failure():
    model = network()
    before = state(model)
    with pytest.raises(UserError, match="no example was shown"), recomputed_statistics(model):
        pass
    with pytest.raises(KeyError), recomputed_statistics(model):
        fails_after(model(examples(4, 2, 9, 9)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())
    assert model[1].track_running_stats


def fails_after(_: Tensor) -> None:
    raise KeyError


def test_recomputed_statistics_leave_a_layer_that_no_example_reached():
    model = nn.ModuleDict({"used": nn.BatchNorm1d(2), "auxiliary": nn.BatchNorm1d(2)})
    with recomputed_statistics(model):
        model["used"](torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert model["used"].running_mean.tolist() == [2, 5]
    assert model["used"].running_var.tolist() == [1, 0]
    assert model["auxiliary"].running_var.tolist() == [1, 1]


def test_recomputed_variance_does_not_suffer_from_a_large_mean():
    x = 1e6 + torch.randn(512, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norm = nn.BatchNorm1d(1).double()
    with recomputed_statistics(norm):
        for part in x.split(64):
            norm(part)
    torch.testing.assert_close(norm.running_var, x.var(0, correction=0), rtol=1e-3, atol=0)
    constant = examples(1, 1000).expand(7, 1000)
    norm = nn.BatchNorm1d(1000).double()
    with recomputed_statistics(norm):
        for part in constant.split([2, 5]):
            norm(part)
    assert norm.running_var.min() == 0, "never below"
    assert norm.running_var.max() < 1e-12


@pytest.mark.worlds
def test_names_shapes_and_values_are_the_plain_models():
    plain = models.build("resnet20", 10, (3, 32, 32))
    model = sized(models.build("resnet20", 10, (3, 32, 32)), 8, 32)
    plain_state = plain.state_dict()
    assert list(model.state_dict()) == list(plain_state)
    assert all(torch.equal(tensor, plain_state[name]) for name, tensor in model.state_dict().items())
    model(torch.randn(32, 3, 32, 32))
    commit(model)
    plain.load_state_dict(model.state_dict())
    model.load_state_dict(plain.state_dict())
    norms = list(batch_norm.batch_norms(model))
    assert len(norms) == 21
    assert all(isinstance(m, nn.BatchNorm2d) and type(m) is not nn.BatchNorm2d and is_norm(m) for m in norms)
    x = torch.randn(3, 3, 32, 32)
    assert torch.equal(model.eval()(x), plain.eval()(x))


def test_channels_last_is_kept():
    norm = sized(nn.BatchNorm2d(3), 2, 4)
    x = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last).requires_grad_()
    y = norm(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.square().sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
    assert norm(x.detach().contiguous()).is_contiguous()


def test_half_precision_has_statistics_in_float32():
    x = (torch.randn(64, 3, 8, 8) + 100).bfloat16()
    norm = sized(nn.BatchNorm2d(3, affine=False, momentum=1.0), 32, 64)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    commit(norm)
    assert y.dtype == torch.bfloat16
    assert norm.running_mean.dtype == norm.running_var.dtype == torch.float32
    torch.testing.assert_close(norm.running_mean, x.double().mean((0, 2, 3)).float(), rtol=1e-5, atol=0)
    model = sized(network().float(), 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(4, 2, 9, 9)).square().mean()
    loss.backward()
    commit(model)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_without_running_statistics_evaluation_is_torchs():
    x = examples(4, 3)
    plain = norm_for(x, track_running_stats=False, momentum=None)
    norm = sized(copy.deepcopy(plain), 2, 4)
    close(norm(x), PartByPart(plain, 2)(x))
    commit(norm)
    assert torch.equal(norm.eval()(x), plain.eval()(x))
    assert norm.sums is None


@pytest.mark.worlds
def test_timms_norm_with_activation_is_sized_as_well():
    plain = BatchNormAct2d(3, act_layer=nn.LeakyReLU).double()
    norm = sized(copy.deepcopy(plain), 2, 4)
    x = examples(4, 3, 2, 2)
    for found, wanted in zip(gradients(norm, x), gradients(PartByPart(plain, 2), x), strict=True):
        close(found, wanted)
    assert norm(x).min() < 0, "the activation is its own"
    assert torch.equal(norm.eval()(x), F.leaky_relu(F.batch_norm(x, norm.running_mean, norm.running_var)))
    with pytest.raises(UserError, match="training batch of 3 "):
        norm.train()(examples(3, 3, 2, 2))
    model = sized(models.build("timm/resnetv2_50", 10, (3, 32, 32)), 2, 4)
    assert {type(m) for m in batch_norm.batch_norms(model)} == {batch_norm.SizedBatchNormAct2d}


def test_a_copy_trains_by_itself():
    model = sized(network(), 2, 4)
    model[1].ranks = batch_norm.NormGroup(Uncopyable(), 2)
    copied = copy.deepcopy(model)
    assert copied[1].ranks.group is model[1].ranks.group
    copied[1].ranks = None
    copied(examples(4, 2, 9, 9))
    commit(copied)
    assert model[1].num_batches_tracked == 0
    assert copied[1].num_batches_tracked == 1


class Uncopyable:
    def __deepcopy__(self, memo):
        raise TypeError("as process groups are")


@pytest.mark.worlds
def test_compiled_it_is_the_same():
    model = sized(network(), 2, 4)
    compiled = copy.deepcopy(model)
    program = torch.compile(compiled, backend="aot_eager")
    for step in range(2):
        for micro in range(2):
            x = examples(4, 2, 9, 9, seed=2 * step + micro)
            close(program(x), model(x))
        commit(model)
        commit(compiled)
    for name, wanted in model.state_dict().items():
        close(compiled.state_dict()[name], wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels-last"])
def test_on_the_device_it_is_the_same(layout):
    model = network()
    on_device = sized(copy.deepcopy(model), 2, 4).to("cuda", memory_format=layout)
    sized(model, 2, 4)
    for step in range(2):
        x = examples(4, 2, 9, 9, seed=step)
        wanted = gradients(model, x)
        for one, other in zip(gradients(on_device, x.to("cuda", memory_format=layout)), wanted, strict=True):
            torch.testing.assert_close(one.cpu(), other, rtol=1e-9, atol=1e-9)
        commit(model)
        commit(on_device)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(on_device.state_dict()[name].cpu(), tensor, rtol=1e-9, atol=1e-9)
    norm = sized(nn.BatchNorm2d(3), 2, 4).to("cuda")
    half = norm(examples(4, 3, 5, 5).to("cuda", torch.bfloat16, memory_format=layout))
    assert half.dtype == torch.bfloat16
    assert half.is_contiguous(memory_format=layout)
    assert norm.sums.dtype == torch.float32


def test_statistics_of_other_norms_are_no_matter_of_commit_and_cannot_be_frozen():
    model = nn.Sequential(nn.InstanceNorm1d(2, track_running_stats=True))
    commit(model)
    for context in (frozen_statistics, recomputed_statistics):
        with pytest.raises(UserError, match="0 is InstanceNorm1d, whose running statistics"), context(model):
            pass
    with frozen_statistics(nn.InstanceNorm1d(2)):
        pass


class Derived(nn.BatchNorm2d):
    pass


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (Derived(2), "bn_batch_size cannot be given to inner, a Derived; valid: BatchNorm1d, "),
        (nn.SyncBatchNorm(2), "inner, a SyncBatchNorm"),
        (nn.InstanceNorm2d(2, track_running_stats=True), "inner is InstanceNorm2d, whose running statistics"),
        (nn.BatchNorm2d(2, momentum=None), "inner has momentum None"),
        (sized(nn.BatchNorm2d(2), 2, 4), "inner, a SizedBatchNorm2d"),
    ],
)
def test_norms_that_cannot_be_sized_are_refused_before_any_is_changed(module, sentence):
    model = nn.Sequential(nn.BatchNorm2d(2), nn.InstanceNorm2d(2), nn.Sequential())
    model.add_module("inner", module)
    with pytest.raises(UserError, match=sentence):
        sized(model, 2, 4)
    assert type(model[0]) is nn.BatchNorm2d


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0, 4), "bn_batch_size = 0 must be at least 1"),
        ((5, 12), "bn_batch_size = 5 does not divide the micro-batch of 12; nearest that do: 4 or 6"),
        ((6, 4), "bn_batch_size = 6 is neither a part of the micro-batch of 4 nor that of 1 rank together"),
        ((12, 4, None, 2), "nor that of 2 ranks together; valid: divisors of 4, or 8"),
        ((8, 4, None, 2), "bn_batch_size = 8 needs a process group of 2 ranks that holds this one; it has 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        sized(network(), *arguments)


def test_batches_that_cannot_be_cut_are_refused_in_training_alone():
    model = sized(network(), 4, 8)
    for count in (6, 2, 0):
        with pytest.raises(UserError, match=rf"training batch of {count} .* bn_batch_size = 4; valid: multiples of 4"):
            model(examples(count, 2, 9, 9))
    assert model.eval()(examples(6, 2, 9, 9)).shape == (6, 75)
    with pytest.raises(UserError, match="one value per channel"):
        sized(nn.BatchNorm1d(3), 1, 4)(torch.randn(4, 3))
    sized(nn.BatchNorm2d(3), 1, 4)(torch.randn(4, 3, 2, 2))


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory) -> dict:
    directory = tmp_path_factory.mktemp("ranks")
    ended = pool.ranks(4, "worlds.batch_norm:work", directory)
    assert ended.returncode == 0, ended.stderr
    return json.loads((directory / "end.json").read_text())


@pytest.mark.worlds
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ["pairs", "all", "own"])
def test_four_ranks_are_one_process_with_their_examples(four_ranks, name, engine):
    """Two pairs that normalise together, all four, and each by itself; two micro-batches a step, three steps."""
    worst = four_ranks["worst"]
    for what in ("output", "input", "gradients", "statistics", "weights"):
        assert worst[f"{name} {engine} {what}"] < 1e-12, what


@pytest.mark.worlds
def test_ranks_of_a_group_have_the_same_statistics_and_groups_do_not(four_ranks):
    assert four_ranks["same"] == [True, True, False]


@pytest.mark.worlds
def test_recomputed_statistics_of_four_ranks_are_those_of_one_process(four_ranks):
    assert four_ranks["worst"]["recomputed"] < 1e-12


@pytest.mark.worlds
def test_ranks_that_normalise_together_keep_the_type_and_the_layout(four_ranks):
    assert four_ranks["types"] == ["torch.bfloat16", "torch.float32", "torch.bfloat16", True, True]


@pytest.mark.worlds
def test_ranks_that_cannot_normalise_together_are_told(four_ranks):
    assert four_ranks["told"] == [
        "a training batch of 12 examples came to a batch norm that 2 ranks share; valid: 3 examples on each",
        "bn_batch_size = 12 needs a process group of 4 ranks that holds this one; it has 2",
    ]

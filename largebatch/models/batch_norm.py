"""Batch norm over a stated number of examples, whatever the micro-batch; its running statistics, kept and made anew.

For a part P of ``bn_batch_size`` examples, n the number of their values in a channel:

    m = Σ x / n        v = Σ (x − m)² / n        y = γ·(x − m)/√(v + ε) + β
    bn_batch_size ≤ micro-batch            consecutive examples of one process: ghost batch norm,
                                           Hoffer, Hubara & Soudry 2017 (1705.08741), algorithm 1
    bn_batch_size = ranks × micro-batch    one micro-batch of each rank of a group: distributed batch norm over a
                                           sub-group, Ying et al. 2018 (1811.06992), §3.2

Across ranks the means and variances of equal shares are gathered once: m = mean(m_k), v = mean(v_k) + mean((m_k − m)²),
which never subtracts large squares. The gradient is that of the sum of the ranks' losses by their own inputs; γ and β
get this rank's share, which the engine adds up as any other gradient.

Running statistics are those of a cluster in which each of N workers sees one part a step, averaged over the workers:

    r_k ← (1 − μ)·r_k + μ·(m_k, v_k·n/(n − 1)),  r = mean(r_k)     is     r ← (1 − μ)·r + μ·mean over the step's parts

so parts are added up as they come and :func:`commit` moves r once per optimizer step: one process with accumulation is
N workers. Hoffer et al. move r once per part instead, in turn, and torch once per micro-batch. μ is torch's momentum,
1 − that of most papers; μ = 1 keeps the last mini-batch's mean alone, the "batch normalization without moving
averages" of Akiba, Suzuki & Fukuda 2017 (1711.04325). Evaluation is torch's.

Precise batch norm (Wu & Johnson 2021, 2105.07576, §3) replaces r by the statistics of the whole population, here of all
examples shown, weighted by their number:

    running_mean = E[x]        running_var = E[x²] − E[x]²

without n/(n − 1), as they define it; the running variance of training has that factor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from largebatch.errors import UserError
from largebatch.models.frozen import FrozenNorm


class NormGroup(NamedTuple):
    """The processes that normalise together; a copy of a model, such as an average of its weights, shares them."""

    group: Any
    count: int

    def __deepcopy__(self, memo: dict[int, Any]) -> NormGroup:
        return self


class SizedNorm(_BatchNorm):
    """What :func:`sized` makes of a batch norm: the same parameters and buffers, in training other statistics.

    Sums over the parts seen since the last :func:`commit` are plain attributes: they are no state of the model.
    """

    bn_batch_size: int
    share: int  # examples of a part that this process holds
    ranks: NormGroup | None
    sums: Tensor | None  # as the statistics of a pass, over all parts since the last commit

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        self._check_size(input)
        if self.ranks is None:
            output, statistics = ghost(input, self.weight, self.bias, self.share, self.eps)
        else:
            output, statistics = Synchronised.apply(input, self.weight, self.bias, self.ranks, self.eps)
        if self.track_running_stats and self.running_mean is not None:
            self._add(statistics)
        return output

    def _check_size(self, input: Tensor) -> None:
        count = input.shape[0]
        if self.ranks is not None and count != self.share:
            raise UserError(
                f"a training batch of {count} examples came to a batch norm that {self.ranks.count} ranks share; "
                f"valid: {self.share} examples on each"
            )
        if count == 0 or count % self.share:
            raise UserError(
                f"a training batch of {count} examples cannot be cut into parts of bn_batch_size = {self.bn_batch_size}"
                f"; valid: multiples of {self.bn_batch_size}"
            )
        if self.bn_batch_size == 1 and input[0, 0].numel() == 1:
            raise UserError("bn_batch_size = 1 leaves one value per channel to normalise; valid: at least 2")

    def _add(self, statistics: Tensor) -> None:
        seen = statistics.detach().sum(1)
        self.sums = seen if self.sums is None else self.sums + seen

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bn_batch_size={self.bn_batch_size}"


class SizedBatchNorm1d(SizedNorm, nn.BatchNorm1d):
    pass


class SizedBatchNorm2d(SizedNorm, nn.BatchNorm2d):
    pass


class SizedBatchNorm3d(SizedNorm, nn.BatchNorm3d):
    pass


class SizedBatchNormAct2d(SizedNorm, nn.BatchNorm2d):
    """timm's, which drops and activates as well; not its subclass, so that timm is not imported for this."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


SIZED: dict[str, type[SizedNorm]] = {
    "torch.nn.modules.batchnorm.BatchNorm1d": SizedBatchNorm1d,
    "torch.nn.modules.batchnorm.BatchNorm2d": SizedBatchNorm2d,
    "torch.nn.modules.batchnorm.BatchNorm3d": SizedBatchNorm3d,
    "timm.layers.norm_act.BatchNormAct2d": SizedBatchNormAct2d,
}


def sized(
    model: nn.Module, bn_batch_size: int, micro_batch_size: int, group: Any = None, group_size: int = 1
) -> nn.Module:
    """``model``, its batch norms turned in place into ones over ``bn_batch_size`` examples; before any wrapping.

    ``group`` is a process group of ``group_size`` consecutive ranks, None the one of all ranks; it is used only where
    a micro-batch is too small. State dicts, parameters and buffers stay what they were.
    """
    ranks = _ranks(bn_batch_size, micro_batch_size, group, group_size)
    norms = [(name or "the model", module) for name, module in model.named_modules() if is_batch_norm(module, name)]
    for name, module in norms:
        _check(name, module)
    for _, module in norms:
        module.__class__ = SIZED[_kind(module)]
        assert isinstance(module, SizedNorm)
        module.bn_batch_size, module.share = bn_batch_size, min(bn_batch_size, micro_batch_size)
        module.ranks, module.sums = ranks, None
    return model


def discard(model: nn.Module) -> None:
    """Forget the parts seen since the last :func:`commit`."""
    for norm in model.modules():
        if isinstance(norm, SizedNorm):
            norm.sums = None


def commit(model: nn.Module) -> None:
    """Move the running statistics by the parts seen since the last time: at the end of every optimizer step.

    It needs no host: the numbers stay on the device. Without sized norms, or without a training pass, nothing happens.
    """
    norms = [norm for norm in model.modules() if isinstance(norm, SizedNorm) and norm.sums is not None]
    if not norms:
        return
    running: list[Tensor] = []
    tracked: list[Tensor] = []
    sums: list[Tensor] = []
    counts: list[Tensor] = []
    momenta: list[float] = []
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        assert norm.sums is not None
        assert norm.momentum is not None
        mean, variance, count = norm.sums
        running += [norm.running_mean, norm.running_var]
        tracked.append(norm.num_batches_tracked)
        sums += [mean, variance]
        counts += [count, count]
        momenta += [norm.momentum, norm.momentum]
        norm.sums = None
    with torch.no_grad():
        means = torch._foreach_mul(torch._foreach_div(sums, counts), momenta)
        torch._foreach_mul_(running, [1 - momentum for momentum in momenta])
        torch._foreach_add_(running, means)
        torch._foreach_add_(tracked, 1)


def set_momentum(model: nn.Module, momentum: float) -> None:
    """μ of every batch norm that has running statistics."""
    if not 0 < momentum <= 1:
        raise UserError(f"momentum = {momentum} of batch norm must be above 0 and at most 1, the last batch alone")
    for norm in batch_norms(model):
        if norm.track_running_stats:
            norm.momentum = float(momentum)


@contextlib.contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, passes in training mode normalise as ever and leave no trace in any batch norm, torch's own included."""
    tracking = [norm for norm in batch_norms(model) if norm.track_running_stats]
    for norm in tracking:
        norm.track_running_stats = False  # torch then normalises by the batch in training, by the buffers otherwise
    try:
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True


@contextlib.contextmanager
def recomputed_statistics(
    model: nn.Module, sum_over_ranks: Callable[[Tensor], Tensor] = lambda sums: sums
) -> Iterator[None]:
    """Inside, show ``model`` training examples; afterwards the running statistics are those of all examples shown.

    Inside there are no gradients, batch norms normalise by their batches as in training, and everything else is in
    evaluation mode, so that nothing is dropped. ``sum_over_ranks`` gets one float64 vector and returns its sum over
    ranks; it is called once by every rank, also one that showed nothing. Call the plain model: a compiled one may not
    notice that it is watched. A norm that no example reached keeps what it had. After an exception all do.
    """
    norms = list(batch_norms(model))
    tallies = [InputMoments(norm) for norm in norms if norm.track_running_stats and norm.running_mean is not None]
    modes = [(module, module.training) for module in model.modules()]
    with contextlib.ExitStack() as stack:
        stack.callback(_set_modes, modes)
        for tally in tallies:
            stack.callback(tally.norm.register_forward_pre_hook(tally.add).remove)
        _set_modes([(module, False) for module, _ in modes])
        _set_modes([(norm, True) for norm in norms])
        with frozen_statistics(model), torch.no_grad():
            yield
    if tallies:
        _replace(tallies, sum_over_ranks)


def batch_norms(model: nn.Module) -> Iterator[_BatchNorm]:
    """Every batch norm, sized or torch's, each once; none that is frozen."""
    for name, module in model.named_modules():
        if is_batch_norm(module, name):
            yield module  # pyright: ignore[reportReturnType]


def is_batch_norm(module: nn.Module, name: str = "") -> bool:
    """Whether ``module`` is torch's batch norm or derived from it, and not frozen. Others with statistics that move are
    refused."""
    if isinstance(module, FrozenNorm):
        return False
    if isinstance(module, _BatchNorm):
        return True
    kind = type(module).__name__
    if module._buffers.get("running_var") is not None and "Frozen" not in kind:
        raise UserError(
            f"{name or 'the model'} is {kind}, whose running statistics are not understood; valid: torch's batch "
            "norms, or norms without running statistics"
        )
    return False


def ghost(x: Tensor, weight: Tensor | None, bias: Tensor | None, share: int, eps: float) -> tuple[Tensor, Tensor]:
    """Each ``share`` consecutive examples normalised by themselves; (mean, unbiased variance, 1) by part and channel.

    Part by part through torch's kernels, which see views: folding the parts into the channels copies four times and
    takes twice as long on the CPU. With momentum 1 torch's running statistics are the batch's own. The ones count the
    parts on the device: a number of Python's would make torch.compile start again with every micro-batch.
    """
    dtype = statistics_type(x)
    weight, bias = (None if affine is None else affine.to(dtype) for affine in (weight, bias))
    statistics = x.new_ones(3, x.shape[0] // share, x.shape[1], dtype=dtype)
    outputs = [
        F.batch_norm(part, mean, variance, weight, bias, training=True, momentum=1.0, eps=eps)
        for part, mean, variance in zip(x.split(share), *statistics[:2], strict=True)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs), statistics


class Synchronised(torch.autograd.Function):
    """One part of which every rank of a group holds an equal share. Collective, forwards and backwards."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, ranks: NormGroup, eps: float
    ) -> tuple[Tensor, Tensor]:
        own, own_variance, centred = moments(x)
        share = torch.stack([own, own_variance])
        every = [torch.empty_like(share) for _ in range(ranks.count)]
        dist.all_gather(every, share, group=ranks.group)
        means, variances = torch.stack(every, dim=1)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        inverse = torch.rsqrt(variance + eps)
        scale = inverse if weight is None else inverse * weight
        shift = (own - mean) * scale
        y = torch.addcmul(wide(shift if bias is None else shift + bias, x), centred, wide(scale, x))
        n = ranks.count * (x.numel() // x.shape[1])
        statistics = torch.stack([mean, variance * (n / (n - 1)), torch.ones_like(mean)])[:, None]
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.ranks, ctx.n = ranks, n
        ctx.mark_non_differentiable(statistics)
        return y.to(x.dtype), statistics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        dy, centred = gradient.to(mean.dtype), x.to(mean.dtype) - wide(mean, x)
        own = torch.stack([dy.sum(over(x)), (dy * centred).sum(over(x)) * inverse])
        of_x = None
        if ctx.needs_input_grad[0]:
            total = own.clone()
            dist.all_reduce(total, group=ctx.ranks.group)
            scale = inverse if weight is None else inverse * weight
            shift, slope = -scale * total[0] / ctx.n, -scale * inverse * total[1] / ctx.n
            of_x = torch.addcmul(wide(shift, x), centred, wide(slope, x)).addcmul_(dy, wide(scale, x)).to(x.dtype)
        of_bias, of_weight = (
            own[i].to(mean.dtype if weight is None else weight.dtype) if ctx.needs_input_grad[2 - i] else None
            for i in (0, 1)
        )
        return of_x, of_weight, of_bias, None, None


class InputMoments:
    """Σ x and Σ x² of a norm's input by channel, in float64, over all passes."""

    def __init__(self, norm: _BatchNorm) -> None:
        assert norm.running_mean is not None
        self.norm = norm
        self.sums = torch.zeros(2, norm.num_features, dtype=torch.float64, device=norm.running_mean.device)
        self.count = 0

    def add(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x = arguments[0]
        count = x.numel() // x.shape[1]
        mean, variance = (moment.double() for moment in moments(x)[:2])
        self.sums += count * torch.stack([mean, variance + mean.square()])
        self.count += count


def _replace(tallies: list[InputMoments], sum_over_ranks: Callable[[Tensor], Tensor]) -> None:
    device = tallies[0].sums.device
    counts = torch.tensor([tally.count for tally in tallies], dtype=torch.float64, device=device)
    together = sum_over_ranks(torch.cat([counts, *(tally.sums.flatten().to(device) for tally in tallies)]))
    totals = together[: len(tallies)].tolist()
    if not any(totals):
        raise UserError("batch-norm statistics cannot be recomputed: no example was shown to the model")
    sums = together[len(tallies) :].split([tally.sums.numel() for tally in tallies])
    for tally, total, flat in zip(tallies, totals, sums, strict=True):
        mean, square = flat.view(2, -1) / max(total, 1)
        running_mean, running_var = tally.norm.running_mean, tally.norm.running_var
        if total and running_mean is not None and running_var is not None:
            running_mean.copy_(mean)
            running_var.copy_((square - mean.square()).clamp_(min=0))


def _ranks(bn_batch_size: int, micro_batch_size: int, group: Any, group_size: int) -> NormGroup | None:
    """Who normalises together: None where one process holds whole parts."""
    told = f"bn_batch_size = {bn_batch_size}"
    if bn_batch_size < 1:
        raise UserError(f"{told} must be at least 1")
    if bn_batch_size <= micro_batch_size:
        if micro_batch_size % bn_batch_size:
            divisors = [n for n in range(1, micro_batch_size + 1) if micro_batch_size % n == 0]
            near = [max(n for n in divisors if n < bn_batch_size), min(n for n in divisors if n > bn_batch_size)]
            raise UserError(
                f"{told} does not divide the micro-batch of {micro_batch_size}; nearest that do: {near[0]} or {near[1]}"
            )
        return None
    if bn_batch_size != group_size * micro_batch_size:
        raise UserError(
            f"{told} is neither a part of the micro-batch of {micro_batch_size} nor that of {group_size} rank"
            f"{'s' * (group_size != 1)} together; valid: divisors of {micro_batch_size}, or "
            f"{group_size * micro_batch_size}"
        )
    members = dist.get_world_size(group) if dist.is_initialized() else 1
    if members != group_size:
        raise UserError(f"{told} needs a process group of {group_size} ranks that holds this one; it has {members}")
    return NormGroup(group, group_size)


def _check(name: str, module: nn.Module) -> None:
    """Refuse a batch norm that cannot be told how many examples it normalises over."""
    if _kind(module) not in SIZED:
        valid = ", ".join(kind.rpartition(".")[2] for kind in SIZED)
        raise UserError(f"bn_batch_size cannot be given to {name}, a {type(module).__name__}; valid: {valid}")
    assert isinstance(module, _BatchNorm)
    if module.track_running_stats and module.momentum is None:
        raise UserError(
            f"{name} has momentum None, a cumulative average, which bn_batch_size has not; valid: above 0, at most 1"
        )


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _set_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    """By the flag itself: ``train`` would reach the modules below, and some override it."""
    for module, training in modes:
        module.training = training


def statistics_type(x: Tensor) -> torch.dtype:
    """Half-precision inputs have float32 statistics."""
    return torch.promote_types(x.dtype, torch.float32)


def moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance by channel, and x minus its mean; torch.var_mean takes six times as long on the CPU."""
    x = x.to(statistics_type(x))
    mean = x.mean(over(x))
    centred = x - wide(mean, x)
    return mean, centred.square().mean(over(x)), centred


def over(x: Tensor) -> list[int]:
    """All dimensions but the channels."""
    return [0, *range(2, x.dim())]


def wide(of_channel: Tensor, x: Tensor) -> Tensor:
    return of_channel.view(-1, *[1] * (x.dim() - 2))

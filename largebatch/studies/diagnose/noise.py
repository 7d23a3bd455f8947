"""``diagnose noise``: the gradient noise scale at a run's weights, and the batch size beyond which more is wasted.

Gradients are those of training, dropout, augmentation and batch norm over the small batch included, of global batches
from another order of the run's examples, the same in any world; the weights stand still. With ``hessian`` also
tr(HΣ)/(GᵀHG): from the n parts g_i of one batch, without dropout and augmentation,

    tr(HΣ) ~ b/(n−1)·Σᵢ (gᵢ − ḡ)ᵀH(gᵢ − ḡ)        GᵀHG ~ ḡᵀHḡ − tr(HΣ)/B

Where units vary, each part counts as its units do beside the mean part's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import rich.table
import torch
from torch import Tensor

from largebatch.data.nested import Batch
from largebatch.diagnostics.noise import Squares, check_sizes, examples_needed, of_steps, steps_needed
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.plan import batch
from largebatch.records.diagnoses import NoiseRecord
from largebatch.studies.diagnose.opened import Opened, keep, opened

OTHER_STREAM = 0x0153


def measure(
    directory: Path,
    device: torch.device,
    *,
    small: int | None = None,
    big: int | None = None,
    batches: int = 20,
    hessian: bool = False,
    precision: str = "fp32",
    step: int | None = None,
    command: str = "",
) -> NoiseRecord:
    """What :func:`at_weights` gives, kept in the run's folder. Collective."""
    measured = at_weights(
        directory, device, small=small, big=big, batches=batches, hessian=hessian, precision=precision, step=step,
        command=command,
    )  # fmt: skip
    keep(directory, measured)
    return measured


def at_weights(
    directory: Path,
    device: torch.device,
    *,
    small: int | None = None,
    big: int | None = None,
    batches: int = 20,
    hessian: bool = False,
    precision: str = "fp32",
    step: int | None = None,
    command: str = "",
) -> NoiseRecord:
    """Collective; the parts of a batch are divided among ranks."""
    run = opened(directory, device, precision, step, augmented=True)
    if (repeats := run.run.data.repeats) > 1:
        raise UserError(
            f"{run.directory} was trained with data.repeats = {repeats}, so the examples of its batches are not "
            "independent, as a noise scale takes them; valid: a run with data.repeats = 1"
        )
    size, world = len(run.dataset.train), distributed.world_size()
    b = min(64, size // 2) if small is None else small
    if big is None:
        big = min(16 * b, size // b * b) if b > 0 else 0
    if big > size:
        raise UserError(f"--big {big} is larger than the training set; at most {size}")
    check_sizes(b, big, "--small", "--big")
    if (big // b) % world:
        raise UserError(f"--big {big} is {big // b} parts of --small {b}, which {world} ranks cannot share equally")
    plan = batch.resolve(
        dataset_size=size, global_batch_size=big, world_size=world, micro_batch_size=b, steps=batches,
        seed=run.run.seed ^ OTHER_STREAM,
    )  # fmt: skip
    steps = list(squares_of(run, plan))
    found = of_steps(steps)
    return NoiseRecord(
        **run.facts(command),
        small_batch_size=b,
        big_batch_size=big,
        batches=batches,
        hessian=hessian,
        global_batch_size=run.global_batch_size,
        gradient_square=found.gradient_square,
        variance_trace=found.variance_trace,
        noise_scale=found.noise_scale,
        noise_scale_low=found.low,
        noise_scale_high=found.high,
        hessian_noise_scale=hessian_noise_scale(opened(directory, device, precision, step), b, big)
        if hessian
        else None,
        squares=[[squares.small, squares.big] for squares in steps],
    )


def squares_of(run: Opened, plan: batch.BatchPlan) -> Iterator[Squares]:
    """Of every global batch of the plan."""
    parts = plan.global_batch_size // plan.micro_batch_size
    stream = run.dataset.train.steps(plan, distributed.rank(), 0, run.placement, plan.seed)
    with run.training(), torch.random.fork_rng():
        for step, micro_batches in enumerate(stream):
            of_parts, units = torch.zeros((2,), dtype=torch.float64, device=run.placement.device)
            total: Tensor | None = None
            for part, micro_batch in enumerate(micro_batches, start=distributed.rank() * plan.accumulation_steps):
                torch.manual_seed(((plan.seed << 20) + step * parts + part) % 2**63)  # dropout belongs to the part
                gradient, own = gradient_of(run, micro_batch), units_in(run, micro_batch)
                of_parts += own * gradient.double().square().sum()
                units += own
                total = gradient.mul_(own) if total is None else total.add_(gradient, alpha=own)
            assert total is not None
            everywhere = distributed.sum_(units)
            whole = (distributed.sum_(total) / everywhere).double().square().sum()
            small, big = (distributed.sum_(of_parts) / everywhere).item(), whole.item()
            yield Squares(plan.micro_batch_size, plan.global_batch_size, small, big)


def units_in(run: Opened, micro_batch: Batch) -> int:
    """What its mean loss is over; at least 1."""
    return max(1, int(run.task.units(micro_batch)))


def gradient_of(run: Opened, micro_batch: Batch) -> Tensor:
    """Of the mean loss over one micro-batch, as one flat vector."""
    weights = [p for p in run.model.parameters() if p.requires_grad]
    loss = run.loss(micro_batch) / units_in(run, micro_batch)
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, weights, materialize_grads=True)])


def hessian_noise_scale(run: Opened, small: int, big: int) -> float | None:
    """tr(HΣ)/(GᵀHG); None where the curvature along the gradient is not positive. Collective."""
    sample = run.sample(big, small)
    with run.normalised_by(run.mode("batch")):
        objective = run.objective(sample)
        objective.check_deterministic()
        gradients = [(gradient_of(run, part).double(), units_in(run, part)) for part in sample.all()]
        parts = torch.stack([gradient for gradient, _ in gradients])
        weights = torch.tensor([units for _, units in gradients], dtype=torch.float64, device=parts.device)
        weights /= weights.mean()
        mean = (weights[:, None] * parts).mean(0)
        spread = sum(
            weight * torch.dot(v, objective.hessian_product(v)).item()
            for weight, v in zip(weights.tolist(), parts - mean, strict=True)
        )
        trace = small / (len(parts) - 1) * spread
        along = torch.dot(mean, objective.hessian_product(mean)).item() - trace / big
    return trace / along if along > 0 and trace > 0 else None


def table(measured: NoiseRecord) -> rich.table.Table | None:
    """What a batch costs beside the least possible, 1 + B_crit/B steps and 1 + B/B_crit examples, B_crit = B_simple."""
    if (scale := measured.noise_scale) is None:
        return None
    title = f"{measured.title}, step {measured.step:,}: if the critical batch is the noise scale"
    shown = rich.table.Table(title=title)
    for heading in ("global batch", "steps / fewest", "examples / fewest"):
        shown.add_column(heading, justify="right")
    theirs = measured.global_batch_size
    assert theirs is not None  # it was measured a moment ago
    for size in sorted({*(max(1, round(scale * factor)) for factor in (0.25, 1, 4)), theirs}):
        mark = " (this run)" if size == theirs else ""
        shown.add_row(f"{size:,}{mark}", f"{steps_needed(scale, size):.2f}", f"{examples_needed(scale, size):.2f}")
    return shown


def sentences(measured: NoiseRecord) -> list[str]:
    big = measured.big_batch_size
    said = [
        f"|G|² = {measured.gradient_square:.4g}, tr Σ = {measured.variance_trace:.4g}, from {measured.batches} batches "
        f"of {big:,} in parts of {measured.small_batch_size:,}"
    ]
    scale, low, high = measured.noise_scale, measured.noise_scale_low, measured.noise_scale_high
    if scale is None:
        said.append(
            f"the noise scale is beyond measure: the gradient cannot be told from noise at batches of {big:,}; "
            "larger --big and more --batches see more"
        )
    else:
        upper = f"to {high:,.0f}" if high is not None else "up, without an upper end: more --batches or a larger --big"
        said.append(f"noise scale tr Σ / |G|² = {scale:,.0f} examples (95 %: {low:,.0f} {upper})")
    if measured.hessian and measured.hessian_noise_scale is None:
        said.append("with the Hessian: no answer, the curvature along the gradient is not positive at these weights")
    if measured.hessian_noise_scale is not None:
        said.append(f"with the Hessian, tr(HΣ)/(GᵀHG) = {measured.hessian_noise_scale:,.0f} examples")
    return said

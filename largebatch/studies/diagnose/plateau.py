"""``diagnose plateau``: why the loss of a run does not fall, or whether it does; with the evidence, and what to try.

From the run's records: losses, gradient norms, and where ``record.directions_every_steps`` asked for them the angles of
successive gradients. From its newest checkpoint, if it has one: the gradient over many examples, the curvature along it
and the ends of the Hessian's spectrum. Verdicts: :mod:`largebatch.diagnostics.plateau`.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import rich.table
import torch

from largebatch.checkpoint import existing
from largebatch.diagnostics import plateau, spectrum
from largebatch.errors import UserError
from largebatch.records import names
from largebatch.records.diagnoses import PlateauRecord
from largebatch.records.run import DirectionsLine, TrainLine
from largebatch.report.run import read_run
from largebatch.studies.diagnose.opened import Opened, circumstances, keep, opened, recipe_of

SMALL = 300  # parameters, up to which the whole Hessian costs no more than its ends


def measure(
    directory: Path,
    device: torch.device,
    *,
    examples: int | None = None,
    batch_size: int = 1000,
    checkpoint: bool = True,
    precision: str = "fp32",
    command: str = "",
) -> PlateauRecord:
    """Collective. Without ``checkpoint`` from the records alone."""
    recipe = recipe_of(directory)
    run = read_run(directory, recipe.name)
    recorded = run.lines_of(TrainLine)
    losses = [(line.step, line.loss) for line in recorded if line.loss is not None]
    if not losses:
        raise UserError(f"{directory} has recorded no loss yet; train it first, or lower record.every_steps")
    rates = [line.lr for line in recorded if line.lr is not None]
    lr = statistics.median(rates[-max(1, len(rates) // 2) :]) if rates else None
    averaged = recipe.optimizer.averaged
    limit = plateau.stability_limit(lr, *averaged) if averaged and lr else None
    seen = plateau.Seen(
        steps=[step for step, _ in losses],
        losses=[loss for _, loss in losses],
        gradient_norms=[line.grad_norm for line in recorded if line.grad_norm is not None],
        alignments=[
            line.gradient_alignment for line in run.lines_of(DirectionsLine) if line.gradient_alignment is not None
        ],
        lr=lr,
        highest_lr=max(rates, default=None),
        stable_below=limit,
    )
    looked_at: dict[str, Any] = {}
    if checkpoint and existing(directory / names.CHECKPOINTS):
        now = opened(directory, device, precision)
        seen, looked_at = with_checkpoint(seen, now, examples, batch_size)
    measured = PlateauRecord(
        **circumstances(device, command),
        directory=str(directory),
        run=recipe.name,
        title=f"{recipe.title or recipe.name}, batch {recipe.batch.global_batch_size:,}",
        step=seen.steps[-1],
        **plateau.judge(seen)._asdict(),
        **looked_at,
    )
    keep(directory, measured)
    return measured


def with_checkpoint(
    seen: plateau.Seen, run: Opened, examples: int | None, batch_size: int
) -> tuple[plateau.Seen, dict[str, Any]]:
    """What the weights themselves say: whole gradient, curvature along it, ends of the spectrum."""
    sample = run.sample(examples, batch_size)
    with run.normalised_by(run.mode("batch")):
        objective = run.objective(sample)
        objective.check_deterministic()
        _, gradient = objective.value_and_gradient()
        norm = gradient.norm().item()
        curvature = None
        if norm > 0:
            direction = gradient / norm
            curvature = torch.dot(direction, objective.hessian_product(direction)).item()
        found = spectrum.spectrum(objective, eigenvalues=1, vectors=1, density_iterations=2, dense_up_to=SMALL)
    looked_at = {"examples": sample.examples, "batch_size": sample.batch_size, "checkpoint_step": run.step}
    return seen._replace(
        whole_gradient_norm=norm,
        curvature=curvature,
        largest=found["largest"][0]["value"],
        smallest=found["smallest"][0]["value"],
    ), looked_at


def table(measured: PlateauRecord) -> rich.table.Table:
    """Evidence and advice, a line each."""
    shown = rich.table.Table(title=f"{measured.title}, step {measured.step:,}", show_header=False, box=None)
    shown.add_column(no_wrap=True)
    shown.add_column()
    for heading, sentences in (("evidence", measured.evidence), ("try", measured.advice)):
        for number, sentence in enumerate(sentences or ()):
            shown.add_row(heading if number == 0 else "", sentence)
    return shown

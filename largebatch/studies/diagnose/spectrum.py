"""``diagnose spectrum``: the Hessian of the training loss at a run's weights.

The loss is the mean over a sample of the training set, without augmentation and dropout, batch norm in a stated mode.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import rich.table
import torch

from largebatch.diagnostics import spectrum
from largebatch.errors import UserError
from largebatch.records.diagnoses import Eigenvalue, EigenvalueDensity, SpectrumRecord
from largebatch.studies.diagnose.opened import check_norm, keep, opened


def measure(
    directory: Path,
    device: torch.device,
    *,
    eigenvalues: int = 5,
    iterations: int = 100,
    vectors: int = 10,
    exact_up_to: int = 1000,
    norm: str = "batch",
    examples: int | None = None,
    batch_size: int = 1000,
    precision: str = "fp32",
    step: int | None = None,
    command: str = "",
    progress: Callable[[str], None] = lambda text: None,
) -> SpectrumRecord:
    """Collective: products with the Hessian are summed over ranks."""
    for option, value, least in (
        ("--eigenvalues", eigenvalues, 1),
        ("--vectors", vectors, 1),
        ("--iterations", iterations, max(2, 2 * eigenvalues)),
    ):
        if value < least:
            raise UserError(f"{option} {value} is too few; at least {least}")
    check_norm(norm)
    run = opened(directory, device, precision, step)
    sample, norm = run.sample(examples, batch_size), run.mode(norm)
    with run.normalised_by(norm), run.objective(sample) as objective:
        found = spectrum.spectrum(
            objective,
            eigenvalues=eigenvalues,
            iterations=iterations,
            vectors=vectors,
            density_iterations=max(2, min(40, iterations)),
            dense_up_to=exact_up_to,
            progress=progress,
        )
    ends = {end: [Eigenvalue(**one) for one in found[end]] for end in ("largest", "smallest")}
    measured = SpectrumRecord(
        **run.facts(command),
        examples=sample.examples,
        batch_size=sample.batch_size,
        batch_norm=norm,
        **{**found, **ends, "density": EigenvalueDensity(**found["density"])},
    )
    keep(run.directory, measured)
    return measured


def table(measured: SpectrumRecord) -> rich.table.Table:
    shown = rich.table.Table(
        title=f"{measured.title}, step {measured.step:,}: the Hessian over {measured.examples:,} training examples, "
        f"{measured.parameters:,} parameters"
    )
    shown.add_column("")
    shown.add_column("", justify="right")
    shown.add_column("within", justify="right")
    for word, pairs in (("largest eigenvalues", measured.largest), ("smallest eigenvalues", measured.smallest)):
        for number, pair in enumerate(pairs):
            shown.add_row(word if number == 0 else "", f"{pair.value:.5g}", f"± {pair.residual:.1g}")
    error = measured.trace_std_error
    shown.add_row(
        "trace", f"{measured.trace:.5g}", "exact" if error == 0 else "" if error is None else f"± {error:.2g}"
    )
    about = "exact" if measured.shares_exact else "estimated"
    for word, share in (
        ("positive share", measured.positive_share),
        (f"zero, |λ| ≤ {measured.zero_below:.2g}", measured.zero_share),
        ("negative share", measured.negative_share),
    ):
        shown.add_row(word, f"{share:.2%}".replace("%", " %"), about)
    shown.add_row("loss", f"{measured.loss:.5g}", "")
    shown.add_row("gradient norm", f"{measured.gradient_norm:.4g}", "")
    return shown

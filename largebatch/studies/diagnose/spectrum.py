"""``diagnose spectrum``: the Hessian of the training loss at a run's weights.

The loss is the mean over a sample of the training set, without augmentation and dropout, batch norm in a stated mode.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich.table
import torch

from largebatch.diagnostics import spectrum
from largebatch.errors import UserError
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
) -> dict[str, Any]:
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
    facts = {
        **run.facts("spectrum", command),
        "examples": sample.examples,
        "batch_size": sample.batch_size,
        "batch_norm": norm,
        **found,
    }
    keep(run.directory, facts)
    return facts


def table(facts: dict[str, Any]) -> rich.table.Table:
    shown = rich.table.Table(
        title=f"{facts['title']}, step {facts['step']:,}: the Hessian over {facts['examples']:,} training examples, "
        f"{facts['parameters']:,} parameters"
    )
    shown.add_column("")
    shown.add_column("", justify="right")
    shown.add_column("within", justify="right")
    for word, pairs in (("largest eigenvalues", facts["largest"]), ("smallest eigenvalues", facts["smallest"])):
        for number, pair in enumerate(pairs):
            shown.add_row(word if number == 0 else "", f"{pair['value']:.5g}", f"± {pair['residual']:.1g}")
    error = facts["trace_std_error"]
    shown.add_row(
        "trace", f"{facts['trace']:.5g}", "exact" if error == 0 else "" if error is None else f"± {error:.2g}"
    )
    about = "exact" if facts["shares_exact"] else "estimated"
    words = {
        "positive": "positive share",
        "zero": f"zero, |λ| ≤ {facts['zero_below']:.2g}",
        "negative": "negative share",
    }
    for key, word in words.items():
        shown.add_row(word, f"{100 * facts[f'{key}_share']:.2f} %", about)
    shown.add_row("loss", f"{facts['loss']:.5g}", "")
    shown.add_row("gradient norm", f"{facts['gradient_norm']:.4g}", "")
    return shown

"""``diagnose sharpness``: Keskar's metric and SAM's, of the training loss at a run's weights.

The loss is the mean over a sample of the training set, without augmentation and dropout, batch norm in a stated mode
(the paper's: statistics of each batch). Beside it what the paper measured for the same network, data set and side:
small batches of 256, large ones of a tenth of the training set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import rich.table
import torch

from largebatch.diagnostics import sharpness
from largebatch.errors import UserError
from largebatch.records.diagnoses import Ascent, CitedSharpness, SearchedBox, SharpnessRecord
from largebatch.studies.diagnose.opened import Opened, check_norm, keep, opened

SPACES: dict[str, tuple[str, ...]] = {"both": ("full", "random"), "full": ("full",), "random": ("random",)}
# Keskar et al. 2017 (1609.04836), Tables 3 and 4: mean and standard deviation over 5 runs, by (space, ε).
KESKAR: dict[str, dict[str, dict[tuple[str, float], tuple[float, float]]]] = {
    "F1": {
        "small": {("full", 1e-3): (1.23, 0.83), ("full", 5e-4): (0.61, 0.27), ("random", 1e-3): (0.11, 0.00),
                  ("random", 5e-4): (0.05, 0.00)},
        "large": {("full", 1e-3): (205.14, 69.52), ("full", 5e-4): (42.90, 17.14), ("random", 1e-3): (9.22, 0.56),
                  ("random", 5e-4): (9.17, 0.14)},
    },
    "C1": {
        "small": {("full", 1e-3): (28.58, 3.13), ("full", 5e-4): (7.08, 0.88), ("random", 1e-3): (2.18, 0.23),
                  ("random", 5e-4): (0.71, 0.15)},
        "large": {("full", 1e-3): (707.23, 43.04), ("full", 5e-4): (227.31, 23.23), ("random", 1e-3): (137.25, 21.60),
                  ("random", 5e-4): (29.50, 7.48)},
    },
    "C2": {
        "small": {("full", 1e-3): (8.68, 1.32), ("full", 5e-4): (2.07, 0.86), ("random", 1e-3): (0.95, 0.34),
                  ("random", 5e-4): (0.31, 0.08)},
        "large": {("full", 1e-3): (925.32, 38.29), ("full", 5e-4): (175.31, 18.28), ("random", 1e-3): (25.09, 2.61),
                  ("random", 5e-4): (5.82, 0.52)},
    },
    "C3": {
        "small": {("full", 1e-3): (29.85, 5.98), ("full", 5e-4): (8.56, 0.99), ("random", 1e-3): (17.02, 2.20),
                  ("random", 5e-4): (4.03, 1.45)},
        "large": {("full", 1e-3): (258.75, 8.96), ("full", 5e-4): (105.11, 13.22), ("random", 1e-3): (236.03, 31.26),
                  ("random", 5e-4): (86.96, 27.39)},
    },
    "C4": {
        "small": {("full", 1e-3): (12.83, 3.84), ("full", 5e-4): (4.07, 0.87), ("random", 1e-3): (6.05, 1.13),
                  ("random", 5e-4): (1.89, 0.33)},
        "large": {("full", 1e-3): (421.84, 36.97), ("full", 5e-4): (109.35, 16.57), ("random", 1e-3): (72.99, 10.96),
                  ("random", 5e-4): (19.85, 4.12)},
    },
}  # fmt: skip
NETWORKS = {
    ("keskar_c1", "cifar10"): "C1",
    ("keskar_c2", "cifar10"): "C2",
    ("keskar_c1", "cifar100"): "C3",
    ("keskar_c2", "cifar100"): "C4",
}


def measure(
    directory: Path,
    device: torch.device,
    *,
    epsilons: Sequence[float] = (1e-3, 5e-4),
    space: str = "both",
    dimensions: int = 100,
    rhos: Sequence[float] = (0.05,),
    seed: int = 0,
    norm: str = "batch",
    examples: int | None = None,
    batch_size: int = 1000,
    precision: str = "fp32",
    step: int | None = None,
    command: str = "",
    progress: Callable[[str], None] = lambda text: None,
) -> SharpnessRecord:
    """Collective: losses and gradients are summed over ranks."""
    if space not in SPACES:
        raise UserError(f"--space {space} is not known; valid: {', '.join(SPACES)}")
    for option, numbers in (("--epsilon", epsilons), ("--rho", rhos)):
        for number in numbers:
            if not 0 < number < float("inf"):
                raise UserError(f"{option} {number:g} should be a number above 0")
    check_norm(norm)
    run = opened(directory, device, precision, step)
    sample, norm = run.sample(examples, batch_size), run.mode(norm)
    with run.normalised_by(norm), run.objective(sample) as objective:
        found = sharpness.sharpness(
            objective,
            epsilons,
            [None if word == "full" else dimensions for word in SPACES[space]],
            rhos,
            seed=seed,
            progress=progress,
        )
    measured = SharpnessRecord(
        **run.facts(command),
        global_batch_size=run.global_batch_size,
        examples=sample.examples,
        batch_size=sample.batch_size,
        batch_norm=norm,
        seed=seed,
        loss=found["loss"],
        keskar=[SearchedBox(**box) for box in found["keskar"]],
        sam=[Ascent(**ascent) for ascent in found["sam"]],
        published=published(run),
    )
    keep(run.directory, measured)
    return measured


def published(run: Opened) -> list[CitedSharpness]:
    """The paper's rows for this network and side; none for any other."""
    arguments, name = run.run.model.arguments, NETWORKS.get((run.run.model.name, run.run.data.name))
    perceptron = {"width": 512, "depth": 5, "norm": True}
    if run.run.model.name == "mlp" and run.run.data.name == "mnist" and perceptron.items() <= arguments.items():
        name = "F1"
    size = run.global_batch_size
    side = "small" if size == 256 else "large" if 10 * size == len(run.dataset.train) else None
    if name is None or side is None:
        return []
    return [
        CitedSharpness(
            space=space,
            epsilon=epsilon,
            sharpness=mean,
            std=std,
            source=f"Keskar et al. 2017, {'Table 3' if space == 'full' else 'Table 4'}, {name}",
        )
        for (space, epsilon), (mean, std) in KESKAR[name][side].items()
    ]


def table(measured: SharpnessRecord) -> rich.table.Table:
    norm = {"batch": "batch norm over each batch", "running": "running statistics", "none": "no batch norm"}
    shown = rich.table.Table(
        title=f"{measured.title}, step {measured.step:,}: {measured.examples:,} training examples in batches of "
        f"{measured.batch_size:,}, {norm[str(measured.batch_norm)]}, dropout off; loss {measured.loss:.4g}"
    )
    theirs = {(row.space, row.epsilon): row for row in measured.published or ()}
    papers = ["Keskar 2017"] if theirs else []
    for heading in ("metric", "ε or ρ", "sharpness, %", "highest loss", "passes", "s", *papers):
        shown.add_column(heading, justify="left" if heading == "metric" else "right")
    for row in measured.keskar:
        word = "Keskar, full space" if row.space == "full" else f"Keskar, {row.dimensions} random directions"
        paper = theirs.get((row.space, row.epsilon)) if row.dimensions in (None, 100) else None
        shown.add_row(
            word,
            f"{row.epsilon:g}",
            f"{row.sharpness:.4g}",
            f"{row.max_loss:.4g}",
            f"{row.evaluations}",
            f"{row.seconds:.1f}",
            *([f"{paper.sharpness:g} ± {paper.std:g}" if paper else ""] if papers else []),
        )
    for row in measured.sam or ():
        shown.add_row("SAM", f"{row.rho:g}", "", f"{row.loss:.4g} (+{row.increase:.2g})")
    return shown

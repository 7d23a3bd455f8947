"""Every picture of a report, in the order of the page; one that the runs have no numbers for is left out."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from largebatch.report import (
    batch_picture,
    critical_figure,
    noise_figure,
    path_figure,
    search_figure,
    sharpness_figure,
    spectrum_figure,
    svg,
)
from largebatch.report.batch_figures import score_by_batch
from largebatch.report.frame import Picture
from largebatch.report.geometry_figures import alignment, distance, noise_scale, relative_update
from largebatch.report.line_figures import learning_rate, score, score_in_time, training
from largebatch.report.row_figures import bars
from largebatch.report.summary import Comparison


def pictures(comparison: Comparison) -> list[Picture]:
    """Every picture that the runs have numbers for, in the order of the page."""
    with svg.drawing():
        made = [
            *_by_comparison(comparison, curves),
            *score_by_batch(comparison),
            *_by_comparison(comparison, geometry),
            bars(comparison, "seconds_per_step", "time-step", "Time per step"),
            bars(comparison, "seconds_per_epoch", "time-epoch", "Time per epoch"),
            *search_figure.pictures(comparison),
            *sharpness_figure.pictures(comparison),
            noise_figure.picture(comparison),
            *critical_figure.pictures(comparison),
            spectrum_figure.picture(comparison),
            *path_figure.pictures(comparison),
            *batch_picture.pictures(comparison),
        ]
    return [picture for picture in made if picture is not None]


def curves(comparison: Comparison) -> list[Picture | None]:
    return [
        score(comparison, "epoch", "epochs", "epochs"),
        score(comparison, "step", "steps", "steps (log scale)", log_x=True),
        score_in_time(comparison),
        learning_rate(comparison),
        training(comparison, "loss", "training-loss", "Training loss", "loss"),
        training(comparison, "grad_norm", "gradient-norm", "Gradient norm", "norm of the gradient before clipping"),
    ]


def geometry(comparison: Comparison) -> list[Picture | None]:
    return [noise_scale(comparison), distance(comparison), relative_update(comparison), alignment(comparison)]


def _by_comparison(
    comparison: Comparison, draw: Callable[[Comparison], Sequence[Picture | None]]
) -> list[Picture | None]:
    """Where several comparisons are reported, each has a section of its own: their lines would hide each other."""
    names = list(dict.fromkeys(row.comparison for row in comparison.rows))
    if len(names) == 1:
        return list(draw(comparison))
    made = []
    for name in names:
        part = replace(comparison, rows=tuple(row for row in comparison.rows if row.comparison == name))
        made += [picture and replace(picture, section=f"{picture.section}: {name}") for picture in draw(part)]
    return made

"""Every picture of a report, in the order of the page; one that the runs have no numbers for is left out."""

from largebatch.report import svg
from largebatch.report.frame import Picture
from largebatch.report.line_figures import accuracy, accuracy_in_time, learning_rate, training
from largebatch.report.row_figures import accuracy_by_batch, bars, learning_rate_search
from largebatch.report.summary import Comparison


def pictures(comparison: Comparison) -> list[Picture]:
    """Every picture that the runs have numbers for, in the order of the page."""
    with svg.drawing():
        made = [
            accuracy(comparison, "epoch", "accuracy-epochs", "epochs"),
            accuracy(comparison, "step", "accuracy-steps", "steps (log scale)", log_x=True),
            accuracy_in_time(comparison),
            accuracy_by_batch(comparison),
            learning_rate(comparison),
            training(comparison, "loss", "training-loss", "Training loss", "loss"),
            training(
                comparison,
                "grad_norm",
                "gradient-norm",
                "Gradient norm",
                "norm of the gradient before clipping",
            ),
            bars(comparison, "seconds_per_step", "time-step", "Time per step"),
            bars(comparison, "seconds_per_epoch", "time-epoch", "Time per epoch"),
            learning_rate_search(comparison),
        ]
    return [picture for picture in made if picture is not None]

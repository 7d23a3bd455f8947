"""The front door: parses, calls, prints. No science.

Exit codes: 0 success; 1 a failure of its own, a diverged run among them; 2 a user's mistake, told in one
sentence; 130, 143 and 138 after SIGINT, SIGTERM and SIGUSR1, with a checkpoint saved. Under a launcher only rank zero
speaks.
"""

from __future__ import annotations

import os
import sys

import typer

from largebatch.cli import (
    bench,
    checkpoint,
    data,
    diagnose,
    doctor,
    evaluate,
    plan,
    plan_fit,
    recipe,
    runs,
    simulate,
    study,
    surface,
)
from largebatch.errors import LocalError, Lost, UserError
from largebatch.machine import launched
from largebatch.terminal.escapes import escaped, forgiving

app = typer.Typer(
    name="largebatch",
    help="Train with large batches, beside the small-batch momentum baseline.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(runs.train)
app.command()(runs.compare)
app.command()(runs.runs)
app.command()(evaluate.evaluate)
app.command()(evaluate.predict)
app.add_typer(bench.app, name="bench")
app.add_typer(diagnose.app, name="diagnose")
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(recipe.app, name="recipe")
app.add_typer(data.app, name="data")
app.add_typer(study.app, name="study")
plan.app.command()(plan_fit.fit)
plan.app.command()(simulate.simulate)
app.add_typer(plan.app, name="plan")
app.command()(runs.report)
app.command()(surface.surface)
app.command()(doctor.doctor)


def main() -> None:
    """The program, with its exit codes. ``--local_rank``, which some launchers append, is dropped."""
    forgiving()
    if os.environ.get("LARGEBATCH_STOP_FILE"):
        from largebatch.machine.signals import stopped_before

        if (code := stopped_before()) is not None:
            sys.exit(code)
    place, rank = None, 0
    arguments = [text for text in sys.argv[1:] if not text.startswith(("--local_rank=", "--local-rank="))]
    sys.argv[1:] = arguments
    try:
        place = launched.adopt(os.environ)
        rank = place.rank if place else 0
        app(args=arguments)
    except SystemExit as ended:
        if ended.code == 2:  # a slip on the command line
            say_to_the_launcher(2)
        raise
    except Lost as error:
        print(f"largebatch: {escaped(str(error))}", file=sys.stderr, flush=True)
        os._exit(1)  # what is left of the group would wait for the others
    except UserError as error:
        if rank == 0 or isinstance(error, LocalError):
            whose = f"rank {rank}: " if rank else ""
            print(f"largebatch: {whose}{error}", file=sys.stderr, flush=True)
        say_to_the_launcher(2)
        if isinstance(error, LocalError) and place and place.world_size > 1:
            os._exit(2)  # as above
        sys.exit(2)


def say_to_the_launcher(code: int) -> None:
    """It would start the same mistake again."""
    if os.environ.get("LARGEBATCH_STOP_FILE"):
        from largebatch.machine.signals import leave_exit_code

        leave_exit_code(code)

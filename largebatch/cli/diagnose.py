"""diagnose: why a batch size does or does not work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import rich.console
import typer

from largebatch.cli.frame import JsonFile, With, check_folder, command, group, local_path, write_numbers
from largebatch.errors import UserError
from largebatch.records import names
from largebatch.records.diagnoses import DiagnosisRecord
from largebatch.records.typed import content
from largebatch.terminal.console import tell

app = typer.Typer(help="Why a batch size does or does not work.", no_args_is_help=True, rich_markup_mode=None)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="a run directory", show_default=False, parser=local_path)]
Runs = Annotated[
    list[Path], typer.Argument(metavar="RUN...", help="run directories", show_default=False, parser=local_path)
]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="where")]
Precision = Annotated[str, typer.Option(metavar="fp32|fp64", help="of weights, images and passes")]
Step = Annotated[int | None, typer.Option(metavar="N", help="the checkpoint of this step; else the newest")]
Examples = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="training examples looked at; else at most 10,000")
]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="examples in one pass, which batch norm sees")]
BatchNorm = Annotated[
    str, typer.Option(metavar="batch|running", help="statistics of each batch, as Keskar et al., or those kept")
]


@app.command()
def noise(
    runs: Runs,
    small: Annotated[int | None, typer.Option(metavar="N", help="examples of the small batch; else 64")] = None,
    big: Annotated[int | None, typer.Option(metavar="N", help="of the big one; else 16 small ones")] = None,
    batches: Annotated[int, typer.Option(metavar="N", min=2, help="big batches")] = 20,
    hessian: Annotated[bool, typer.Option(help="also tr(HΣ)/(GᵀHG)")] = False,
    step: Step = None,
    precision: Precision = "fp32",
    device: Device = "auto",
    json_file: JsonFile = None,
    parts: With = None,
) -> None:
    """McCandlish's noise scale tr Σ/|G|² at a run's weights: the batch beyond which more examples are wasted."""
    with _measuring(device, json_file, runs) as (chosen, console):
        from largebatch.studies.diagnose import noise

        for run in runs:
            measured = noise.measure(
                run, chosen, small=small, big=big, batches=batches, hessian=hessian, precision=precision, step=step,
                command=command(),
            )  # fmt: skip
            for sentence in noise.sentences(measured):
                tell(console, sentence)
            if (table := noise.table(measured)) is not None:
                console.print(table)
            _written(measured, [run], json_file, console)


@app.command()
def sharpness(
    runs: Runs,
    epsilon: Annotated[list[float] | None, typer.Option(metavar="E", help="half the box; else 1e-3 and 5e-4")] = None,
    space: Annotated[str, typer.Option(metavar="both|full|random", help="of the box")] = "both",
    dimensions: Annotated[int, typer.Option(metavar="N", min=1, help="of the random subspace")] = 100,
    rho: Annotated[list[float] | None, typer.Option(metavar="R", help="of SAM's; else 0.05")] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="of the random subspace")] = 0,
    batch_norm: BatchNorm = "batch",
    examples: Examples = None,
    batch_size: BatchSize = 1000,
    step: Step = None,
    precision: Precision = "fp32",
    device: Device = "auto",
    json_file: JsonFile = None,
    parts: With = None,
) -> None:
    """Keskar's sharpness: how high the training loss rises in a small box around the weights; and SAM's."""
    with _measuring(device, json_file, runs) as (chosen, console):
        from largebatch.studies.diagnose import sharpness

        for run in runs:
            measured = sharpness.measure(
                run, chosen, epsilons=epsilon or [1e-3, 5e-4], space=space, dimensions=dimensions, rhos=rho or [0.05],
                seed=seed, norm=batch_norm, examples=examples, batch_size=batch_size, precision=precision, step=step,
                command=command(),
                progress=lambda text: tell(console, text),
            )  # fmt: skip
            console.print(sharpness.table(measured))
            _written(measured, [run], json_file, console)


@app.command()
def spectrum(
    runs: Runs,
    eigenvalues: Annotated[int, typer.Option(metavar="N", help="largest, and smallest")] = 5,
    iterations: Annotated[int, typer.Option(metavar="N", help="of Lanczos, at most")] = 100,
    vectors: Annotated[int, typer.Option(metavar="N", help="random ones, for trace and density")] = 10,
    exact_up_to: Annotated[
        int, typer.Option(metavar="N", help="parameters, up to which every eigenvalue is computed")
    ] = 1000,
    batch_norm: BatchNorm = "batch",
    examples: Examples = None,
    batch_size: BatchSize = 1000,
    step: Step = None,
    precision: Precision = "fp32",
    device: Device = "auto",
    json_file: JsonFile = None,
    parts: With = None,
) -> None:
    """The Hessian at a run's weights: ends of its spectrum, trace, density, share of positive eigenvalues."""
    with _measuring(device, json_file, runs) as (chosen, console):
        from largebatch.studies.diagnose import spectrum

        for run in runs:
            measured = spectrum.measure(
                run, chosen, eigenvalues=eigenvalues, iterations=iterations, vectors=vectors, exact_up_to=exact_up_to,
                norm=batch_norm, examples=examples, batch_size=batch_size, precision=precision, step=step,
                command=command(),
                progress=lambda text: tell(console, text),
            )  # fmt: skip
            console.print(spectrum.table(measured))
            _written(measured, [run], json_file, console)


@app.command()
def path(
    first: Annotated[
        Path, typer.Argument(metavar="A", help="a run directory: α = 0", show_default=False, parser=local_path)
    ],
    second: Annotated[Path, typer.Argument(metavar="B", help="another: α = 1", show_default=False, parser=local_path)],
    points: Annotated[
        int, typer.Option(metavar="N", help="on the line, and on the curve; 0 and 1 are among them")
    ] = 25,
    curve: Annotated[bool, typer.Option(help="the curve as well")] = True,
    batch_norm: Annotated[
        str, typer.Option(metavar="recomputed|batch", help="statistics anew at each point, or of each batch")
    ] = "recomputed",
    examples: Examples = None,
    batch_size: BatchSize = 1000,
    precision: Precision = "fp32",
    device: Device = "auto",
    json_file: JsonFile = None,
    parts: With = None,
) -> None:
    """Loss and score on the line (α from −1 to 2) and the curve between two solutions."""
    with _measuring(device, json_file) as (chosen, console):
        from largebatch.studies.diagnose import path

        measured = path.measure(
            first, second, chosen, points=points, curve=curve, norm=batch_norm, examples=examples,
            batch_size=batch_size, precision=precision, command=command(),
            progress=lambda text: tell(console, text),
        )  # fmt: skip
        console.print(path.table(measured))
        _written(measured, [first, second], json_file, console)


@app.command()
def plateau(
    run: Run,
    checkpoint: Annotated[bool, typer.Option(help="look at the newest checkpoint as well as at the records")] = True,
    examples: Examples = None,
    batch_size: BatchSize = 1000,
    precision: Precision = "fp32",
    device: Device = "auto",
    json_file: JsonFile = None,
    parts: With = None,
) -> None:
    """Why the loss stands still, if it does: minimum, saddle, valley or noise; the evidence, and what to try."""
    with _measuring(device, json_file) as (chosen, console):
        from largebatch.studies.diagnose import plateau

        measured = plateau.measure(
            run, chosen, examples=examples, batch_size=batch_size, checkpoint=checkpoint, precision=precision,
            command=command(),
        )  # fmt: skip
        tell(console, measured.sentence)
        console.print(plateau.table(measured))
        _written(measured, [run], json_file, console)


@app.command()
def critical(
    run: Run,
    factors: Annotated[
        str, typer.Option(metavar="K,K,...", help="multiples of the run's batch, 1 among them")
    ] = "0.5,1,2,4,8",
    steps: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="checkpoints to branch from; else all that were kept")
    ] = None,
    window: Annotated[
        int | None, typer.Option(metavar="N", help="examples of every branch; else 16 steps of the largest batch")
    ] = None,
    orders: Annotated[int, typer.Option(metavar="N", help="orders of the data, each with a branch of every k")] = 5,
    lr_rule: Annotated[
        str | None, typer.Option(metavar="linear|sqrt|none", help="of the batch; else the optimizer's")
    ] = None,
    judge: Annotated[
        str, typer.Option(metavar="last|ema|held_out", help="last quarter's losses, Merrill's average, or held-out")
    ] = "last",
    tolerance: Annotated[float, typer.Option(metavar="E", help="loss that may be lost; the paper's is 0.01")] = 0.0,
    noise_scale: Annotated[
        bool, typer.Option("--noise/--no-noise", help="the noise scale at the same weights as well")
    ] = True,
    device: Device = "auto",
    json_file: JsonFile = None,
    parts: With = None,
) -> None:
    """Merrill's critical batch: the largest multiple of a run's batch whose branches from a checkpoint lose nothing."""
    with _measuring(device, json_file) as (chosen, console):
        from largebatch.studies.diagnose import critical

        measured = critical.measure(
            run, chosen, factors=_numbers("--factors", factors, float), steps=_numbers("--steps", steps or "", int),
            window=window, orders=orders, lr_rule=lr_rule, judge=judge, tolerance=tolerance, noise_scale=noise_scale,
            command=command(), progress=lambda text: tell(console, text),
        )  # fmt: skip
        console.print(critical.table(measured))
        for sentence in critical.sentences(measured):
            tell(console, sentence)
        _written(measured, [run], json_file, console)


@app.command("step")
def step_time(
    runs: Runs,
    machine: Annotated[str, typer.Option(metavar="NAME", help="of the package, or a file MACHINE.yaml")],
    workload: Annotated[str | None, typer.Option(metavar="NAME", help="its pace; else the run's model")] = None,
    json_file: JsonFile = None,
) -> None:
    """A run's step beside what the cluster model makes of it on a machine; the report shows both."""
    if json_file and len(runs) > 1:
        raise UserError(f"--json {json_file} takes one run; the numbers of each lie in its folder diagnostics/")
    check_folder(json_file)
    from largebatch.studies.cluster import machine as machines
    from largebatch.studies.diagnose import step_time
    from largebatch.terminal.console import Console

    console, cluster = Console(), machines.find(machine)
    for run in runs:
        measured = step_time.measure(run, cluster, workload, command())
        tell(console, step_time.sentence(measured))
        write_numbers(json_file, content(measured), console)


Numeral = TypeVar("Numeral", int, float)


def _numbers(option: str, text: str, kind: Callable[[str], Numeral]) -> list[Numeral]:
    """``0.5,1,2``"""
    try:
        return [kind(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise UserError(f"{option} {text} should be numbers with commas between, such as 1,2,4") from None


@contextlib.contextmanager
def _measuring(
    device: str, json_file: Path | None, runs: Sequence[Path] = ()
) -> Iterator[tuple[Any, rich.console.Console]]:
    """Inside: the device and this rank's console."""
    from largebatch.machine import distributed

    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device} is not known; valid: auto, cpu, cuda")
    if json_file and len(runs) > 1:
        raise UserError(f"--json {json_file} takes one run; the numbers of each lie in its folder diagnostics/")
    check_folder(json_file)
    chosen = distributed.choose_device(device)
    with group(device) as console:
        yield chosen, console


def _written(
    measured: DiagnosisRecord, runs: Sequence[Path], json_file: Path | None, console: rich.console.Console
) -> None:
    """The picture beside the facts in the run directories; the facts again where somebody wants them. Collective."""
    from largebatch.report.alone import write_picture
    from largebatch.run.record import on_first_rank

    facts = content(measured)
    for directory in runs:
        place = directory / names.DIAGNOSTICS / measured.kind
        on_first_rank(partial(write_picture, facts, place.with_suffix(".svg")), f"{place}.svg")
        tell(console, f"numbers and picture: {place}.json, .svg")
    write_numbers(json_file, facts, console)

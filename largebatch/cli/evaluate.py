"""evaluate, predict: what a trained run says of examples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from largebatch.cli.frame import (
    JsonFile,
    PictureFile,
    Weights,
    With,
    check_folder,
    check_picture,
    command,
    group,
    local_path,
    wide_console,
    write_numbers,
    write_picture,
)
from largebatch.errors import UserError
from largebatch.records.typed import content
from largebatch.terminal.console import tell

NamedRun = Annotated[
    str,
    typer.Argument(
        metavar="RUN[@step]",
        help="a run directory; @120, @best or @last says which checkpoint, else the newest",
        show_default=False,
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="device, precision, evaluate.batch_size, data.root, ..."),
]


def evaluate(
    run: NamedRun,
    changes: Changes = None,
    split: Annotated[
        str | None, typer.Option(metavar="test|held_out|train", help="else the one the run is judged on")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="PLACE", help="other data: a recipe file with data:, a folder, a pack, shards"),
    ] = None,
    weights: Weights = "trained",
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="an answer for each example: .csv, .npz, .parquet", parser=local_path),
    ] = None,
    json_file: JsonFile = None,
    picture: PictureFile = None,
    parts: With = None,
) -> None:
    """A trained run's weights over every example of a split, once: its score, its classes, what it confuses."""
    check_folder(json_file)
    check_picture(picture)
    from largebatch.checkpoint.named import named
    from largebatch.studies.evaluation import changes as of_run
    from largebatch.studies.evaluation import files

    if predictions is not None:
        files.check_predictions(predictions)
    at = named(run)
    recipe = of_run.recipe_of_run(at.directory, changes or [])
    with group(recipe.device, timeout_minutes=1.5 * recipe.timeout_minutes) as console:
        from largebatch.machine import distributed
        from largebatch.studies.evaluation import measure, show

        measured = measure.measure(
            at, distributed.choose_device(recipe.device), split=split, where=data, which=weights, run=recipe,
            command=command(),
        )  # fmt: skip
        record = measured.record
        for sentence in show.sentences(record):
            tell(console, sentence)
        if (table := show.table(record)) is not None and distributed.is_first():
            wide_console().print(table)
        if predictions is not None:
            measure.keep_predictions(measured, predictions)
            tell(console, f"predictions: {predictions}")
        facts = content(record)
        write_numbers(json_file, facts, console)
        write_picture(picture, facts, console)


def predict(
    run: NamedRun,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGES...", help="files and folders of images", show_default=False)
    ],
    top: Annotated[int, typer.Option(metavar="N", min=1, help="likeliest classes of each image")] = 3,
    weights: Weights = "trained",
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="where")] = "auto",
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="the answers: .csv, .npz, .parquet", parser=local_path),
    ] = None,
    json_file: JsonFile = None,
    parts: With = None,
) -> None:
    """What a trained run says of images: names of classes and probabilities. Needs no data set."""
    check_folder(json_file)
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device} is not known; valid: auto, cpu, cuda")
    from largebatch.checkpoint.named import named
    from largebatch.studies.evaluation import files

    if predictions is not None:
        files.check_predictions(predictions)
    at = named(run)
    with group(device) as console:
        import numpy as np

        from largebatch.machine import distributed
        from largebatch.run.record import on_first_rank
        from largebatch.studies.evaluation import show
        from largebatch.studies.evaluation.predict import predict

        given, answers, notes = predict(at, images, distributed.choose_device(device), top=top, which=weights)
        if distributed.is_first():
            wide_console().print(show.predictions(given, answers))
        for sentence in notes:
            tell(console, sentence)
        if predictions is not None:
            columns = {"image": np.array(given), **files.columns_of(answers)}
            on_first_rank(lambda: files.write_predictions(predictions, columns), f"--predictions {predictions}")
            tell(console, f"predictions: {predictions}")
        write_numbers(json_file, {"run": str(run), "images": files.by_image(given, answers)}, console)

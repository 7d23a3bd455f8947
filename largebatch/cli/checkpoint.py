"""checkpoint: what a run has saved, whether it is whole, and its weights for others. Needs neither data nor CUDA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import rich.table
import typer

from largebatch.cli.frame import JsonFile, Weights, check_folder, local_path, wide_console, write_numbers
from largebatch.errors import UserError
from largebatch.plan.score import score_of
from largebatch.recipes.config.start import WORDS
from largebatch.records import names
from largebatch.records.run import EvaluateLine
from largebatch.records.typed import read
from largebatch.terminal.console import Console, tell

if TYPE_CHECKING:
    from largebatch.models.bert import Bert

app = typer.Typer(
    help="What a run has saved: look at it, check it, take the weights.", no_args_is_help=True, rich_markup_mode=None
)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="a run directory", show_default=False, parser=local_path)]


@app.command()
def show(run: Run, json_file: JsonFile = None) -> None:
    """The checkpoints of a run; of their files only the sizes are checked (verify reads every byte)."""
    check_folder(json_file)
    rows = [row_of(path) for path in saved_in(run)]
    console = wide_console()
    table = rich.table.Table(box=None, padding=(0, 2), pad_edge=False)
    score = score_of(rows[0] if rows else {}).name
    columns = ("step", "epoch", "examples", score, "size", "ranks", "engine", "saved", "commit")
    for column in columns:
        left = column in ("engine", "saved", "commit")
        table.add_column(column, justify="left" if left else "right", no_wrap=not left, min_width=len(column))
    for row in rows:
        if row["damaged"] is None:
            table.add_row(*words_of(row))
    if table.row_count:
        console.print(table)
    for row in rows:
        if row["damaged"] is not None:
            tell(console, f"step {row['step']} is damaged: {row['damaged']}")
    write_numbers(json_file, {"run": str(run), "checkpoints": rows}, console)


@app.command()
def verify(run: Run, step: Annotated[int | None, typer.Option(metavar="N", help="this one alone")] = None) -> None:
    """Every byte of every checkpoint against the checksums it was written with; exit code 1 if one is damaged."""
    from largebatch.checkpoint import Damaged
    from largebatch.checkpoint.reader import checked

    damaged, console = 0, Console()
    for path in chosen(run, step):
        try:
            files = checked(path)["files"]
            size = sum(promised["bytes"] for promised in files.values())
            line = f"whole, {len(files)} file{'s' if len(files) > 1 else ''}, {size / 1e6:,.1f} MB"
        except Damaged as problem:
            damaged += 1
            line = f"damaged: {problem}"
        tell(console, f"{path}: {line}")
    if damaged:
        raise typer.Exit(1)


@app.command()
def export(
    run: Run,
    step: Annotated[int | None, typer.Option(metavar="N", help="the checkpoint of this step; else the newest")] = None,
    weights: Weights = "trained",
    form: Annotated[
        Literal["plain", "transformers"],
        typer.Option("--format", help="transformers: a folder for its from_pretrained, of model.name = bert"),
    ] = "plain",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=".safetensors or .pt, or transformers' folder; else RUN/weights.safetensors or RUN/transformers",
            parser=local_path,
        ),
    ] = None,
) -> None:
    """Plain weights by plain names, as they are judged: batch norm's statistics are the means over the ranks."""
    name = f"{'weights' if form == 'plain' else form}{f'-{weights}' if weights != 'trained' else ''}"
    file = out or run / (f"{name}.safetensors" if form == "plain" else name)
    if form == "plain" and file.suffix not in (".safetensors", ".pt"):
        raise UserError(f"--out {file} should end in .safetensors or .pt")
    if out and not out.parent.is_dir():
        raise UserError(f"--out {out}: the folder {out.parent} does not exist")
    [path, *_] = chosen(run, step)
    from largebatch.checkpoint import export, load_newest
    from largebatch.run.chosen import chosen as chosen_weights

    found = load_newest(path.parent, step, "name another step with --step; verify tells which are whole")
    assert found is not None
    tensors = chosen_weights(found, weights, f"--weights {weights}", with_statistics=True).tensors
    said = []
    try:
        if form == "plain":
            export.write_weights(file, tensors, about(run, found.facts, weights))
        else:
            said = write_for_transformers(file, run, tensors, found.facts, weights)
    except OSError as error:
        raise UserError(f"--out {file} cannot be written: {error.strerror or error}") from None
    console = Console()
    elements = sum(tensor.numel() for tensor in tensors.values())
    summary = f"{file}: {len(tensors)} tensors, {elements:,} numbers, from {found.path}"
    for line in (*found.complaints, summary, *said):
        tell(console, line)


def write_for_transformers(
    folder: Path, run: Path, tensors: dict[str, Any], facts: dict[str, Any], which: str
) -> list[str]:
    """The folder; returns what is to be said of it."""
    from largebatch.checkpoint import export
    from largebatch.models import transformers_names

    settings = transformers_names.config_of(bert_of(facts))
    vocabulary = vocabulary_of(run, facts)
    if vocabulary is None:
        said = ["without vocab.txt: the pack that the run read is not at data.root any more"]
    else:
        said = [f"vocab.txt is {vocabulary}"]
    export.write_folder(folder, transformers_names.renamed(tensors), about(run, facts, which), settings, vocabulary)
    return said


def bert_of(facts: dict[str, Any]) -> Bert:
    """The model of a checkpoint, without its weights."""
    import torch

    from largebatch import models
    from largebatch.models.bert import Bert

    arguments = dict(facts["model"])
    name, outputs = arguments.pop("name"), arguments.pop("num_classes")
    if name == "bert":
        with torch.device("meta"):
            model = models.build(name, outputs, tuple(facts["input"]["input_size"]), 0, arguments)
        if isinstance(model, Bert):
            return model
    raise UserError(f"--format transformers: model.name = {name} is none that it is written for; valid: bert")


def vocabulary_of(run: Path, facts: dict[str, Any]) -> Path | None:
    """That of the run's token pack, if it still lies there and is the same."""
    from largebatch.data.sets.text import folder_of
    from largebatch.data.text.pack import VOCABULARY
    from largebatch.recipes import config
    from largebatch.records.files import sha256_of

    folder = folder_of(config.load(run / names.RECIPE).data.root)
    if folder is None or not (file := folder / VOCABULARY).is_file():
        return None
    return file if sha256_of(file) == facts["input"].get("vocabulary_sha256") else None


def saved_in(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    from largebatch.checkpoint import existing

    if not (run / names.RECIPE).is_file():
        raise UserError(f"{run} is no run: it has no {names.RECIPE}; name a run directory, such as runs/baseline")
    folder = run / names.CHECKPOINTS
    if not (paths := existing(folder)):
        earlier = ", only such of an earlier version, which this one does not read" if any(folder.glob("*.pt")) else ""
        raise UserError(f"{run} has no checkpoint{earlier}; checkpoint.every_epochs above 0 saves some")
    return paths[::-1]


def chosen(run: Path, step: int | None) -> list[Path]:
    from largebatch.checkpoint import step_of

    by_step = {step_of(path): path for path in saved_in(run)}
    if step is None:
        return list(by_step.values())
    if step not in by_step:
        there = ", ".join(map(str, by_step))
        raise UserError(f"--step {step}: {run} has no such checkpoint; there are {there} (checkpoint.keep)")
    return [by_step[step]]


def row_of(path: Path) -> dict[str, Any]:
    """What the manifest says, or what is wrong with it."""
    from largebatch.checkpoint import Damaged, manifest, step_of

    row: dict[str, Any] = {"step": step_of(path), "path": str(path), "damaged": None}
    try:
        facts = manifest.read(path)
        for name, promised in facts["files"].items():
            manifest.check_size(path, name, promised)
    except Damaged as problem:
        return {**row, "damaged": str(problem)}
    kept = {key: value for key, value in facts.items() if key not in ("tree", "plan", "step")}
    return {**row, "bytes": sum(file["bytes"] for file in facts["files"].values()), **kept}


def words_of(row: dict[str, Any]) -> list[str]:
    score, machine = score_of(row), row.get("machine", {})
    reached = row.get(score.key)
    return [
        f"{row['step']:,}",
        f"{row.get('epoch', 0):.4g}",
        f"{row.get('examples_seen', 0):,}",
        "" if reached is None else score.of(reached),
        f"{row['bytes'] / 1e6:,.1f} MB",
        str(machine.get("world_size", "")),
        str(machine.get("engine", "")),
        str(row.get("saved", "")).partition("+")[0].replace("T", " "),
        row.get("commit") or "",
    ]


def about(run: Path, facts: dict[str, Any], which: str) -> dict[str, Any]:
    """What the file says of the weights in it: the model, the classes, and how images become its input."""
    from largebatch.recipes import config

    score = score_of(facts)
    return {
        "model": facts["model"]["name"],
        "arguments": {key: value for key, value in facts["model"].items() if key not in ("name", "num_classes")},
        "num_classes": facts["model"]["num_classes"],
        "data": config.load(run / names.RECIPE).data.name,
        **facts.get("input", {}),  # which checkpoints of earlier versions do not say
        "weights": WORDS[which],
        score.key: facts[score.key] if which == "trained" else score_of_average(run, facts, score.key, which),
        "evaluated_on": facts["evaluated_on"],
        "run": facts["name"],
        "step": facts["step"],
        "epoch": facts["epoch"],
        "saved": facts["saved"],
        "commit": facts["commit"],
    }


def score_of_average(run: Path, facts: dict[str, Any], key: str, average: str) -> float | None:
    """At the checkpoint's step, if the average was evaluated there; the manifest has that of the trained weights."""
    try:
        lines = (run / names.METRICS).read_text(encoding="utf-8").splitlines()
        written = [json.loads(line) for line in lines if f'"{average}"' in line]
    except (OSError, ValueError):
        return None
    evaluations = [read(EvaluateLine, one, names.METRICS) for one in written if one.get("split") == average]
    reached = [line.number(key) for line in evaluations if line.step == facts["step"]]
    return reached[-1] if reached else None

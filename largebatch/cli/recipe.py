"""recipe: the papers, as numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from largebatch.cli.frame import (
    JsonFile,
    Overrides,
    Recipe,
    With,
    check_folder,
    local_path,
    wide_console,
    write_numbers,
)
from largebatch.errors import UserError
from largebatch.terminal.console import tell

app = typer.Typer(help="Recipes.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_recipes(
    folder: Annotated[Path | None, typer.Argument(metavar="[FOLDER]", help="else ./configs", parser=local_path)] = None,
    json_file: JsonFile = None,
    parts: With = None,
) -> None:
    """Recipe files: their papers, workloads, batch sizes and published results."""
    check_folder(json_file)
    from largebatch.recipes.registry import in_words
    from largebatch.studies import reading as recipes

    rows = recipes.listing(recipes.folder_of(folder))
    console = wide_console()
    console.print(recipes.table_of(rows, console.width), crop=False)
    if registered := in_words():
        tell(console, f"registered parts: {registered}")
    write_numbers(json_file, {"recipes": rows}, console)


@app.command("show")
def show_recipe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a recipe file, or a name of recipe list")],
    overrides: Overrides = None,
    batch: Annotated[int | None, typer.Option(metavar="B", min=1, help="global batch size")] = None,
    devices: Annotated[int, typer.Option(metavar="N", min=1, help="ranks")] = 1,
    examples: Annotated[int | None, typer.Option(metavar="N", min=1, help="training set, if not a named one")] = None,
    json_file: JsonFile = None,
    parts: With = None,
) -> None:
    """What follows from a recipe at a batch size, with its rules, and the schedule as a plot. Trains nothing."""
    check_folder(json_file)
    from largebatch.studies import reading as recipes

    facts = recipes.derived(recipes.located(name), overrides or [], batch, devices, examples)
    console = wide_console()
    cited = f"{facts['paper']}; " if facts["paper"] else ""
    heading = f"{facts['title'] or facts['path']}\n{cited}{facts['model']} on {facts['data']}\n"
    console.print(heading, markup=False, highlight=False)
    console.print(recipes.rows_as_table(facts))
    console.print(f"\n{recipes.published_words(facts)}", markup=False, highlight=False)
    width = max(30, min(60, console.width - 12))
    console.print(f"\n{recipes.as_plot(facts, width)}", markup=False, highlight=False, soft_wrap=True)
    write_numbers(json_file, facts, console)


@app.command("model")
def show_model(
    recipe: Recipe,
    overrides: Overrides = None,
    depth: Annotated[int, typer.Option(metavar="N", min=0, help="modules within modules, so deep")] = 2,
    devices: Annotated[int, typer.Option(metavar="N", min=1, help="ranks, which decide the micro-batch")] = 1,
    device: Annotated[str | None, typer.Option(metavar="cuda|cpu", help="theirs; else the recipe's")] = None,
    examples: Annotated[int | None, typer.Option(metavar="N", min=1, help="training images of a folder")] = None,
    classes: Annotated[int | None, typer.Option(metavar="N", min=1, help="classes of a folder")] = None,
    json_file: JsonFile = None,
    parts: With = None,
) -> None:
    """The layers of a recipe's model: parameters, shapes, operations, activations of a micro-batch. Trains nothing."""
    check_folder(json_file)
    if device not in (None, "cuda", "cpu"):
        raise UserError(f"--device {device} is not known; valid: cuda, cpu")
    from largebatch.recipes import config
    from largebatch.records.typed import content
    from largebatch.studies import layers
    from largebatch.studies.dry_run import Cluster, usual_device

    run = config.load(recipe, overrides or [])
    of_model = layers.measured(run, Cluster(devices, device or usual_device(run.device, None), examples, classes))
    console = wide_console()
    tell(console, layers.heading(of_model))
    console.print(layers.table(of_model, depth))
    for sentence in layers.sentences(of_model):
        tell(console, sentence)
    write_numbers(json_file, content(of_model), console)


@app.command("schema")
def schema(parts: With = None) -> None:
    """The JSON schema of recipe files, for editors that complete and check them."""
    import json

    from largebatch import models, tasks
    from largebatch.data import sets
    from largebatch.recipes.config import json_schema

    known = {"Data": sets.names(), "TaskSection": tasks.names()}
    schema = json_schema(known, examples={"Model": [*models.SMALL, *models.REGISTRY.names()]})
    print(json.dumps(schema, indent=2, ensure_ascii=False))

"""plan: which batch, how many devices, how long, what it costs.

``largebatch plan CONFIG`` is ``plan run CONFIG``: a first word that names no command of the group is a recipe.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich.console
import typer
import typer.core

from largebatch.cli.frame import (
    DeviceHours,
    JsonFile,
    Lag,
    Overrides,
    PictureFile,
    Recipe,
    Restart,
    Standing,
    With,
    check_folder,
    check_picture,
    check_positive,
    command,
    recipe_file,
    wide_console,
    write_numbers,
    write_picture,
)
from largebatch.cli.plan_options import (
    Batches,
    Budget,
    Classes,
    CriticalBatch,
    Devices,
    Examples,
    Lent,
    OnMachine,
    Price,
    Row,
    SmallEpochs,
    Target,
    Within,
)
from largebatch.errors import UserError, suggestion
from largebatch.records.typed import content
from largebatch.terminal.console import tell

if TYPE_CHECKING:
    from largebatch.records.plan import ClusterPlanRecord
    from largebatch.studies.planning.interruptions import Failures


class PlanGroup(typer.core.TyperGroup):
    """Its commands, and recipes in their place."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            if not recipe_file(args[0]).exists():
                from largebatch.studies.reading import recipe_names

                names = [*known, *recipe_names()]
                raise UserError(f"plan {args[0]} is neither a recipe nor known{suggestion(args[0], names)}")
            args = ["run", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=PlanGroup, help="Which batch, how many devices, how long, what it costs.", no_args_is_help=True,
    rich_markup_mode=None,
    subcommand_metavar="CONFIG --devices 8..1024 --machine dgx-h100 ... | COMMAND [ARGS]...",
    epilog="A recipe in the place of a command is planned: largebatch plan run --help has what goes with it.",
)  # fmt: skip


@app.command()
def run(
    recipe: Recipe,
    overrides: Overrides = None,
    devices: Devices = "",
    machine: OnMachine = "",
    batches: Batches = None,
    target: Target = None,
    row: Row = None,
    critical_batch: CriticalBatch = None,
    epochs: SmallEpochs = None,
    price: Price = None,
    within: Within = None,
    budget: Budget = None,
    device_hours: DeviceHours = None,
    restart: Restart = None,
    standing: Standing = None,
    lag: Lag = 0.0,
    workload: Lent = None,
    examples: Examples = None,
    classes: Classes = None,
    json_file: JsonFile = None,
    picture: PictureFile = None,
    parts: With = None,
) -> None:
    """Memory, step time, epochs, hours and cost of every batch on every number of devices, before any is spent."""
    check_folder(json_file)
    check_picture(picture)
    if not devices or not machine:
        missing = "--devices 8..1024" if not devices else "--machine dgx-h100"
        raise UserError(f"plan needs {missing.split()[0]}, as in {missing}")
    numbers = {"price": price, "budget": budget, "critical-batch": critical_batch, "epochs": epochs}
    check_positive(numbers | {"device-hours": device_hours})
    if lag and device_hours is None:
        raise UserError(f"--lag {lag:g} is of saves that failures undo, and needs --device-hours H beside it")
    if row is not None and target is None:
        raise UserError(f"--row {row} chooses a row of a study, and needs --target beside it")
    if budget is not None and price is None:
        raise UserError(f"--budget {budget:g} needs --price P, what a device-hour costs")
    from largebatch.studies.cluster import machine as machines
    from largebatch.studies.planning.choice import hours_in
    from largebatch.studies.planning.devices import devices_of, parse
    from largebatch.studies.planning.make import PlanWish, made_plan

    console, cluster = wide_console(), machines.find(machine)
    wish = PlanWish(
        recipe=recipe, overrides=overrides or [], machine=cluster, devices=devices_of(devices, cluster),
        batches=None if batches is None else parse("batches", batches), target=target, row=row,
        critical_batch=critical_batch, epochs=epochs, price=price,
        within=None if within is None else hours_in(within), budget=budget,
        failures=failures_of(device_hours, restart, standing, lag), workload=workload, examples=examples,
        classes=classes, command=command(),
    )  # fmt: skip
    facts = made_plan(wish, lambda text: tell(console, text))
    tell_plan(facts, console)
    keep(facts, json_file, picture, console)


def keep(facts: ClusterPlanRecord, json_file: Path | None, picture: Path | None, console: rich.console.Console) -> None:
    write_numbers(json_file, content(facts), console)
    write_picture(picture, content(facts), console)


def failures_of(hours: float | None, restart: float | None, standing: float | None, lag: float) -> Failures | None:
    """None where nothing is said of them."""
    from largebatch.studies.cluster.failures import CheckpointTimes
    from largebatch.studies.planning.interruptions import Failures

    given = {"--device-hours": hours, "--restart": restart, "--standing": standing}
    if hours is None or restart is None or standing is None:
        missing = [option for option, value in given.items() if value is None]
        if len(missing) < len(given):
            raise UserError(f"failures are told by {', '.join(given)} together; {missing[0]} is missing")
        return None
    return Failures(3600 * hours, CheckpointTimes(standing, lag, restart))


def tell_plan(facts: ClusterPlanRecord, console: rich.console.Console) -> None:
    from largebatch.studies.planning import shown

    for sentence in shown.headline(facts):
        tell(console, sentence)
    console.print()
    console.print(shown.table(facts), crop=False)
    console.print()
    for sentence in shown.sentences(facts):
        tell(console, sentence)
    console.print()
    tell(console, f"{facts.chosen_as}, to type on each machine:")
    for line in facts.lines:
        tell(console, f"  {line}")

"""The section ``record``: what is written of a run, how often, and to which services beside its own files."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, Field

from largebatch.recipes.config.mistakes import shown
from largebatch.recipes.keys import Folder, NonNegativeInt, Number, PositiveInt, Section, Switch

Service = Literal["tensorboard", "wandb", "mlflow"]
Word = Annotated[str, Field(min_length=1, max_length=250)]


def several(written: Any) -> Any:
    """One word is a list of one, nothing is an empty one."""
    return [written] if isinstance(written, str) else [] if written is None else written


class Wandb(Section):
    """Weights & Biases; what is left out is as its own variables say (WANDB_PROJECT, WANDB_MODE, ...)."""

    project: Word | None = None  # else $WANDB_PROJECT, else largebatch
    entity: Word | None = None
    group: Word | None = None
    tags: Annotated[tuple[Word, ...], BeforeValidator(several)] = ()
    mode: Literal["online", "offline", "disabled"] | None = None  # else $WANDB_MODE, else online


class Mlflow(Section):
    """MLflow; what is left out is as its own variables say."""

    tracking_uri: Word | None = None  # else $MLFLOW_TRACKING_URI, else the folder mlruns beside the run directory
    experiment: Word | None = None  # else $MLFLOW_EXPERIMENT_NAME, else largebatch


class Record(Section):
    dir: Folder | None = None  # the run directory; else runs/<name>
    every_steps: PositiveInt = 10
    layers_every_steps: NonNegativeInt = 0  # trust ratio, weight norm and update norm of every layer; 0: never
    directions_every_steps: NonNegativeInt = 0  # distance from the start, lengths and angles of steps; 0: never
    ranks_every_steps: NonNegativeInt = 0  # what each rank's step is made of, and the slowest rank; 0: never
    pictures: Annotated[int, Field(ge=0, le=64), Number] = 0  # of the first batch as the network sees it; 0: none
    to: Annotated[tuple[Service, ...], BeforeValidator(several)] = ("tensorboard",)  # who gets the scalars, too
    wandb: Wandb = Wandb()
    mlflow: Mlflow = Mlflow()
    mllog: Switch = False  # MLPerf's log lines, in mllog.txt of the run directory

    @pydantic.model_validator(mode="before")
    @classmethod
    def of_before(cls, written: Any) -> Any:
        """``tensorboard: true`` or ``false``, as recipes and commands said before ``to``, is read as what it meant."""
        if not isinstance(written, dict) or "tensorboard" not in written:
            return written
        rest = {key: value for key, value in written.items() if key != "tensorboard"}
        asked = written["tensorboard"]
        if asked is None:
            return rest
        if not isinstance(asked, bool):
            raise ValueError(
                f"record.tensorboard = {shown(asked)} is said by record.to today; write record.to=[tensorboard], or "
                "record.to=[] for none"
            )
        if "to" not in rest:
            return {**rest, "to": ["tensorboard"] if asked else []}
        if asked != ("tensorboard" in several(rest["to"])):
            raise ValueError(
                f"record.tensorboard = {str(asked).lower()} is what record.to said before, and record.to = "
                f"{shown(rest['to'])} says otherwise; write record.tensorboard=null"
            )
        return rest

    @pydantic.field_validator("to")
    @classmethod
    def once(cls, services: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(services)) < len(services):
            raise ValueError(f"record.to = {shown(list(services))} names one twice")
        return services

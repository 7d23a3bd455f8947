"""A run in Weights & Biases. Its ``step`` is an axis of our own: wandb's counts calls, and takes no step twice."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from largebatch.errors import in_one_line
from largebatch.run.loggers.process import Facts, Row

PROJECT = "largebatch"  # where neither the recipe nor WANDB_PROJECT names one


def mode_of(settings: Mapping[str, Any], environment: Mapping[str, str]) -> str | None:
    """As the recipe's section says, else the environment; None: as wandb itself decides, mostly online."""
    return settings["mode"] or environment.get("WANDB_MODE") or None


class WandbRun:
    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def begin(self) -> tuple[str, str | None]:
        """The run with the directory's id goes on, or begins; one that cannot be reached is kept offline."""
        import wandb

        mode, problem = mode_of(self.facts["settings"], os.environ), None
        try:
            self.run = self._begun(wandb, mode)
        except Exception as error:
            if mode in ("offline", "disabled"):
                raise
            problem = f"{in_one_line(error)}; the run is kept offline"
            self.run = self._begun(wandb, "offline")
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")
        self.run.summary.update({"run_directory": self.facts["directory"], "report": self.facts["report"]})
        return self._seen(), problem

    def _begun(self, wandb: Any, mode: str | None) -> Any:
        settings, facts = self.facts["settings"], self.facts
        of_trainer = {"x_stats_pid": facts["trainer"]}  # whose share of the machine is shown; a private setting
        known = {key: value for key, value in of_trainer.items() if key in getattr(wandb.Settings, "model_fields", {})}
        return wandb.init(
            id=facts["id"],
            resume="allow",
            name=facts["name"],
            project=settings["project"] or os.environ.get("WANDB_PROJECT") or PROJECT,
            entity=settings["entity"],
            group=settings["group"],
            tags=list(settings["tags"]) or None,
            mode=mode,
            config=facts["config"],
            allow_val_change=True,  # a longer run, another engine
            dir=os.environ.get("WANDB_DIR") or facts["directory"],
            settings=wandb.Settings(console="off", silent=True, **known),
        )

    def _seen(self) -> str:
        if url := self.run.url:
            return url
        folder = Path(self.run.dir).parent
        return f"offline in {folder}; `wandb sync {folder}` sends it" if folder.is_dir() else "disabled"

    def write(self, rows: list[Row]) -> None:
        for row in rows:
            self.run.log({"step": row["step"], **row["numbers"]})

    def end(self, result: Mapping[str, Any] | None) -> None:
        if result is not None:
            plain = {key: value for key, value in result.items() if isinstance(value, (int, float, str))}
            self.run.summary.update({f"result/{key}": value for key, value in plain.items()})
        self.run.finish(exit_code=0 if result is not None and result["status"] == "finished" else 1)

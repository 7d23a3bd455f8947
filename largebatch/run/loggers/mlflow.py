"""A run in MLflow, through its client alone: nothing is logged by itself, and no run is the active one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from largebatch.run.loggers.process import Facts, Row

EXPERIMENT = "largebatch"  # where neither the recipe nor MLFLOW_EXPERIMENT_NAME names one
FOLDER = "mlruns"  # beside the run directory, where no server is named
ID = "largebatch.id"  # the tag by which the run of a directory is found again
ENVIRONMENT = {  # where the user has not set them
    "MLFLOW_ALLOW_FILE_STORE": "true",  # a folder needs no further package
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}
METRICS_AT_ONCE, PARAMETERS_AT_ONCE = 1000, 100  # as many as a server takes
LONGEST_NAME, LONGEST_VALUE = 250, 5000
STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


def uri_of(settings: Mapping[str, Any], environment: Mapping[str, str], directory: Path) -> str:
    """As the recipe's section says, else the environment, else a folder beside the run directory."""
    beside = (directory.resolve().parent / FOLDER).as_uri()
    return settings["tracking_uri"] or environment.get("MLFLOW_TRACKING_URI") or beside


class MlflowRun:
    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def begin(self) -> tuple[str, str | None]:
        """The run with the directory's id goes on, or begins."""
        for key, value in ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        from mlflow.tracking import MlflowClient

        settings, directory = self.facts["settings"], Path(self.facts["directory"])
        uri = uri_of(settings, os.environ, directory)
        name = settings["experiment"] or os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        self.client: Any = MlflowClient(tracking_uri=uri)
        with alone(directory.parent) if uri.startswith("file:") else contextlib.nullcontext():  # no transactions there
            experiment = self.experiment(name)
            self.id = self.run_there(experiment) or self.run_made(experiment)
        self.parameters()
        return f"run {self.id} of the experiment {name} at {uri}", None

    def experiment(self, name: str) -> str:
        there = self.client.get_experiment_by_name(name)
        if there is not None:
            return there.experiment_id
        try:
            return self.client.create_experiment(name)
        except Exception:  # another run was first
            if (there := self.client.get_experiment_by_name(name)) is None:
                raise
            return there.experiment_id

    def run_there(self, experiment: str) -> str | None:
        for run in self.client.search_runs([experiment], f"tags.`{ID}` = '{self.facts['id']}'", max_results=1):
            self.client.update_run(run.info.run_id, status="RUNNING")
            return run.info.run_id
        return None

    def run_made(self, experiment: str) -> str:
        tags = {ID: self.facts["id"], "run_directory": self.facts["directory"], "report": self.facts["report"]}
        return self.client.create_run(experiment, tags=tags, run_name=self.facts["name"]).info.run_id

    def parameters(self) -> None:
        """The recipe's keys. What is said of a run once cannot be changed, so what did is a tag."""
        from mlflow.entities import Param

        said = self.client.get_run(self.id).data.params
        asked = dict(leaves(self.facts["config"]))
        new = [Param(key, value) for key, value in asked.items() if key not in said]
        for first in range(0, len(new), PARAMETERS_AT_ONCE):
            self.client.log_batch(self.id, params=new[first : first + PARAMETERS_AT_ONCE])
        for key, value in asked.items():
            if said.get(key, value) != value:
                self.client.set_tag(self.id, f"resumed/{key}", value)

    def write(self, rows: list[Row]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name_of(name), value, row["milliseconds"], row["step"])
            for row in rows
            for name, value in row["numbers"].items()
        ]
        for first in range(0, len(metrics), METRICS_AT_ONCE):
            self.client.log_batch(self.id, metrics=metrics[first : first + METRICS_AT_ONCE])

    def end(self, result: Mapping[str, Any] | None) -> None:
        for key, value in (result or {}).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self.client.log_metric(self.id, f"result/{name_of(key)}", value, step=(result or {}).get("steps") or 0)
            elif isinstance(value, str):
                self.client.set_tag(self.id, f"result/{name_of(key)}", value[:LONGEST_VALUE])
        self.client.set_terminated(self.id, STATUS[result["status"]] if result else "KILLED")


def name_of(scalar: str) -> str:
    """As MLflow takes it: letters, digits, ``_ - . /`` and spaces, and no path that leads elsewhere."""
    parts = re.sub(r"[^\w\-. /]", "_", scalar, flags=re.ASCII).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:LONGEST_NAME]


def leaves(section: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """``("lr.base", "0.1")``; what is null is left out, a list is its JSON."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{above}{key}.")
        elif value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            yield name_of(f"{above}{key}"), text[:LONGEST_VALUE]


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Inside, no other run of the folder is; where the file system knows no locks, nobody waits."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

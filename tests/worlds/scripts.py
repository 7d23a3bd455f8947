"""The scripts of ``examples/`` as a rank runs them, and the notebook as Jupyter does."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

from pool import REPOSITORY


def trained(example: str, directory: str, overrides: str = "{}") -> None:
    """What the script's ``main`` returns on this rank, beside its run directory."""
    keys = {"device": "cpu", "record.dir": directory, "record.to": [], **json.loads(overrides)}
    result = importlib.import_module(f"examples.{example}").main(**keys)
    assert result.status == "finished", result.reason
    rank = os.environ.get("RANK", "0")
    Path(f"{directory}.rank{rank}.json").write_text(json.dumps(result.numbers))


def execute_notebook(folder: str, epochs: str) -> None:
    """Its cells in a kernel of their own, made short; with their outputs in FOLDER."""
    import nbclient
    import nbformat

    notebook = nbformat.read(REPOSITORY / "examples/notebook.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace('"epochs": 20', f'"epochs": {epochs}')
    resources = {"metadata": {"path": folder}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    nbformat.write(notebook, Path(folder) / "executed.ipynb")

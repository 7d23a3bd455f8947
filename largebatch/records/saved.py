"""What a checkpoint's ``manifest.json`` says of the run that was saved, beside its files and the tree of their tensors.

``docs/run_directory.md`` is made from this file, too.
"""

from __future__ import annotations

from dataclasses import dataclass

from largebatch.records.typed import Count, FileRecord, Judged, Name, Number, Numbers, Table, Text


@dataclass(frozen=True, kw_only=True)
class SavedRecord(FileRecord):
    """``checkpoints/step-<n>/manifest.json``: the run, how far it is, on what, and from which data."""

    BY_KEY = "reached"

    name: Name  # of the recipe
    step_of_loop: Count  # steps of the plan done
    examples_seen: Count  # [examples] trained on so far
    epoch: Number  # the same, in passes over the data
    score: Judged  # the number the run is judged by
    reached: Numbers  # that number, where an evaluation falls on this step
    evaluated_on: Name  # test or held_out
    seed: int
    model: Table  # name, arguments, and num_classes: the outputs
    began_with: Table | None  # file and SHA-256 of the weights that the run began with
    code: Table | None = None  # of parts that are not largebatch's, by their key: name, file and SHA-256
    input: Table  # how an image becomes the model's input
    plan: Table  # the batch plan and its stages
    data: Table  # digests of the examples there were, by split
    machine: Table  # what it was trained on: ranks, threads, micro-batch, precision, device, engine, pixels
    versions: Table  # of Python and of packages
    commit: Text  # of largebatch; with + where files were changed
    saved: Name  # when, in UTC

"""Answers in a file: a row for each example, in the order of the split.

    classes   index, label, label_name, prediction, prediction_name, probability, top_1 ... top_5, probability_1 ...
    labels    index, then label_<name> and probability_<name> of each
    numbers   index, then label_<number> and prediction_<number> of each

``.csv``, ``.npz`` (the same columns as arrays), or ``.parquet`` where pyarrow is installed. Whole or not there.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from largebatch.errors import UserError
from largebatch.records.files import whole
from largebatch.studies.evaluation.answers import Answers

SUFFIXES = (".csv", ".npz", ".parquet")
OPTION = "--predictions"


def check_predictions(file: Path) -> None:
    """Refuse it before time is spent."""
    if file.suffix not in SUFFIXES:
        raise UserError(f"{OPTION} {file} should end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if not file.parent.is_dir():
        raise UserError(f"{OPTION} {file}: the folder {file.parent} does not exist")
    if file.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise UserError(
                f"{OPTION} {file} needs pyarrow: pip install 'largebatch[parquet]', or name a .csv or .npz file"
            ) from None


def columns_of(answers: Answers) -> dict[str, np.ndarray]:
    """By name, each (n,)."""
    if answers.kind == "classes":
        return {"index": np.arange(len(answers)), **_of_classes(answers)}
    value = "probability" if answers.kind == "labels" else "prediction"
    found = {"index": np.arange(len(answers))}
    for number in range(answers.columns["answer"].shape[1]):
        for name, key in (("label", "label"), (value, "answer")):
            found[f"{name}_{answers.name(number)}"] = answers.columns[key][:, number].numpy()
    return found


def _of_classes(answers: Answers) -> dict[str, np.ndarray]:
    columns = answers.columns
    found: dict[str, np.ndarray] = {}
    for name, key in (("label", "label"), ("prediction", "answer")):
        if key in columns:
            found[name] = columns[key].numpy()
            found |= {f"{name}_name": _names(answers, columns[key])} if answers.names else {}
    for place in range(columns["likeliest"].shape[1]):
        classes, probability = columns["likeliest"][:, place], columns["probability"][:, place]
        found[f"top_{place + 1}"] = _names(answers, classes) if answers.names else classes.numpy()
        found[f"probability_{place + 1}"] = probability.numpy()
    return found


def _names(answers: Answers, classes: Tensor) -> np.ndarray:
    return np.array(answers.names)[classes.numpy()]


def by_image(images: Sequence[str], answers: Answers) -> list[dict[str, Any]]:
    """As JSON has it: each image with its likeliest classes."""
    classes, probabilities = (answers.columns[key].tolist() for key in ("likeliest", "probability"))
    return [
        {
            "image": image,
            "answers": [
                {"class": number, "name": answers.name(number), "probability": probability}
                for number, probability in zip(*row, strict=True)
            ],
        }
        for image, *row in zip(images, classes, probabilities, strict=True)
    ]


def write_predictions(file: Path, columns: dict[str, np.ndarray]) -> None:
    try:
        with whole(file) as unfinished, open(unfinished, "wb") as opened:
            if file.suffix == ".npz":
                np.savez_compressed(opened, allow_pickle=False, **columns)  # type: ignore[arg-type]
            elif file.suffix == ".csv":
                opened.write(csv_of(columns).encode())
            else:
                import pyarrow
                import pyarrow.parquet

                pyarrow.parquet.write_table(pyarrow.table(columns), opened)
    except OSError as error:
        raise UserError(f"{OPTION} {file} cannot be written: {error.strerror or error}") from None


def csv_of(columns: dict[str, np.ndarray]) -> str:
    """A header, then a row for each; numbers with all their digits."""
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
    return text.getvalue()

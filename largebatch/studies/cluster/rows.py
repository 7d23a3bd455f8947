"""Measured steps of a cluster, a line each, as ``plan fit`` reads them.

```
workload,devices,batch,ms,accumulation,source
resnet50,8,3200,57.37,1,MLPerf v3.0 DGX H100
resnet50,64,3200,10.90,1,MLPerf v3.0
```

``devices``, ``batch`` (of all devices) and one of ``ms``, ``seconds``, ``examples_per_second`` have to be there.
``accumulation`` is 1 where it is left out, ``workload`` the same for all. ``family`` tells apart rows of several
machines in one file. What a workload sends and updates is known of those below; else ``gradient_bytes`` and
``update_bytes`` say it. ``precision`` is of a workload, too, and those of several are several workloads.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from largebatch.errors import UserError, suggestion
from largebatch.report.numerals import listing
from largebatch.studies.cluster.machine import Precision

TIMES = ("ms", "seconds", "examples_per_second")
BYTES = ("gradient_bytes", "update_bytes")
COLUMNS = ("family", "workload", "devices", "batch", "accumulation", *TIMES, *BYTES, "precision", "source")
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
SHORTEST, LONGEST, LEAST_SHARE, MOST = 1e-9, 1e9, 1e-3, 1e15
"""[s] of a step, examples of a device in a micro-batch, any number: beyond them a row is a mistake."""
LINKS = ("inside", "between")
RESNET50, BERT_LARGE = 25_557_032, 336_226_108
"""Parameters: torchvision's, and BERT-large's with both heads and tied embeddings."""


@dataclass(frozen=True)
class WorkloadFacts:
    """What a step sends, what its optimizer moves through memory, what one example computes and in which precision; 0
    or None: unknown."""

    gradient_bytes: float = 0.0
    update_bytes: float = 0.0
    flops: float | None = None
    precision: Precision | None = None


WIKIPEDIA = (255.83, 98_826.0, 38.2)
"""Of MLPerf's 16,279,552 sequences of at most 512 tokens, without padding: mean length, mean of its square, mean of the
15 % that are predicted, 76 at most. From the histogram of lengths with Krell et al. 2021 (Efficient sequence packing
without cross-contamination, arXiv:2107.02027): 512 over the first is the 2.001 by which they say packing shortens."""


def _bert(length: float, square: float, predicted: float) -> float:
    """FLOP of one sequence, forward and backward: 6 for each weight of a matrix product and token, of 24 layers of
    width 1,024 and of the head at the predicted tokens; 12·length for each layer, width and token in the attention."""
    layers, width, vocabulary = 24, 1024, 30_522
    return (
        6 * 12 * layers * width**2 * length
        + 12 * layers * width * square
        + 6 * predicted * width * (vocabulary + width)
    )


KNOWN = {  # gradients in half precision; passes over memory as bench optimizer counts them: LARS 7, LAMB 10, of 4 bytes
    "resnet50": WorkloadFacts(2 * RESNET50, 7 * 4 * RESNET50, 24_299_077_632),  # 224, torch's FlopCounterMode
    "bert": WorkloadFacts(2 * BERT_LARGE, 10 * 4 * BERT_LARGE, _bert(*WIKIPEDIA)),  # MLPerf's, large
    "bert_large_128": WorkloadFacts(2 * BERT_LARGE, 10 * 4 * BERT_LARGE, _bert(128, 128**2, 20)),
    "bert_large_512": WorkloadFacts(2 * BERT_LARGE, 10 * 4 * BERT_LARGE, _bert(512, 512**2, 80)),
}


@dataclass(frozen=True)
class StepRow:
    """A measured step."""

    workload: str
    devices: int
    batch: float
    seconds: float
    accumulation: int = 1
    source: str | None = None
    family: str | None = None
    precision: Precision | None = None

    @property
    def share(self) -> float:
        """Examples of a device in one micro-batch."""
        return self.batch / self.devices / self.accumulation


@dataclass(frozen=True)
class StepRows:
    rows: tuple[StepRow, ...]
    facts: dict[str, WorkloadFacts]
    """Of each workload."""

    def of(self, family: str) -> StepRows:
        families = list(dict.fromkeys(row.family for row in self.rows if row.family))
        if family not in families:
            raise UserError(f"no row is of family {family}{suggestion(family, families)}")
        return self.chosen(row for row in self.rows if row.family == family)

    def chosen(self, rows: Iterable[StepRow]) -> StepRows:
        """With the precision that these state."""
        kept = tuple(rows)
        names = dict.fromkeys(row.workload for row in kept)
        return StepRows(kept, {name: _precise(self.facts[name], name, kept) for name in names})


def _precise(facts: WorkloadFacts, name: str, rows: Iterable[StepRow]) -> WorkloadFacts:
    stated = list(dict.fromkeys(row.precision for row in rows if row.workload == name and row.precision))
    if len(stated) > 1:
        raise UserError(
            f"{name} has rows in {listing([str(one) for one in stated])}, which are several paces; name them apart, "
            f"as in {name}_{stated[1]}: in the column workload of ROWS.csv, benches by a fit of their own"
        )
    return dataclasses.replace(facts, precision=stated[0]) if stated else facts


def read(file: Path, workload: str = "step", facts: WorkloadFacts | None = None) -> StepRows:
    """The rows of a file. ``workload`` is what rows without one are of, ``facts`` what is known of it."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the rows {file} cannot be read: {str(error)[:200]}") from None
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    table = csv.DictReader(io.StringIO("\n".join(lines)))
    columns = [column.strip() for column in table.fieldnames or []]
    table.fieldnames = columns
    _check_columns(columns, str(file))
    known = KNOWN | ({workload: facts} if facts else {})
    rows: list[StepRow] = []
    stated: dict[str, WorkloadFacts] = {}
    for number, cells in enumerate(table, 1):
        where = f"{file}, row {number}"
        if None in cells:
            raise UserError(f"{where} has more cells than the {len(columns)} columns of the first line")
        cells = {key: (value or "").strip() for key, value in cells.items()}
        row = _row(cells, workload, where)
        rows.append(row)
        bytes_of = {key: _number(cells[key], key, where, 0) for key in BYTES if cells.get(key)}
        of_row = WorkloadFacts(bytes_of.get("gradient_bytes", 0.0), bytes_of.get("update_bytes", 0.0))
        if bytes_of and stated.setdefault(row.workload, of_row) != of_row:
            raise UserError(f"{where}: {row.workload} has other bytes than in a row before; state them alike")
    if not rows:
        raise UserError(f"{file} has no rows below the line of its columns")
    return StepRows(tuple(rows), {row.workload: (known | stated).get(row.workload, WorkloadFacts()) for row in rows})


def _check_columns(columns: list[str], source: str) -> None:
    for column in columns:
        if column not in COLUMNS:
            raise UserError(f"{source}: column {column[:60]} is not known{suggestion(column, list(COLUMNS))}")
    if twice := {column for column in columns if columns.count(column) > 1}:
        raise UserError(f"{source} has column {sorted(twice)[0]} twice")
    lacking = [column for column in ("devices", "batch") if column not in columns]
    if lacking or not set(TIMES) & set(columns):
        needed = lacking[0] if lacking else f"of {', '.join(TIMES)}"
        raise UserError(f"{source} has no column {needed}; its first line should be like devices,batch,ms")


def _row(cells: dict[str, str], workload: str, where: str) -> StepRow:
    devices = _number(cells["devices"], "devices", where, 1, whole=True)
    batch = _number(cells["batch"], "batch", where, 0)
    accumulation = _number(cells.get("accumulation") or "1", "accumulation", where, 1, whole=True)
    times = [key for key in TIMES if cells.get(key)]
    if len(times) != 1:
        raise UserError(f"{where} has {' and '.join(times) or 'no time'}; give one of {', '.join(TIMES)}")
    value = _number(cells[times[0]], times[0], where, 0)
    seconds = {"ms": value / 1e3, "seconds": value, "examples_per_second": batch / value}[times[0]]
    if not SHORTEST <= seconds <= LONGEST:
        raise UserError(f"{where}: a step of {seconds:g} s; valid: {SHORTEST:g} to {LONGEST:g}")
    named = (cells.get("workload") or workload, cells.get("source") or None, cells.get("family") or None)
    if named[0] in LINKS:
        raise UserError(
            f"{where}: a workload cannot be called {named[0]}, as a link of a machine is; choose another name"
        )
    precision = _precision(cells, where)
    row = StepRow(named[0], int(devices), batch, seconds, int(accumulation), named[1], named[2], precision)
    if row.share < LEAST_SHARE:
        raise UserError(f"{where}: {row.share:g} examples of a device in a micro-batch; valid: {LEAST_SHARE:g} or more")
    return row


def _precision(cells: dict[str, str], where: str) -> Precision | None:
    text = cells.get("precision")
    for precision in PRECISIONS:
        if text == precision:
            return precision
    if text:
        raise UserError(f"{where}: precision = {text[:60]}; valid: {', '.join(PRECISIONS)}")
    return None


def _number(text: str, key: str, where: str, least: float, whole: bool = False) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{where}: {key} = {text.strip()[:60] or 'nothing'} is no number") from None
    if not 0 < value <= MOST or value < least or (whole and value != int(value)):
        wanted = f"{'a whole number from 1 on' if whole else 'more than 0'}, {MOST:g} at most"
        raise UserError(f"{where}: {key} = {text.strip()[:60]} should be {wanted}")
    return value

"""Run directories on disk -> one self-contained page, the same tables as Markdown, rows for the terminal.

read (files) -> summary (means, differences) -> verdict, table (words, cells) -> curves, figures, svg
(pictures) -> page. This room imports no torch and nothing of ours but the errors: a report is made where
there is no GPU.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from largebatch.errors import UserError
from largebatch.report.summary import Comparison, summarize
from largebatch.report.table import Table, results
from largebatch.report.verdict import verdict

__all__ = ["Comparison", "Table", "Written", "results", "summarize", "verdict", "write"]


@dataclass(frozen=True)
class Written:
    """Where the report went, and what a terminal shows of it (``table`` prints itself with rich)."""

    html: Path
    markdown: Path
    table: Table
    verdict: str


def write(paths: Path | Sequence[Path], out: Path | None = None) -> Written:
    """``report.html`` and ``report.md`` in the folder ``out``.

    ``paths`` is one comparison folder, or run folders of which the first is the baseline. By default
    ``out`` is the comparison's folder, or a folder ``report`` beside the first run.
    """
    from largebatch.report.page import html, markdown

    paths = [paths] if isinstance(paths, Path) else list(paths)
    comparison = summarize(paths)
    if out is None:
        out = comparison.folder if (paths[0] / "comparison.json").is_file() else paths[0].resolve().parent / "report"
    page, text = html(comparison), markdown(comparison)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in (("report.html", page), ("report.md", text)):
            unfinished = out / f".{name}.{os.getpid()}"
            unfinished.write_text(content, encoding="utf-8")
            unfinished.replace(out / name)
    except OSError as error:
        raise UserError(f"the report cannot be written to {out}: {error.strerror}; name another folder") from None
    return Written(out / "report.html", out / "report.md", results(comparison), verdict(comparison))

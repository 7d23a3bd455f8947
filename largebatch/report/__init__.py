"""Run directories on disk -> one self-contained page, the same tables as Markdown, rows for the terminal.

files, run, read (what lies there) -> summary (means, differences) -> verdict, table, diagnostics (words,
cells) -> curves, figures, svg (pictures) -> page. alone: what one command measured, as a picture in a file of
its own. This room imports no torch and of ours only floors without it: a report is made where there is no GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from largebatch.errors import UserError
from largebatch.records import names
from largebatch.records.files import write_text
from largebatch.report.read import is_comparison
from largebatch.report.summary import Comparison, summarize
from largebatch.report.table import TextTable, results
from largebatch.report.verdict import verdict

__all__ = ["Comparison", "TextTable", "WrittenReport", "results", "summarize", "verdict", "write"]


@dataclass(frozen=True)
class WrittenReport:
    """Where the report went, and what a terminal shows of it (``table`` prints itself with rich)."""

    html: Path
    markdown: Path
    table: TextTable
    verdict: str


def write(paths: Path | Sequence[Path], out: Path | None = None) -> WrittenReport:
    """``report.html`` and ``report.md`` in the folder ``out``.

    ``paths`` are comparison folders, or run folders, of which the first has the baseline. By default ``out``
    is the comparison's folder, for several comparisons the one that holds them all, else a folder ``report``
    beside the first.
    """
    from largebatch.report.page import html, markdown

    paths = [paths] if isinstance(paths, Path) else list(paths)
    comparison = summarize(paths)
    out = out or _beside(paths, comparison)
    page, text = html(comparison), markdown(comparison)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in ((names.REPORT_PAGE, page), (names.REPORT_TEXT, text)):
            write_text(out / name, content)
    except OSError as error:
        raise UserError(f"the report cannot be written to {out}: {error.strerror}; name another folder") from None
    return WrittenReport(out / names.REPORT_PAGE, out / names.REPORT_TEXT, results(comparison), verdict(comparison))


def _beside(paths: Sequence[Path], comparison: Comparison) -> Path:
    if is_comparison(paths[0]) and (
        len(paths) == 1 or all(path.resolve().parent == comparison.folder for path in paths)
    ):
        return comparison.folder
    return beside(paths[0]).parent


def beside(run: Path) -> Path:
    """The page of a run directory, where nobody says where it should be."""
    return run.resolve().parent / "report" / names.REPORT_PAGE

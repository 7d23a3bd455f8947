import io
import json
import re
from collections import Counter
from html.parser import HTMLParser

import pytest
from rich.console import Console

from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.report import summarize, write
from largebatch.report.looks import looks
from largebatch.run.train import train

HOSTILE = '<script>alert("x")</script> $\\frac{a}$ | `b` & c'
VOID = {"meta", "br", "link", "img", "hr"}


class Page(HTMLParser):
    """What the page holds: its tags in balance, its ids, the texts of its table cells and of all it says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.ids, self.references = [], Counter(), Counter(), set()
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        for key, value in attributes:
            if key == "id":
                self.ids[value] += 1
            if key in ("aria-labelledby", "href", "clip-path"):
                self.references |= set(re.sub(r"url\(#(.*)\)|#(.*)", r"\1\2", value).split())

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def comparison(tmp_path_factory, write_comparison):
    trials = [
        {"peak_lr": 0.1, "accuracy_percent": 89.0, "status": "finished"},
        {"peak_lr": 0.2, "accuracy_percent": 90.0, "status": "finished"},
        {"peak_lr": 0.4, "accuracy_percent": None, "status": "failed"},
    ]
    folder = write_comparison(
        tmp_path_factory.mktemp("reported") / "c",
        {
            "Momentum": (64, [91.0, 92.0, 93.0]),
            HOSTILE: (320, [90.5, 91.1, None]),
            "LAMB": (640, [91.2, 91.9, 92.6]),
            "Lost": (640, [None, None, None]),
        },
    )
    data = json.loads((folder / "comparison.json").read_text())
    search = {"key": "lr.base", "budget": 3, "hold_out": 100, "chosen": 0.2, "trials": trials}
    data["rows"][2] |= {"learning_rate_search": search, "expect": {"top1": 76.4, "source": "Table 1"}}
    (folder / "comparison.json").write_text(json.dumps(data))
    return folder


@pytest.fixture(scope="module")
def written(comparison):
    return write(comparison)


@pytest.mark.worlds
def test_the_page_is_whole_and_fetches_nothing(written):
    text = written.html.read_text()
    page = Page(text)
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert max(page.ids.values()) == 1
    assert page.references <= set(page.ids)
    assert not re.search(r"https?:|//[a-z]|@import|src=|url\((?!#)", text)
    assert (page.tags["script"], page.tags["link"], page.tags["img"]) == (0, 0, 0)
    pictures = page.tags["figure"]
    assert pictures == 11
    assert page.tags["title"] == pictures + 1
    assert page.tags["desc"] == page.tags["figcaption"] == pictures
    assert page.tags["caption"] == page.tags["table"] == 4
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"#0000[ab]\d", text), "a stand-in colour was left in a picture"
    assert "&lt;script&gt;alert" in text
    assert len(text) < 1_500_000


@pytest.mark.worlds
def test_every_variable_of_the_style_sheet_is_defined_in_both_schemes(written):
    text = written.html.read_text()
    light, dark = re.findall(r":root \{(.*?)\}", text, flags=re.DOTALL)
    used = set(re.findall(r"var\((--\w+)\)", text))
    assert used <= set(re.findall(r"(--\w+):", light))
    assert {name for name in used if name not in ("--serif", "--sans", "--mono")} <= set(re.findall(r"(--\w+):", dark))


@pytest.mark.worlds
def test_the_same_runs_give_the_same_bytes(comparison, written, tmp_path):
    first, second = written, write(comparison, tmp_path / "two")
    assert first.html.read_bytes() == second.html.read_bytes()
    assert first.markdown.read_bytes() == second.markdown.read_bytes()
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["report.html", "report.md"]


@pytest.mark.worlds
def test_page_markdown_and_terminal_hold_the_same_numbers(written):
    numbers = [line.cells[1:] for line in written.table.lines]
    assert numbers[0] == (
        "64", "100", "0.1", "94.00 ± 1.00", "92.00 ± 1.00", "–", "–", "3", "1.0", "0.12", "1.20", "12.0"
    )  # fmt: skip
    assert numbers[1][4:9] == ("90.80 ± 0.42", "−1.20", "−3.35 to +0.95", "2 of 3", "5.0")
    assert numbers[3][3:8] == ("–", "failed", "–", "–", "0 of 3")
    rows = Page(written.html.read_text()).rows[1:5]
    for cells, own in zip(rows, numbers, strict=True):
        assert "".join(cells[1:]).replace(" ", "") == "".join(
            cell for index, cell in enumerate(own) if index != 6 or cell != "–"
        ).replace(" ", "")
    table = [line for line in written.markdown.read_text().splitlines() if line.startswith("|")][2:6]
    for line, own in zip(table, numbers, strict=True):
        assert tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[2:-1]) == own
    console = Console(width=200, file=io.StringIO())
    console.print(written.table)
    shown = console.file.getvalue()
    assert all(cell in shown for own in numbers for cell in own)
    assert "Lost: 3 failed: loss is nan at step 17" in shown


@pytest.mark.worlds
def test_a_narrow_terminal_keeps_the_essential_columns(written):
    console = Console(width=80, file=io.StringIO())
    console.print(written.table)
    shown = console.file.getvalue()
    assert "91.90 ± 0.70" in shown
    assert "per" not in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.worlds
def test_markdown_ends_with_what_is_needed_to_repeat_it(written):
    text = written.markdown.read_text()
    assert "<script>" not in text
    assert text.rstrip().endswith("* torch: 2.15.0")
    assert "    largebatch compare\n" in text
    assert "| LAMB | top1 76.4 | Table 1 | 91.90 ± 0.70 |" in text
    assert "| LAMB | 3 | 1 | lr.base 0.2 | 90.00 | 100 |" in text
    assert "* runs: 12, of which 4 did not finish" in text


@pytest.mark.worlds
def test_runs_without_a_comparison_get_a_report_beside_the_first(tmp_path, write_run):
    runs = [write_run(tmp_path / name / "seed-0", 90.0, 64) for name in ("a", "b")]
    written = write(runs)
    assert written.html == tmp_path / "a" / "report" / "report.html"
    text = written.html.read_text()
    assert "One seed: no interval." in text
    assert "±" not in "".join(cell for line in written.table.lines for cell in line.cells)


@pytest.mark.worlds
def test_a_lone_failed_run_still_makes_a_page(tmp_path, write_run):
    run = write_run(tmp_path / "a" / "seed-0", None)
    (run / "metrics.jsonl").unlink()
    text = write([run]).html.read_text()
    assert "1 failed: loss is nan at step 17" in text
    assert Page(text).tags["figure"] == 0


@pytest.mark.worlds
def test_rows_are_told_apart_without_colour(tmp_path, write_comparison):
    folder = write_comparison(tmp_path / "c", {f"row {index}": (3200, [90.0]) for index in range(40)})
    kinds = [(look.dashes, look.marker) for look in looks(summarize(folder)).values()]
    assert len(set(kinds)) == 40


@pytest.mark.worlds
def test_a_report_that_cannot_be_written_is_one_sentence(comparison, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        write(comparison, tmp_path / "file")


@pytest.mark.worlds
def test_a_learning_rate_that_starts_at_zero_and_runs_evaluated_once(recipe, tmp_path):
    """The first step of a warm-up from zero is recorded; every row has one evaluation, and its mark in the picture."""
    runs = []
    for batch in (50, 60, 75, 100, 150, 300):  # six looks, whose marks are staggered
        path = recipe(
            f"of-{batch}", batch={"global_batch_size": batch}, epochs=1, record__every_steps=1,
            lr={"base": 0.1, "warmup": {"epochs": 0.5, "from": "zero"}},
        )  # fmt: skip
        assert train(config.load(path), quiet=True).status == "finished"
        runs.append(tmp_path / "runs" / f"of-{batch}")
    page = write(runs).html.read_text()
    assert "Learning rate against epochs" in page
    [figure] = [part for part in page.split("<figure>") if "Test accuracy against epochs</strong>" in part]
    drawn = re.findall(r'<use [^>]*style="[^"]*fill:var\((--\w+)\)', figure)
    assert len(set(drawn) - {"--muted"}) == 6

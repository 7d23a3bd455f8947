"""What was measured beside the training: made-up facts whose numbers are found again on the page and in Markdown."""

import json
import re

import pytest
from report.made_up import LARGE, PLATEAU, SMALL, critical, noise, path, sharpness, spectrum

from largebatch.errors import UserError
from largebatch.report import summarize, write
from largebatch.report.curves import interval_lines
from largebatch.report.diagnostics import critical_table, findings, noise_table, sharpness_table, spectrum_table
from largebatch.report.geometry_figures import noise_scale
from largebatch.report.svg import drawing


@pytest.fixture(scope="module")
def comparison(tmp_path_factory, write_comparison):
    """Two rows of two seeds, with all that can be measured."""
    folder = write_comparison(
        tmp_path_factory.mktemp("measured") / "c", {SMALL: (64, [91.0, 92.0]), LARGE: (640, [88.0, 89.0])}
    )
    cited = {"published": [{"space": "full", "epsilon": 1e-3, "sharpness": 205.14, "std": 69.52, "source": "table 3"}]}
    measured = {
        "row-0/seed-0": [sharpness(1.0, 0.5, 0.001), spectrum(10.0), noise(200.0, 150.0, 300.0), path()],
        "row-0/seed-1": [sharpness(2.0, 0.7, 0.003), spectrum(14.0), noise(220.0, 140.0, 280.0), critical()],
        "row-1/seed-0": [sharpness(100.0, 20.0, 0.1, **cited), spectrum(100.0), noise(2000.0, 900.0, None), path()],
        "row-1/seed-1": [sharpness(140.0, 40.0, 0.3, **cited), noise(2400.0, 1000.0, 9000.0), PLATEAU],
    }
    for name, several in measured.items():
        (folder / name / "diagnostics").mkdir()
        for facts in several:
            (folder / name / "diagnostics" / f"{facts['kind']}.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="module")
def page(comparison):
    return write(comparison).html.read_text()


def cells(table):
    return [line.cells for line in table.lines]


def test_sharpness_over_seeds_beside_what_was_published(comparison):
    table = sharpness_table(summarize(comparison))
    assert [column.heading.replace("\u00a0", " ") for column in table.columns] == [
        "recipe", "global batch", "train accuracy, %", "test accuracy, %", "full space, ε 0.001, %", "published",
        "full space, ε 0.0005, %", "100 random directions, ε 0.001, %", "SAM, ρ 0.05, rise of the loss",
    ]  # fmt: skip
    small, large = cells(table)
    # mean and sample deviation of (1, 2), (0.5, 0.7), (0.05, 0.1), (0.001, 0.003), by hand
    assert small == (
        SMALL, "64", "93.50 ± 0.71", "91.50 ± 0.71", "1.50 ± 0.71", "–", "0.60 ± 0.14", "0.075 ± 0.035",
        "0.0020 ± 0.0014",
    )  # fmt: skip
    assert large[4:6] == ("120 ± 28", "205.14 ± 69.52")
    assert table.caption.endswith("Published, beneath: table 3.")


def test_noise_and_spectrum_over_seeds(comparison):
    small, large = cells(noise_table(summarize(comparison)))
    assert small[2:4] == ("210", "140 to 300")
    assert large[2:4] == ("2,200", "above 900"), "one seed had no upper bound"
    small, large = cells(spectrum_table(summarize(comparison)))
    assert small[2:] == ("12.0 ± 2.8", "−1.20 ± 0.28", "84 ± 20", "50.00 ± 0.00", "30.00 ± 0.00", "20.00 ± 0.00")
    assert large[2:] == ("100", "−10.0", "700.00 ± 0.40", "50.00", "30.00", "20.00"), (
        "of one seed the trace's own error"
    )


def test_the_critical_batch_at_every_checkpoint_of_a_run(comparison):
    lines = cells(critical_table(summarize(comparison)))
    assert [line[:2] for line in lines] == [(SMALL, "100"), (SMALL, "200"), (SMALL, "300"), (SMALL, "400")]
    assert [line[3] for line in lines] == ["at most 32", "64", "not decided, 64 to 256", "at least 512"]
    assert [line[4] for line in lines] == ["0.0123", "0.0123", "–", "0.0123"]
    assert [line[5:] for line in lines] == [
        ("20", "15 to 30"), ("100", "above 80"), ("not bounded", "above 300"), ("–", "–"),
    ]  # fmt: skip


@pytest.mark.worlds
def test_the_page_and_the_markdown_hold_every_number(comparison, page, troubles):
    markdown = (comparison / "report.md").read_text()
    assert "## Diagnostics" in markdown
    for table in (
        make(summarize(comparison)) for make in (sharpness_table, noise_table, critical_table, spectrum_table)
    ):
        for line in table.lines:
            assert f"| {' | '.join(line.cells)} |".replace("|", "¦") in markdown.replace("|", "¦")
            assert all(f">{cell}<" in page for cell in line.cells[1:] if cell != "–")
    assert page.count("205.14 ± 69.52") == 3, "in the table, and in the picture's text and description"
    assert "<h3>Plateau: Large batch, seed 1</h3>" in page
    for said in ("The loss stands still while the steps swing.", "The median cosine is −0.62.", "Lower lr.base."):
        assert said in page
        assert said in markdown
    assert troubles(page) == []


@pytest.mark.worlds
def test_the_pictures_of_diagnostics(page):
    section = page[
        page.index('<section aria-labelledby="diagnostics">') : page.index('<section aria-labelledby="fair">')
    ]
    titles = re.findall(r"<strong>(.*?)</strong>", section.replace("\u00a0", " "))
    assert titles == [
        "Sharpness, full space, ε 0.001", "Sharpness, full space, ε 0.0005",
        "Sharpness, 100 random directions, ε 0.001", "Noise scale at the end", f"Critical batch: {SMALL}",
        "Spectrum of the Hessian",
        "From Small batch to Large batch, on the straight line", "From Small batch to Large batch, on the curve",
    ], "a path that both of its runs keep is shown once"  # fmt: skip
    said = re.search(r'id="path-0-line-desc">([^<]*)', section)[1]
    # the highest of 0.001 + 4·(α·(α − 1))² between 0 and 1 is at α = 0.5
    assert said == "the training loss is 0.001 at α = 0 and 0.001 at α = 1, and at most 0.251 between, at α = 0.5"
    assert "Small batch: 210, batch 64; Large batch: 2,200, batch 640" in section
    assert not re.search(r"#0000[ab]\d", section)


def test_a_finding_names_its_run_and_speaks_in_sentences(comparison):
    [found] = findings(summarize(comparison))
    assert found.run == "Large batch, seed 1"
    assert (found.evidence, found.advice) == (("The median cosine is −0.62.",), ("Lower lr.base.",))


@pytest.mark.worlds
def test_a_plateau_alone_has_its_section(tmp_path, write_run):
    run = write_run(tmp_path / "a" / "0", diagnostics=[PLATEAU])
    text = write([run]).html.read_text()
    assert text.count('<h2 id="diagnostics">') == 1
    assert "<h3>Plateau: a</h3>" in text


@pytest.mark.worlds
def test_nothing_measured_nothing_said(tmp_path, write_run):
    written = write([write_run(tmp_path / "a" / "0")])
    for file in (written.html, written.markdown):
        assert not re.search("diagnos|plateau|sharpness|noise|alignment", file.read_text(), re.IGNORECASE)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "noise.json is not valid JSON"),
        ("[]", "noise.json holds list"),
        ("{}", "noise.json has no 'kind'"),
        ('{"kind": "noise", "version": 2}', "noise.json: version is '2'; this largebatch reads versions up to 1"),
        ('{"kind": "noise"}', "noise.json has no 'big_batch_size'"),
        ('{"kind": "sharpness", "keskar": {}}', "noise.json: keskar: Input should be an instance of Sequence"),
    ],
)
def test_facts_that_cannot_be_read_are_one_sentence(tmp_path, write_run, text, sentence):
    run = write_run(tmp_path / "a" / "0", diagnostics=[noise(1.0, 1.0, 1.0)])
    (run / "diagnostics" / "noise.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(sentence)):
        write([run])


def event(kind, step, **numbers):
    return {"event": kind, "step": step, "examples_seen": step * 64, "epoch": step / 10, **numbers}


def recorded(noise_scales, **changed):
    """Noise scales by step, with bounds at half and twice."""
    events = []
    for step, value in noise_scales.items():
        known = {"noise_scale_low": value and value / 2, "noise_scale_high": value and 2 * value} | changed
        events.append(event("noise_scale", step, noise_scale=value, **known))
        way = {"distance_from_start": step / 10, "relative_update": 0.01 / step, "gradient_alignment": step / 100 - 0.5}
        events.append(event("directions", step, **way))
    return events


def test_the_last_event_of_a_step_counts(tmp_path, write_run):
    events = [*recorded({10: 100.0, 20: 200.0}), *recorded({20: 300.0})]
    run = write_run(tmp_path / "a", events=events)
    [line] = interval_lines(summarize(run).rows[0], "epoch", "noise_scale")
    assert (line.x, line.y, line.low, line.high) == ((1.0, 2.0), (100.0, 300.0), (50.0, 150.0), (200.0, 600.0))


def test_noise_scales_over_seeds_and_where_they_are_not_known(tmp_path, write_run):
    first = write_run(tmp_path / "c" / "0", events=recorded({10: 100.0, 20: None, 30: 400.0}))
    second = write_run(
        tmp_path / "c" / "1", seed=1, events=recorded({10: 300.0, 20: 200.0, 30: 400.0}, noise_scale_high=None)
    )
    (tmp_path / "c" / "comparison.json").write_text(json.dumps({"rows": [{"id": "a", "runs": ["0", "1"]}]}))
    assert [first.name, second.name] == ["0", "1"]
    comparison = summarize(tmp_path / "c")
    [line] = interval_lines(comparison.rows[0], "epoch", "noise_scale")
    assert line.y[0] == 200.0
    assert line.y[1] != line.y[1], "a seed of which it is not known leaves a gap"
    assert (line.low[0], line.high[0]) == (50.0, float("inf"))
    with drawing():
        picture = noise_scale(comparison)
    assert "Where a line has a gap" in picture.caption
    assert "ends at 400 examples" in picture.svg


@pytest.mark.worlds
def test_a_row_that_recorded_its_way_gets_the_pictures_of_geometry(tmp_path, write_run, troubles):
    runs = [
        write_run(tmp_path / "a" / "0", events=recorded({step: 40.0 * step for step in range(10, 101, 10)})),
        write_run(tmp_path / "b" / "0", 89.0, 640, events=recorded(dict.fromkeys(range(1, 11), 900.0))),
    ]
    text = write(runs).html.read_text()
    titles = re.findall(r"<strong>(.*?)</strong>", text)
    at = titles.index("Noise scale")
    assert titles[at : at + 4] == [
        "Noise scale", "Distance from the start", "Update / weight", "Alignment of successive gradients"
    ]  # fmt: skip
    assert re.search(r'id="distance-desc">a ends at 10; b ends at 1<', text)
    assert re.search(r'id="alignment-desc">a ends at 0.5; b ends at -0.4<', text)
    noise_picture = re.search(r'<svg[^>]*aria-labelledby="noise-scale-title.*?</svg>', text, re.DOTALL)[0]
    assert {">64<", ">640<"} <= set(re.findall(r">[\d,]+<", noise_picture)), "the rows' own batches are named"
    assert troubles(text) == []

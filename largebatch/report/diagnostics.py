"""What was measured on the weights that runs ended with, over seeds, as tables and sentences.

Sharpness is metric 2.1 of Keskar et al. 2017 (arXiv:1609.04836) and SAM's rise of the loss (Foret et al. 2021,
arXiv:2010.01412); the noise scale is McCandlish et al. 2018's (arXiv:1812.06162), the critical batch by branches is
Merrill et al. 2025's (arXiv:2505.23971); the spectrum is the Hessian's; a plateau's cause comes with its evidence and
advice.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from largebatch.records.diagnoses import (
    CitedSharpness,
    CriticalPoint,
    CriticalRecord,
    DiagnosisRecord,
    Eigenvalue,
    NoiseRecord,
    PlateauRecord,
    SearchedBox,
    SharpnessRecord,
    SpectrumRecord,
    StepTimeRecord,
)
from largebatch.report.numerals import ABSENT, count, measured, percent, plain, scored
from largebatch.report.summary import Comparison, MeasuredRow, SeedMean, estimate
from largebatch.report.table import Column, TableLine, TextTable

Measured = TypeVar("Measured", bound=DiagnosisRecord)
Rows = list[tuple[MeasuredRow, list[Measured]]]
Cell = Callable[[MeasuredRow, list[Measured]], str]


class Setting(NamedTuple):
    """One box that Keskar's sharpness was searched in; ``dimensions`` None: the full space."""

    dimensions: int | None
    epsilon: float

    @property
    def words(self) -> str:
        space = "full space" if self.dimensions is None else f"{count(self.dimensions)} random directions"
        return f"{space}, ε\u00a0{plain(self.epsilon)}"


@dataclass(frozen=True)
class Finding:
    """What the search for a plateau's cause found in one run."""

    run: str
    sentence: str
    evidence: tuple[str, ...]
    advice: tuple[str, ...]


def measured_rows(comparison: Comparison, kind: type[Measured]) -> Rows[Measured]:
    """Those that were measured so, with what each seed has of it."""
    rows = [(row, [one for run in row.runs if (one := run.diagnosis(kind))]) for row in comparison.rows]
    return [(row, facts) for row, facts in rows if facts]


def settings(facts: Iterable[SharpnessRecord]) -> list[Setting]:
    """Every box that was searched, the full space first, the larger box first."""
    found = {_setting(box) for one in facts for box in one.keskar}
    return sorted(found, key=lambda setting: (setting.dimensions or 0, -setting.epsilon))


def sharpness(facts: Iterable[SharpnessRecord], setting: Setting) -> SeedMean | None:
    return estimate(box.sharpness for one in facts for box in one.keskar if _setting(box) == setting)


def published_sharpness(facts: Iterable[SharpnessRecord], setting: Setting) -> CitedSharpness | None:
    """The papers say nothing of how many directions theirs were: a random space is a random space."""
    for cited in (cited for one in facts for cited in one.published or ()):
        same_space = (cited.space == "full") == (setting.dimensions is None)
        if cited.sharpness is not None and same_space and _near(cited.epsilon, setting.epsilon):
            return cited
    return None


def published_words(cited: CitedSharpness | None) -> str:
    if cited is None:
        return ABSENT
    return f"{cited.sharpness:.2f}" + (f" ± {cited.std:.2f}" if cited.std is not None else "")


def sharpness_table(comparison: Comparison) -> TextTable | None:
    """Keskar's tables 3 and 4 for our rows."""
    rows = measured_rows(comparison, SharpnessRecord)
    if not rows:
        return None
    boxes = settings(one for _, facts in rows for one in facts)
    radii = sorted({ascent.rho for _, facts in rows for one in facts for ascent in one.sam or ()})
    columns = [Column("recipe", number=False), Column("global batch")]
    columns += [Column(score.name, score.unit) for score in (comparison.named("train"), comparison.reached)]
    cells: list[Cell[SharpnessRecord]] = [
        lambda row, _: count(row.global_batch_size),
        lambda row, _: scored(row.reached_in_training, row.score),
        lambda row, _: scored(row.reached, row.score),
    ]
    sources: dict[str, None] = {}
    for box in boxes:
        columns.append(Column(box.words, "%"))
        cells.append(lambda _, facts, box=box: spread(sharpness(facts, box)))
        cited = [found for _, facts in rows if (found := published_sharpness(facts, box))]
        if cited:
            columns.append(Column("published", under=True))
            cells.append(lambda _, facts, box=box: published_words(published_sharpness(facts, box)))
            sources |= dict.fromkeys(found.source for found in cited if found.source)
    for rho in radii:
        columns.append(Column(f"SAM, ρ\u00a0{plain(rho)}", "rise of the loss"))
        cells.append(lambda _, facts, rho=rho: spread(_sam(facts, rho)))
    caption = (
        "Sharpness in percent of 1 + loss: how far the loss rises within a box around the weights (Keskar et al. 2017,"
        " metric 2.1); mean over seeds ± sample standard deviation."
    )
    if sources:
        caption += f" Published, beneath: {'; '.join(sources)}."
    return TextTable(caption, tuple(columns), _lines(rows, cells))


def noise_table(comparison: Comparison) -> TextTable | None:
    rows = measured_rows(comparison, NoiseRecord)
    if not rows:
        return None
    several = any(len(facts) > 1 for _, facts in rows)
    columns = (
        Column("recipe", number=False),
        Column("global batch"),
        Column("noise scale", "examples"),
        Column("95\u00a0% interval", "examples"),
        Column("tr Σ"),
        Column("|G|²"),
    )
    cells: list[Cell[NoiseRecord]] = [
        lambda row, _: count(row.global_batch_size),
        lambda _, facts: noise_words(noise(facts)),
        lambda _, facts: interval_words(noise(facts)),
        lambda _, facts: spread(estimate(one.variance_trace for one in facts)),
        lambda _, facts: spread(estimate(one.gradient_square for one in facts)),
    ]
    caption = (
        "Gradient noise scale tr Σ / |G|² at the end of training (McCandlish et al. 2018): far below it, a batch twice"
        " as large needs half the steps; far above it, it saves none."
    )
    if several:
        caption += " Means over seeds; the interval reaches over all of theirs."
    return TextTable(caption, columns, _lines(rows, cells))


class Noise(NamedTuple):
    """Over the seeds of a row; ``value`` and ``low`` None: not known; ``high`` infinite: unbounded."""

    value: float | None
    low: float | None
    high: float | None


def noise(facts: Sequence[NoiseRecord]) -> Noise:
    values = estimate(one.noise_scale for one in facts)
    lows = [one.noise_scale_low for one in facts if one.noise_scale_low is not None]
    highs = [one.noise_scale_high for one in facts]
    high = math.inf if None in highs else max(number for number in highs if number is not None)
    return Noise(values.mean if values else None, min(lows, default=None), high if lows else None)


def noise_words(noise: Noise) -> str:
    return "not bounded" if noise.value is None else _examples(noise.value)


def interval_words(noise: Noise) -> str:
    if noise.low is None or noise.high is None:
        return ABSENT
    if math.isinf(noise.high):
        return f"above {_examples(noise.low)}"
    return f"{_examples(noise.low)} to {_examples(noise.high)}"


def critical_table(comparison: Comparison) -> TextTable | None:
    """A line for each checkpoint of a run that was branched from."""
    columns = (
        Column("recipe", number=False),
        Column("step"),
        Column("batch"),
        Column("critical batch", "examples", number=False),
        Column("loses less than"),
        Column("noise scale", "examples"),
        Column("95\u00a0% interval", "examples"),
    )
    lines = [
        TableLine(
            row.id,
            (
                row.label,
                count(point.step),
                count(point.global_batch_size),
                critical_words(point),
                ABSENT if point.excluded is None else plain(max(point.excluded, 0.0)),
                ABSENT if point.noise_scale_low is None else noise_words(_noise_at(point)),
                interval_words(_noise_at(point)),
            ),
        )
        for row, several in measured_rows(comparison, CriticalRecord)
        for facts in several
        for point in facts.points
    ]
    caption = (
        "The largest multiple of the batch that loses nothing over a window of examples, by branches of the training"
        " and paired tests over orders of the data (Merrill et al. 2025); what it may lose unseen, at 95\u00a0%;"
        " and the noise scale at the same weights."
    )
    return TextTable(caption, columns, tuple(lines)) if lines else None


def critical_words(point: CriticalPoint) -> str:
    """``256``, ``at least 512``, ``not decided, 64 to 128``."""
    size, examples = point.global_batch_size or 1, point.critical_batch_size
    if examples is None:
        low, high = (_examples(size * (factor or 1.0)) for factor in (point.factor_low, point.factor_high))
        return f"not decided, {low} to {high}" if low != high else "not decided"
    return f"{point.verdict} {_examples(examples)}" if point.verdict != "critical" else _examples(examples)


def _noise_at(point: CriticalPoint) -> Noise:
    high = math.inf if point.noise_scale_high is None else point.noise_scale_high
    return Noise(point.noise_scale, point.noise_scale_low, high)


def spectrum_table(comparison: Comparison) -> TextTable | None:
    rows = measured_rows(comparison, SpectrumRecord)
    if not rows:
        return None
    columns = (
        Column("recipe", number=False),
        Column("global batch"),
        Column("largest"),
        Column("smallest"),
        Column("trace"),
        Column("positive", "%"),
        Column("zero", "%"),
        Column("negative", "%"),
    )
    cells: list[Cell[SpectrumRecord]] = [
        lambda row, _: count(row.global_batch_size),
        lambda _, facts: spread(estimate(first(one.largest) for one in facts)),
        lambda _, facts: spread(estimate(first(one.smallest) for one in facts)),
        lambda _, facts: _trace(facts),
        lambda _, facts: _share(one.positive_share for one in facts),
        lambda _, facts: _share(one.zero_share for one in facts),
        lambda _, facts: _share(one.negative_share for one in facts),
    ]
    caption = (
        "Eigenvalues of the Hessian: its largest and smallest, its trace ± standard error of the estimate (with several"
        " seeds: mean ± standard deviation over them), and the shares by sign, of which the first is the lecture’s"
        " minimum ratio."
    )
    return TextTable(caption, columns, _lines(rows, cells))


def step_time_table(comparison: Comparison) -> TextTable | None:
    """A step as it was, and as the cluster model has it."""
    rows = measured_rows(comparison, StepTimeRecord)
    if not rows:
        return None
    columns = (
        Column("recipe", number=False), Column("global batch"), Column("ranks"), Column("machine", number=False),
        Column("step", "ms"), Column("model", "ms"), Column("95 %", "ms"), Column("compute", "ms"),
        Column("fixed", "ms"), Column("exposed", "ms"),
    )  # fmt: skip
    cells: list[Cell[StepTimeRecord]] = [
        lambda row, _: count(row.global_batch_size),
        lambda _, facts: ABSENT if facts[0].ranks is None else count(facts[0].ranks),
        lambda _, facts: facts[0].cluster or ABSENT,
        lambda _, facts: spread(_ms(one.seconds for one in facts)),
        lambda _, facts: spread(_ms(one.model_seconds for one in facts[:1])),
        lambda _, facts: _ms_between(facts[0].model_seconds_low, facts[0].model_seconds_high),
        lambda _, facts: spread(_ms(one.compute_seconds for one in facts[:1])),
        lambda _, facts: spread(_ms(one.fixed_seconds for one in facts[:1])),
        lambda _, facts: spread(_ms(one.exposed_seconds for one in facts[:1])),
    ]
    caption = (
        "A step as it was measured (with several seeds: mean ± standard deviation over them) beside what the cluster"
        " model says of the machine: computing, what is fixed, and the communication that nothing hides."
    )
    return TextTable(caption, columns, _lines(rows, cells))


def findings(comparison: Comparison) -> list[Finding]:
    """In the order of the rows and their seeds."""
    found = []
    for row in comparison.rows:
        for run in row.runs:
            if facts := run.diagnosis(PlateauRecord):
                name = row.label if len(row.runs) == 1 else f"{row.label}, seed {run.seed}"
                evidence, advice = (tuple(map(sentence, said or ())) for said in (facts.evidence, facts.advice))
                found.append(Finding(name, sentence(facts.sentence), evidence, advice))
    return found


def tables(comparison: Comparison) -> list[TextTable]:
    made = (
        sharpness_table(comparison), noise_table(comparison), critical_table(comparison), spectrum_table(comparison),
        step_time_table(comparison),
    )  # fmt: skip
    return [table for table in made if table is not None]


def sentence(words: str) -> str:
    """With its capital and its full stop."""
    text = words.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def spread(value: SeedMean | None) -> str:
    return ABSENT if value is None else measured(value.mean, value.std)


def first(eigenvalues: Sequence[Eigenvalue]) -> float | None:
    """The one furthest out."""
    return eigenvalues[0].value if eigenvalues else None


def _setting(box: SearchedBox) -> Setting:
    return Setting(box.dimensions if box.space != "full" else None, box.epsilon)


def _near(a: float | None, b: float) -> bool:
    return a is not None and math.isclose(a, b, rel_tol=1e-6)


def _sam(facts: Iterable[SharpnessRecord], rho: float) -> SeedMean | None:
    return estimate(ascent.increase for one in facts for ascent in one.sam or () if ascent.rho == rho)


def _trace(facts: list[SpectrumRecord]) -> str:
    if len(facts) > 1:
        return spread(estimate(one.trace for one in facts))
    trace = facts[0].trace
    return ABSENT if trace is None else measured(trace, facts[0].trace_std_error)


def _ms(of_seeds: Iterable[float | None]) -> SeedMean | None:
    return estimate(None if seconds is None else 1e3 * seconds for seconds in of_seeds)


def _ms_between(low: float | None, high: float | None) -> str:
    return ABSENT if low is None or high is None else f"{spread(_ms([low]))}–{spread(_ms([high]))}"


def _share(of_seeds: Iterable[float | None]) -> str:
    shares = estimate(of_seeds)
    return percent(shares and SeedMean(100 * shares.mean, shares.std and 100 * shares.std, shares.n))


def _examples(number: float) -> str:
    return count(number) if number >= 10 else plain(number)


def _lines(rows: Rows[Measured], cells: list[Cell[Measured]]) -> tuple[TableLine, ...]:
    return tuple(TableLine(row.id, (row.label, *(cell(row, facts) for cell in cells))) for row, facts in rows)

"""Why a training stands still: the finding, its evidence and its advice on a card, for where a page has no room."""

import textwrap

from matplotlib.figure import Figure

from largebatch.records.diagnoses import PlateauRecord
from largebatch.report import svg
from largebatch.report.alone import Drawn
from largebatch.report.diagnostics import sentence
from largebatch.report.frame import WIDTH

LINE = 16.0


def draw(facts: PlateauRecord) -> Drawn:
    """Sentences only: there is nothing to be measured with a ruler."""
    lines: list[tuple[str, bool]] = []
    for name, sentences in (("", [facts.sentence]), ("Evidence", facts.evidence), ("Advice", facts.advice)):
        if name and sentences:
            lines += [("", False), (name, True)]
        for words in map(sentence, sentences or ()):
            wrapped = textwrap.wrap(words, 64 if name else 66)
            lines += [
                (f"{'• ' if name and not place else '   ' if name else ''}{text}", False)
                for place, text in enumerate(wrapped)
            ]
    height = LINE * len(lines) + 10
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    for place, (text, heading) in enumerate(lines):
        figure.text(4 / WIDTH, 1 - (LINE * (place + 1)) / height, text, color=svg.MUTED if heading else svg.INK)
    title = f"Plateau ({facts.verdict or 'not told'}): {facts.title or facts.run or 'a run'}"
    return Drawn(figure, title, "", " ".join(text.strip() for text, _ in lines if text))

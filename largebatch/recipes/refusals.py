"""What of a recipe does not go together: every section and every method says it of itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from largebatch.errors import UserError
from largebatch.recipes import config, moments
from largebatch.recipes.keys import Section
from largebatch.recipes.methods import Method


def check(run: config.Run, precision: str) -> None:
    """Refuse a run whose keys contradict one another, in one sentence. ``precision``: the one that was chosen."""
    for sentence in refusals(run, precision):
        raise UserError(sentence)


def check_device(run: config.Run, device: str) -> None:
    """Refuse to train on this kind of ``device`` what looks at another one. (It may be evaluated anywhere.)"""
    for method in run.methods.values():
        if method.DEVICE not in (None, device):
            raise UserError(
                f"{method.where} needs device = {method.DEVICE}, and this run would be on {device}; leave it out"
            )


def refusals(run: config.Run, precision: str) -> Iterator[str]:
    for method in run.methods.values():
        if method.WHOLE:
            yield from _whole(method, run.engine.name, precision)
    yield from moments.refusals(run)
    for said_by in (*_sections(run), *run.methods.values()):
        yield from said_by.refusals(run, precision)


def _whole(method: Method, engine: str, precision: str) -> Iterator[str]:
    if engine != "ddp":
        yield (f"{method.where} needs engine.name = ddp, which keeps whole weights on every rank; here it is {engine}")
    if precision == "fp16":
        yield (f"{method.where} does not go with precision = fp16, whose losses are scaled; valid: bf16, fp32, fp64")


def _sections(section: Section) -> Iterator[Section]:
    """All that stand in it, in the order of their keys; methods are asked for themselves."""
    for name in type(section).model_fields:
        below: Any = getattr(section, name)
        if isinstance(below, Section) and not isinstance(below, Method):
            yield below
            yield from _sections(below)

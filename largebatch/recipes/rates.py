"""A learning rate without a recipe: the section ``lr`` of one, over a batch plan. No torch."""

from __future__ import annotations

from typing import Any

import pydantic

from largebatch.errors import UserError
from largebatch.plan.batch import BatchPlan
from largebatch.recipes import derive, moments
from largebatch.recipes.config import LearningRate
from largebatch.recipes.config.mistakes import sentence
from largebatch.recipes.decided import ExplainedSchedule


def schedule(plan: BatchPlan, **lr: Any) -> ExplainedSchedule:
    """Examples seen -> learning rate, by the keys of a recipe's ``lr``; ``schedule.words`` explain it.

    ``schedule(plan, base=0.1, reference_batch_size=256, scaling="linear", warmup={"epochs": 5, "from": "base"},
    decay={"name": "cosine"})`` is Goyal et al. 2017 with a cosine. Epochs are the plan's, as is the batch that the rule
    is asked about: :mod:`largebatch.plan.schedules`.
    """
    try:
        section = LearningRate.model_validate(lr)
    except pydantic.ValidationError as error:
        raise UserError(f"the schedule: {sentence(error, LearningRate)}") from None
    if section.scaling == moments.RULE:
        raise UserError(f"scaling = {section.scaling} changes betas and eps as well; valid: linear, sqrt, none")
    if derive.follows_gains(section):
        raise UserError(f"scaling = {section.scaling} needs a run that measures its steps; valid: linear, sqrt, none")
    return derive.schedule_of(section, plan)

"""Checkpoints of before parts, read as those of today."""

from __future__ import annotations

from typing import Any

import torch

from largebatch.checkpoint.pieces import State, whole
from largebatch.engines.states import mean_statistics
from largebatch.plan.batch import BatchPlan
from largebatch.recipes.decided import Marks


def of_today(state: State, plan: BatchPlan) -> State:
    """The state under the names of today's parts; one of today as it is."""
    state = state if "parts" in state else under_parts(state, plan)
    progress = state["progress"]
    counted = {"device_seconds": progress["seconds"] * len(state["ranks"])}  # as if all sessions had these ranks
    return {**state, "progress": {**counted, **progress}}


def under_parts(state: State, plan: BatchPlan) -> State:
    update, progress = state["update"], state["progress"]
    shared = {
        "post_local_sgd": {},
        "ema": state["ema"],
        "swap": state["swap"],
        "noise_scale": state["observer"].get("noise"),
    }
    if update["adascale"] is not None:
        shared["adascale"] = {**update["adascale"], "highest_lr": update["highest_lr"]}
    since = examples_since_an_epoch(plan, progress["step"]) / len(state["ranks"])
    return {
        **state,
        "scores": state["scores"] if "scores" in state else state["accuracies"],
        "progress": {**progress, "skipped": update["skipped"]},
        "parts": {name: part for name, part in shared.items() if part is not None},
        "ranks": [{**rank, "parts": of_rank(rank, since)} for rank in state["ranks"]],
    }


def of_rank(rank: State, examples: float) -> State:
    """What a rank kept to itself. Runs of before tasks counted right answers alone, of ``examples``."""
    update, tally = rank["update"], rank["update"].get("tally", {})
    if update.get("correct") is not None:
        tally = {"correct": update["correct"].double(), "examples": torch.tensor(examples).double()}
    return {"post_local_sgd": {"workers": update["workers"]}, "swap": {"tally": tally}, "ema": rank["ema"] or {}}


def examples_since_an_epoch(plan: BatchPlan, step: int) -> int:
    """That were trained on in the epoch in progress, from the step on in which the one before it ended."""
    begun = max((mark for mark in Marks(plan, 1.0).steps() if mark <= step), default=0)
    return plan.examples_before(step) - plan.examples_before(begun)


def moving_average(state: State) -> dict[str, Any] | None:
    """The averaged weights of a checkpoint, of today or before; statistics are the means over ranks."""
    of_parts = "parts" in state
    average = (state["parts"] if of_parts else state).get("ema")
    if average is None:
        return None
    statistics = mean_statistics([(rank["parts"] if of_parts else rank)["ema"] for rank in state["ranks"]])
    return {name: whole(saved) for name, saved in average.items()} | statistics

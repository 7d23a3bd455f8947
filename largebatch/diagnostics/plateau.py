"""The loss stands still: at a minimum, at a saddle, between the walls of a valley, or in the noise of its batches?

The lecture's point (H. Lee, NTU ML 2021, optimizer_v4, slides 2 and 4): a loss that stopped does not mean a gradient
that vanished. What tells the cases apart:

    has it stopped       the slope of the last recorded losses (Theil-Sen, with its 95 % interval)
    is it small          ‖g‖ at the end against its largest; whether the batches' gradients have a common part,
                         ‖G‖²/‖g_B‖², or are noise
    does it swing        cos(g_t, g_{t−1}) < 0, and gᵀHg/‖g‖² near where (momentum) gradient descent stops converging:
                         2/η, 2(1+β)/η with momentum β, 2(1+β)/((1+2β)·η) with Nesterov's
    saddle or minimum    the smallest eigenvalue of the Hessian beside the largest

Thresholds are ours and stand below.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from scipy.stats import theilslopes

LAST = 0.5  # of the records: what "now" means
FEWEST = 9  # records, for any answer
STILL_FALLING = 0.02  # of the loss, over another stretch as long as the last
LOST_IN_NOISE = 0.05  # a change of more than this that may be none is no answer
SMALL = 0.05  # of the gradient norm at the start, or of the largest tenth
BEGINNING = 0.1  # of the records: what "at the start" means, so that a single record decides nothing
SWINGING = -0.1  # median cosine of successive gradients
TURNING_BACK = -0.5  # the same, more than noise explains
COMMON = 0.1  # share of ‖g_B‖² that is ‖G‖², below which a batch's gradient is noise
NEGATIVE = 0.05  # of the largest eigenvalue, beyond which a negative one makes a saddle
STEEP = 0.5  # of the curvature up to which the steps converge
DECAYED = 0.1  # of the highest learning rate


class Seen(NamedTuple):
    """What is known of a run; None where it was not recorded or not measured."""

    steps: Sequence[int]
    losses: Sequence[float]
    gradient_norms: Sequence[float]
    alignments: Sequence[float] = ()
    lr: float | None = None  # typical of the last records
    highest_lr: float | None = None  # of all
    stable_below: float | None = None  # the curvature at which steps of the optimizer stop converging, where one knows
    whole_gradient_norm: float | None = None  # of the whole training set (or much of it), at the end
    curvature: float | None = None  # gᵀHg/‖g‖² there
    largest: float | None = None  # eigenvalues there
    smallest: float | None = None


class Diagnosis(NamedTuple):
    verdict: str
    sentence: str
    evidence: list[str]
    advice: list[str]
    numbers: dict[str, Any]


SENTENCES = {
    "unknown": "too little was recorded to tell",
    "falling": "the loss is still falling",
    "rising": "the loss is rising",
    "minimum": "the loss stands still at what looks like a minimum: the gradient is small and no direction leads down",
    "saddle": "the loss stands still near a saddle point: the gradient is small, and there is a direction down",
    "flat": "the loss stands still and the gradient is small; saddle or minimum was not measured",
    "valley": "the loss stands still while the gradient does not vanish: the steps swing between the walls of a valley",
    "noise": "the loss stands still in the noise of the batches: their gradients are large, what they share is small",
    "decayed": "the loss stands still because the learning rate has run out, not because the gradient has vanished",
    "slow": "the loss stands still though the gradient has not vanished and the steps do not swing: they are too short",
    "stopped": "the loss stands still while the gradient does not vanish; why was not measured",
}
ADVICE = {
    "unknown": ["train longer, or record more often: record.every_steps"],
    "falling": ["train longer; it has not stopped"],
    "rising": ["lower lr.base, warm up longer (lr.warmup), or clip (max_grad_norm)"],
    "minimum": [
        "if the training loss is high, the model is too small or too much regularised; training longer will not help",
        "whether it generalises: diagnose sharpness, diagnose path",
    ],
    "saddle": [
        "momentum or a smaller batch leaves it: optimizer.momentum, batch.global_batch_size",
        "an adaptive optimizer takes longer steps where the gradient is small: optimizer = adam, lamb",
    ],
    "flat": ["largebatch diagnose spectrum tells a saddle from a minimum"],
    "valley": [
        "lower the learning rate now: lr.decay, or a smaller lr.base",
        "a rate of its own for each weight: optimizer = rmsprop, adam, lamb",
        "momentum adds up along the valley and cancels across it: optimizer.momentum",
    ],
    "noise": [
        "lower the learning rate (lr.decay) or enlarge the batch (batch.ramp): both shrink the noise",
        "how large is worth it: diagnose noise",
    ],
    "decayed": [
        "this is the end of its schedule: more epochs, or a decay that ends higher (lr.decay), would go on",
    ],
    "slow": ["raise lr.base, or give each weight its own rate: optimizer = adam, lamb"],
    "stopped": [
        "record.directions_every_steps = 1 tells whether the steps swing; a checkpoint tells noise from slope "
        "(checkpoint.every_epochs above 0)"
    ],
}


def judge(seen: Seen) -> Diagnosis:
    """The verdict and what it rests on."""
    if len(seen.losses) < FEWEST:
        evidence = [f"{len(seen.losses)} records of the loss; at least {FEWEST} are needed"]
        return Diagnosis("unknown", SENTENCES["unknown"], evidence, ADVICE["unknown"], {"records": len(seen.losses)})
    numbers, evidence = of_the_loss(seen)
    moving = numbers["moving"]
    more, said = of_the_gradient(seen)
    numbers |= more
    evidence += said
    more, said = of_the_curvature(seen)
    numbers |= more
    evidence += said
    verdict = moving or verdict_of_standing(numbers)
    return Diagnosis(verdict, SENTENCES[verdict], evidence, ADVICE[verdict], numbers)


def of_the_loss(seen: Seen) -> tuple[dict[str, Any], list[str]]:
    """``moving``: falling, rising, unknown, or nothing."""
    last = max(FEWEST // 3, round(LAST * len(seen.losses)))
    steps, losses = list(seen.steps[-last:]), list(seen.losses[-last:])
    slope, _, low, high = (float(number) for number in theilslopes(losses, steps))  # type: ignore[arg-type]
    stretch = steps[-1] - steps[0]
    level = statistics.median(losses)
    change, least, most = (value * stretch / level if level > 0 else 0.0 for value in (slope, low, high))
    moving = ""
    if high < 0 and change < -STILL_FALLING:
        moving = "falling"
    elif low > 0 and change > STILL_FALLING:
        moving = "rising"
    elif abs(change) > LOST_IN_NOISE:
        moving = "unknown"
    words = {"falling": "falls", "rising": "rises", "unknown": "cannot be told from its noise", "": "stands still"}
    evidence = [
        f"the loss {words[moving]}: {100 * change:+.2g} % (95 %: {100 * least:+.2g} to {100 * most:+.2g}) over the "
        f"last {last} records (steps {steps[0]:,} to {steps[-1]:,}), median {level:.4g}, from {max(seen.losses):.4g} "
        "at most"
    ]
    return {"moving": moving, "loss": level, "relative_change": change, "records": len(seen.losses)}, evidence


def of_the_gradient(seen: Seen) -> tuple[dict[str, Any], list[str]]:
    """``small``, ``swings``, ``noise``: yes, no, or None where nobody knows."""
    numbers: dict[str, Any] = {"small": None, "swings": None, "noise": None}
    evidence = []
    norms = [norm for norm in seen.gradient_norms if norm == norm]
    if norms:
        last = statistics.median(norms[-max(1, round(LAST * len(norms))) :])
        at_first = statistics.median(norms[: max(3, round(BEGINNING * len(norms)))])
        largest = max(at_first, sorted(norms)[round(0.9 * (len(norms) - 1))])
        numbers |= {"gradient_norm": last, "large_gradient_norm": largest, "small": last <= SMALL * largest}
        evidence.append(
            f"the gradient is {'small' if numbers['small'] else 'not small'}: ‖g‖ = {last:.3g}, "
            f"{100 * last / largest if largest else 0:.3g} % of what it was when large ({largest:.3g})"
        )
        if seen.whole_gradient_norm is not None and last > 0:
            share = (seen.whole_gradient_norm / last) ** 2
            numbers |= {"whole_gradient_norm": seen.whole_gradient_norm, "common_share": share, "noise": share < COMMON}
            evidence.append(
                f"over all examples looked at it is {seen.whole_gradient_norm:.3g}: {100 * min(share, 1):.3g} % of a "
                f"batch's ‖g‖² is common to all batches{', the rest is noise' if share < 1 else ''}"
            )
    if seen.alignments:
        recent = list(seen.alignments)[-max(1, round(LAST * len(seen.alignments))) :]
        median = statistics.median(recent)
        numbers |= {"alignment": median, "swings": median < SWINGING}
        evidence.append(
            f"successive gradients have a cosine of {median:+.2f} (median of {len(recent)}): "
            + ("they turn back on each other" if median < SWINGING else "they do not turn back")
        )
    return numbers, evidence


def of_the_curvature(seen: Seen) -> tuple[dict[str, Any], list[str]]:
    numbers: dict[str, Any] = {"steep": None, "leads_down": None, "decayed": None}
    evidence = []
    if seen.curvature is not None and seen.stable_below is not None:
        limit = seen.stable_below
        numbers |= {"curvature": seen.curvature, "stable_below": limit, "steep": seen.curvature > STEEP * limit}
        evidence.append(
            f"the curvature along the gradient is {seen.curvature:.3g}; the steps converge where it is below "
            f"{limit:.3g}, at lr {seen.lr:.3g}"
        )
    if seen.lr is not None and seen.highest_lr:
        numbers |= {"lr": seen.lr, "decayed": seen.lr <= DECAYED * seen.highest_lr}
        if numbers["decayed"]:
            evidence.append(
                f"the learning rate is {seen.lr:.2g}, {100 * seen.lr / seen.highest_lr:.2g} % of its highest"
            )
    if seen.largest is not None and seen.smallest is not None:
        down = seen.smallest < -NEGATIVE * max(seen.largest, 0.0) and seen.smallest < 0
        numbers |= {"largest": seen.largest, "smallest": seen.smallest, "leads_down": down}
        evidence.append(
            f"the Hessian's eigenvalues reach from {seen.smallest:.3g} to {seen.largest:.3g}: "
            + ("a direction leads down" if down else "none leads down by much")
        )
    return numbers, evidence


def verdict_of_standing(numbers: dict[str, Any]) -> str:
    """Of a loss that stands still; what was not measured is None and speaks for nothing."""
    if numbers["small"]:
        return {None: "flat", True: "saddle", False: "minimum"}[numbers["leads_down"]]
    if numbers["noise"] and numbers.get("alignment", 0.0) > TURNING_BACK:
        return "noise"  # which turns back a little, too, where the valley is narrow
    if numbers["swings"] or (numbers["steep"] and numbers["swings"] is None):  # what was seen overrules what may be
        return "valley"
    if numbers["decayed"]:
        return "decayed"
    return "stopped" if numbers["swings"] is None else "slow"


def stability_limit(lr: float, momentum: float = 0.0, nesterov: bool = False) -> float:
    """The curvature of a quadratic above which gradient descent, heavy ball or Nesterov's method does not converge."""
    return 2 * (1 + momentum) / ((1 + 2 * momentum if nesterov else 1) * lr)

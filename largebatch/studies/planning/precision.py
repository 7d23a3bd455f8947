"""How a pace that was measured in one precision stands for a recipe in another.

bf16 and fp16 count as one where a device computes both alike. Else the seconds of an example are multiplied by what was
measured (``times`` of the pace), or by the ratio of the two peaks (``peaks`` of the machine), and the floor stays. That
ratio is a bound: what waits for memory or launches does not become slower by it, so that a slower precision takes at
most so many times as long, and a faster one at least. The interval of such a step reaches to the pace as it is.
A100s take 1.83 and 1.93 times as long for BERT in TF32 as in fp16, where the peaks have 2; V100s 4.5 and 3.9 in fp32,
where they have 8 (NVIDIA DeepLearningExamples).

torch's float32 has products in float32, and on NVIDIA's devices convolutions in TF32: with the share c of the
operations that are convolutions it computes 1/(c/TF32 + (1 − c)/FP32) FLOP/s at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.recipes.decide import precision_of
from largebatch.studies.cluster.machine import Machine, Pace, Precision
from largebatch.studies.cluster.rows import PRECISIONS

HALF = ("bf16", "fp16")
Basis = Literal["same", "not said", "measured", "at most", "at least"]
BOUNDS = ("at most", "at least")


@dataclass(frozen=True)
class PrecisionRatio:
    """Seconds of an example in the recipe's precision over those in the pace's."""

    ratio: float
    basis: Basis

    @property
    def bound(self) -> bool:
        return self.basis in BOUNDS


def precision_on(run: config.Run, device: str) -> Precision:
    """In which the recipe computes there."""
    asked = precision_of(run.precision, device)
    return next(one for one in PRECISIONS if one == asked)


def precision_ratio(machine: Machine, workload: str, precision: Precision, convolutions: float = 0.0) -> PrecisionRatio:
    """``convolutions`` is their share of the operations. UserError where nothing says it."""
    pace = machine.pace(workload)
    if pace.precision is None:
        return PrecisionRatio(1.0, "not said")
    if precision in HALF and machine.peaks and precision not in machine.peaks:
        others = [one for one in HALF if one in machine.peaks]
        takes = f"; precision={others[0]} is what it has" if others else ""
        raise UserError(f"the recipe computes in {precision}, of which a device of {machine.name} has no peak{takes}")
    if measured := _measured(pace, precision):
        return PrecisionRatio(measured, "measured")
    rates = [rate(machine, one, convolutions) for one in (pace.precision, precision)]
    alike = pace.precision == precision or (pace.precision in HALF and precision in HALF)
    if alike and (rates[0] == rates[1] or None in rates):
        return PrecisionRatio(1.0, "same")
    known, wanted = rates
    if known is None or wanted is None:
        raise UserError(
            f"{machine.name} has its pace of {workload} in {pace.precision}, and the recipe computes in {precision}: "
            f"say peaks.{pace.precision} and peaks.{precision} in the machine's file, or what was measured in "
            f"workloads.{workload}.times.{precision}, or plan with precision={pace.precision}"
        )
    ratio = known / wanted
    return PrecisionRatio(ratio, "same" if ratio == 1 else "at most" if ratio > 1 else "at least")


def _measured(pace: Pace, precision: Precision) -> float | None:
    """Of either half precision, where one of them was measured."""
    names = (precision, *HALF) if precision in HALF else (precision,)
    return next((pace.times[name] for name in names if name in pace.times), None)


def rate(machine: Machine, precision: Precision, convolutions: float) -> float | None:
    """FLOP/s at most; None where the machine does not say it."""
    whole, short = machine.peaks.get(precision), machine.peaks.get("tf32")
    if precision != "fp32" or whole is None or short is None:
        return whole
    return 1 / (convolutions / short + (1 - convolutions) / whole)


def said_of(name: str, machine: Machine, precision: str, ratio: float, basis: str) -> str | None:
    """A sentence for a plan; None where there is nothing to say."""
    own = machine.pace(name).precision
    if basis == "not said":
        return f"{name}: nothing says in which precision its pace was measured; it is taken as it stands"
    if basis == "same":
        return None
    words = f"{name}: its pace was measured in {own}, and the recipe computes in {precision}: "
    if basis == "measured":
        return f"{words}{ratio:.3g} times the seconds of an example, as was measured"
    return (
        f"{words}{basis} {ratio:.3g} times the seconds of an example, by the ratio of the peaks; the interval reaches "
        "to the pace as it is"
    )

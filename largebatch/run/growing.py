"""A batch that grows in the run: its noise scale is asked at the marks of an adaptive ramp (recipes/ramps.py).

What was decided is part of a run's progress. From where the batch has grown the job has another plan, with which go the
schedules, the marks and what methods decide; a run that goes on has it back before anything else of its checkpoint.
"""

from __future__ import annotations

from largebatch.machine import distributed
from largebatch.methods.noise_scale import NAME, NoiseOfRun
from largebatch.recipes.ramps import adapted, grows_further
from largebatch.run.assemble import Job
from largebatch.run.parts import Parts
from largebatch.run.record import Recorder
from largebatch.run.saving import Progress


class AdaptiveRamp:
    """Of one run in progress."""

    def __init__(self, job: Job, parts: Parts, progress: Progress) -> None:
        self.job, self.parts, self.progress = job, parts, progress

    def asked_after(self) -> set[int]:
        """The steps after which the noise scale is asked, as far as is known; none where there is no such ramp, or the
        batch may grow no further."""
        adapting = self.job.decided.adapting
        if adapting is None or not grows_further(adapting.rule, self.job.plan.stages[-1].global_batch_size):
            return set()
        return adapting.steps()

    def ask(self, recorder: Recorder) -> bool:
        """Whether the batch has grown, after as many steps as are done. Collective."""
        adapting, noise, step = self.job.decided.adapting, self.parts[NAME], self.progress.step
        assert adapting is not None
        assert isinstance(noise, NoiseOfRun)
        size = self.job.plan.at(step - 1).global_batch_size
        estimate, measured = noise.estimate()
        verdict = distributed.from_first(adapted(adapting.rule, size, estimate.noise_scale, estimate.low, measured))
        recorder.event(
            "ramp",
            **self.job.plan.when(step),
            global_batch_size=size,
            next_global_batch_size=verdict.size,
            noise_scale=estimate.noise_scale,
            noise_scale_low=estimate.low,
            measured_steps=measured,
            why=verdict.why,
        )
        if verdict.size == size:
            return False
        self.progress.growth.append([step, verdict.size])
        self.job.grow(self.progress.growth)
        recorder.say(f"batch {verdict.size:,} from step {step + 1} on, it was {size:,}: {verdict.why}")
        return True

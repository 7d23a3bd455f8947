"""Whether the matrices that a run's table says are orthogonalised were: counted where they are computed.

Others have trained without a word with no matrix orthogonalised; here that ends the run.
"""

from __future__ import annotations

import torch

from largebatch.optim import Muon
from largebatch.run.assemble import Job
from largebatch.steps.part import Diverged


class Orthogonalised:
    """Of one run: what this rank has computed since it was last asked."""

    def __init__(self, job: Job) -> None:
        self.engine = job.engine
        self.due = sum(row.orthogonalised for row in job.treatments)
        self.seen: tuple[torch.optim.Optimizer, int] = self.engine.optimizer, 0

    def since(self) -> int:
        """Matrices that this rank has put through the iteration since the call before."""
        optimizer, (known, before) = self.engine.optimizer, self.seen
        count = optimizer.traffic.orthogonalised if isinstance(optimizer, Muon) else 0
        self.seen = optimizer, count
        return count - (before if optimizer is known else 0)

    def of_world(self, computed: float, steps: int) -> dict[str, float]:
        """What is recorded: those of all ranks in a step. None in any step ends the run, where some were due."""
        if not self.due or not steps:
            return {}
        if not computed:
            raise Diverged(
                f"{self.due} matrices were to be orthogonalised in each of {steps} steps, and none was: another "
                "optimizer steps than the one that was built"
            )
        return {"orthogonalised": computed / steps}

"""FSDP2 and torch.distributed.checkpoint with LAMB: saved half way, and gone on with by as many ranks or others.

    torchrun --nproc-per-node 2 examples/fsdp2_dcp.py checkpoints weights.pt
    python examples/fsdp2_dcp.py checkpoints weights.pt                  # goes on, alone

LAMB's trust ratio is of a whole layer, whatever shard of it a rank holds; its states are tensors of the layer's shape,
which DCP saves and cuts anew as it does torch's own.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from digits import BATCH, EPOCHS, MICRO_BATCH, SCHEDULE, lamb, network, splits, tally, told
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from largebatch.data.sampler import ExactSampler, ShareSampler
from largebatch.recipes.rates import schedule
from largebatch.steps.evaluate import exact_sums
from largebatch.steps.scheduler import ExamplesLR


class Training(Stateful):
    """All that decides what comes next."""

    def __init__(self) -> None:
        self.train, self.test = splits()
        self.sampler = ExactSampler(self.train, BATCH, epochs=EPOCHS, micro_batch_size=MICRO_BATCH, seed=0)
        plan = self.sampler.plan
        self.model = network()
        fully_shard(self.model, mesh=init_device_mesh("cpu", (plan.world_size,)))
        self.optimizer = lamb(self.model)
        self.scheduler = ExamplesLR(self.optimizer, plan, schedule(plan, **SCHEDULE))

    def state_dict(self) -> dict[str, Any]:
        model, optimizer = states.get_state_dict(self.model, self.optimizer)
        rest = {"sampler": self.sampler.state_dict(), "scheduler": self.scheduler.state_dict()}
        return {"model": model, "optimizer": optimizer, **rest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        states.set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state_dict["model"],
            optim_state_dict=state_dict["optimizer"],
        )
        self.sampler.load_state_dict(state_dict["sampler"])
        self.scheduler.load_state_dict(state_dict["scheduler"])

    def steps(self, until: int) -> None:
        for micro_batches in self.sampler.steps(DataLoader(self.train, batch_sampler=self.sampler)):
            for images, labels in micro_batches:
                (cross_entropy(self.model(images), labels) / self.sampler.plan.accumulation_steps).backward()
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            if self.sampler.step == until:
                return


def main(folder: str, file: str) -> None:
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    training, half = Training(), Path(folder) / "half"
    if half.exists():
        dcp.load({"training": training}, checkpoint_id=half)
        training.steps(until=training.sampler.plan.steps)
        test = training.test
        sums = exact_sums(training.model, DataLoader(test, sampler=ShareSampler(test), batch_size=100), tally)
        whole = states.get_model_state_dict(training.model, options=states.StateDictOptions(full_state_dict=True))
        if dist.get_rank() == 0:
            print(told(sums))
            torch.save(whole, file)
    else:
        training.steps(until=training.sampler.plan.steps // 2)
        dcp.save({"training": training}, checkpoint_id=half)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

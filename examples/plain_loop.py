"""A loop of one's own, with exact batches, a schedule over examples, LAMB, and an exact evaluation.

python examples/plain_loop.py weights.pt
torchrun --nproc-per-node 2 examples/plain_loop.py weights.pt      # the same weights to 1e-12
"""

import os
import sys

import torch
import torch.distributed as dist
from digits import BATCH, EPOCHS, MICRO_BATCH, SCHEDULE, lamb, network, splits, tally, told
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from largebatch.data.sampler import ExactSampler, ShareSampler
from largebatch.recipes.rates import schedule
from largebatch.steps.evaluate import exact_sums
from largebatch.steps.scheduler import ExamplesLR


def main(file: str) -> None:
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    train, test = splits()
    sampler = ExactSampler(train, BATCH, epochs=EPOCHS, micro_batch_size=MICRO_BATCH, seed=0)
    loader = DataLoader(train, batch_sampler=sampler, num_workers=int(os.environ.get("WORKERS", "0")))
    model = network()
    optimizer = lamb(model)
    scheduler = ExamplesLR(optimizer, sampler.plan, schedule(sampler.plan, **SCHEDULE))
    parallel = DistributedDataParallel(model) if dist.is_initialized() else model

    for micro_batches in sampler.steps(loader):
        for images, labels in micro_batches:
            (cross_entropy(parallel(images), labels) / sampler.plan.accumulation_steps).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    sums = exact_sums(parallel, DataLoader(test, sampler=ShareSampler(test), batch_size=100), tally)
    if sampler.rank == 0:
        print(told(sums))
        torch.save(model.state_dict(), file)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

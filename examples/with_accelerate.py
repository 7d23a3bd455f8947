"""Hugging Face Accelerate with exact batches, a schedule over examples and LAMB.

    python examples/with_accelerate.py weights.pt
    accelerate launch --cpu --num_processes 2 examples/with_accelerate.py weights.pt     # or torchrun

Called accelerate.py it would hide the package of that name from itself. Loader and scheduler are not prepared: the
sampler gives each rank its own batches already, and the schedule counts examples of all ranks.
"""

import sys

from accelerate import Accelerator
from digits import BATCH, EPOCHS, MICRO_BATCH, SCHEDULE, lamb, network, splits, tally, told
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from largebatch.data.sampler import ExactSampler, ShareSampler
from largebatch.recipes.rates import schedule
from largebatch.steps.evaluate import exact_sums
from largebatch.steps.scheduler import ExamplesLR


def main(file: str) -> None:
    accelerator = Accelerator(cpu=True)
    train, test = splits()
    sampler = ExactSampler(train, BATCH, epochs=EPOCHS, micro_batch_size=MICRO_BATCH, seed=0)
    accelerator.gradient_accumulation_steps = sampler.plan.accumulation_steps
    model = network()
    optimizer = lamb(model)
    scheduler = ExamplesLR(optimizer, sampler.plan, schedule(sampler.plan, **SCHEDULE))
    model, prepared = accelerator.prepare(model, optimizer)

    for micro_batches in sampler.steps(DataLoader(train, batch_sampler=sampler)):
        for images, labels in micro_batches:
            with accelerator.accumulate(model):  # divides the loss, and communicates for the last alone
                accelerator.backward(cross_entropy(model(images), labels))
                prepared.step()
                prepared.zero_grad()
        scheduler.step()

    sums = exact_sums(model, DataLoader(test, sampler=ShareSampler(test), batch_size=100), tally)
    accelerator.print(told(sums))
    accelerator.save(accelerator.get_state_dict(model), file)
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Transformers' Trainer with exact batches, a schedule over examples and LAMB.

    python examples/transformers_trainer.py weights.pt
    torchrun --nproc-per-node 2 examples/transformers_trainer.py weights.pt

The run is one epoch of the Trainer's, since a batch may cross the edge of an epoch of the data. The Trainer finds its
place after a resume by passing over batches, so the sampler is asked for no state.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from digits import BATCH, EPOCHS, MICRO_BATCH, SCHEDULE, lamb, network, splits, tally, told
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, default_collate
from transformers import Trainer, TrainingArguments

from largebatch.data.sampler import ExactSampler, ShareSampler
from largebatch.recipes.rates import schedule
from largebatch.steps.evaluate import exact_sums
from largebatch.steps.scheduler import ExamplesLR


class Classifier(nn.Module):
    """Named arguments in, a dictionary with the mean loss out, as the Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.network(images)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class ExactTrainer(Trainer):
    """The same, with the sampler's batches."""

    sampler: ExactSampler

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataset, batch_sampler=self.sampler, collate_fn=self.data_collator)


def named(examples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    images, labels = default_collate(examples)
    return {"images": images, "labels": labels}


def main(file: str, resume_from: str | None = None, **more: Any) -> None:
    train, test = splits()
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    arguments = TrainingArguments(
        output_dir=str(Path(file).parent),
        use_cpu=True,
        num_train_epochs=1,
        gradient_accumulation_steps=BATCH // (ranks * MICRO_BATCH),
        max_grad_norm=0.0,
        report_to="none",
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        **{"save_strategy": "no", **more},
    )
    sampler = ExactSampler(train, BATCH, epochs=EPOCHS, micro_batch_size=MICRO_BATCH, seed=0)
    model = Classifier()
    optimizer = lamb(model)
    scheduler = ExamplesLR(optimizer, sampler.plan, schedule(sampler.plan, **SCHEDULE))
    trainer = ExactTrainer(
        model, arguments, train_dataset=train, data_collator=named, optimizers=(optimizer, scheduler)
    )
    trainer.sampler = sampler
    trainer.train(resume_from_checkpoint=resume_from)

    sums = exact_sums(model.network, DataLoader(test, sampler=ShareSampler(test), batch_size=100), tally)
    if trainer.is_world_process_zero():
        print(told(sums))
        torch.save(model.network.state_dict(), file)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""PyTorch Lightning with exact batches, a schedule over examples and LAMB: two CPU processes with DDP.

    python examples/with_lightning.py weights.pt 2

Called lightning.py it would hide the package of that name from itself. One epoch of Lightning's is the whole run, since
a batch may cross the edge of an epoch of the data.
"""

import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from digits import BATCH, EPOCHS, MICRO_BATCH, SCHEDULE, lamb, network, splits, tally, told
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from largebatch.data.sampler import ExactSampler, ShareSampler
from largebatch.recipes.rates import schedule
from largebatch.steps.evaluate import exact_sums
from largebatch.steps.scheduler import ExamplesLR


class Digits(lightning.LightningDataModule):
    """The sampler is made when the ranks have met; its state lies in Lightning's checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.train, self.test = splits()
        self.state: dict[str, Any] = {}

    def setup(self, stage: str) -> None:
        self.sampler = ExactSampler(self.train, BATCH, epochs=EPOCHS, micro_batch_size=MICRO_BATCH, seed=0)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_sampler=self.sampler)

    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        return self.sampler.state_dict(step=self.trainer.global_step)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state_dict)


class Classifier(lightning.LightningModule):
    def __init__(self, data: Digits) -> None:
        super().__init__()
        self.network, self.data = network(), data

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        images, labels = batch
        return cross_entropy(self.network(images), labels)  # Lightning divides by accumulate_grad_batches

    def configure_optimizers(self) -> Any:
        optimizer, plan = lamb(self.network), self.data.sampler.plan
        scheduler = ExamplesLR(optimizer, plan, schedule(plan, **SCHEDULE))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_end(self) -> None:
        test = self.data.test
        sums = exact_sums(self.network, DataLoader(test, sampler=ShareSampler(test), batch_size=100), tally)
        self.print(told(sums))


def main(file: str, processes: int) -> None:
    data = Digits()
    model = Classifier(data)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        precision="64-true",
        max_epochs=1,
        accumulate_grad_batches=BATCH // (processes * MICRO_BATCH),
        use_distributed_sampler=False,  # ours knows its rank
        default_root_dir=Path(file).parent,
        logger=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, data)
    if trainer.is_global_zero:
        torch.save(model.network.state_dict(), file)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

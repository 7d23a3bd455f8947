"""Trainers of others, saved by themselves at step 13 of 30 and gone on with anew, with the parts of their examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def of_lightning(folder: str) -> None:
    import lightning  # type: ignore
    import with_lightning as example  # type: ignore
    from digits import BATCH, MICRO_BATCH  # type: ignore
    from lightning.pytorch.callbacks import ModelCheckpoint  # type: ignore

    saving = ModelCheckpoint(folder, filename="half", every_n_train_steps=13, save_top_k=-1)

    def trained(**more: Any) -> Any:
        data = example.Digits()
        model = example.Classifier(data)
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            precision="64-true",
            max_epochs=1,
            accumulate_grad_batches=BATCH // MICRO_BATCH,
            use_distributed_sampler=False,
            default_root_dir=folder,
            callbacks=[saving],
            logger=False,
            enable_progress_bar=False,
        )
        trainer.fit(model, data, **more)
        assert trainer.global_step == 30
        return model

    trained()
    model = trained(ckpt_path=f"{folder}/half.ckpt", weights_only=False)
    torch.save(model.network.state_dict(), f"{folder}/weights.pt")


def of_transformers(folder: str) -> None:
    import transformers_trainer as example  # type: ignore

    file = Path(folder) / "weights.pt"
    example.main(str(file), save_strategy="steps", save_steps=13)
    file.unlink()
    example.main(str(file), resume_from=f"{folder}/checkpoint-13")

"""The transformers library's BERT in its own ``Trainer``: what most people run who pre-train one.

The same shape of model with the same weights, torch's AdamW, the run's precision, the same sequences in micro-batches
of the same size, from memory; it neither logs nor saves nor evaluates. Its model gives logits at every place of one,
of which the loss takes those that are masked.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
from typing import Any

import torch
from torch import Tensor

from largebatch.data.nested import Batch
from largebatch.data.text.masks import IGNORED
from largebatch.errors import UserError
from largebatch.models.bert import Bert
from largebatch.models.transformers_names import config_of, renamed
from largebatch.run.assemble import Job
from largebatch.studies.bench.throughput.turns import LEAD_IN, Clock


def check(job: Job) -> None:
    """Raises UserError where it would be another thing."""
    if job.decided.precision not in ("fp32", "bf16"):
        raise UserError(f"transformers' Trainer is run in fp32 and bf16, not in {job.decided.precision}")
    try:
        import accelerate  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed") from None
    config_of(model_of(job))


def model_of(job: Job) -> Bert:
    model = job.engine.model
    assert isinstance(model, Bert)
    return model


def trained_seconds(job: Job, batches: list[Batch], steps: int) -> float:
    """Of the steps after the lead-in."""
    import transformers

    clock = Clock(job.device)

    class Timed(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == LEAD_IN:
                clock.start()

    logging.getLogger("transformers").setLevel(logging.ERROR)
    plan = job.plan
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, per_device_train_batch_size=plan.micro_batch_size, max_steps=LEAD_IN + steps,
            gradient_accumulation_steps=plan.accumulation_steps, use_cpu=job.device.type == "cpu",
            bf16=job.decided.precision == "bf16", optim="adamw_torch", learning_rate=1e-4, max_grad_norm=0.0,
            lr_scheduler_type="constant", save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True,
            remove_unused_columns=False, dataloader_pin_memory=job.device.type == "cuda",
        )  # fmt: skip
        needed = (LEAD_IN + steps) * plan.global_batch_size
        rows = list(itertools.islice(itertools.cycle(rows_of(batches)), needed))
        trainer = transformers.Trainer(_their_model(job), arguments, train_dataset=rows, callbacks=[Timed()])  # type: ignore[arg-type]
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return clock.seconds()


def _their_model(job: Job) -> Any:
    import transformers

    ours = model_of(job)
    dropout = ours.drop.p
    settings: dict[str, Any] = config_of(ours) | {
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    pairs = ours.pooler is not None
    theirs = (transformers.BertForPreTraining if pairs else transformers.BertForMaskedLM)(
        transformers.BertConfig(**settings)
    )
    theirs.load_state_dict(renamed(ours.state_dict()), strict=False)
    theirs.tie_weights()
    return theirs


def rows_of(batches: list[Batch]) -> list[dict[str, Tensor]]:
    """Examples as their models take them: a label for every place, −100 where nothing is to be predicted."""
    rows = []
    for batch in batches:
        whole, due = torch.full_like(batch["tokens"], IGNORED), batch["labels"] != IGNORED
        example = torch.arange(len(whole), device=whole.device)[:, None].expand_as(due)
        whole[example[due], batch["positions"][due]] = batch["labels"][due]
        columns = {"input_ids": batch["tokens"], "labels": whole}
        if "segments" in batch:
            columns |= {"token_type_ids": batch["segments"], "attention_mask": batch["attended"].long()}
            columns |= {"next_sentence_label": batch["is_random"]}
        rows += [{key: column[row].cpu() for key, column in columns.items()} for row in range(len(whole))]
    return rows

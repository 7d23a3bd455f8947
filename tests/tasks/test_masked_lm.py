"""masked_lm: sums over masked tokens, whose number varies; the numbers of an evaluation; what does not fit is told."""

from __future__ import annotations

import math

import pytest
import torch
from ends import events
from method_recipes import recipe_of

from largebatch import tasks
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.run.train import train

VOCABULARY, PLACES = 11, 4


def case(pairs: bool):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(VOCABULARY, (5, PLACES), generator=generator)
    labels[1, 2:], labels[3] = -100, -100  # fewer; none at all
    batch = {"tokens": torch.zeros(5, 9).long(), "positions": torch.zeros(5, PLACES).long(), "labels": labels}
    logits = torch.randn(5, PLACES, VOCABULARY, generator=generator, dtype=torch.float64)
    if not pairs:
        return logits, batch
    batch["is_random"] = torch.tensor([0, 1, 1, 0, 1])
    return (logits, torch.randn(5, 2, generator=generator, dtype=torch.float64)), batch


def lost(row: torch.Tensor, target: int) -> float:
    numbers = [math.exp(number) for number in row.tolist()]
    return -math.log(numbers[target] / sum(numbers))


def by_hand(outputs, batch):
    """(loss of tokens, right ones, how many; loss of sentences weighted and plain, right ones)."""
    pairs = "is_random" in batch
    logits, follows = outputs if pairs else (outputs, None)
    tokens = right = count = weighted = plain = followed = 0
    for example, labels in enumerate(batch["labels"].tolist()):
        due = [place for place, label in enumerate(labels) if label != -100]
        count += len(due)
        for place in due:
            tokens += lost(logits[example, place], labels[place])
            right += int(logits[example, place].argmax()) == labels[place]
        if pairs:
            target = int(batch["is_random"][example])
            weighted += len(due) * lost(follows[example], target)
            plain += lost(follows[example], target)
            followed += int(follows[example].argmax()) == target
    return tokens, right, count, weighted, plain, followed


@pytest.mark.parametrize("pairs", [False, True])
def test_loss_units_and_numbers_are_those_by_hand(pairs):
    outputs, batch = case(pairs)
    task = tasks.build("masked_lm")
    tokens, right, count, weighted, plain, followed = by_hand(outputs, batch)
    assert task.units_vary
    assert int(task.units(batch)) == count == 14
    assert float(task.loss(outputs, batch)) == pytest.approx(tokens + weighted, rel=1e-12)
    sums = {key: torch.as_tensor(value).double() for key, value in task.tally(outputs, batch).items()}
    numbers = task.numbers({**sums, "examples": torch.tensor(5.0), "units": torch.tensor(float(count))})
    wanted = {
        "loss": tokens / count + (plain / 5 if pairs else 0),
        "masked_accuracy_percent": 100 * right / count,
        "perplexity": math.exp(tokens / count),
    }
    if pairs:
        wanted |= {"next_sentence_loss": plain / 5, "next_sentence_accuracy_percent": 100 * followed / 5}
    assert numbers == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("pairs", [False, True])
def test_parts_of_a_batch_add_up(pairs):
    outputs, batch = case(pairs)
    task = tasks.build("masked_lm")
    parts = [slice(0, 1), slice(1, 4), slice(4, 5)]
    cut = [
        (
            tuple(o[part] for o in outputs) if pairs else outputs[part],
            {key: value[part] for key, value in batch.items()},
        )
        for part in parts
    ]
    torch.testing.assert_close(sum(task.loss(*piece) for piece in cut), task.loss(outputs, batch), rtol=1e-12, atol=0)
    assert sum(int(task.units(piece[1])) for piece in cut) == int(task.units(batch))


def test_a_part_without_masked_tokens_has_no_gradient_and_no_loss():
    logits, batch = case(False)
    logits = logits[3:4].requires_grad_()
    loss = tasks.build("masked_lm").loss(logits, {key: value[3:4] for key, value in batch.items()})
    loss.backward()
    assert float(loss.detach()) == 0
    assert not logits.grad.any()


def test_a_loss_beyond_all_measure_has_an_infinite_perplexity():
    numbers = tasks.build("masked_lm").numbers(
        {
            "masked_loss": torch.tensor(9e5),
            "correct": torch.tensor(0.0),
            "examples": torch.tensor(2.0),
            "units": torch.tensor(3.0),
        }
    )
    assert numbers["perplexity"] == math.inf


def test_what_does_not_fit_is_told():
    task = tasks.build("masked_lm")
    logits, batch = case(False)
    pair_outputs, pair_batch = case(True)
    with pytest.raises(UserError, match="needs batches with tokens, positions and labels"):
        task.check_data((torch.zeros(2, 3), torch.zeros(2)), "digits")
    with pytest.raises(UserError, match=r"data\.next_sentence = true and model bert gives no numbers for it; set"):
        task.check_outputs(logits, pair_batch, "bert", VOCABULARY)
    with pytest.raises(UserError, match=r"data\.next_sentence = false and model bert gives numbers for it"):
        task.check_outputs(pair_outputs, batch, "bert", VOCABULARY)
    with pytest.raises(UserError, match=r"gives \(4, 11\) for a sequence; wanted are logits of 12 tokens"):
        task.check_outputs(logits, batch, "bert", 12)
    with pytest.raises(UserError, match="wanted are logits of 11 tokens of the vocabulary for each of 4 places"):
        task.check_outputs(logits[:, 0], batch, "mlp", VOCABULARY)
    with pytest.raises(UserError, match=r"unknown key task\.smoothing for masked_lm; it takes none"):
        tasks.build("masked_lm", {"smoothing": 1})
    task.check_outputs(pair_outputs, pair_batch, "bert", VOCABULARY)


def test_a_batch_may_ramp_over_sequences_of_one_length(tmp_path):
    """Several stages of the plan, and no phases: each has the recipe's length and predictions."""
    written = recipe_of(
        "masked_lm", batch={"global_batch_size": 24, "ramp": {"at_epochs": [0.3], "sizes": [48]}}, epochs=1
    )
    written |= {
        "data": {**written["data"], "max_predictions": 4},
        "record": {"dir": str(tmp_path), "to": []},
    }
    del written["phases"]
    assert train(config.from_dict(written), quiet=True).status == "finished"
    sizes = [line["global_batch_size"] for line in events(tmp_path, "train")]
    assert sizes[-1] == 48

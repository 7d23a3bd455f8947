"""What transformers' Trainer is given in a bench is the sequences of the run, with a label for every place."""

import torch

from largebatch.studies.bench.throughput.transformers_loop import rows_of


def test_labels_stand_at_their_places():
    batch = {
        "tokens": torch.tensor([[2, 4, 8, 9], [2, 7, 4, 4]]),
        "positions": torch.tensor([[1, 0], [2, 3]]),
        "labels": torch.tensor([[5, -100], [6, 7]]),
    }
    rows = rows_of([batch])
    assert [row["labels"].tolist() for row in rows] == [[-100, 5, -100, -100], [-100, -100, 6, 7]]
    assert [row["input_ids"].tolist() for row in rows] == batch["tokens"].tolist()
    pairs = batch | {
        "segments": torch.tensor([[0, 0, 1, 1]] * 2),
        "attended": torch.tensor([[True, True, True, False]] * 2),
        "is_random": torch.tensor([0, 1]),
    }
    last = rows_of([pairs])[1]
    assert last["attention_mask"].tolist() == [1, 1, 1, 0]
    assert (int(last["next_sentence_label"]), last["token_type_ids"].tolist()) == (1, [0, 0, 1, 1])

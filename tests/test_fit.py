"""What torch would refuse in the middle of a run is refused before it, and the rehearsal leaves no trace."""

from __future__ import annotations

from typing import Any

import blanks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch import models
from largebatch.errors import UserError
from largebatch.models import auxiliary

RGB = (3, 32, 32)


@pytest.mark.worlds
def test_a_batch_norm_over_one_value_is_refused():
    model = models.build("torchvision/resnet18", 10, RGB)
    blanks.check(model, "resnet18", 10, RGB, 2)
    with pytest.raises(UserError, match=r"would see one example of 3×32×32 .* set batch.micro_batch_size"):
        blanks.check(model, "resnet18", 10, RGB, 1)
    blanks.check(model, "resnet18", 10, (3, 64, 64), 1)  # 2 × 2 values in the last maps
    plain = models.build("tiny_cnn", 10, RGB, 0, {"norm": False})
    blanks.check(plain, "tiny_cnn", 10, RGB, 1)


def test_the_rehearsal_leaves_no_trace():
    model = models.build("tiny_cnn", 10, RGB, 0, {"dropout": 0.5}).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    blanks.check(model, "tiny_cnn", 10, RGB)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training


class Odd(nn.Module):
    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(10))
        self.outputs = outputs

    def forward(self, images: Tensor) -> Any:
        return self.outputs(self, self.weight.expand(len(images), 10))


def refuse(logits: Tensor) -> Tensor:
    raise KeyError("a table")


@pytest.mark.parametrize(
    ("outputs", "sentence"),
    [
        (lambda model, logits: (logits, logits), "gives a tuple per example; trained are models that give the logits"),
        (lambda model, logits: (logits, logits) if model.training else logits, "gives a tuple per example"),
        (lambda model, logits: {"logits": logits}, "gives a dict per example"),
        (lambda model, logits: logits[:, :7], r"gives \(7,\) per example; the data set has 10 classes"),
        (lambda model, logits: logits.squeeze(0), r"gives \(\) per example; the data set has 10 classes"),
        (lambda model, logits: refuse(logits), "does not take images of 3×32×32 .*: 'a table'"),
        (lambda model, logits: refuse(logits) if model.training else logits, "in training: 'a table'"),
    ],
)
def test_other_outputs_are_refused(outputs, sentence):
    with pytest.raises(UserError, match=sentence):
        blanks.check(Odd(outputs), "odd", 10, RGB)


@pytest.mark.parametrize("kind", ["GoogLeNetOutputs", "InceptionOutputs"])
def test_auxiliary_classifiers_count_with_their_weight(kind):
    """0.3 each for GoogLeNet (1409.4842, §5), 0.4 for Inception v3."""
    import torchvision.models

    kind = getattr(torchvision.models, kind)
    tensors = torch.randn(len(kind._fields), 4, 5, dtype=torch.float64)
    labels = torch.tensor([0, 4, 2, 2])
    plain = [F.cross_entropy(one, labels, label_smoothing=0.1, reduction="sum") for one in tensors]
    weight = 0.3 if len(plain) == 3 else 0.4
    outputs = kind(*tensors)
    torch.testing.assert_close(auxiliary.cross_entropy(outputs, labels, 0.1), plain[0] + weight * sum(plain[1:]))
    assert auxiliary.logits_of(outputs) is outputs.logits
    alone = kind(tensors[0], *[None] * (len(plain) - 1))  # what they give where there are none
    assert auxiliary.cross_entropy(alone, labels, 0.1) == plain[0]
    assert auxiliary.cross_entropy(tensors[0], labels, 0.1) == plain[0]

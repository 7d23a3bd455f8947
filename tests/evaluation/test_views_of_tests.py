"""Views of test images: mirror images and shifts, against airbench's own six views written out."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from small_runs import recorded, trained

from largebatch.checkpoint import named
from largebatch.errors import UserError
from largebatch.plan.image_views import ImageViews
from largebatch.recipes import config
from largebatch.run.assemble import assemble
from largebatch.steps.evaluate import judged
from largebatch.studies.evaluation import measure


def test_six_views_weighted_as_airbench_weights_them():
    images, weights = torch.randn(5, 3, 8, 6), torch.randn(3 * 8 * 6, 7)

    def forward(batch):
        return batch[0].flatten(1) @ weights

    wanted = torch.zeros(5, 7, dtype=torch.float64)
    for image in range(5):
        padded = np.pad(images[image].numpy(), ((0, 0), (2, 2), (2, 2)), mode="reflect")
        for offset, weight in ((0, 0.25), (2, 0.5), (4, 0.25)):
            view = padded[:, offset : offset + 8, offset : offset + 6]
            for way in (view, view[:, :, ::-1]):
                wanted[image] += weight / 2 * (torch.from_numpy(way.copy()).flatten() @ weights).double()
    found = judged(forward, (images, torch.arange(5)), ImageViews(flips=True, shift=2))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(judged(forward, (images, None), ImageViews()), forward((images, None)))


@pytest.mark.worlds
def test_a_run_and_an_evaluation_of_it_look_at_the_same_views(tmp_path):
    run = trained(tmp_path / "run", model={"name": "tiny_cnn"}, evaluate={"flips": True, "shift": 1})
    plain = trained(tmp_path / "plain", model={"name": "tiny_cnn"})
    again = dict(measure.measure(named.named(f"{run}@last"), torch.device("cpu")).record.numbers)
    assert again == recorded(run, 30, "test")
    assert recorded(plain, 30, "test") != again


@pytest.mark.parametrize(
    ("data", "shift", "sentence"),
    [
        ("diabetes", 1, "evaluate.shift = 1 moves images, and data.name = diabetes has inputs of 10; leave it out"),
        ("digits", 8, "evaluate.shift = 8 is as far as an image of 8 pixels reaches; at most 7"),
    ],
)
def test_a_shift_that_no_image_has_is_one_sentence(data, shift, sentence):
    written = {
        "name": "tiny", "model": {"name": "mlp", "width": 4, "depth": 1}, "data": {"name": data}, "epochs": 1,
        "batch": {"global_batch_size": 38}, "optimizer": {"name": "sgd"}, "lr": {"base": 0.1}, "device": "cpu",
        "evaluate": {"shift": shift},
    }  # fmt: skip
    with pytest.raises(UserError, match=re.escape(sentence)):
        assemble(config.from_dict(written), torch.device("cpu"))

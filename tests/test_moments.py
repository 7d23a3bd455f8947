"""β1, β2 and ε that follow the batch: the rules in another statement, where they end, who has them."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
import yaml

from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.recipes.decide import decide
from largebatch.recipes.decided import DataFacts, Decided
from largebatch.run.assemble import assemble
from largebatch.run.beforehand import planned
from largebatch.studies.reading import derived


def written(batch: Any = 64, optimizer: dict[str, Any] | None = None, **other: Any) -> dict[str, Any]:
    lr = {"base": 1e-3, "reference_batch_size": 16, "scaling": "adam_sqrt"}
    if optimizer is not None and "beta2_half_life" in optimizer:
        lr = {"base": 1e-3}
    return {
        "name": "moments",
        "device": "cpu",
        "epochs": 2,
        "model": {"name": "mlp", "width": 8, "depth": 1},
        "data": {"name": "synthetic", "num_classes": 3, "image_shape": [1, 2, 2], "examples": 960, "workers": 0},
        "batch": batch if isinstance(batch, dict) else {"global_batch_size": batch},
        "optimizer": optimizer or {"name": "adamw"},
        "lr": lr,
        **other,
    }


def decided_of(recipe: dict[str, Any]) -> Decided:
    return decide(config.from_dict(recipe), DataFacts(960), 1, "cpu")


KEPT = {"beta2_half_life": {"reference_batch_size": 16}}


@pytest.mark.parametrize("name", ["adam", "adamw", "lamb"])
@pytest.mark.parametrize("batch", [4, 16, 64, 960])
def test_after_as_many_examples_as_many_of_a_gradient_are_left(name, batch):
    found = decided_of(written(batch, {"name": name, "beta2": 0.99, **KEPT})).optimizer
    for examples in (960, 9600):
        assert found.beta2 ** (examples / batch) == pytest.approx(0.99 ** (examples / 16), rel=1e-9)
    assert (found.beta1, found.name) == (0.9, name)


def test_mlperfs_beta2_at_16384_is_near_the_half_life_of_256():
    """0.999 at 256 would be 0.938; 0.9 was tuned, and the half-life rule says what part of that is no tuning."""
    found = decided_of(written(960, {"name": "lamb", "beta2_half_life": {"reference_batch_size": 15}})).optimizer
    assert found.beta2 == pytest.approx(0.999 ** (16384 / 256), abs=1e-9) == pytest.approx(0.938, abs=5e-4)


@pytest.mark.parametrize("optimizer", [{"name": "adam"}, {"name": "adamw", "eps": 1e-8}, {"name": "lamb", "eps": 1e-6}])
@pytest.mark.parametrize("batch", [4, 16, 64])
def test_the_whole_square_root_rule(optimizer, batch):
    """Malladi et al. 2022: as many examples later the averages are the same to first order, the step √κ as long."""
    decided = decided_of(written(batch, optimizer))
    found, kappa = decided.optimizer, batch / 16
    assert 1 - found.beta1 == pytest.approx(kappa * 0.1, rel=1e-12)
    assert 1 - found.beta2 == pytest.approx(kappa * 0.001, rel=1e-9)
    assert (found.eps or 1e-8) * math.sqrt(kappa) == pytest.approx(optimizer.get("eps", 1e-8))
    assert decided.peak_lr == pytest.approx(1e-3 * math.sqrt(kappa), rel=1e-12)


RAMP = {"global_batch_size": 16, "ramp": {"at_epochs": [1], "factor": 2}}
PHASES = [
    {"steps": 5, "batch.global_batch_size": 32},
    {"steps": 5, "batch.global_batch_size": 16},
    {"optimizer.beta1": 0.8},
]


def test_each_phase_has_those_of_its_own_batch_and_so_has_the_optimizer():
    recipe = written(64, {"name": "adamw", **KEPT}, phases=PHASES)
    job = assemble(config.from_dict(recipe), torch.device("cpu"))
    expected = [(0.9, 0.999**2), (0.9, 0.999), (0.8, 0.999**4)]
    groups = job.engine.optimizer.param_groups
    assert [group["betas"] for group in groups] == [pytest.approx((0.9, 0.999**4))] * len(groups)
    for number, betas in enumerate(expected):
        job.settings.tell(groups, number)
        assert [group["betas"] for group in groups] == [pytest.approx(betas)] * len(groups), number
    record = planned(job, "", {})
    assert [phase.optimizer for phase in record.phases or ()] == [
        {"beta2": pytest.approx(0.999**2)}, {}, {"beta1": 0.8, "beta2": pytest.approx(0.999**4)},
    ]  # fmt: skip
    assert "beta2 0.999^(32/16) = 0.998001; beta2 0.999^(16/16) = 0.999; beta2 0.999^(64/16)" in record.methods


def test_a_ramp_has_those_of_each_of_its_batches():
    decided = decided_of(written(RAMP, {"name": "lamb", **KEPT}))
    assert [phase.optimizer.beta2 for phase in decided.phases] == [0.999, pytest.approx(0.999**2)]


def test_what_a_run_begins_with_is_recorded_and_shown(tmp_path):
    record = planned(assemble(config.from_dict(written()), torch.device("cpu")), "", {})
    assert [phase.optimizer for phase in record.phases or ()] == [
        {"beta1": pytest.approx(0.6), "beta2": pytest.approx(0.996), "eps": pytest.approx(5e-9)}
    ]
    for optimizer, words in (
        (None, "beta1 1 - 64/16 × (1 - 0.9) = 0.6, beta2 1 - 64/16 × (1 - 0.999) = 0.996, eps 1e-08/√(64/16) = 5e-09"),
        ({"name": "adamw", **KEPT}, "beta2 0.999^(64/16) = 0.996006"),
    ):
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(written(64, optimizer)))
        rows = {row["what"].strip(): row for row in derived(file, [])["rows"]}
        assert rows["at this batch"]["value"] == words
        assert rows["at this batch"]["from"] == "recipe"
        assert rows["momentum"]["value"].startswith("beta1 0.6, beta2 0.996" if optimizer is None else "beta1 0.9")


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        (written(160), "adam_sqrt at batch 160 asks for beta1 = 1 - 160/16 × (1 - 0.9), which is not above "
         "0; the rule ends below batch 160"),
        (written(64, {"name": "adamw", "beta1": 0.999, "beta2": 0.7}), "asks for beta2 = 1 - 64/16 × (1 - 0.7)"),
        (written(64, {"name": "sgd"}), "= sgd does not have all of them here; valid: linear, sqrt, none"),
        (written(64, {"name": "muon"}), "optimizer.name = muon does not have all of them here"),
        (written(64, {"name": "adam", "variant": "lecture"}), "optimizer.name = adam does not have all of them here"),
        ({**written(64, {"name": "adamw", **KEPT}), "lr": written()["lr"]},
         "lr.scaling = adam_sqrt and optimizer.beta2_half_life both say what beta2 is at a batch; choose one"),
        (written(RAMP), "write batch.ramp as phases"),
        (written(phases=[{"steps": 5, "batch.global_batch_size": 16}, {"clock": "goes_on"}]),
         "phases.2.clock = goes_on keeps the lr of another batch"),
        (written(64, {"name": "adamw", **KEPT}, averaging={"name": "post_local_sgd", "workers": 2, "from_epoch": 1}),
         "has workers with batches of their own, which optimizer.beta2_half_life does not follow"),
        (written(64, {"name": "sgd", **KEPT}), "unknown key optimizer.beta2_half_life"),
        (written(64, {"name": "muon", **KEPT}), "optimizer.beta2_half_life belongs to optimizer.others = adamw"),
        (written(64, {"name": "adamw", **KEPT}, phases=[{"steps": 5}, {"optimizer.beta2_half_life": None}]),
         "phases.2.optimizer.beta2_half_life cannot change during a run"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_them_is_one_sentence(recipe, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        decided_of(recipe)

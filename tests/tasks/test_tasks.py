"""Each task's loss and numbers against a dumber statement or scikit-learn, however the examples are cut."""

from __future__ import annotations

import math
import re

import numpy as np
import pool
import pytest
import torch
from sklearn.metrics import average_precision_score, r2_score, top_k_accuracy_score
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy

from largebatch import tasks
from largebatch.data import nested
from largebatch.errors import LocalError, UserError
from largebatch.plan.score import ACCURACY, Score, score_of
from largebatch.recipes import config, strict_yaml
from largebatch.run.train import train
from largebatch.steps.evaluate import Tally
from largebatch.tasks.multilabel import level_of
from largebatch.tasks.task import Task, check_loss, check_numbers


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def evaluated(task: Task, outputs: torch.Tensor, targets: torch.Tensor, cut: int) -> dict[str, float]:
    """The numbers over all examples, tallied ``cut`` at a time."""
    sums = Tally()
    for some, those in zip(outputs.split(cut), targets.split(cut), strict=True):
        batch = (torch.zeros(len(those), 1), those)
        sums.add(task.tally(some, batch))
        sums.add({"examples": len(those), "units": task.units(batch)})
    return task.numbers(sums.sums)


def test_classification():
    logits, labels = drawn(0, 50, 7), torch.arange(50) % 7
    smoothed = tasks.build("classification", {"label_smoothing": 0.1})
    wanted = 0.0
    for z, y in zip(logits, labels, strict=True):
        log_p = [float(z[c]) - math.log(sum(math.exp(float(other)) for other in z)) for c in range(7)]
        wanted -= sum(((c == int(y)) * 0.9 + 0.1 / 7) * log_p[c] for c in range(7))
    assert float(smoothed.loss(logits, (None, labels))) == pytest.approx(wanted, rel=1e-13)
    found = evaluated(smoothed, logits, labels, 8)
    assert found["accuracy_percent"] == pytest.approx(100 * np.mean(logits.argmax(1).numpy() == labels.numpy()))
    assert found["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-13)
    assert "top5_accuracy_percent" not in found
    assert evaluated(smoothed, logits, labels, 50) == pytest.approx(found, rel=1e-13)


def soft(count: int, classes: int) -> torch.Tensor:
    """Shares of two classes each, and of one."""
    share = torch.rand(count, 1, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    share[::5] = 1.0
    of = lambda labels: torch.nn.functional.one_hot(labels % classes, classes).double()  # noqa: E731
    return share * of(torch.arange(count)) + (1 - share) * of(torch.arange(count) // 3)


def test_cross_entropy_of_soft_labels_is_a_mean_of_those_of_the_classes():
    logits, shares = drawn(4, 30, 6), soft(30, 6)
    for smoothing in (0.0, 0.1):
        wanted = 0.0
        for z, y in zip(logits, shares, strict=True):
            total = math.log(sum(math.exp(float(other)) for other in z))
            wanted -= sum(((1 - smoothing) * float(y[c]) + smoothing / 6) * (float(z[c]) - total) for c in range(6))
        task = tasks.build("classification", {"label_smoothing": smoothing})
        assert float(task.loss(logits, (None, shares))) == pytest.approx(wanted, rel=1e-13)
        theirs = 30 * float(SoftTargetCrossEntropy()(logits, (1 - smoothing) * shares + smoothing / 6))
        assert wanted == pytest.approx(theirs, rel=1e-12)
    found = evaluated(task, logits, shares, 30)
    right = (logits.argmax(1) == shares.argmax(1)).double().mean()
    assert found["accuracy_percent"] == pytest.approx(100 * float(right))


@pytest.mark.parametrize("threshold", [None, 0.0, 0.2])
@pytest.mark.parametrize("classes", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_is_timms(threshold, classes, smoothing):
    """Which takes soft labels as mixup has smoothed them."""
    logits, shares, labels = drawn(5, 40, 6), soft(40, 6), torch.arange(40) % 6
    keys = {"kind": "bce", "classes": classes, "label_smoothing": smoothing}
    task = tasks.build("classification", keys if threshold is None else {**keys, "threshold": threshold})
    theirs = BinaryCrossEntropy(smoothing, threshold, sum_classes=classes == "sum")
    for targets, given in ((shares, (1 - smoothing) * shares + smoothing / 6), (labels, labels)):
        wanted = 40 * float(theirs(logits, given))
        assert float(task.loss(logits, (None, targets))) == pytest.approx(wanted, rel=1e-12)
    by_hand = 0.0
    for z, y in zip(logits, shares, strict=True):
        for score, share in zip(z.tolist(), y.tolist(), strict=True):
            target = (1 - smoothing) * share + smoothing / 6
            target = target if threshold is None else float(target > threshold)
            by_hand -= target * -math.log1p(math.exp(-score)) + (1 - target) * -math.log1p(math.exp(score))
    by_hand /= 6 if classes == "mean" else 1
    assert float(task.loss(logits, (None, shares))) == pytest.approx(by_hand, rel=1e-12)


def test_an_evaluations_binary_cross_entropy_is_not_smoothed():
    logits, labels = drawn(6, 50, 7), torch.arange(50) % 7
    task = tasks.build("classification", {"kind": "bce", "label_smoothing": 0.3})
    plain = tasks.build("classification", {"kind": "bce"})
    found = evaluated(task, logits, labels, 8)
    assert found["loss"] == pytest.approx(float(plain.loss(logits, (None, labels))) / 50, rel=1e-13)
    assert found["accuracy_percent"] == evaluated(tasks.build("classification"), logits, labels, 8)["accuracy_percent"]
    with pytest.raises(LocalError, match="labels from 0 to 7 do not fit the model"):
        task.loss(logits, (None, torch.arange(50) % 8))


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"kind": "hinge"}, "task.kind = 'hinge' is not known; valid: cross_entropy or bce"),
        ({"kind": "bce", "classes": "max"}, "task.classes = 'max' is not known; valid: mean or sum"),
        ({"kind": "bce", "threshold": 1}, "task.threshold = 1 should be a number from 0 to below 1"),
        ({"threshold": 0.2}, "task.threshold and task.classes have no effect without task.kind = bce"),
    ],
)
def test_a_binary_loss_that_is_not_known_is_refused(keys, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        tasks.build("classification", keys)


@pytest.mark.parametrize("classes", [20, 21, 60])
def test_five_answers_count_from_21_classes_on(classes):
    logits, labels = drawn(1, 300, classes), torch.arange(300) % classes
    found = evaluated(tasks.build("classification"), logits, labels, 64)
    wanted = 100 * top_k_accuracy_score(labels.numpy(), logits.numpy(), k=5, labels=range(classes))
    assert found.get("top5_accuracy_percent") == (pytest.approx(wanted) if classes > 20 else None)


def test_regression():
    outputs, targets = drawn(2, 90, 3), 2 * drawn(3, 90, 3) + torch.tensor([5.0, 0.0, -1.0])
    task = tasks.build("regression")
    by_hand = [
        sum((float(a) - float(b)) ** 2 for a, b in zip(z, y, strict=True)) / 3
        for z, y in zip(outputs, targets, strict=True)
    ]
    assert float(task.loss(outputs, (None, targets))) == pytest.approx(sum(by_hand), rel=1e-13)
    found = evaluated(task, outputs, targets, 7)
    assert found["squared_error"] == found["loss"] == pytest.approx(np.mean(by_hand), rel=1e-12)
    wanted = r2_score(targets.numpy(), outputs.numpy(), multioutput="variance_weighted")
    assert found["r2"] == pytest.approx(wanted, rel=1e-11)
    for constant in (0.0, 1.0, 0.1, 1e9 + 0.3):
        assert math.isnan(evaluated(task, outputs, torch.full_like(targets, constant), 7)["r2"])


def test_multilabel():
    logits = drawn(4, 200, 6).half().double()  # values that the tally tells apart
    labels = (drawn(5, 200, 6) > 0.8).double()
    labels[:, 3] = 0.0  # a label that does not occur has no precision
    logits[:50, 1] = 0.25  # ties
    task = tasks.build("multilabel")
    p = 1 / (1 + np.exp(-logits.numpy()))
    y = labels.numpy()
    by_hand = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(1).sum()
    assert float(task.loss(logits, (None, labels))) == pytest.approx(by_hand, rel=1e-12)
    found = evaluated(task, logits, labels, 13)
    occurring = [label for label in range(6) if label != 3]
    wanted = 100 * np.mean([average_precision_score(y[:, label], logits[:, label].numpy()) for label in occurring])
    assert found["mean_average_precision_percent"] == pytest.approx(wanted, rel=1e-12)
    assert evaluated(task, logits, labels, 200) == pytest.approx(found, rel=1e-13)


def test_levels_ascend_with_the_logits():
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.float16)
    ascending = every[~every.isnan()].float().sort().values
    steps = level_of(ascending).diff()
    assert level_of(torch.tensor([-0.0])) == level_of(torch.tensor([0.0]))
    assert steps.min() >= 0
    assert (steps == 0).sum() == 1, "the two zeros alone"


# ---- the score ----


def test_the_score_is_data():
    error = Score("squared_error", "squared error", more_is_better=False, tolerance=0.01)
    assert (error.worth(2.0), ACCURACY.worth(2.0)) == (-2.0, 2.0)
    assert error.worth(math.nan) == ACCURACY.worth(math.nan) == -math.inf
    assert (error.of(0.123456), ACCURACY.of(91.234)) == ("0.1235", "91.23 %")
    assert (error.differences_in, ACCURACY.differences_in) == ("", "points")
    assert score_of({"score": error._asdict()}) == error
    assert score_of({}) == ACCURACY, "runs of before scores were data"


# ---- what is refused ----


class NotSummed(Task):
    score = ACCURACY

    def loss(self, outputs, batch):
        return (outputs - 1).square()

    def tally(self, outputs, batch):
        return {"errors": outputs.sum()}

    def numbers(self, sums):
        return {"loss": float(sums["errors"])}


class Halved(NotSummed):
    def loss(self, outputs, batch):
        return outputs.sum().bfloat16()


def test_a_loss_that_is_not_summed_is_refused():
    batch = (torch.zeros(4, 1), torch.zeros(4, 1))
    with pytest.raises(
        UserError, match=r"the loss of NotSummed is a tensor of shape \(4, 1\); it should be summed over"
    ):
        check_loss(NotSummed(), batch[0], batch)
    with pytest.raises(
        UserError, match=r"the loss of Halved is torch.bfloat16; it should be summed in float32 or wider"
    ):
        check_loss(Halved(), batch[0], batch)
    with pytest.raises(UserError, match="an evaluation of NotSummed has no accuracy_percent; it should be one of its"):
        check_numbers(NotSummed(), batch[0], batch)


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        ((torch.zeros(3, 2), torch.zeros(4)), r"disagree on how many examples it holds \(\[0\] has 3, \[1\] has 4"),
        ({"x": torch.zeros(3, 2), "n": torch.tensor(3)}, r"\['n'\] is a single number; a batch is made of tensors"),
        ((torch.zeros(3, 2), [1, 2, 3]), r"\[1\]\[0\] is a int; a batch is made of tensors"),
        ((), "holds no tensors"),
    ],
)
def test_what_is_no_batch(batch, sentence):
    with pytest.raises(UserError, match=f"the data set:? .*{sentence}"):
        nested.check(batch, "the data set")


@pytest.mark.parametrize("name", ["classification", "multilabel", "regression"])
def test_batches_that_are_no_pairs_are_a_sentence(name):
    for batch in ({"ids": torch.zeros(1, 2), "label": torch.zeros(1)}, (torch.zeros(1, 2), [torch.zeros(1)])):
        with pytest.raises(UserError, match=rf"task.name = {name} needs batches of \(inputs, targets\)"):
            tasks.build(name).check_data(batch, "mine")


def test_names_of_tasks():
    assert tasks.names() == ["classification", "masked_lm", "multilabel", "regression"]
    with pytest.raises(UserError, match="task.name = clasification is not known; did you mean classification"):
        tasks.build("clasification")
    with pytest.raises(UserError, match="unknown key task.smoothing for classification; did you mean label_smoothing"):
        tasks.build("classification", {"smoothing": 0.1})
    with pytest.raises(UserError, match="unknown key task.smoothing for regression; it takes none"):
        tasks.build("regression", {"smoothing": 0.1})


@pytest.mark.parametrize("written", ["0.1", True, None, [0.1], -0.1, 1, float("nan")])
def test_label_smoothing_is_a_share(written):
    with pytest.raises(UserError, match="task.label_smoothing = .* should be a number from 0 to below 1"):
        tasks.build("classification", {"label_smoothing": written})


# ---- batches ----


def test_a_batch_is_any_nest_of_tensors():
    batch = {"ids": torch.arange(6).view(3, 2), "more": (torch.ones(3), [torch.zeros(3, 1, dtype=torch.bool)])}
    nested.check(batch, "the data set")
    assert nested.examples_of(batch) == 3
    part = nested.rows_of(batch, slice(1, 3))
    assert part["ids"].tolist() == [[2, 3], [4, 5]]
    assert nested.rows_of(batch, torch.tensor([2, 0]))["ids"].tolist() == [[4, 5], [0, 1]]
    kinds = [tensor.dtype for tensor in nested.tensors_of(nested.cast(batch, torch.float64))]
    assert kinds == [torch.int64, torch.float64, torch.bool], "only floating tensors are cast"


def test_the_task_of_the_documentation_is_trained(tmp_path, monkeypatch):
    """docs/tasks.md: one file more, found by its name, with its key, its score and its refusals."""
    [source] = re.findall(r"```python\n(.*?)```", (pool.REPOSITORY / "docs" / "tasks.md").read_text(), re.DOTALL)
    (tmp_path / "huber.py").write_text(source)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    written = strict_yaml.parse((pool.REPOSITORY / "configs" / "tasks" / "regression.yaml").read_text(), "regression")
    written |= {"name": "huber", "epochs": 2, "record": {"dir": str(tmp_path / "run"), "to": []}}
    ended = train(config.from_dict({**written, "task": {"name": "huber", "delta": 0.5}}), quiet=True)
    assert ended.status == "finished"
    assert ended.score == Score("absolute_error", "absolute error", more_is_better=False, tolerance=0.01)
    assert 0 < ended.numbers["test_absolute_error"] < 2
    test = ended.numbers["test_loss"]
    assert test < ended.numbers["test_absolute_error"] * 0.5, "δ·|d| is above Huber's loss everywhere"
    with pytest.raises(UserError, match="unknown key task.beta for huber"):
        tasks.build("huber", {"beta": 1.0})
    with pytest.raises(UserError, match="targets that are numbers"):
        tasks.build("huber").check_data((torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64)), "digits")

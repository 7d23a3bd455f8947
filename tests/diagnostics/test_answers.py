"""Confusion and calibration against loops, and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn import metrics

from largebatch.diagnostics import calibration, confusion


@pytest.fixture
def answers() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Probabilities (200, 5), labels, and what was answered."""
    draws = torch.Generator().manual_seed(3)
    probabilities = (2 * torch.randn(200, 5, generator=draws, dtype=torch.float64)).softmax(dim=1)
    labels = torch.randint(0, 4, (200,), generator=draws)  # class 4 does not occur
    return probabilities, labels, probabilities.argmax(dim=1)


def test_confusion_is_scikit_learns(answers):
    _, labels, predictions = answers
    wanted = metrics.confusion_matrix(labels, predictions, labels=range(5))
    assert confusion.matrix(labels, predictions, 5).tolist() == wanted.tolist()
    found = confusion.of_classes(labels, predictions, 5)
    precision, recall, f1, examples = metrics.precision_recall_fscore_support(
        labels, predictions, labels=range(4), zero_division=np.nan
    )
    torch.testing.assert_close(found.precision[:4], torch.from_numpy(precision))
    torch.testing.assert_close(found.recall[:4], torch.from_numpy(recall))
    torch.testing.assert_close(found.f1[:4], torch.from_numpy(f1))
    assert found.examples[:4].tolist() == examples.tolist()
    assert math.isnan(found.recall[4])  # of no example nothing is right or wrong


def test_the_most_confused_by_hand():
    counts = torch.tensor([[9, 2, 0], [2, 5, 3], [0, 0, 7]])
    assert confusion.most_confused(counts, 5) == [(1, 2, 3), (0, 1, 2), (1, 0, 2)]
    assert confusion.most_confused(counts, 1) == [(1, 2, 3)]


def test_expected_error_is_guo_et_als_sum(answers):
    probabilities, labels, predictions = answers
    confidence, right = probabilities.max(dim=1).values, predictions == labels
    found = calibration.binned(confidence, right)
    total, largest = 0.0, 0.0
    for number in range(calibration.BINS):
        low, high = number / calibration.BINS, (number + 1) / calibration.BINS
        inside = [i for i in range(200) if low < float(confidence[i]) <= high]
        assert found.examples[number] == len(inside)
        if inside:
            gap = abs(sum(bool(right[i]) for i in inside) - sum(float(confidence[i]) for i in inside)) / len(inside)
            total, largest = total + gap * len(inside) / 200, max(largest, gap)
    assert found.expected_error == pytest.approx(total, rel=1e-12)
    assert found.largest_error == pytest.approx(largest, rel=1e-12)


def test_a_sure_and_right_model_is_calibrated_and_a_sure_and_wrong_one_is_not():
    sure = torch.ones(10, dtype=torch.float64)
    assert calibration.binned(sure, torch.ones(10, dtype=torch.bool)).expected_error == 0
    assert calibration.binned(sure, torch.zeros(10, dtype=torch.bool)).expected_error == 1
    edge = calibration.binned(torch.tensor([1 / calibration.BINS], dtype=torch.float64), torch.tensor([True]))
    assert edge.examples[0] == 1  # an edge belongs to the bin below


def test_briers_score_by_hand():
    found = calibration.brier(torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]]), torch.tensor([0, 2]))
    assert found.tolist() == [0.25 + 2 * 0.0625, 2.0]

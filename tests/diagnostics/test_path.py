"""Lines and curves between two points, against the formula in plain numbers."""

from __future__ import annotations

import math

import pytest
import torch

from largebatch.diagnostics.path import distance, evenly, on_curve, on_line

A = {"w": torch.tensor([[1.0, -2.0]]), "b": torch.tensor([0.5])}
B = {"w": torch.tensor([[3.0, 4.0]]), "b": torch.tensor([-1.5])}


def test_keskars_25_points():
    alphas = evenly(-1.0, 2.0, 25)
    assert len(alphas) == 25
    assert alphas == pytest.approx([-1 + i / 8 for i in range(25)])
    assert {-1.0, 0.0, 1.0, 2.0} <= set(alphas)


@pytest.mark.parametrize("points", [2, 4, 5, 9, 13, 7])
def test_the_ends_and_the_solutions_are_among_them(points):
    found = evenly(-1.0, 2.0, points)
    assert {-1.0, 0.0, 1.0, 2.0} <= set(found)
    assert found == sorted(set(found))
    assert len(found) == points + (0 if (points - 1) % 3 == 0 else 2)


@pytest.mark.parametrize("alpha", [-1.0, -0.125, 0.5, 1.625, 2.0])
def test_the_line(alpha):
    point = on_line(A, B, alpha)
    expected = [(1 - alpha) * a + alpha * b for a, b in ((1.0, 3.0), (-2.0, 4.0), (0.5, -1.5))]
    assert [*point["w"].flatten().tolist(), *point["b"].tolist()] == pytest.approx(expected)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
def test_the_curve(alpha):
    point = on_curve(A, B, alpha)
    c, s = math.cos(alpha * math.pi / 2), math.sin(alpha * math.pi / 2)
    assert point["w"].flatten().tolist() == pytest.approx([c * 1 + s * 3, c * -2 + s * 4])


def test_at_the_ends_are_the_solutions_bit_by_bit():
    torch.manual_seed(0)
    a, b = ({"w": torch.randn(50)} for _ in range(2))
    for point in (on_line, on_curve):
        assert torch.equal(point(a, b, 0.0)["w"], a["w"])
        assert torch.equal(point(a, b, 1.0)["w"], b["w"])
        assert point(a, b, 0.5)["w"].dtype == torch.float32


def test_the_distance():
    assert distance(A, B) == pytest.approx(math.sqrt(4 + 36 + 4))

"""The optimizers once more, dumb and in float64 Python lists of numbers: no tensors, no foreach, no in-place.

Each function takes the layers as lists of floats, the gradients of every step, and says where the weights end.
"""

from __future__ import annotations

import math

Layer = list[float]


def norm(xs: Layer) -> float:
    return math.sqrt(sum(x * x for x in xs))


def heavy_ball(w: Layer, gs: list[Layer], lrs: list[float], momentum: float, decay: float, nesterov: bool) -> Layer:
    m = [0.0] * len(w)
    for g, lr in zip(gs, lrs, strict=True):
        full = [gi + decay * wi for gi, wi in zip(g, w, strict=True)]
        m = [momentum * mi - lr * fi for mi, fi in zip(m, full, strict=True)]
        if nesterov:
            w = [wi + momentum * mi - lr * fi for wi, mi, fi in zip(w, m, full, strict=True)]
        else:
            w = [wi + mi for wi, mi in zip(w, m, strict=True)]
    return w


def lars(
    w: Layer, gs: list[Layer], lrs: list[float], momentum: float, decay: float, nesterov: bool,
    variant: str, eta: float, eps: float, adapt: bool, largest: float | None,
) -> Layer:  # fmt: skip
    v = [0.0] * len(w)
    for g, lr in zip(gs, lrs, strict=True):
        full = [gi + decay * wi for gi, wi in zip(g, w, strict=True)]
        if variant == "nus":  # its code bounds the ratio and every element
            full, largest = [min(max(f, -10.0), 10.0) for f in full], largest or 50.0
        if variant in ("you2017", "timm", "larc", "nus"):
            below, zero = norm(g) + decay * norm(w) + eps, norm(g) == 0
        else:
            below, zero = norm(full) + eps, norm(full) == 0
        ratio = 1.0 if zero or norm(w) == 0 or not adapt else min(eta * norm(w) / below, largest or math.inf)
        inside = {"you2017": lr * ratio, "optax": lr * ratio, "nus": 1.0}.get(variant, ratio)
        outside = {"you2017": 1.0, "optax": 1.0, "nus": lr * ratio}.get(variant, lr)
        v = [momentum * vi + inside * fi for vi, fi in zip(v, full, strict=True)]
        step = [momentum * vi + inside * fi for vi, fi in zip(v, full, strict=True)] if nesterov else v
        w = [wi - outside * si for wi, si in zip(w, step, strict=True)]
    return w


def lamb(
    w: Layer, gs: list[Layer], lrs: list[float], beta1: float, beta2: float, eps: float, decay: float,
    corrected: bool, adapt: bool, largest: float | None, bounds: tuple[float, float] = (0.0, math.inf),
) -> Layer:  # fmt: skip
    m, v = [0.0] * len(w), [0.0] * len(w)
    for t, (g, lr) in enumerate(zip(gs, lrs, strict=True), start=1):
        m = [beta1 * mi + (1 - beta1) * gi for mi, gi in zip(m, g, strict=True)]
        v = [beta2 * vi + (1 - beta2) * gi**2 for vi, gi in zip(v, g, strict=True)]
        c1, c2 = (1 - beta1**t, 1 - beta2**t) if corrected else (1.0, 1.0)
        u = [(mi / c1) / (math.sqrt(vi / c2) + eps) + decay * wi for mi, vi, wi in zip(m, v, w, strict=True)]
        length = norm(w) if largest is None else min(norm(w), largest)
        ratio = 1.0 if length == 0 or norm(u) == 0 or not adapt else min(max(length / norm(u), bounds[0]), bounds[1])
        w = [wi - lr * ratio * ui for wi, ui in zip(w, u, strict=True)]
    return w

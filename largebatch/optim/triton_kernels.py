"""The kernels of the fused form. Imported only where they are used: Triton need not be there.

The equations are those of :mod:`largebatch.optim.lars` and :mod:`largebatch.optim.lamb`; :mod:`largebatch.optim.tables`
describes the tables. A program takes one chunk of one part, whose elements it walks in the order of memory.

    lars_measure   reads w, g                  chunk sums of w² and g² or (g + β·w)²
    lars_advance   reads w, g, v, writes w, v
    lamb_measure   reads w, g, m, v, writes m, v; chunk sums of w² and u²
    lamb_advance   reads w, m, v, writes w: u is computed again, which costs no memory

The variants of one optimizer differ only in numbers of the settings, so there is one compiled kernel for each
combination of types. No atomics: the sums are the same at every run.
"""

# pyright: reportArgumentType=false
# (a constexpr parameter takes plain values)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from largebatch.optim.tables import GroupSettings, PartLine

TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32, torch.float64: tl.float64}

PART = tl.constexpr(len(PartLine._fields))
WEIGHT, FIRST, SECOND, ROUNDED, LENGTH, GROUP, ROW, COUNTER = (tl.constexpr(i) for i in range(len(PartLine._fields)))

SETTINGS = tl.constexpr(len(GroupSettings._fields))
(
    LR, DECAY, TRUST_COEFFICIENT, RATIO_EPS, RATIO_DECAY, SMALLEST_RATIO, LARGEST_RATIO, LARGEST_NORM,
    BUFFER_SCALE, PROPOSAL_DECAY, LARGEST_ELEMENT, LR_INSIDE, RATIO_INSIDE, SHARE_OF_UPDATE, SHARE_OF_BUFFER,
    BETA1, BETA2, LOG_BETA1, LOG_BETA2, EPS,
) = (tl.constexpr(i) for i in range(len(GroupSettings._fields)))  # fmt: skip


@triton.jit
def _piece(parts, chunks, first, CHUNK: tl.constexpr):
    """Of this program: its part's line in the table and number, where its elements begin there, and how many."""
    chunk = chunks + (tl.program_id(0) + first) * 2
    number = tl.load(chunk)
    start = tl.load(chunk + 1) * CHUNK
    part = parts + number * PART
    count = tl.minimum(tl.load(part + LENGTH) - start, CHUNK).to(tl.int32)
    return part, number, start, count


@triton.jit
def _pointer(place, start, TYPE: tl.constexpr):
    return tl.load(place).to(tl.pointer_type(TYPE)) + start


@triton.jit
def _whole(addresses, count, BLOCK: tl.constexpr):
    """How many elements lie in whole blocks whose addresses allow loads of 16 bytes without a mask."""
    return tl.where((addresses & 15) == 0, count // BLOCK * BLOCK, 0)


@triton.jit
def _read(pointer, places, inside, WHOLE: tl.constexpr):
    if WHOLE:
        values = tl.load(tl.multiple_of(pointer + places, 16))
    else:
        values = tl.load(pointer + places, mask=inside, other=0.0)
    return values


@triton.jit
def _write(pointer, places, values, inside, WHOLE: tl.constexpr):
    values = values.to(pointer.dtype.element_ty)
    if WHOLE:
        tl.store(tl.multiple_of(pointer + places, 16), values)
    else:
        tl.store(pointer + places, values, mask=inside)


@triton.jit
def _ratio(sums, part, settings):
    """The trust ratio of the part's layer, in float64; 1 for tensors that are not adapted, whose row is −1."""
    row = tl.load(part + ROW)
    length = tl.sqrt(tl.load(sums + row * 2, mask=row >= 0, other=0.0))
    proposed = tl.sqrt(tl.load(sums + row * 2 + 1, mask=row >= 0, other=0.0))
    largest_norm = tl.load(settings + LARGEST_NORM)
    above = tl.where(length > largest_norm, largest_norm, length)
    below = proposed + tl.load(settings + RATIO_DECAY) * length + tl.load(settings + RATIO_EPS)
    defined = (above > 0) & (proposed > 0)
    ratio = tl.load(settings + TRUST_COEFFICIENT) * above / tl.where(defined, below, 1.0)
    smallest, largest = tl.load(settings + SMALLEST_RATIO), tl.load(settings + LARGEST_RATIO)
    return tl.where(defined, tl.where(ratio > largest, largest, tl.where(ratio < smallest, smallest, ratio)), 1.0)


@triton.jit
def _store_sums(partials, first, of_w, of_p):
    place = partials + (tl.program_id(0) + first) * 2
    tl.store(place, tl.sum(of_w).to(tl.float64))
    tl.store(place + 1, tl.sum(of_p).to(tl.float64))


@triton.jit
def _lars_sums(w, g, begin, end, clip, decay, of_w, of_p, WHOLE: tl.constexpr, BLOCK: tl.constexpr):
    for offset in range(begin, end, BLOCK):
        places = offset + tl.arange(0, BLOCK)
        inside = places < end
        x = _read(w, places, inside, WHOLE)
        d = _read(g, places, inside, WHOLE).to(x.dtype) * clip + decay * x
        of_w += x * x
        of_p += d * d
    return of_w, of_p


@triton.jit(do_not_specialize=["first"])
def lars_measure(
    parts, grads, chunks, settings, clip, corrections, partials, first,
    W: tl.constexpr, G: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    part, number, start, count = _piece(parts, chunks, first, CHUNK)
    settings += tl.load(part + GROUP) * SETTINGS
    w, g = _pointer(part + WEIGHT, start, W), _pointer(grads + number, start, G)
    whole = _whole(w.to(tl.int64) | g.to(tl.int64), count, BLOCK)
    coefficient = tl.load(clip).to(W)
    decay = tl.load(settings + PROPOSAL_DECAY).to(W)
    of_w, of_p = tl.zeros([BLOCK], W), tl.zeros([BLOCK], W)
    of_w, of_p = _lars_sums(w, g, 0, whole, coefficient, decay, of_w, of_p, True, BLOCK)
    of_w, of_p = _lars_sums(w, g, whole, count, coefficient, decay, of_w, of_p, False, BLOCK)
    _store_sums(partials, first, of_w, of_p)


@triton.jit
def _lars_moves(
    w, g, v, rounded, begin, end, clip, decay, largest, inside_scale, buffer_scale, of_update, of_buffer,
    WHOLE: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    for offset in range(begin, end, BLOCK):
        places = offset + tl.arange(0, BLOCK)
        inside = places < end
        x = _read(w, places, inside, WHOLE)
        d = _read(g, places, inside, WHOLE).to(x.dtype) * clip + decay * x
        d = tl.where(d > largest, largest, tl.where(d < -largest, -largest, d))  # NaN stays NaN
        d *= inside_scale
        buffer = _read(v, places, inside, WHOLE) * buffer_scale + d
        x -= of_update * d + of_buffer * buffer
        _write(v, places, buffer, inside, WHOLE)
        _write(w, places, x, inside, WHOLE)
        if HALF:
            _write(rounded, places, x, inside, WHOLE)


@triton.jit(do_not_specialize=["first"])
def lars_advance(
    parts, grads, chunks, settings, clip, corrections, sums, first,
    W: tl.constexpr, G: tl.constexpr, R: tl.constexpr, HALF: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    part, number, start, count = _piece(parts, chunks, first, CHUNK)
    settings += tl.load(part + GROUP) * SETTINGS
    w, g, v = _pointer(part + WEIGHT, start, W), _pointer(grads + number, start, G), _pointer(part + FIRST, start, W)
    rounded = _pointer(part + ROUNDED, start, R)
    whole = _whole(w.to(tl.int64) | g.to(tl.int64) | v.to(tl.int64) | rounded.to(tl.int64), count, BLOCK)
    coefficient = tl.load(clip).to(W)
    ratio, lr = _ratio(sums, part, settings), tl.load(settings + LR)
    ratio_inside, lr_inside = tl.load(settings + RATIO_INSIDE) > 0, tl.load(settings + LR_INSIDE) > 0
    inner = (tl.where(ratio_inside, ratio, 1.0) * tl.where(lr_inside, lr, 1.0)).to(W)
    outer = tl.where(ratio_inside, 1.0, ratio) * tl.where(lr_inside, 1.0, lr)
    of_update = (outer * tl.load(settings + SHARE_OF_UPDATE)).to(W)
    of_buffer = (outer * tl.load(settings + SHARE_OF_BUFFER)).to(W)
    decay, largest = tl.load(settings + DECAY).to(W), tl.load(settings + LARGEST_ELEMENT).to(W)
    scale = tl.load(settings + BUFFER_SCALE).to(W)
    _lars_moves(
        w, g, v, rounded, 0, whole, coefficient, decay, largest, inner, scale, of_update, of_buffer, True, HALF, BLOCK
    )
    _lars_moves(
        w, g, v, rounded, whole, count, coefficient, decay, largest, inner, scale, of_update, of_buffer,
        False, HALF, BLOCK,
    )  # fmt: skip


@triton.jit
def lamb_count(steps, groups, settings, corrections, many, BLOCK: tl.constexpr):
    """t ← t + 1; then 1/(1 − β1^t) and 1/√(1 − β2^t), in float64: in float32 they would lose five digits."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < many
    t = tl.load(steps + places, mask=inside, other=0.0) + 1.0
    tl.store(steps + places, t, mask=inside)
    rows = settings + tl.load(groups + places, mask=inside, other=0) * SETTINGS
    t = t.to(tl.float64)
    first = 1.0 - tl.exp(t * tl.load(rows + LOG_BETA1))
    second = 1.0 - tl.exp(t * tl.load(rows + LOG_BETA2))
    tl.store(corrections + places * 2, 1.0 / first, mask=inside)
    tl.store(corrections + places * 2 + 1, 1.0 / tl.sqrt(second), mask=inside)


@triton.jit
def _lamb_update(x, m, v, correction1, correction2, eps, decay):
    return m * correction1 / (tl.sqrt(v) * correction2 + eps) + decay * x


@triton.jit
def _lamb_moments(
    w, g, m, v, begin, end, clip, old1, new1, old2, new2, correction1, correction2, eps, decay, of_w, of_p,
    WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    for offset in range(begin, end, BLOCK):
        places = offset + tl.arange(0, BLOCK)
        inside = places < end
        x = _read(w, places, inside, WHOLE)
        d = _read(g, places, inside, WHOLE).to(x.dtype) * clip
        first = _read(m, places, inside, WHOLE) * old1 + d * new1
        second = _read(v, places, inside, WHOLE) * old2 + d * d * new2
        _write(m, places, first, inside, WHOLE)
        _write(v, places, second, inside, WHOLE)
        u = _lamb_update(x, first, second, correction1, correction2, eps, decay)
        of_w += x * x
        of_p += u * u if WHOLE else tl.where(inside, u * u, 0.0)  # with ε = 0, u is 0/0 beyond the end
    return of_w, of_p


@triton.jit
def _lamb_settings(part, settings, corrections, W: tl.constexpr):
    corrections += tl.load(part + COUNTER) * 2
    correction1, correction2 = tl.load(corrections).to(W), tl.load(corrections + 1).to(W)
    return correction1, correction2, tl.load(settings + EPS).to(W), tl.load(settings + DECAY).to(W)


@triton.jit(do_not_specialize=["first"])
def lamb_measure(
    parts, grads, chunks, settings, clip, corrections, partials, first,
    W: tl.constexpr, G: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    part, number, start, count = _piece(parts, chunks, first, CHUNK)
    settings += tl.load(part + GROUP) * SETTINGS
    w, g = _pointer(part + WEIGHT, start, W), _pointer(grads + number, start, G)
    m, v = _pointer(part + FIRST, start, W), _pointer(part + SECOND, start, W)
    whole = _whole(w.to(tl.int64) | g.to(tl.int64) | m.to(tl.int64) | v.to(tl.int64), count, BLOCK)
    coefficient = tl.load(clip).to(W)
    beta1, beta2 = tl.load(settings + BETA1), tl.load(settings + BETA2)
    old1, new1, old2, new2 = beta1.to(W), (1.0 - beta1).to(W), beta2.to(W), (1.0 - beta2).to(W)
    correction1, correction2, eps, decay = _lamb_settings(part, settings, corrections, W)
    of_w, of_p = tl.zeros([BLOCK], W), tl.zeros([BLOCK], W)
    of_w, of_p = _lamb_moments(
        w, g, m, v, 0, whole, coefficient, old1, new1, old2, new2, correction1, correction2, eps, decay, of_w, of_p,
        True, BLOCK,
    )  # fmt: skip
    of_w, of_p = _lamb_moments(
        w, g, m, v, whole, count, coefficient, old1, new1, old2, new2, correction1, correction2, eps, decay, of_w, of_p,
        False, BLOCK,
    )  # fmt: skip
    _store_sums(partials, first, of_w, of_p)


@triton.jit
def _lamb_moves(
    w, m, v, rounded, begin, end, correction1, correction2, eps, decay, pace,
    WHOLE: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    for offset in range(begin, end, BLOCK):
        places = offset + tl.arange(0, BLOCK)
        inside = places < end
        x = _read(w, places, inside, WHOLE)
        first, second = _read(m, places, inside, WHOLE), _read(v, places, inside, WHOLE)
        x -= pace * _lamb_update(x, first, second, correction1, correction2, eps, decay)
        _write(w, places, x, inside, WHOLE)
        if HALF:
            _write(rounded, places, x, inside, WHOLE)


@triton.jit(do_not_specialize=["first"])
def lamb_advance(
    parts, grads, chunks, settings, clip, corrections, sums, first,
    W: tl.constexpr, G: tl.constexpr, R: tl.constexpr, HALF: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    part, _, start, count = _piece(parts, chunks, first, CHUNK)
    settings += tl.load(part + GROUP) * SETTINGS
    w, m, v = _pointer(part + WEIGHT, start, W), _pointer(part + FIRST, start, W), _pointer(part + SECOND, start, W)
    rounded = _pointer(part + ROUNDED, start, R)
    whole = _whole(w.to(tl.int64) | m.to(tl.int64) | v.to(tl.int64) | rounded.to(tl.int64), count, BLOCK)
    correction1, correction2, eps, decay = _lamb_settings(part, settings, corrections, W)
    pace = (tl.load(settings + LR) * _ratio(sums, part, settings)).to(W)
    _lamb_moves(w, m, v, rounded, 0, whole, correction1, correction2, eps, decay, pace, True, HALF, BLOCK)
    _lamb_moves(w, m, v, rounded, whole, count, correction1, correction2, eps, decay, pace, False, HALF, BLOCK)


@triton.jit
def reduce(partials, ranges, sums, BLOCK: tl.constexpr):
    """One program adds up the chunks of one layer, both columns."""
    row = tl.program_id(0)
    begin, end = tl.load(ranges + row * 2), tl.load(ranges + row * 2 + 1)
    of_w, of_p = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    for offset in range(begin, end, BLOCK):
        places = offset + tl.arange(0, BLOCK)
        of_w += tl.load(partials + places * 2, mask=places < end, other=0.0)
        of_p += tl.load(partials + places * 2 + 1, mask=places < end, other=0.0)
    tl.store(sums + row * 2, tl.sum(of_w))
    tl.store(sums + row * 2 + 1, tl.sum(of_p))


@triton.jit(do_not_specialize=["first"])
def gradient_squares(
    parts, grads, chunks, partials, first, W: tl.constexpr, G: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr
):
    _, number, start, count = _piece(parts, chunks, first, CHUNK)
    g = _pointer(grads + number, start, G)
    whole = _whole(g.to(tl.int64), count, BLOCK)
    total, nothing = tl.zeros([BLOCK], W), tl.zeros([BLOCK], W)
    total = _squares(g, 0, whole, total, True, BLOCK)
    total = _squares(g, whole, count, total, False, BLOCK)
    _store_sums(partials, first, total, nothing)


@triton.jit
def _squares(g, begin, end, total, WHOLE: tl.constexpr, BLOCK: tl.constexpr):
    for offset in range(begin, end, BLOCK):
        places = offset + tl.arange(0, BLOCK)
        d = _read(g, places, places < end, WHOLE).to(total.dtype)
        total += d * d
    return total


@triton.jit
def clip_coefficient(sums, many, largest, coefficient, BLOCK: tl.constexpr):
    """min(1, largest / (√ of all layers' first column + 1e-6))."""
    total = tl.zeros([BLOCK], tl.float64)
    for offset in range(0, many, BLOCK):
        places = offset + tl.arange(0, BLOCK)
        total += tl.load(sums + places * 2, mask=places < many, other=0.0)
    found = tl.load(largest) / (tl.sqrt(tl.sum(total)) + 1e-6)
    tl.store(coefficient, tl.where(found > 1.0, 1.0, found))

"""How much of the device's arithmetic a training step uses: model FLOP/s over the peak (Chowdhery et al. 2022,
arXiv:2204.02311, appendix B).

The FLOPs are those of forward and backward as torch counts them for matrix products and convolutions (two for each
multiply-add), on tensors without memory; normalisation, activations and the optimizer count nothing, and neither does
what is computed again. The peak is the datasheet's, where the device is known, and what one large matrix product
reaches here in the same precision.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from largebatch.data.nested import Batch, cast, examples_of, mapped
from largebatch.tasks.task import Task

MLPERF_IMAGES_PER_SECOND = 7760  # per GPU: MLPerf Training v4.0, ResNet-50 on 8 H200: 35 epochs in 12.03 minutes
MLPERF_SIDE = 224
SECONDS = 0.3  # at least, that the matrix products are timed


class Peak(NamedTuple):
    """TFLOP/s without sparsity, and whose word it is. ``half`` is bf16 and fp16, ``fp32`` on tensor cores TF32."""

    device: str  # as a regular expression over torch's name of the device
    half: float | None
    fp32: float | None
    source: str
    bf16: bool = True


PEAKS = (  # the first that fits
    Peak(r"\bB200\b", 2250.0, 1125.0, "NVIDIA HGX B200 datasheet, half of the sparse rate"),
    Peak(r"\bH(100|200) NVL\b", 835.5, 417.5, "NVIDIA H100 and H200 NVL datasheets, half of the sparse rate"),
    Peak(r"\bH100 PCIe\b", 756.0, 378.0, "NVIDIA H100 PCIe datasheet, half of the sparse rate"),
    Peak(r"\bH(100|200)\b", 989.5, 494.5, "NVIDIA H100 and H200 SXM datasheets, half of the sparse rate"),
    Peak(r"\bA100\b", 312.0, 156.0, "NVIDIA A100 datasheet"),
    Peak(r"\bV100.*PCIE\b", 112.0, 14.0, "NVIDIA V100 PCIe datasheet", bf16=False),
    Peak(r"\bV100-SXM2\b", 125.0, 15.7, "NVIDIA V100 SXM2 datasheet", bf16=False),
    Peak(r"\bL4\b", 121.0, 60.0, "NVIDIA L4 datasheet, half of the sparse rate"),
    Peak(r"\bRTX 4090$", 165.2, 82.6, "NVIDIA Ada architecture whitepaper, sums in fp32"),
)


class Flops(NamedTuple):
    forward: int
    backward: int

    @property
    def total(self) -> int:
        return self.forward + self.backward


def of_one_example(model: nn.Module, task: Task, batch: Batch) -> Flops:
    """Of a plain ``model``, which moves to the meta device; the examples of a ``batch`` cost alike."""
    model, count = model.to("meta").train(), examples_of(batch)
    batch = cast(mapped(lambda tensor: tensor.to("meta"), batch), next(model.parameters()).dtype)
    counter = FlopCounterMode(display=False)
    with counter:
        loss = task.loss(task.forward(model, batch), batch)
    forward = counter.get_total_flops()
    with counter:  # counts anew
        loss.backward()
    return Flops(forward // count, counter.get_total_flops() // count)


def datasheet_peak(device_name: str, precision: str) -> tuple[float, str] | None:
    """FLOP/s and its source; None for a device or a precision that no datasheet here speaks of."""
    if "MIG" in device_name or "Laptop" in device_name:
        return None  # a part of a device, or another one of the same name
    for peak in PEAKS:
        if re.search(peak.device, device_name):
            if precision == "bf16" and not peak.bf16:
                return None
            rate = {"bf16": peak.half, "fp16": peak.half, "fp32": peak.fp32}.get(precision)
            return None if rate is None else (1e12 * rate, peak.source)
    return None


def measured_peak(device: torch.device, precision: str, side: int | None = None) -> float:
    """FLOP/s of the fastest of some products of two large square matrices; TF32 where the device has it and the
    precision is fp32, as torch's convolutions do."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}.get(precision, torch.float32)
    side = side or (8192 if device.type == "cuda" else 1024)
    with torch.no_grad(), tf32():
        one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        least = float("inf")
        torch.matmul(one, other)
        began = time.perf_counter()
        while least == float("inf") or time.perf_counter() - began < SECONDS:
            least = min(least, _seconds_of_product(one, other))
    return 2.0 * side**3 / least


def _seconds_of_product(one: torch.Tensor, other: torch.Tensor) -> float:
    if one.is_cuda:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        torch.matmul(one, other)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000
    begin = time.perf_counter()
    torch.matmul(one, other)
    return time.perf_counter() - begin


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    """Inside, products of fp32 matrices may use it; only CUDA devices have it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

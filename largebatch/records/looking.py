"""What a run writes down where somebody looks into its steps, ``profile/`` and ``pictures/``, and the table of a
model's layers that ``largebatch recipe model`` makes.

``docs/run_directory.md`` is made from this file, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from largebatch.records.typed import Amount, Count, FileRecord, Flag, Name, Number, Text, Whole, part


@dataclass(frozen=True, kw_only=True)
class ProfiledOperator:
    """Calls of one name (and, with ``shapes``, of one shape of inputs) inside the steps; those within them count, too,
    but for what is called self."""

    name: Name
    calls: Count
    cpu_seconds: Number  # [s] on the host
    self_cpu_seconds: Number  # [s] without the operators that it calls
    device_seconds: Amount = None  # [s] of the kernels that it launches, on CUDA
    self_device_seconds: Amount = None  # [s] without those of the operators that it calls
    shapes: Text = None  # of its inputs, where they were asked for


@dataclass(frozen=True, kw_only=True)
class ProfiledKernel:
    """Executions of one kernel, or copies of one kind, on the device: those that the steps launched."""

    name: Name
    calls: Count
    device_seconds: Number  # [s]


@dataclass(frozen=True, kw_only=True)
class ProfileRecord(FileRecord):
    """Where ``record.profile`` asks: what the steps of one rank were made of. What happens between two steps
    (evaluations, records, checkpoints) is in the trace, and not here."""

    kind: Name = "profile"
    first_step: Count  # counted from 1
    last_step: Count
    rank: Count
    world_size: Count  # ranks
    device: Text
    warmed_up: Flag  # whether the profiler was ready a step before the first
    step_seconds: Sequence[float]  # [s] of each step, with what the profiler costs
    trace: Name  # the file of the Chrome trace beside this one
    operators: Sequence[Annotated[ProfiledOperator, part(ProfiledOperator)]]  # most of their own time first
    kernels: Sequence[Annotated[ProfiledKernel, part(ProfiledKernel)]] | None = None  # the same, on CUDA


@dataclass(frozen=True, kw_only=True)
class PicturesRecord(FileRecord):
    """Where ``record.pictures`` asks: the first examples of a training batch as the network saw them, of rank 0."""

    kind: Name = "pictures"
    step: Count  # counted from 1
    file: Name  # the picture beside this one
    examples: Count  # shown
    channels: Count
    height: Whole  # [pixels]
    width: Whole  # [pixels]
    labels: Sequence[str]  # of each example, in words; of mixed ones with their shares
    levels: Text  # how numbers became grey or colour, in words


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """A module of the model with all that is below it."""

    name: Text  # as in checkpoints; empty: the whole
    type: Name  # its class
    depth: Count  # modules above it
    trainable: Count  # parameters, each once
    frozen: Count  # parameters
    calls: Count  # in one forward pass
    output_shape: Sequence[int] | None  # of its first output, the micro-batch first; null: it gave no tensor
    forward_flops: Whole  # [FLOP] for one example, two for each multiply-add of a matrix product or a convolution
    share_percent: Amount  # [%] of the whole's
    activation_bytes: Whole  # [bytes] kept for the backward pass of one micro-batch


@dataclass(frozen=True, kw_only=True)
class ModelRecord(FileRecord):
    """The ``--json`` file of ``largebatch recipe model``."""

    kind: Name = "model"
    recipe: Text
    model: Text
    data: Text
    task: Text
    device: Text  # that is pretended
    precision: Text
    micro_batch_size: Count  # [examples]
    input_shape: Sequence[int]  # of the first tensor of the micro-batch
    trainable: Count  # parameters, each once
    frozen: Count  # parameters
    forward_flops: Count  # [FLOP] for one example
    backward_flops: Count  # [FLOP] for one example
    activation_bytes: Count  # [bytes] kept for the backward pass of one micro-batch
    layers: Sequence[Annotated[LayerRow, part(LayerRow)]]  # all of them, the whole first
    outside_flops: Count  # [FLOP] for one example in none of them: of the loss

"""What one step of an optimizer costs, beside torch's and timm's and beside the memory's bandwidth.

All contestants step on the same weights and gradients in one process, turn by turn, with a copy of memory among them;
the order is reversed every other round and the first rounds are dropped. A time is the median over rounds; a ratio to
a peer is the median of the ratios within each round. A peer is timm's optimizer in the form that it takes by itself.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import rich.box
import rich.table
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from largebatch import models
from largebatch.errors import UserError
from largebatch.machine import launched
from largebatch.records.circumstances import circumstances_of
from largebatch.studies.bench.contestants import (
    Arena,
    Family,
    TimedOptimizer,
    captured,
    contestants_of,
    deepspeed_lamb,
    families,
    that_fit,
)
from largebatch.studies.bench.matrices import families_of_muon

DEFAULT_MODELS = ("resnet50", "vit_large")
OF_MUON = ("resnet50", "bert_base")
SHORT_NAMES = {"vit_large": "timm/vit_large_patch16_224", "bert_base": "bert"}
IMAGENET = {"num_classes": 1000, "image_shape": (3, 224, 224)}
BERT = {"num_classes": 30_522, "image_shape": (128,), "arguments": {"size": "base"}}
LAUNCHES = {"cuda": "kernels", "cpu": "operators"}
DROPPED = 2  # rounds
STEPS = 20  # timed together on CUDA
UNTIMED = 3  # steps before them
WANTED_OF_PEER = {"Lars": 0.7, "Lamb": 0.4}  # at most, on the CPU
WANTED_SPEEDUP, WANTED_OF_BOUND = 8.0, 1.5  # at least, at most, on CUDA
WANTED_OF_TORCHS_MUON = 1.5  # times as fast, at least

Times = dict[str, list[float]]  # milliseconds per step of each round, by the contestant's name


def built(names: list[str], repeats: int) -> list[tuple[str, nn.Module]]:
    """The models on the CPU. Every mistake of the command is found here, before anything is measured."""
    if repeats < 3:
        raise UserError(f"--repeats {repeats} is too few for a median and its spread; at least 3")
    made = []
    for name in names:
        try:
            shape: dict[str, Any] = BERT if name == "bert_base" else IMAGENET
            made.append((name, models.build(SHORT_NAMES.get(name, name), **shape)))
        except UserError as error:
            raise UserError(str(error).replace("model.name =", "--model")) from None
    return made


def check_alone() -> None:
    if launched.number(os.environ, "WORLD_SIZE", 1) > 1:
        raise UserError("bench optimizer measures one process; start it without a launcher")


def circumstances(device: torch.device, repeats: int, command: str) -> dict[str, Any]:
    """What holds for all models of a command; ``models`` is filled with what :func:`measure` returns."""
    return {
        "device": device.type,
        "repeats": repeats,
        "rounds_dropped": DROPPED,
        "steps_per_repeat": STEPS if device.type == "cuda" else 1,
        "models": [],
        **circumstances_of(command, device),
    }


def measure(name: str, model: nn.Module, device: torch.device, repeats: int, muon: bool = False) -> dict[str, Any]:
    """The numbers of one model; every number with its unit in its name. ``contestants`` is empty without memory.

    ``muon``: of torch's Muon and ours, and nobody else.
    """
    gc.collect()
    entered, sentence = that_fit(families_of_muon(model, name) if muon else families(device), model, device)
    left_out = [sentence] if sentence else []
    facts: dict[str, Any] = {"model": name, "device": device.type, "left_out": left_out, "contestants": []}
    if not entered:
        return facts
    arena = Arena(model, device)
    contestants, waits, more = _enter(arena, entered)
    left_out.extend(more)
    times, copies = _rounds(arena, contestants, repeats)
    copied = 2 * arena.source.numel() * arena.source.element_size() / 1e9
    bandwidth = copied / statistics.median(copies) * 1e3
    peers = {c.family.name: c.name for c in contestants if c.form == c.family.default}
    facts |= {
        "tensors": len(arena.parameters),
        "parameters": arena.elements,
        "copy_gigabytes": copied,
        "copy_milliseconds": copies,
        "copy_gigabytes_per_second_median": bandwidth,
        "contestants": [_row(arena, c, peers.get(c.family.peer or ""), times, bandwidth) for c in contestants],
    }
    if device.type == "cuda":
        facts["no_host_synchronisation"] = {who: not waiting for who, waiting in waits.items()}
    facts["wanted"] = _wanted(device.type, facts["contestants"]) + _wanted_of_muon(facts["contestants"])
    return facts


def table(facts: dict[str, Any]) -> rich.table.Table:
    rows = facts["contestants"]
    repeats = len(facts["copy_milliseconds"])
    size = f"{facts['tensors']} tensors, {facts['parameters'] / 1e6:,.1f} million parameters"
    title = f"{facts['model']} on {facts['device']}: {size}, {repeats} rounds"
    shown = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    launches = LAUNCHES[facts["device"]]
    whose = "torch" if any(row["peer"] == "torch Muon, plain" for row in rows) else "timm"
    short = {"operators": "ops"}.get(launches, launches)  # a row fits 80 columns
    for heading in ("optimizer", "form", "ms", "quartiles", short, "GB", "× bound", f"× {whose}'s"):
        shown.add_column(heading, justify="left" if heading in ("optimizer", "form") else "right", no_wrap=True)
    for number, row in enumerate(rows):
        low, high = row["milliseconds_quartiles"]
        shown.add_row(
            row["optimizer"],
            row["form"],
            _short(row["milliseconds_median"]),
            f"{_short(low)}–{_short(high)}",
            f"{row[f'{launches}_per_step']:,}",
            _short(row["gigabytes_that_must_move"]),
            f"{row['times_bandwidth_bound']:.2f}",
            "" if row["times_peer"] is None else f"{row['times_peer']:.2f}",
            end_section=number + 1 == len(rows) or rows[number + 1]["optimizer"] != row["optimizer"],
        )
    return shown


def notes(facts: dict[str, Any]) -> list[str]:
    """What is said below the table, or instead of it."""
    said = [f"{facts['model']}: {sentence}" for sentence in facts["left_out"]]
    if not facts["contestants"]:
        return said
    speed = _short(facts["copy_gigabytes_per_second_median"])
    said.append(f"bound: the GB that a step must move at {speed} GB/s, the median of copies in the same rounds")
    if facts["device"] == "cpu":
        said.append("a ratio below 1 is possible: a copy also loads what it overwrites, and layers may fit a cache")
        said.append("ops: the operators of torch that a step dispatches, views not counted")
    said += [
        f"{name}, fused: no host synchronisation in a step: {'yes' if free else 'no'}"
        for name, free in facts.get("no_host_synchronisation", {}).items()
    ]
    for fact in facts["wanted"]:
        bound = f"at most {fact['at_most']:g}" if "at_most" in fact else f"at least {fact['at_least']:g}"
        said.append(f"{fact['what']}: {fact['measured']:.2f}, wanted {bound}")
    return said


def operators(step: Callable[[], Any]) -> int:
    """How many of torch's operators a step dispatches that are not mere views."""

    class Count(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.number += func.namespace == "aten" and not func.is_view
            return func(*args, **(kwargs or {}))

    with Count() as count:
        step()
    return count.number


def kernels(step: Callable[[], Any]) -> int:
    """How many kernels a step runs on the device; copies and fills by the driver are none."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    on_device = [e for e in seen.events() or () if e.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not (e.is_user_annotation or e.name.startswith(("Memcpy", "Memset", "Optimizer."))) for e in on_device)


def synchronises(step: Callable[[], Any]) -> bool:
    """Whether a step on CUDA makes the host wait for the device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the check is a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            return True
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return False


def _enter(arena: Arena, entered: list[Family]) -> tuple[list[TimedOptimizer], dict[str, bool], list[str]]:
    """Contestants after their first steps, with their launches counted; who makes the host wait; who is missing."""
    on_cuda = arena.device.type == "cuda"
    count = kernels if on_cuda else operators
    count(arena.copy)  # the profiler's own first time
    contestants: list[TimedOptimizer] = []
    waits: dict[str, bool] = {}
    missing: list[str] = []
    for family in entered:
        made, sentences = contestants_of(family, arena)
        missing += sentences
        fused = next((c for c in made if c.form == "fused" and family.name in WANTED_OF_PEER), None)
        if on_cuda and fused:
            fused.prepare()
            fused.step()
            waits[family.name] = synchronises(fused.step)
            graph = f"{family.name}, fused, CUDA graph"
            if waits[family.name]:
                missing.append(f"{graph} is not in the table: the step makes the host wait")
            else:
                made += _try(missing, graph, lambda family=family: [captured(family, arena)])
        contestants += made
    if on_cuda and any(family.algebra == "LAMB" for family in entered):
        name = "DeepSpeed's FusedLamb"
        contestants += _try(missing, name, lambda: contestants_of(deepspeed_lamb(), arena)[0])
    for contestant in contestants:
        contestant.prepare()
        contestant.step()
        contestant.launches = count(contestant.step)
        if contestant.edits_gradients:
            arena.restore()
    return contestants, waits, missing


def _try(missing: list[str], name: str, make: Callable[[], list[TimedOptimizer]]) -> list[TimedOptimizer]:
    """What another's code or the driver may refuse, with a sentence about why."""
    try:
        return make()
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        missing.append(f"{name} is not in the table: {reason[0]}")
        return []


def _rounds(arena: Arena, contestants: list[TimedOptimizer], repeats: int) -> tuple[Times, list[float]]:
    """Milliseconds per step of each contestant, and of the copy, in the same rounds."""
    timed = _milliseconds_on_cuda if arena.device.type == "cuda" else _milliseconds_on_cpu
    times: Times = {contestant.name: [] for contestant in contestants}
    copies: list[float] = []
    turns: list[TimedOptimizer | None] = [*contestants, None]
    for number in range(DROPPED + repeats):
        for contestant in turns if number % 2 == 0 else reversed(turns):
            if contestant is None:
                copies.append(timed(arena.copy))
                continue
            contestant.prepare()
            times[contestant.name].append(timed(contestant.step))
            if contestant.edits_gradients:
                arena.restore()
    return {name: values[DROPPED:] for name, values in times.items()}, copies[DROPPED:]


def _milliseconds_on_cpu(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return (time.perf_counter() - start) * 1e3


def _milliseconds_on_cuda(step: Callable[[], Any]) -> float:
    """Of one of many steps; where the host is slower than the device, it is the host's time."""
    for _ in range(UNTIMED):
        step()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(STEPS):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / STEPS


def _row(
    arena: Arena, contestant: TimedOptimizer, peer: str | None, times: Times, bandwidth_gigabytes_per_second: float
) -> dict[str, Any]:
    gigabytes = arena.gigabytes_that_must_move(contestant.family.algebra)
    own = times[contestant.name]
    low, median, high = statistics.quantiles(own, n=4, method="inclusive")
    return {
        "optimizer": contestant.family.name,
        "form": contestant.form,
        "milliseconds": own,
        "milliseconds_median": median,
        "milliseconds_quartiles": [low, high],
        f"{LAUNCHES[arena.device.type]}_per_step": contestant.launches,
        "gigabytes_that_must_move": gigabytes,
        "times_bandwidth_bound": median * bandwidth_gigabytes_per_second / gigabytes / 1e3,
        "peer": peer,
        "times_peer": median_ratio(own, times[peer]) if peer else None,
        "edits_gradients": contestant.edits_gradients,
    }


def median_ratio(times: list[float], others: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def _wanted(device: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the project wants of its fused forms, beside what was measured: facts, nobody fails by them."""
    facts = []
    for row in rows:
        if row["optimizer"] not in WANTED_OF_PEER or row["form"] != "fused":
            continue
        for peer in (r for r in rows if r["optimizer"] == f"timm {row['optimizer']}"):
            ratio = median_ratio(row["milliseconds"], peer["milliseconds"])
            name = f"{peer['optimizer']}, {peer['form']}"
            whose = f"{name} (its default here)" if peer["peer"] == name else name
            if device == "cpu":
                what = f"{row['optimizer']}, fused: time over that of {whose}"
                facts.append({"what": what, "measured": ratio, "at_most": WANTED_OF_PEER[row["optimizer"]]})
            else:
                what = f"{row['optimizer']}, fused: times faster than {whose}"
                facts.append({"what": what, "measured": 1 / ratio, "at_least": WANTED_SPEEDUP})
        if device == "cuda":
            what = f"{row['optimizer']}, fused: times the bandwidth bound"
            facts.append({"what": what, "measured": row["times_bandwidth_bound"], "at_most": WANTED_OF_BOUND})
    return facts


def _wanted_of_muon(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    what = "Muon, batched: times faster than torch Muon, plain"
    return [
        {"what": what, "measured": 1 / row["times_peer"], "at_least": WANTED_OF_TORCHS_MUON}
        for row in rows
        if (row["optimizer"], row["form"]) == ("Muon", "batched") and row["times_peer"]
    ]


def _short(number: float) -> str:
    """Three digits, or all before the point."""
    return f"{number:,.{3 if number < 1 else max(0, 3 - len(str(int(number))))}f}"

"""What follows from one recipe at a batch size: each number with its rule and where it was written. No torch, no data.

Steps at which something changes are steps done before it, as the schedule counts examples seen *before* a step.
What a machine would decide is decided as on CUDA unless the recipe says otherwise. Where a step of
the large batch is worth its gain, lengths are those of the scale-invariant clock.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich.table

from largebatch.data import Asked, sets
from largebatch.data.sizes import constant
from largebatch.errors import UserError
from largebatch.plan.batch import TOKEN_PIXELS, BatchPlan
from largebatch.recipes import config, derive, ramps, refusals
from largebatch.recipes.decide import decide, moments_beside, precision_of
from largebatch.recipes.decided import DataFacts, Decided, ExplainedSchedule
from largebatch.recipes.phases_read_aloud import facts_of
from largebatch.studies.reading.files import Listed, in_words, paper_of, plain, published_of
from largebatch.studies.reading.phases import rows_of_phases
from largebatch.terminal.plot import plot

LARGEST = 10**12


def derived(
    path: Path, overrides: list[str], batch: int | None = None, devices: int = 1, examples: int | None = None
) -> Listed:
    """Everything that follows from a recipe, with the rule and the place each number comes from; plain data."""
    for option, number in (("devices", devices), ("examples", examples or 1)):
        if number > LARGEST:
            raise UserError(f"--{option} {str(number)[:40]} is too large; at most {LARGEST}")
    if batch is not None:
        overrides = [*overrides, f"batch.global_batch_size={batch}"]
    run = config.load(path, overrides)
    device = "cpu" if run.device == "cpu" else "cuda"
    refusals.check(run, precision_of(run.precision, device))
    facts = data_facts(run, examples)
    size, from_what = training_examples(run.data, examples)
    decided = decide(run, facts, devices, device)
    plan, lr = decided.plan, decided.lr
    origin = origins(path, overrides, run.batch.global_batch_size)
    rows = [
        *_model_rows(run, origin),
        *_batch_rows(run, plan, origin),
        ("training set", f"{size:,} examples", from_what, origin("data")),
        *_budget_rows(run, plan, origin),
        *(_lr_rows(run, plan, lr, origin) if run.phases is None else rows_of_phases(run, decided, origin)),
        *_optimizer_rows(run, decided, origin),
        *_method_rows(run, decided, origin),
        _published_row(run),
    ]
    return {
        "path": str(path),
        "title": run.title,
        "paper": paper_of(path, run.title),
        "model": run.model.name,
        "data": run.data.name,
        "global_batch_size": plan.global_batch_size,
        "world_size": plan.world_size,
        "micro_batch_size": plan.micro_batch_size,
        "accumulation_steps": plan.accumulation_steps,
        "dataset_size": size,
        "steps": plan.steps,
        "epochs": plan.budget_examples / size,
        "peak_lr": decided.peak_lr,
        "warmup_epochs": lr.schedule.warmup / size,
        "rows": [dict(zip(("what", "value", "rule", "from"), row, strict=True)) for row in rows],
        "schedule": [[epoch, decided.lr_at(epoch * size)] for epoch in _epochs(decided)],
        "phases": facts_of(decided),
        "stages": [
            {
                "epoch": s.first_example / size, "step": s.first_step, "global_batch_size": s.global_batch_size,
                "micro_batch_size": s.micro_batch_size, "accumulation_steps": s.accumulation_steps,
            }
            for s in plan.stages
        ],
        "clock": "scale-invariant" if decided.clock else "examples seen",
        "published": published_of(run),
    }  # fmt: skip


def data_facts(run: config.Run, examples: int | None = None) -> DataFacts:
    """Of the data set as it was published, or with so many ``examples``; no file is read."""
    data = of_largest_examples(run)
    known = sets.known(data.name)
    sets.check(known, asked_of(data))
    first = config.of_phases(run)[0].data  # in whose sequences epochs are counted
    return DataFacts(training_examples(first, examples)[0], pixels_of(data), known.task)


def training_examples(data: config.Data, examples: int | None = None) -> tuple[int, str]:
    """How many there are to train on, and why."""
    known = sets.known(data.name)
    whole = examples or known.counts(asked_of(data))[0]
    if whole is None:
        raise UserError(f"data.name = {data.name} holds {known.holds}; say how many: --examples N")
    sets.leaves_some(data.hold_out, whole)
    why = "--examples" if examples else data.name
    return whole - data.hold_out, f"{why}, {data.hold_out:,} of {whole:,} held out" if data.hold_out else why


def pixels_of(data: config.Data) -> int:
    """Of the largest image of a training step, or what a sequence counts like; else 1."""
    known, asked = sets.known(data.name), asked_of(data)
    shape = known.shape(asked)
    if "length" in known.takes:
        return TOKEN_PIXELS * shape[0]
    return math.prod(shape[1:]) if len(shape) == 3 else 1


def of_largest_examples(run: config.Run) -> config.Data:
    """The data section of the phase that has them."""
    return max((laid.data for laid in config.of_phases(run)), key=lambda data: data.size or 0)


def asked_of(data: config.Data) -> Asked:
    """With the largest side of all."""
    side, length = (None if size is None else constant(size) for size in (data.side, data.length))
    return Asked.of(data, image_size=side, length=length)


Origin = Callable[..., str]
Row = tuple[str, str, str, str]


def origins(path: Path, overrides: list[str], size: int) -> Origin:
    """``origin('lr.base', ...)``: what set the first of these keys that anything set."""
    written = config.read(path)
    by_hand = [override.partition("=")[0] for override in overrides]
    row = written.get("table", {}).get(size, {})

    def touched(key: str, keys: Any) -> bool:
        return any(other == key or f"{key}.".startswith(f"{other}.") or other.startswith(f"{key}.") for other in keys)

    def stated(key: str) -> bool:
        section: Any = written
        if key.startswith("phases."):
            _, number, *rest = key.split(".")
            section = written.get("phases") or []
            section = section[int(number) - 1] if int(number) <= len(section) else {}
            return not rest or touched(".".join(rest), section)
        for name in key.split("."):
            if not isinstance(section, dict) or name not in section:
                return False
            section = section[name]
        return True

    def origin(*keys: str) -> str:
        for key in keys:
            if touched(key, by_hand):
                return "by hand"
        for key in keys:
            if touched(key, row):
                return f"table row {size}"
        return "recipe" if any(stated(key) for key in keys) else "default"

    return origin


def _model_rows(run: config.Run, origin: Origin) -> list[Row]:
    """What it begins with and what of it is not trained, where a recipe says so."""
    rows, model = [], run.model
    if model.weights is not None:
        head = "but for its head" if model.weights.head == "fresh" else ""
        rows.append(("begins with", model.weights.words, head, origin("model.weights")))
    if run.start is not None:
        head = "but for its head" if run.start.head == "fresh" else ""
        rows.append(("begins with", run.start.words, head, origin("start")))
    if model.frozen:
        rows.append(("frozen", ", ".join(model.frozen), "", origin("model.frozen")))
    return rows


def _batch_rows(run: config.Run, plan: BatchPlan, origin: Origin) -> list[Row]:
    made_of = f"{plan.world_size} × {plan.micro_batch_size:,} × {plan.accumulation_steps}"
    rule = "ranks × micro-batch × accumulation"
    if run.batch.stated_micro_batch_size is None and not sized_by_methods(run, plan.world_size):
        rule += f", as on {'CPU' if run.device == 'cpu' else 'CUDA'}"
    if run.batch.tries_micro_batches and run.device != "cpu":
        rule += " before anything is tried (batch.micro_batch_size = auto)"
    rows = [("global batch", f"{plan.global_batch_size:,} = {made_of}", rule, origin("batch.global_batch_size"))]
    if run.phases is not None:
        rows = [("global batch", f"of {len(plan.stages)} phases", "below", origin("phases"))]
    for stage in plan.stages[1:] if run.phases is None else ():
        made_of = f"{plan.world_size} × {stage.micro_batch_size:,} × {stage.accumulation_steps}"
        when = f"from epoch {stage.first_example / plan.dataset_size:.4g}, after {stage.first_step:,} steps"
        rows.append(("  then", f"{stage.global_batch_size:,} = {made_of}", when, origin("batch.ramp")))
    if (ramp := run.batch.ramp) is not None and ramp.rule == "adaptive":
        sizes = " → ".join(f"{size:,}" for size in ramps.may_come_to(run))
        rows.append(("  may come to", sizes, ramp.words, origin("batch.ramp")))
    if (words := derive.words_of_sizes(run)) and derive.sides_of(run) is None:
        rows.append(("images", *words, origin("data.image_size")))
    for key, words in derive.words_of_augmentation(run).items():
        rows.append((key.removeprefix("data."), words, "", origin(key)))
    if run.batch.bn_batch_size is None:
        sizes = dict.fromkeys(f"{stage.micro_batch_size:,}" for stage in plan.stages)
        rows.append(("batch norm over", ", ".join(sizes), "the micro-batch", "default"))
    else:
        ranks = derive.synchronised_ranks(run, plan.world_size)
        rule = f"shared by {ranks} ranks" if ranks > 1 else "a part of the micro-batch"
        rows.append(("batch norm over", f"{run.batch.bn_batch_size:,}", rule, origin("batch.bn_batch_size")))
    if run.batch_norm.statistics != "running":
        rows.append(("  evaluated with", run.batch_norm.statistics, "batch-norm statistics", origin("batch_norm")))
    for key, words in derive.words_of_test_views(run).items():
        rows.append(("tests", words, "", origin(key)))
    return rows


def sized_by_methods(run: config.Run, world_size: int) -> bool:
    """Whether a method states the micro-batch."""
    wishes = (method.micro_batch(run, world_size) for method in run.methods.values())
    return any(wish is not None and wish.size is not None for wish in wishes)


def _budget_rows(run: config.Run, plan: BatchPlan, origin: Origin) -> list[Row]:
    epochs, stretch = plan.budget_examples / plan.dataset_size, run.stretch
    if run.epochs is None:
        whose = "the batch" if run.phases is None else "the batch of each phase"
        rule = f"{run.steps:,} steps × {whose} / {plan.dataset_size:,}"
    elif stretch > 1 and run.regime_adaptation is not None:
        reference = run.regime_adaptation.reference_batch_size
        rule = f"regime adaptation: {run.epochs:g} × ceil({plan.global_batch_size}/{reference}) = × {stretch}"
    else:
        rule = ""
    rows = [("epochs", f"{epochs:.4g}", rule, origin("epochs", "regime_adaptation"))]
    if clock := derive.clock_of(run):
        least = math.ceil(plan.steps / clock.parts)
        rule = f"the clock's {plan.steps:,} reference steps, each step worth its gain of 1 to {clock.parts}"
        return [*rows, ("steps", f"{least:,} to {plan.steps:,}", rule, origin("epochs", "steps"))]
    if run.batch.ramp is not None and run.batch.ramp.rule == "adaptive":
        rule = "of a batch that stays; fewer where it grows"
        return [*rows, ("steps", f"at most {plan.steps:,}", rule, origin("epochs"))]
    if run.epochs is None:
        rule = ""
    elif len(plan.stages) > 1:
        rule = "the stages' steps, the last one full" if run.phases is None else "of all phases, the last one full"
    else:
        rule = f"ceil({epochs:.4g} × {plan.dataset_size:,} / {plan.global_batch_size:,})"
    return [*rows, ("steps", f"{plan.steps:,}", rule, origin("epochs", "steps"))]


def _lr_rows(run: config.Run, plan: BatchPlan, lr: ExplainedSchedule, origin: Origin) -> list[Row]:
    schedule = lr.schedule
    keys = ("lr.base", "lr.table", "lr.scaling", "lr.reference_batch_size", "lr.noise_scale")
    epochs = f"{schedule.warmup / plan.dataset_size:g} epochs"
    rows = [("peak lr", f"{schedule.peak:g}", lr.rule, origin(*keys))]
    length = f"{epochs} = {_steps(run, plan, schedule.warmup)}" if schedule.warmup else "none"
    rows.append(("warm-up", length, lr.warmup.removeprefix(epochs).strip().removeprefix("none"), origin("lr.warmup")))
    begin, _ = schedule.decay_span
    scales = run.lr.scales.items()
    rest = plan.steps - plan.first_step_at(begin)
    if schedule.milestones:
        after = ", ".join(_steps(run, plan, at).removesuffix(" steps") for at in schedule.milestones)
        rule = f"after {after} steps"
    elif not run.lr.decay.CHANGES:
        rule = ""
    elif derive.clock_of(run):
        rule = "over the rest of the clock"
    elif run.lr.decay.in_steps:
        rule = ""
    else:
        rule = f"over the {rest:,} steps after the warm-up" if begin else f"over all {rest:,} steps"
    rows.append(("decay", lr.decay, rule, origin("batch.ramp" if derive.growth_of(run)[1] else "lr.decay")))
    return [*rows, *((f"  of {tensors}", f"lr {one.words}", "", origin("lr.scales")) for tensors, one in scales)]


def _steps(run: config.Run, plan: BatchPlan, examples: float) -> str:
    if clock := derive.clock_of(run):
        at_most = math.ceil(examples / clock.reference - 1e-9)
        return f"{math.ceil(at_most / clock.parts):,} to {at_most:,} steps"
    return f"{plan.first_step_at(examples):,} steps"


def _optimizer_rows(run: config.Run, decided: Decided, origin: Origin) -> list[Row]:
    left_out = {"name", "variant", "skip_adaptation", "beta2_half_life"}
    section = decided.optimizer.model_dump(exclude_none=True, exclude=left_out)
    skipped = run.optimizer.not_adapted
    momentum = {key: section.pop(key) for key in ("momentum", "nesterov", "beta1", "beta2") if key in section}
    others = ", ".join(f"{key} {_value(value)}" for key, value in section.items() if value is not False and value != ())
    rows = [("optimizer", run.optimizer.words, others, origin("optimizer.name", "optimizer.variant"))]
    if momentum:
        value = ", ".join(f"{key} {value:g}" for key, value in momentum.items() if key not in ("momentum", "nesterov"))
        if "momentum" in momentum:
            value = f"{momentum['momentum']:g}" + (f", {value}" if value else "")
        rule = "Nesterov" if momentum.get("nesterov") else ""
        keys = [f"optimizer.{key}" for key in momentum if key != "nesterov" or rule]
        rows.append(("momentum", value, rule, origin(*keys)))
    rows += [("  at this batch", at.words, "", origin(at.key)) for at in moments_beside(run, decided.plan)]
    if skipped is not None:
        rows.append(("not adapted", ", ".join(skipped) or "nothing", "", origin("optimizer.skip_adaptation")))
    skip = ", ".join(run.weight_decay.skip)
    whom = f"not on {skip}" if skip else "on everything"
    whom += ", over what scales the lr" * run.weight_decay.even
    rows.append(("weight decay", f"{run.weight_decay.value:g}", whom, origin("weight_decay.value")))
    smoothing = run.task.arguments.get("label_smoothing") if run.task is not None else None
    smoothing = _value(run.loss.label_smoothing if smoothing is None else smoothing)
    rows.append(("label smoothing", smoothing, "", origin("loss.label_smoothing", "task.label_smoothing")))
    if (words := loss_words(run)) is not None:
        rows.append(("loss", words, "", origin("loss.name", "task.kind")))
    clip = "none" if run.max_grad_norm is None else f"to norm {run.max_grad_norm:g}"
    rows.append(("clipping", clip, "of the whole gradient" if run.max_grad_norm else "", origin("max_grad_norm")))
    return rows


def loss_words(run: config.Run) -> str | None:
    """Where it is not the task's usual one."""
    keys = {**(run.task.arguments if run.task is not None else {}), **run.loss.changed()}
    if "bce" not in (keys.get("name"), keys.get("kind")):
        return None
    cut = f", labels above {threshold:g} are 1" if (threshold := keys.get("threshold")) is not None else ""
    return f"binary cross-entropy, {keys.get('classes', 'mean')} over the classes{cut}"


def _value(value: Any) -> str:
    return "yes" if value is True else f"{value:g}" if isinstance(value, float) else str(value)


def _method_rows(run: config.Run, decided: Decided, origin: Origin) -> list[Row]:
    """In the words of the lines before a run; what is about the batch has rows of its own."""
    shown = [(method, decided.methods[name].words) for name, method in run.methods.items() if method.ROW]
    return [(method.ROW or "", words or "", "", origin(method.KEY)) for method, words in shown]


def _published_row(run: config.Run) -> Row:
    found = published_of(run)
    if found is not None:
        return ("published", in_words(found), found["source"], (run.expect and run.expect.note) or "")
    if run.expect is not None and run.expect.by_batch_size:
        reported = ", ".join(f"{size:,}" for size in sorted(run.expect.by_batch_size))
        return ("published", f"nothing at {run.batch.global_batch_size:,}", f"but at {reported}", run.expect.source)
    return ("published", "nothing", "", "")


def _epochs(decided: Decided, count: int = 480) -> list[float]:
    """Where the schedule is read: evenly, and on both sides of every jump and edge."""
    plan = decided.plan
    total = plan.budget_examples
    jumps = {phase.clock.first_example + at for phase in decided.phases for at in phase.lr.schedule.jumps}
    jumps |= {phase.span.first_example for phase in decided.phases}
    inner = [at + side for at in jumps for side in (-1e-6 * total, 0.0) if 0 < at < total]
    return [at / plan.dataset_size for at in sorted({*(total * n / count for n in range(count + 1)), *inner})]


def rows_as_table(facts: Listed) -> rich.table.Table:
    """All rows but the last, whose sentences are long."""
    shown = rich.table.Table(box=None, padding=(0, 1), pad_edge=False)
    for heading in ("", "value", "rule", "from"):
        shown.add_column(heading, overflow="fold", no_wrap=heading in ("", "from"))
    for row in facts["rows"][:-1]:
        shown.add_row(*(plain(row[key]) for key in ("what", "value", "rule", "from")))
    return shown


def published_words(facts: Listed) -> str:
    *_, row = facts["rows"]
    return "; ".join(text for text in (f"published: {row['value']}", row["rule"], row["from"]) if text)


def as_plot(facts: Listed, width: int = 60) -> str:
    """The learning rate against epochs; logarithmic where it falls in steps to less than a tenth of the peak."""
    points = [(epoch, lr) for epoch, lr in facts["schedule"]]
    levels = sorted({lr for epoch, lr in points if epoch >= facts["warmup_epochs"]})
    in_steps = len(levels) <= 8
    log = in_steps and 0 < 10 * levels[0] < levels[-1]
    gained = facts["clock"] == "scale-invariant"
    drawn = plot(
        points,
        title=("lr at gain 1; a step takes it times its gain" if gained else "lr") + ("; logarithmic" if log else ""),
        x_label="epochs of the scale-invariant clock" if gained else "epochs",
        width=width,
        lowest=levels[0] / 1.5 if log else 0.0,
        levels=levels if in_steps else [],
    )
    stages = facts["stages"]
    if len(stages) > 1:
        ends = [stage["epoch"] for stage in stages[1:]] + [facts["epochs"]]
        steps = [(at, s["global_batch_size"]) for s, end in zip(stages, ends, strict=True) for at in (s["epoch"], end)]
        sizes = [stage["global_batch_size"] for stage in stages]
        batch = plot(_dense(steps), title="global batch", x_label="epochs", width=width, height=6, levels=sizes)
        drawn += f"\n\n{batch}"
    return drawn


def _dense(corners: list[tuple[float, float]], count: int = 400) -> list[tuple[float, float]]:
    """Straight lines between corners as points."""
    found = []
    for (x, y), (to_x, to_y) in itertools.pairwise(corners):
        found += [(x + (to_x - x) * n / count, y + (to_y - y) * n / count) for n in range(count + 1)]
    return found

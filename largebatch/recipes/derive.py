"""What follows from a recipe: the batch plan and the learning rate, each with the words that explain it. No torch.

Lengths that a recipe states in epochs are first stretched by its regime adaptation (Hoffer et al. 2017): with κ =
ceil(B / reference) every epoch boundary and the budget are κ times as far away, which keeps the number of steps.
"""

from __future__ import annotations

import dataclasses
import math

from largebatch.errors import UserError
from largebatch.plan import batch, schedules
from largebatch.plan.batch import BatchPlan, MicroBatch
from largebatch.plan.schedules import Schedule
from largebatch.recipes import config, decays
from largebatch.recipes.decays import listed
from largebatch.recipes.decays.steps import StepsDecay
from largebatch.recipes.decided import LearningRate

LARGEST_MICRO_BATCH = {"cpu": 512, "cuda": 2048}
LARGEST_MICRO_BATCH_PIXELS = 256 * 224 * 224
SMALL_IMAGE_PIXELS = 64 * 64


def stretch_of(run: config.Run) -> int:
    """κ of the regime adaptation; 1 without."""
    if run.regime_adaptation is None:
        return 1
    return math.ceil(run.batch.global_batch_size / run.regime_adaptation.reference_batch_size)


def adascale_parts(run: config.Run) -> int:
    """S: how many reference batches make the global batch; 0 without AdaScale."""
    if run.lr.scaling != "adascale":
        return 0
    size, reference = run.batch.global_batch_size, run.lr.reference_batch_size
    assert reference is not None
    if size % reference:
        near = batch.multiples_near(size, reference, 1 << 62)
        raise UserError(
            f"batch.global_batch_size = {size} is no multiple of lr.reference_batch_size = {reference}, as "
            f"lr.scaling = adascale needs; nearest that are: {near}"
        )
    return size // reference


def noise_part(run: config.Run, stage: batch.Stage, world_size: int) -> int:
    """b: examples of the small batch of ``record.noise_scale`` in a stage of the run; 0 where it is not recorded."""
    section, size = run.record.noise_scale, stage.global_batch_size
    if section is None:
        return 0
    key, micro, share = "record.noise_scale.small_batch_size", stage.micro_batch_size, size // world_size
    small = section.small_batch_size or (run.lr.reference_batch_size if adascale_parts(run) else None) or micro
    assert small is not None
    if small == size and section.small_batch_size is None:
        raise UserError(
            f"record.noise_scale needs gradients of two batch sizes, and here the global batch of {size} is one "
            f"micro-batch; set batch.micro_batch_size to a part of it, such as {batch.largest_divisor(size, size // 2)}"
            if size > 1
            else "record.noise_scale needs gradients of two batch sizes; batch.global_batch_size = 1 has one"
        )
    if small >= size:
        raise UserError(f"{key} = {small} must be smaller than batch.global_batch_size = {size}")
    if adascale_parts(run) and small != run.lr.reference_batch_size:
        raise UserError(
            f"{key} = {small} must be lr.reference_batch_size = {run.lr.reference_batch_size} with lr.scaling = "
            "adascale, which measures the same parts; leave it out"
        )
    if small % micro or share % small:
        raise UserError(
            f"{key} = {small} must divide a rank's {share} examples of a step and be a multiple of the micro-batch of "
            f"{micro}; set batch.micro_batch_size = {small}, or leave it out to take the micro-batch"
        )
    return small


def plan_of(run: config.Run, dataset_size: int, world_size: int, largest_micro_batch: int) -> BatchPlan:
    """The run's batch plan on ``world_size`` ranks; that of its first phase, if it has several."""
    parts = adascale_parts(run)
    stretch = stretch_of(run)
    epochs = None if run.epochs is None else run.epochs * stretch
    steps, budget = run.steps, None
    if parts:  # at gain 1 the small batch's steps; it ends when the clock says so
        reference = run.batch.global_batch_size // parts
        budget = steps * reference if steps else max(1, round((epochs or 0) * dataset_size))
        epochs, steps = None, math.ceil(budget / reference)
    plan = batch.resolve(
        dataset_size=dataset_size,
        global_batch_size=run.batch.global_batch_size,
        world_size=world_size,
        epochs=epochs,
        steps=steps,
        seed=run.seed,
        growth=growth_of(run)[0],
        micro=micro_batch_of(run, world_size, largest_micro_batch),
    )
    return plan if budget is None else dataclasses.replace(plan, budget_examples=budget)


def worker_plan(run: config.Run, dataset_size: int, world_size: int, largest: int) -> BatchPlan:
    """The plan of SWAP's first worker, alone with the whole training set; the others have orders of their own."""
    swap, bn, m = run.averaging, run.batch.bn_batch_size, run.sam.m if run.sam is not None else None
    assert isinstance(swap, config.Swap)
    if swap.workers % world_size:
        raise UserError(
            f"averaging.workers = {swap.workers} does not fit {world_size} ranks; it should be a multiple of them"
        )
    units = {"batch.bn_batch_size": bn or 1, "sam.m": m or 1}
    if swap.worker_batch_size > dataset_size or any(swap.worker_batch_size % unit for unit in units.values()):
        of = "".join(f" and a multiple of {key} = {unit}" for key, unit in units.items() if unit > 1)
        raise UserError(
            f"averaging.worker_batch_size = {swap.worker_batch_size} should be at most the {dataset_size} training "
            f"examples{of}"
        )
    return batch.resolve(
        dataset_size=dataset_size,
        global_batch_size=swap.worker_batch_size,
        epochs=swap.epochs,
        seed=(run.seed + 1) * 1_000_003 % 2**32,
        micro=MicroBatch(m, min(largest, run.batch.micro_batch_size or largest), bn or 1),
    )


def largest_micro_batch(device: str, pixels: int) -> int:
    """What is taken where the recipe does not say: measured on the CPU, generous on CUDA, less for large images."""
    if device == "cuda" and pixels > SMALL_IMAGE_PIXELS:
        return max(1, LARGEST_MICRO_BATCH_PIXELS // pixels)
    return LARGEST_MICRO_BATCH[device]


def growth_of(run: config.Run) -> tuple[tuple[tuple[float, int], ...], tuple[float, ...]]:
    """((epoch, global batch from then on), ...), and the epochs at which the lr falls instead."""
    ramp = run.batch.ramp
    if ramp is None:
        return (), ()
    at = [epoch * stretch_of(run) for epoch in ramp.at_epochs]
    if ramp.sizes is not None:
        return tuple(zip(at, ramp.sizes, strict=True)), ()
    assert ramp.factor is not None
    size, growth, drops = run.batch.global_batch_size, [], []
    for epoch in at:
        if ramp.largest is not None and size * ramp.factor > ramp.largest:
            drops.append(epoch)
        else:
            size *= ramp.factor
            growth.append((epoch, size))
    return tuple(growth), tuple(drops)


def micro_batch_of(run: config.Run, world_size: int, largest: int) -> MicroBatch:
    """What the recipe's methods ask of the micro-batch."""
    size, stated, bn = run.batch.global_batch_size, run.batch.micro_batch_size, run.batch.bn_batch_size
    share = size // world_size
    within, why = None, []
    if run.lr.scaling == "adascale":
        within = run.lr.reference_batch_size
        why.append(f"parts of lr.reference_batch_size = {within}")
    if isinstance(run.averaging, config.PostLocalSgd):
        workers = run.averaging.workers
        if workers % world_size or size % workers:
            raise UserError(
                f"averaging.workers = {workers} does not fit {world_size} ranks and batch.global_batch_size = {size}; "
                "it should be a multiple of the ranks and divide the batch"
            )
        within = size // workers
        why.append(f"averaging.workers = {workers}")
    if run.sam is not None and run.sam.m is not None:
        if stated not in (None, run.sam.m):
            raise UserError(
                f"sam.m = {run.sam.m} needs micro-batches of so many examples; batch.micro_batch_size = {stated} says "
                "otherwise"
            )
        stated = run.sam.m
        why.append(f"sam.m = {stated}")
        if size % stated:
            raise UserError(f"sam.m = {stated} does not divide batch.global_batch_size = {size}; it should")
        if bn is not None and bn > stated:
            raise UserError(
                f"batch.bn_batch_size = {bn} is more than sam.m = {stated}, and each of these examples sees weights of "
                f"its own; at most {stated}"
            )
    multiple = 1
    if bn is not None:
        why.append(f"batch.bn_batch_size = {bn}")
        if within is not None and bn > within:
            raise UserError(
                f"batch.bn_batch_size = {bn} is more than the {within} examples of {why[0]}; at most {within}"
            )
        if 0 < share < bn and not size % world_size:  # else refused with the batch
            synchronised_ranks(run, world_size)
            stated = stated or share
        else:
            multiple = bn
    return MicroBatch(stated, largest, multiple, within, " and ".join(why))


def synchronised_ranks(run: config.Run, world_size: int) -> int:
    """How many consecutive ranks share one batch norm's statistics; 1 where a rank's micro-batch is enough."""
    bn, share = run.batch.bn_batch_size, run.batch.global_batch_size // world_size
    if bn is None or bn <= share or not share:  # more ranks than examples: refused with the batch
        return 1
    ranks = bn // share
    if run.averaging.name != "none":
        raise UserError(
            f"batch.bn_batch_size = {bn} is more than a rank's {share} examples, and averaging.name = "
            f"{run.averaging.name} lets workers go alone; at most {share}"
        )
    if (
        run.batch.ramp is not None
        or bn % share
        or world_size % ranks
        or run.batch.micro_batch_size not in (None, share)
    ):
        raise UserError(
            f"batch.bn_batch_size = {bn} cannot be shared by {world_size} ranks with {share} examples each in one "
            f"micro-batch and without a ramp; valid: divisors of {share}, and {share} times a divisor of {world_size}"
        )
    return ranks


def peak_of(lr: config.LearningRate, global_batch_size: int) -> tuple[float, str]:
    """The peak learning rate at this batch, and the arithmetic in words."""
    size, reference = global_batch_size, lr.reference_batch_size
    if lr.table is not None:
        peak = schedules.table_lr(lr.table, size, lr.interpolate)
        return peak, f"table: row {size} = {peak:g}"
    assert lr.base is not None
    peak = schedules.scaled_lr(lr.base, lr.scaling, size, reference)
    words = {
        "none": f"no scaling: {lr.base:g}",
        "linear": f"linear: {lr.base:g} × {size}/{reference} = {peak:g}",
        "sqrt": f"sqrt: {lr.base:g} × √({size}/{reference}) = {peak:g}",
        "adascale": f"adascale: {lr.base:g} × the gain of each step, 1 to {size / (reference or size):g}",
    }
    return peak, words[lr.scaling]


def warmup_epochs(lr: config.LearningRate, global_batch_size: int) -> float:
    """As long as it is at this batch, before any regime adaptation."""
    if lr.warmup.scaling == "none":
        return lr.warmup.epochs
    assert lr.reference_batch_size is not None
    return lr.warmup.epochs * global_batch_size / lr.reference_batch_size


def learning_rate_of(run: config.Run, plan: BatchPlan) -> LearningRate:
    _, drops = growth_of(run)
    if drops and run.lr.decay.CHANGES:
        raise UserError(
            f"batch.ramp.largest = {run.batch.ramp and run.batch.ramp.largest} turns the batch's growth into a decay "
            f"of the lr, and lr.decay.name = {run.lr.decay.name} is another; leave lr.decay out"
        )
    found = schedule_of(run.lr, plan, stretch_of(run))
    if isinstance(run.averaging, config.PostLocalSgd):
        local_from_epoch(run)
    if isinstance(run.averaging, config.Swap):
        schedule_of(run.averaging.lr, worker_plan(run, plan.dataset_size, plan.world_size, 1 << 20))
    if drops and run.batch.ramp is not None and run.batch.ramp.factor is not None:
        milestones = tuple(examples_at(epoch, plan) for epoch in drops)
        factor = run.batch.ramp.factor
        steps = StepsDecay.model_construct(name="steps", at_epochs=drops, factor=1 / factor)
        schedule = dataclasses.replace(found.schedule, decay=steps, milestones=milestones)
        words = f"÷{factor} at epochs {listed(drops)}, where the batch would exceed {run.batch.ramp.largest}"
        return dataclasses.replace(found, schedule=schedule, decay=words)
    return found


def schedule_of(lr: config.LearningRate, plan: BatchPlan, stretch: int = 1) -> LearningRate:
    """The schedule of one ``lr`` section over a plan; also that of SWAP's workers."""
    peak, rule = peak_of(lr, plan.global_batch_size)
    epochs = plan.budget_examples / plan.dataset_size
    warmup = warmup_epochs(lr, plan.global_batch_size) * stretch
    if warmup >= epochs:
        raise UserError(f"lr.warmup.epochs = {warmup:g} must be below the run's {epochs:.4g} epochs")
    start = min(lr.base or 0.0, peak) if lr.warmup.start == "base" else 0.0
    jumps = [epoch * stretch for epoch in lr.decay.epochs]
    schedule = Schedule(
        peak=peak,
        total=plan.budget_examples,
        decay=lr.decay,
        warmup=examples_at(warmup, plan),
        start=start,
        milestones=tuple(examples_at(epoch, plan) for epoch in jumps),
    )
    linear = f" ({lr.warmup.epochs:g} × {plan.global_batch_size}/{lr.reference_batch_size})"
    rule_of_warmup = linear if lr.warmup.scaling == "linear" else ""
    in_words = f"{warmup:g} epochs{rule_of_warmup} from {start:g}" if warmup else "none"
    return LearningRate(schedule, rule, in_words, lr.decay.words(jumps))


def examples_at(epoch: float, plan: BatchPlan) -> float:
    """The examples of so many epochs; 0.56 · 1,500 is 840, whatever floating point makes of it."""
    return round(epoch * plan.dataset_size, 6)


def local_from_epoch(run: config.Run) -> float:
    """Where post-local SGD's workers begin to step alone: as stated, else at the first decay of the lr."""
    assert isinstance(run.averaging, config.PostLocalSgd)
    if run.averaging.from_epoch is not None:
        return run.averaging.from_epoch * stretch_of(run)
    decay = run.lr.decay
    if not decay.epochs:
        jumping = " or ".join(name for name, kind in decays.table().items() if kind.JUMPS)
        raise UserError(
            f"averaging.from_epoch is missing, and lr.decay.name = {decay.name} has no first epoch to stand for it; "
            f"valid: a number of epochs, or lr.decay.name = {jumping}"
        )
    return decay.epochs[0] * stretch_of(run)


def words_of_sizes(run: config.Run) -> tuple[str, str] | None:
    """What the sides of the images are, and when; None where they are the data set's own."""
    sizes, stretch = run.data.image_size, stretch_of(run)
    if sizes is None:
        return None
    tests = sizes.evaluate or sizes.last
    if sizes.first == sizes.last:
        return f"{sizes.last}" if tests == sizes.last else f"{sizes.last}, tests {tests}", "pixels a side"
    until = "the end" if sizes.until_epoch is None else f"{sizes.until_epoch * stretch:g}"
    when = f"pixels a side, epochs {sizes.from_epoch * stretch:g} to {until}, in multiples of {sizes.multiple_of}"
    return f"{sizes.first} → {sizes.last}, tests {tests}", when

"""What follows from a recipe: the batch plan and the learning rate, each with the words that explain it. No torch.

Lengths that a recipe states in epochs are first stretched by its regime adaptation (Hoffer et al. 2017): with κ =
ceil(B / reference) every epoch boundary and the budget are κ times as far away, which keeps the number of steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from largebatch.errors import UserError
from largebatch.plan import batch, phases, schedules
from largebatch.plan.batch import PAIR, BatchPlan, MicroBatch
from largebatch.plan.phases import Span
from largebatch.plan.schedules import Schedule
from largebatch.recipes import config, methods, ramps
from largebatch.recipes.decays import listed
from largebatch.recipes.decays.steps import StepsDecay
from largebatch.recipes.decided import ExplainedSchedule
from largebatch.recipes.methods import GainClock

LARGEST_MICRO_BATCH = {"cpu": 512, "cuda": 2048}
LARGEST_MICRO_BATCH_PIXELS = 256 * 224 * 224
SMALL_IMAGE_PIXELS = 64 * 64


def clock_of(run: config.Run) -> GainClock | None:
    """What the schedule counts, where it is not the examples seen."""
    clocks = (method.clock(run) for method in run.methods.values())
    return next((clock for clock in clocks if clock is not None), None)


def plan_of(run: config.Run, dataset_size: int, world_size: int, largest_micro_batch: int) -> BatchPlan:
    """The run's batch plan on ``world_size`` ranks."""
    if run.phases is not None:
        of_phases = config.of_phases(run)
        return plan_of_phases(run, of_phases, dataset_size, world_size, [largest_micro_batch] * len(of_phases))[0]
    clock = clock_of(run)
    epochs = None if run.epochs is None else run.epochs * run.stretch
    steps, budget = run.steps, None
    if clock is not None:  # at gain 1 the small batch's steps; it ends when the clock says so
        budget = steps * clock.reference if steps else max(1, round((epochs or 0) * dataset_size))
        epochs, steps = None, math.ceil(budget / clock.reference)
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
    for size in ramps.may_come_to(run)[1:]:
        batch.factored("batch.ramp", size, world_size, dataset_size, MicroBatch(plan.micro_batch_size))
    plan = batch.repeated(plan, run.data.repeats, run.data.mix is not None)
    return plan if budget is None else dataclasses.replace(plan, budget_examples=budget)


def plan_of_phases(
    run: config.Run, of_phases: Sequence[config.Run], dataset_size: int, world_size: int, largest: Sequence[int]
) -> tuple[BatchPlan, tuple[Span, ...]]:
    """``of_phases``: the run as it is in each; ``largest``: the micro-batch of each, where nothing is stated."""
    asked = []
    for number, (laid, phase, most) in enumerate(zip(of_phases, run.phases or (), largest, strict=True), start=1):
        with in_phase(number):
            micro = micro_batch_of(laid, world_size, most)
        asked.append(phases.PhaseWish(laid.batch.global_batch_size, micro, **phase.ends))
    check_shared_norms(of_phases, world_size)
    plan, spans = phases.resolve(
        asked, dataset_size=dataset_size, world_size=world_size, epochs=run.epochs, steps=run.steps, seed=run.seed
    )
    return batch.repeated(plan, run.data.repeats, run.data.mix is not None), spans


@contextlib.contextmanager
def in_phase(number: int) -> Iterator[None]:
    """A refusal says which phase it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"phases.{number}: {error}") from None


def largest_micro_batch(device: str, pixels: int, held: Mapping[int, int] | None = None) -> int:
    """What is taken where the recipe does not say: measured on the CPU, generous on CUDA, less for large images.

    ``held``: what this device was found to hold, by the pixels of an example.
    """
    if held and pixels in held:
        return held[pixels]
    if device == "cuda" and pixels > SMALL_IMAGE_PIXELS:
        return max(1, LARGEST_MICRO_BATCH_PIXELS // pixels)
    return LARGEST_MICRO_BATCH[device]


def pixels_of(section: config.Data) -> int | None:
    """Of a training example, where the recipe says how large it is."""
    if section.length is not None:
        return section.length * batch.TOKEN_PIXELS
    return None if section.side is None else section.side**2


def growth_of(run: config.Run) -> tuple[tuple[tuple[float, int], ...], tuple[float, ...]]:
    """((epoch, global batch from then on), ...), and the epochs at which the lr falls instead."""
    ramp = run.batch.ramp
    if ramp is None or ramp.rule == "adaptive":  # where it grows, the run will know
        return (), ()
    if ramp.rule == "seesaw":
        return ramps.of_decay(run, ramp, peak_of(run.lr, run.batch.global_batch_size)[0]), ()
    return ramps.at_epochs(run, ramp)


def micro_batch_of(run: config.Run, world_size: int, largest: int) -> MicroBatch:
    """What the recipe's methods ask of the micro-batch."""
    size, stated, bn = run.batch.global_batch_size, run.batch.stated_micro_batch_size, run.batch.bn_batch_size
    share = size // world_size
    within, why, size_key = None, [], "batch.micro_batch_size"
    for wish in (method.micro_batch(run, world_size) for method in run.methods.values()):
        if wish is not None:
            stated, within = wish.size or stated, wish.within or within
            why.append(wish.why)
            if wish.size:
                size_key = wish.why.partition(" =")[0]
            if wish.size and run.batch.tries_micro_batches:
                raise UserError(f"batch.micro_batch_size = auto has nothing to try: {wish.why} says it; leave it out")
    multiple = 1
    if run.data.mix is not None:
        multiple = PAIR
        why.append("data.mix, which mixes two by two")
    if bn is not None:
        why.append(f"batch.bn_batch_size = {bn}")
        if within is not None and bn > within:
            raise UserError(
                f"batch.bn_batch_size = {bn} is more than the {within} examples of {why[0]}; at most {within}"
            )
        if 0 < share < bn and not size % world_size:  # else refused with the batch
            synchronised_ranks(run, world_size)
            if run.batch.tries_micro_batches:
                raise UserError(
                    f"batch.micro_batch_size = auto has nothing to try: batch.bn_batch_size = {bn} is more than a "
                    f"rank's {share} examples, which are then one micro-batch; leave it out"
                )
            if stated is None:
                stated, size_key = share, ""
        else:
            multiple = math.lcm(multiple, bn)
    return MicroBatch(stated, largest, multiple, within, " and ".join(why), size_key)


def synchronised_ranks(run: config.Run, world_size: int) -> int:
    """How many consecutive ranks share one batch norm's statistics; 1 where a rank's micro-batch is enough."""
    bn, share = run.batch.bn_batch_size, run.batch.global_batch_size // world_size
    if bn is None or bn <= share or not share:  # more ranks than examples: refused with the batch
        return 1
    ranks = bn // share
    for method in run.methods.values():
        if method.ALONE:
            raise UserError(
                f"batch.bn_batch_size = {bn} is more than a rank's {share} examples, and {method.where} lets workers "
                f"go alone; at most {share}"
            )
    if (
        run.batch.ramp is not None
        or bn % share
        or world_size % ranks
        or run.batch.stated_micro_batch_size not in (None, share)
    ):
        raise UserError(
            f"batch.bn_batch_size = {bn} cannot be shared by {world_size} ranks with {share} examples each in one "
            f"micro-batch and without a ramp; valid: divisors of {share}, and {share} times a divisor of {world_size}"
        )
    return ranks


def check_shared_norms(of_phases: Sequence[config.Run], world_size: int) -> None:
    """Ranks that share a batch norm share it for the whole run."""
    shared = [synchronised_ranks(laid, world_size) for laid in of_phases]
    if len(set(shared)) > 1 or (shared[0] > 1 and len({laid.batch.global_batch_size for laid in of_phases}) > 1):
        number = max(range(len(shared)), key=lambda number: shared[number])
        share = of_phases[number].batch.global_batch_size // world_size
        raise UserError(
            f"batch.bn_batch_size = {of_phases[0].batch.bn_batch_size} is more than the {share} examples of a rank in "
            f"phases.{number + 1}, and phases that change the batch take at most a rank's smallest share"
        )


def follows_gains(lr: config.LearningRate) -> bool:
    """Whether no rule of the batch gives the lr, but a method that measures every step."""
    return lr.scaling in methods.table()


def peak_of(lr: config.LearningRate, global_batch_size: int) -> tuple[float, str]:
    """The peak learning rate at this batch, and the arithmetic in words."""
    size, reference = global_batch_size, lr.reference_batch_size
    if lr.table is not None:
        peak = schedules.table_lr(lr.table, size, lr.interpolate)
        return peak, f"table: row {size} = {peak:g}"
    assert lr.base is not None
    noise = lr.noise_scale.examples if lr.noise_scale is not None else None
    peak = schedules.scaled_lr(lr.base, lr.scaling, size, reference, noise)
    if follows_gains(lr):
        return peak, methods.table()[lr.scaling].rule(lr, size)
    if lr.noise_scale is not None and reference is not None:
        return peak, surge_words(lr.base, reference, lr.noise_scale, size, peak)
    words = {
        "none": f"no scaling: {lr.base:g}",
        "linear": f"linear: {lr.base:g} × {size}/{reference} = {peak:g}",
        "sqrt": f"sqrt: {lr.base:g} × √({size}/{reference}) = {peak:g}",
        "adam_sqrt": f"adam_sqrt: {lr.base:g} × √({size}/{reference}) = {peak:g}",
    }
    return peak, words[lr.scaling]


def surge_words(base: float, reference: int, noise: config.NoiseExamples, size: int, peak: float) -> str:
    """The arithmetic, and where the curve is highest."""
    at, highest = f"{noise.examples:g}", schedules.surge(base, reference, noise.examples)

    def sides(batch: int) -> str:
        return f"(√({at}/{batch}) + √({batch}/{at}))"

    ratio = f"{sides(reference)}/{sides(size)}"
    return f"surge: {base:g} × {ratio} = {peak:g}; {highest:g} at the noise scale of {noise.words}"


class WarmupLength(NamedTuple):
    examples: float
    skipped: float  # further examples, which count as seen before the first step
    words: str
    stated: str  # the key, and how long it says that it is at this batch


def warmup_of(lr: config.LearningRate, size: int, clock: Span, plan: BatchPlan, stretch: int) -> WarmupLength:
    """How long it is at a global batch of ``size`` in what the schedule counts; epochs with any regime adaptation."""
    warmup, times, rule = lr.warmup, 1.0, ""
    key = "steps" if warmup.steps else "share" if warmup.share else "epochs"
    stated = getattr(warmup, key)
    if warmup.scaling == "linear" and lr.reference_batch_size is not None:
        times, rule = size / lr.reference_batch_size, f" ({stated:g} × {size}/{lr.reference_batch_size})"
    length = stated * times
    skipped = -warmup.start_step
    if key == "epochs":
        if rule and lr.scaling == "sqrt":
            rule = f"{rule[:-1]}, LEGW)"
        length *= stretch
        examples, words = plan.examples_at(length), f"{length:g} epochs{rule}"
    elif key == "share":
        examples, words = round(length * clock.budget, 6), f"{length:g} of the budget{rule}"
    else:
        left_out = f" without its first {skipped:,}" if skipped else ""
        examples = examples_of_steps(plan, clock, length - skipped)
        words = f"{length:g} steps{rule}{left_out}"
    if warmup.power != 1:
        words += f" to the power {warmup.power:g}"
    return WarmupLength(examples, skipped * size, words, f"lr.warmup.{key} = {length:g}")


def examples_of_steps(plan: BatchPlan, clock: Span, steps: float) -> float:
    """Of so many steps from the first of a clock on; beyond the plan's end they are as large as its last."""
    whole, part = divmod(steps, 1)
    last = clock.first_step + int(whole)
    return plan.examples_before(last) - clock.first_example + round(part * plan.at(last).global_batch_size, 6)


def learning_rate_of(run: config.Run, plan: BatchPlan) -> ExplainedSchedule:
    _, drops = growth_of(run)
    if drops and run.lr.decay.CHANGES:
        raise UserError(
            f"batch.ramp.largest = {run.batch.ramp and run.batch.ramp.largest} turns the batch's growth into a decay "
            f"of the lr, and lr.decay.name = {run.lr.decay.name} is another; leave lr.decay out"
        )
    found = schedule_of(run.lr, plan, run.stretch)
    if drops and run.batch.ramp is not None and run.batch.ramp.factor is not None:
        milestones = tuple(plan.examples_at(epoch) for epoch in drops)
        factor = run.batch.ramp.factor
        steps = StepsDecay.model_construct(name="steps", at_epochs=drops, factor=1 / factor)
        schedule = dataclasses.replace(found.schedule, decay=steps, milestones=milestones)
        words = f"÷{factor} at epochs {listed(drops)}, where the batch would exceed {run.batch.ramp.largest}"
        return dataclasses.replace(found, schedule=schedule, decay=words)
    return found


def schedule_of(lr: config.LearningRate, plan: BatchPlan, stretch: int = 1) -> ExplainedSchedule:
    """The schedule of one ``lr`` section over a plan; also that of workers that go on alone."""
    whole = Span(0, plan.steps, 0, plan.budget_examples)
    return schedule_over(lr, plan.global_batch_size, whole, plan, stretch)


def schedule_over(
    lr: config.LearningRate, size: int, clock: Span, plan: BatchPlan, stretch: int = 1, whose: str = "run"
) -> ExplainedSchedule:
    """The same at a global batch of ``size`` over a clock: a part of the plan."""
    peak, rule = peak_of(lr, size)
    warmup = warmup_of(lr, size, clock, plan, stretch)
    if warmup.examples >= clock.budget:
        epochs = f"{clock.budget / plan.dataset_size:.4g} epochs"
        most = f"{clock.steps:,} steps" if lr.warmup.steps else epochs
        raise UserError(f"{warmup.stated} must be below the {whose}'s {most}")
    start = start_of(lr, peak)
    jumps = [epoch * stretch for epoch in lr.decay.epochs]
    begin, end = lr.decay.span(
        warmup.examples, clock.budget, lambda steps: examples_of_steps(plan, clock, float(steps))
    )
    schedule = Schedule(
        peak=peak,
        total=clock.budget,
        decay=lr.decay,
        warmup=warmup.examples,
        start=start,
        milestones=tuple(plan.examples_at(epoch) for epoch in jumps),
        power=lr.warmup.power,
        skipped=warmup.skipped,
        decay_from=begin,
        decay_to=end,
    )
    in_words = f"{warmup.words} from {start:g}" if warmup.examples else "none"
    return ExplainedSchedule(schedule, rule, in_words, lr.decay.words(jumps))


def start_of(lr: config.LearningRate, peak: float) -> float:
    """Where the warm-up begins."""
    match lr.warmup.start:
        case "zero":
            return 0.0
        case "base":
            return min(lr.base or 0.0, peak)
        case rate:
            return min(rate, peak)


def sides_of(run: config.Run) -> tuple[tuple[int, ...], int] | None:
    """The side of the training images in each phase, and that of tests: as stated, else as in the last phase.

    None where phases do not say.
    """
    own, whole = run.data.image_size, [laid.data for laid in config.of_phases(run)]
    sides = tuple(data.side for data in whole if data.side is not None)
    if not sides or all(data.image_size == own for data in whole):
        return None
    return sides, own.evaluate if own is not None and own.evaluate is not None else sides[-1]


def lengths_of(run: config.Run) -> tuple[tuple[int, ...], int] | None:
    """The length of the training sequences in each phase, and that of tests; None where nothing is said."""
    lengths = tuple(laid.data.length for laid in config.of_phases(run) if laid.data.length is not None)
    if not lengths and run.data.evaluate_length is not None:
        raise UserError(f"data.evaluate_length = {run.data.evaluate_length} stands beside no data.length; set both")
    return (lengths, run.data.evaluate_length or lengths[-1]) if lengths else None


def predictions_of(run: config.Run) -> tuple[int | None, ...]:
    """The most in a sequence in each phase; () where nothing is said."""
    most = tuple(laid.data.max_predictions for laid in config.of_phases(run))
    return most if any(most) else ()


def words_of_sizes(run: config.Run) -> tuple[str, str] | None:
    """What the sides of the images are, and when; None where they are the data set's own."""
    sizes, stretch = run.data.image_size, run.stretch
    if sizes is None:
        return None
    tests = sizes.evaluate or sizes.last
    if sizes.first == sizes.last:
        return f"{sizes.last}" if tests == sizes.last else f"{sizes.last}, tests {tests}", "pixels a side"
    until = "the end" if sizes.until_epoch is None else f"{sizes.until_epoch * stretch:g}"
    when = f"pixels a side, epochs {sizes.from_epoch * stretch:g} to {until}, in multiples of {sizes.multiple_of}"
    return f"{sizes.first} → {sizes.last}, tests {tests}", when


def words_of_test_views(run: config.Run) -> dict[str, str]:
    """Which views of a test image are looked at beside itself, by key."""
    shift = run.evaluate.shift
    found = {"evaluate.flips": "evaluated with mirror images"} if run.evaluate.flips else {}
    pixels = f"{shift} pixel{'s' * (shift > 1)}"
    return found | ({"evaluate.shift": f"evaluated with views {pixels} off as well"} if shift else {})


def words_of_augmentation(run: config.Run) -> dict[str, str]:
    """What is done to images that is not done without a word, by key."""
    data, found = run.data, {}
    if data.crop != type(data).model_fields["crop"].default:
        found["data.crop"] = f"tests see {data.crop:g} of the short side"
    if data.window is not None:
        found["data.window"] = data.window.words
    if data.policy is not None:
        found["data.policy"] = data.policy
    if data.repeats > 1:
        found["data.repeats"] = f"each example {data.repeats} times in a batch"
    if data.erase is not None:
        found["data.erase"] = data.erase.words
    if data.mix is not None:
        found["data.mix"] = data.mix.words
    return found

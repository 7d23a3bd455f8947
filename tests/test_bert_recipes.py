"""The recipes of BERT against what was published, typed here anew, never read from the files.

The lr of a step is compared with a plain statement of what each source's code does at it.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import texts
from programs import REPOSITORY

from largebatch.errors import UserError
from largebatch.models.bert import bert
from largebatch.recipes import config
from largebatch.recipes.decide import decide
from largebatch.recipes.decided import DataFacts, Decided
from largebatch.run.train import train
from largebatch.studies.reading import derived

FOLDER = REPOSITORY / "configs" / "bert"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
SEQUENCES = 40_000_000  # of a pack; whatever it is, budgets are in steps
Curve = Callable[[int], float]


def loaded(name: str, batch: int | None = None) -> tuple[config.Run, Decided]:
    run = config.load(FILES[name], [] if batch is None else [f"batch.global_batch_size={batch}"])
    return run, decide(run, DataFacts(SEQUENCES, task="masked_lm"), 1, "cuda")


def from_the_start(peak: float, warmup: int, total: int, power: float = 1.0) -> Curve:
    """Google's BERT and NVIDIA's: the decay counts all steps, and is not seen before the warm-up's end."""
    return lambda t: peak * (t / warmup if t < warmup else (1 - min(t / total, 1)) ** power)


def after_the_warm_up(peak: float, warmup: float, total: int) -> Curve:
    return lambda t: peak * (t / warmup if t < warmup else (total - t) / (total - warmup))


def squared(lr: float, offset: float, warmup: int, every: int) -> Curve:
    """DeepSpeed's warmup_exp_decay_exp."""
    return lambda t: offset + lr * ((t / warmup) ** 2 if t < warmup else 0.9 ** ((t - warmup) / every))


def mlperf(peak: float, warmup: int, start: int, total: int) -> Curve:
    return lambda t: peak * ((t - start) / warmup if t - start < warmup else 1 - min(t / total, 1))


def seen_at(decided: Decided, phase: int) -> list[int]:
    """Some steps of a phase, counted from its first."""
    steps = decided.phases[phase].span.steps
    return sorted({*range(0, steps, max(1, steps // 97)), 1, 2, steps - 1})


def check_curve(decided: Decided, phase: int, curve: Curve, whole: bool = False) -> None:
    """``whole``: the curve counts from the first step of the run."""
    span = decided.phases[phase].span
    for step in seen_at(decided, phase):
        found = decided.lr_at(decided.plan.examples_before(span.first_step + step))
        assert found == pytest.approx(curve(step + (span.first_step if whole else 0)), rel=1e-6, abs=1e-12), step


def phases_of(run: config.Run, decided: Decided) -> list[tuple[Any, ...]]:
    """(batch, length, predictions, steps) of each."""
    return [
        (phase.stage.global_batch_size, laid.data.length, laid.data.max_predictions, phase.span.steps)
        for laid, phase in zip(config.of_phases(run), decided.phases, strict=True)
    ]


LAMB_ROWS = {  # steps and F1; the lr is 5/(2^k·10³), k falling by a half with every doubling
    512: (1_000_000, 90.720), 1024: (500_000, 90.377), 2048: (250_000, 90.751), 4096: (125_000, 90.548),
    8192: (62_500, 90.556), 16384: (31_250, 90.679), 32768: (15_625, 91.460),
}  # fmt: skip


@pytest.mark.parametrize("batch", LAMB_ROWS)
def test_lamb_at_each_of_its_batches(batch):
    steps, f1 = LAMB_ROWS[batch]
    doublings = int(math.log2(batch / 512))
    lr, warmup = 5 / (2 ** (3.0 - 0.5 * doublings) * 1e3), 2**doublings / 320
    run, decided = loaded("lamb2019", batch)
    short = math.ceil(0.9 * steps)
    assert phases_of(run, decided) == [(batch, 128, 20, short), (batch, 512, 76, steps - short)]
    curve = from_the_start(lr, round(warmup * steps), steps)
    for phase in range(2):
        check_curve(decided, phase, curve, whole=True)
    assert (run.optimizer.variant, run.optimizer.beta1, run.optimizer.beta2, run.optimizer.eps) == (
        "you2019", 0.9, 0.999, 1e-6,
    )  # fmt: skip
    assert run.weight_decay.value == 0.01
    assert run.expect is not None
    assert run.expect.by_batch_size[batch].downstream == {"squad_f1": f1}


def test_32k_is_14063_and_1562_steps_and_ends_at_5e_3():
    run, decided = loaded("lamb2019")
    assert [steps for *_, steps in phases_of(run, decided)] == [14_063, 1_562]
    assert decided.peak_lr == pytest.approx(5e-3)


def test_the_run_of_76_minutes():
    run, decided = loaded("lamb2019-mixed")
    assert phases_of(run, decided) == [(65536, 128, 20, 7037), (32768, 512, 76, 1562)]
    assert decided.plan.steps == 8599
    check_curve(decided, 1, lambda t: 5e-3 * (t / 312.4 if t < 312.4 else 1 - t / 1562))  # a warm-up of its own
    assert decided.lr_at(decided.phases[1].span.first_example) == 0.0
    assert run.expect is not None
    assert run.expect.downstream == {"squad_f1": 90.584}


def test_nvidias_two_phases():
    """Its schedule counts steps from 1 on, so that ours is one step later."""
    run, decided = loaded("nvidia")
    assert phases_of(run, decided) == [(65536, 128, 20, 7038), (32768, 512, 80, 1563)]
    for phase, (lr, warmup, total) in enumerate([(6e-3, 0.2843, 7038), (4e-3, 0.128, 1563)]):

        def curve(t: int, lr: float = lr, warmup: float = warmup, total: int = total) -> float:
            progress = t / total
            return lr * progress / warmup if progress < warmup else lr * (1 - progress) ** 0.5

        check_curve(decided, phase, curve)
    assert round(0.2843 * 7038) == 2001
    assert (run.optimizer.variant, run.max_grad_norm, run.weight_decay.value, run.seed) == ("apex", 1.0, 0.01, 42)
    assert run.expect is not None
    assert run.expect.downstream == {"squad_f1": 90.68}


def test_deepspeeds_two_phases():
    run, decided = loaded("deepspeed")
    assert phases_of(run, decided)[0] == (65536, 128, 20, 7500)
    assert phases_of(run, decided)[1][:2] == (32768, 512)
    check_curve(decided, 0, squared(11e-3, 10e-4, round(0.06 * 7500), 250))
    check_curve(decided, 1, squared(2e-3, 0.0, round(0.02 * 7500), 150))
    own = run.optimizer
    assert (own.variant, own.min_trust_ratio, own.max_trust_ratio, own.skip_adaptation) == ("deepspeed", 0.01, 0.3, ())
    assert (own.bias_correction, own.eps, run.max_grad_norm, run.weight_decay.value) == (None, 1e-8, 1.0, 0.01)
    assert run.expect is not None
    assert run.expect.downstream == {"squad_f1": 90.62, "squad_exact_match": 83.57}


MLPERF = {  # lr, β1, β2, weight decay, warm-up, its start, decay steps, samples in millions, steps
    256: (3.5e-4, 0.9, 0.999, 0.01, 0, 0, 13_700, 2.553, 9_972),
    448: (4.25e-4, 0.9, 0.999, 0.01, 0, 0, 6_700, 2.411, 5_381),
    1_536: (2e-3, 0.66, 0.996, 0.01, 0, 0, 2_254, 2.778, 1_808),
    3_072: (2e-3, 0.66, 0.998, 0.01, 100, 0, 1_141, 2.768, 901),
    4_096: (2.4e-3, 0.66, 0.998, 0.01, 0, 0, 855, 2.843, 694),
    4_608: (3.5e-3, 0.62, 0.9, 0.01, 0, 0, 700, 2.795, 606),
    6_144: (2.9293e-3, 0.7206, 0.78921, 0.001, 0, -700, 700, 3.321, 541),
    8_192: (2.88293e-3, 0.88, 0.88, 0.0166629, 287, -76, 600, 4.191, 512),
    8_704: (2.971656e-3, 0.88, 0.88, 0.0166629, 287, -76, 600, 4.278, 492),
    12_288: (3.1e-3, 0.8, 0.925, 0.0166629, 300, -100, 500, 4.470, 364),
    16_384: (3.3e-3, 0.75, 0.9, 0.0166629, 290, -100, 600, 5.504, 336),
}


@pytest.mark.parametrize("batch", MLPERF)
def test_mlperfs_reference_points(batch):
    lr, beta1, beta2, decay, warmup, start, total, millions, steps = MLPERF[batch]
    run, decided = loaded("mlperf", batch)
    assert decided.plan.steps == steps == pytest.approx(millions * 1e6 / batch, abs=1)
    assert (decided.optimizer.beta1, decided.optimizer.beta2, decided.weight_decay) == (beta1, beta2, decay)
    assert (run.optimizer.eps, run.max_grad_norm, run.seed) == (1e-6, 1.0, 12345)
    assert (run.data.length, run.data.max_predictions) == (512, 76)
    check_curve(decided, 0, mlperf(lr, warmup, start, total))
    assert run.expect is not None
    published = run.expect.by_batch_size[batch]
    assert (published.numbers, published.steps) == ({"masked_accuracy_percent": 72.0}, steps)


@pytest.mark.parametrize("name", ["mlperf", "lamb2019"])
def test_a_batch_without_a_row_is_refused(name):
    with pytest.raises(UserError, match="table has no row for batch.global_batch_size = 768; rows: "):
        loaded(name, 768)


def test_a_day_of_izsaks():
    run, decided = loaded("izsak2021")
    assert (run.model.arguments["norm"], run.model.arguments["dropout"], run.max_grad_norm) == ("pre", 0.1, None)
    assert (run.batch.global_batch_size, run.data.length, run.data.next_sentence) == (4096, 128, False)
    own = run.optimizer
    assert (own.name, own.beta1, own.beta2, own.eps, run.weight_decay.value) == ("adamw", 0.9, 0.98, 1e-6, 0.01)
    check_curve(decided, 0, after_the_warm_up(1e-3, 0.06 * decided.plan.steps, decided.plan.steps))


def test_a_day_of_crammings():
    run, decided = loaded("cramming2022")
    own = run.optimizer
    assert (own.name, own.beta1, own.beta2, own.eps, run.weight_decay.value) == ("adamw", 0.9, 0.98, 1e-12, 0.01)
    assert (run.max_grad_norm, run.data.mask_share, run.data.length) == (0.5, 0.25, 128)
    arguments = run.model.arguments
    assert (arguments["layers"], arguments["width"], arguments["dropout"], arguments["norm"]) == (16, 768, 0.0, "pre")
    total = decided.plan.budget_examples
    stages = [(phase.stage.global_batch_size, phase.span.first_example / total) for phase in decided.phases]
    assert [size for size, _ in stages] == [1024 * n for n in range(1, 9)]
    assert [begin for _, begin in stages] == pytest.approx([0.6 * n / 7 for n in range(8)])  # 8192 from 60 % on
    for share in (0.0, 0.1, 0.3, 0.6, 0.75, 0.8, 0.99):  # get_triangle, with base .25 and fall-off .25
        wanted = 1e-3 * min(0.25 + share * (1 - 0.25) / (1 - 0.25), 1 / 0.25 - share / 0.25)
        assert decided.lr_at(share * total) == pytest.approx(wanted, rel=1e-9), share


def test_the_control_and_its_half_life():
    run, decided = loaded("adamw")
    assert phases_of(run, decided) == [(256, 128, 20, 900_000), (256, 512, 76, 100_000)]
    for phase in range(2):
        check_curve(decided, phase, from_the_start(1e-4, 10_000, 1_000_000), whole=True)
    own = decided.optimizer
    assert (own.name, own.beta1, own.beta2, run.weight_decay.value) == ("adamw", 0.9, 0.999, 0.01)
    assert loaded("adamw", 4096)[1].optimizer.beta2 == pytest.approx(0.999**16)


def test_the_small_ones_train_the_same_network_on_as_many_tokens():
    small, large = (config.load(FILES[name]) for name in ("tiny-adamw", "tiny-lamb"))
    assert (small.model, small.data, small.epochs) == (large.model, large.data, large.epochs)
    assert large.batch.global_batch_size == 32 * small.batch.global_batch_size
    assert all("to be searched" in (run.title or "") for run in (small, large))


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_shown_and_its_network_is_berts(name):
    """With the keys that the network takes, and as long as the sequences; next sentences in both or in neither."""
    run = config.load(FILES[name])
    taken = inspect.signature(bert).parameters
    assert run.model.name == "bert"
    assert set(run.model.arguments) <= set(taken)
    assert bool(run.model.arguments.get("next_sentence")) == run.data.next_sentence
    longest = max(laid.data.length or 0 for laid in config.of_phases(run))
    assert longest <= run.model.arguments.get("positions", taken["positions"].default)
    facts = derived(FILES[name], [], examples=SEQUENCES)
    assert facts["paper"]
    assert facts["steps"] > 0
    if run.expect is not None and (f1 := run.expect.downstream.get("squad_f1")):
        assert any(f"squad f1 {f1:g}" in str(row["value"]) for row in facts["rows"])


def test_the_page_of_recipes_has_every_file():
    rows = (REPOSITORY / "docs" / "recipes.md").read_text().splitlines()
    for name, path in FILES.items():
        (row,) = [line for line in rows if re.match(rf"\| [^|]*`bert/{name}`", line)]
        *_, batch, published, _ = row.split("|")
        run = config.load(path)
        assert f"{run.batch.global_batch_size:,}" in batch
        f1 = run.expect.downstream.get("squad_f1") if run.expect else None
        accuracy = run.expect.numbers.get("masked_accuracy_percent") if run.expect else None
        wanted = "none" if run.expect is None else f"F1 {f1:.2f}" if f1 else f"{accuracy:g} %"
        assert published.strip().startswith(wanted), row


# ---- every recipe trains ----

SHORT = {"steps": 1, "end_step": 40, "every_steps": 2, "epochs": 0.0}


def in_small(lr: dict[str, Any]) -> dict[str, Any]:
    """The same keys, with the lengths in steps of a small run."""
    return {
        key: in_small(value) if isinstance(value, dict) else SHORT.get(key, value)
        for key, value in lr.items()
        if key != "start_step"
    }


def made_small(name: str, pack: Path, folder: Path) -> dict[str, Any]:
    """Its methods on a tiny network and pack: two steps of each phase, in as many batches."""
    written = config.overlay(config.read(FILES[name]), [])
    phases = written.get("phases") or []
    sizes = [phase.get("batch.global_batch_size", written["batch"]["global_batch_size"]) for phase in phases]
    for phase in phases:
        for key in set(phase) & {"until_share", "steps"}:
            del phase[key]
        if phase is not phases[-1]:
            phase["steps"] = 2
        for key, value in phase.items():
            if key == "data.length":
                phase[key] = value // 8
            elif key == "data.max_predictions":
                phase[key] = 4
            elif key == "batch.global_batch_size":
                phase[key] = value * 8 // max(sizes)
            elif key in ("lr.warmup", "lr.decay"):
                phase[key] = in_small(value)
    kept = {key: written["model"][key] for key in ("norm", "dropout", "next_sentence") if key in written["model"]}
    lengths = {"length": written["data"]["length"] // 8, "max_predictions": 4, "root": str(pack), "workers": 0}
    written.pop("epochs", None)
    return written | {
        "model": {"name": "bert", "layers": 1, "width": 8, "heads": 2, "positions": 64, **kept},
        "data": written["data"] | lengths,
        "batch": {"global_batch_size": 8},
        "steps": 2 * max(1, len(phases)),
        "lr": in_small(written["lr"]),
        "device": "cpu",
        "checkpoint": {"every_epochs": 0},
        "record": {"dir": str(folder / name), "to": []},
    }


@pytest.mark.worlds
def test_every_recipe_trains_a_few_steps(tmp_path):
    pack = texts.pack_of_numbers(tmp_path / "pack")
    offenders = []
    for name in FILES:
        written = made_small(name, pack, tmp_path)
        result = train(config.from_dict(written, name), quiet=True)
        numbers = result.numbers
        if (result.status, numbers["steps"]) != ("finished", written["steps"]):
            offenders.append((name, result.status, numbers["steps"]))
        if not math.isfinite(numbers["test_loss"]) or ("test_next_sentence_loss" in numbers) != (
            "next_sentence" in written["model"]
        ):
            offenders.append((name, numbers))
    assert not offenders

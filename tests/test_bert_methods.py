"""The study of large-batch methods on a tiny masked language model, against what was published, typed here anew.

Losses of another network say nothing about ours; shares, factors, steps and ratios do.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import texts
from programs import REPOSITORY

from largebatch.methods.outer_momentum import OuterStep
from largebatch.recipes import config
from largebatch.recipes.decide import decide
from largebatch.recipes.decided import DataFacts, Decided
from largebatch.run.train import train

FOLDER = REPOSITORY / "configs" / "studies" / "bert-methods"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
SEQUENCES = 356_226  # of `data fetch english`, of 32 tokens
BILLIONS = (168, 503, 608 + 50)  # tokens of OLMo 1B: where the batch doubles, and the end of the anneal


def decided_of(name: str, *overrides: str) -> Decided:
    return decide(config.load(FILES[name], overrides), DataFacts(SEQUENCES, task="masked_lm"), 1, "cpu")


def shares_of(decided: Decided) -> list[tuple[int, float]]:
    """Each batch, and the share of the budget at which it begins."""
    plan = decided.plan
    return [(stage.global_batch_size, stage.first_example / plan.budget_examples) for stage in plan.stages]


def test_merrills_ramp_takes_43_percent_fewer_steps():
    """Theirs counted in steps of the first batch; the anneal is at the largest, without it it is 41 %."""
    first, second, end = BILLIONS
    steps = first + (second - first) / 2 + (end - second) / 4
    assert round(100 * (1 - steps / end)) == 43
    assert round(100 * (1 - (first + (second - first) / 2 + (608 - second) / 4) / 608)) == 41
    ramp, small = decided_of("merrill"), decided_of("adamw-16")
    assert ramp.plan.steps / small.plan.steps == pytest.approx(steps / end, abs=2e-3)
    sizes, begins = zip(*shares_of(ramp), strict=True)
    assert sizes == (16, 32, 64)
    assert begins == pytest.approx((0, first / end, second / end), abs=64 / small.plan.budget_examples)


def test_merrills_lr_is_that_of_the_first_batch_times_the_root_of_the_growth():
    ramp, small = decided_of("merrill"), decided_of("adamw-16")
    for share in (0.05, 0.2, 0.4, 0.7, 0.8, 0.95):
        seen = share * small.plan.budget_examples
        doublings = sum(share > place / BILLIONS[-1] for place in BILLIONS[:2])
        assert ramp.lr_at(seen) == pytest.approx(small.lr_at(seen) * 2 ** (doublings / 2), rel=1e-9), share


def test_the_large_batch_takes_75_percent_fewer_steps():
    assert 1 - decided_of("adamw-64").plan.steps / decided_of("adamw-16").plan.steps == pytest.approx(0.75, abs=1e-3)


def test_seesaws_limit():
    """As many steps as the lr's mean over its peak: 2/π of a cosine that ends at π/2, one half of ours.

    36.3 % is as quoted by later notes.
    """
    middles = [(i + 0.5) / 10_000 for i in range(10_000)]
    quarter = sum(math.cos(math.pi * t / 2) for t in middles) / len(middles)
    assert quarter == pytest.approx(2 / math.pi, rel=1e-6)
    assert 100 * (1 - quarter) == pytest.approx(36.3, abs=0.1)
    ours = sum((1 + math.cos(math.pi * t)) / 2 for t in middles) / len(middles)
    assert ours == pytest.approx(0.5, rel=1e-6)
    every, small = (
        decided_of("seesaw", "batch.ramp.largest=2048", "lr.warmup=null", "epochs=1"),
        decided_of("adamw-16", "epochs=1"),
    )
    growths = [math.acos(2 ** (1 - k) - 1) / math.pi for k in range(1, 8)]
    spans = [b - a for a, b in zip([0.0, *growths], [*growths, 1.0], strict=True)]
    share = sum(span / 2**k for k, span in enumerate(spans))
    assert every.plan.steps / small.plan.steps == pytest.approx(share, abs=2e-4)
    assert share > ours


def test_seesaw_stays_on_its_line():
    """Where the cosine has come to a half and to a quarter, α·√β is 2: lr/√B is that of the cosine at batch 16."""
    seesaw, small = decided_of("seesaw"), decided_of("adamw-16")
    sizes, begins = zip(*shares_of(seesaw), strict=True)
    assert sizes == (16, 32, 64)
    assert begins == pytest.approx((0, 0.1 + 0.9 / 2, 0.1 + 0.9 * 2 / 3), abs=64 / small.plan.budget_examples)
    peak = seesaw.peak_lr
    for (size, begin), level in zip(shares_of(seesaw), (1, 1 / 2, 1 / 4), strict=True):
        place = round(max(begin, 0.1) * small.plan.budget_examples)
        assert seesaw.lr_at(place) / math.sqrt(size / 16) == pytest.approx(peak * level, rel=2e-2)
        assert small.lr_at(place) == pytest.approx(peak * level, rel=2e-2)
    steps = 0.1 + 0.9 / 2 + 0.9 / 6 / 2 + 0.9 / 3 / 4
    assert seesaw.plan.steps / small.plan.steps == pytest.approx(steps, abs=2e-3)


def apart(written: dict[str, Any]) -> dict[str, Any]:
    """From what it is called."""
    return {key: value for key, value in written.items() if key not in ("name", "title")}


def test_muloco_is_muon_with_its_outer_step():
    """H 30, lr 0.7, momentum 0.6, Nesterov: as quoted by later notes."""
    muon, outer = (config.read(FILES[name]) for name in ("muon-64", "muloco-64"))
    assert outer.pop("outer_momentum") == {"every_steps": 30, "lr": 0.7, "momentum": 0.6}
    method = config.load(FILES["muloco-64"]).methods["outer_momentum"]
    assert isinstance(method, OuterStep)
    assert method.nesterov
    assert apart(outer) == apart(muon)


def test_orscale_is_muon_with_a_trust_ratio():
    muon, trusted = (config.read(FILES[name]) for name in ("muon-64", "orscale-64"))
    assert (muon["optimizer"].pop("variant"), trusted["optimizer"].pop("variant")) == ("moonlight2025", "orscale_lm")
    assert apart(trusted) == apart(muon)


PUBLISHED = {  # losses of the method and of what it is compared with; Seesaw's and MuLoCo's as quoted by later notes
    "muloco-64": [(3.120, 3.124), (2.638, 2.641), (2.400, 2.402), (2.238, 2.246), (2.122, 2.128)],
    "orscale-64": [(3.2120, 3.2319), (2.9247, 2.9183), (2.8049, 2.8130), (2.6251, 2.6360)],
    "merrill": [(2.5433, 2.5486), (2.5506, 2.5486)],
    "seesaw": [(3.0208, 3.0282), (3.0346, 3.0353), (3.0687, 3.0696), (3.1318, 3.1214)],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_ratios_that_a_file_states(name):
    comment = " ".join(line[2:] for line in FILES[name].read_text().splitlines() if line.startswith("# "))
    stated = [float(number) for number in re.findall(r"(?<![\d.])[01]\.\d{4}(?!\d)", comment)]
    assert stated == [round(method / other, 4) for method, other in PUBLISHED[name]]


def test_all_rows_train_the_same_network_on_as_many_tokens():
    written = {name: config.read(path) for name, path in FILES.items()}
    assert set(written) >= {"adamw-16", "adamw-64", "lamb-64", "muon-64", *PUBLISHED}
    for key in ("model", "data", "epochs", "weight_decay", "evaluate"):
        assert all(one[key] == written["adamw-16"][key] for one in written.values()), key
    assert len({str({**one["lr"], "base": None}) for one in written.values()}) == 1
    for name, one in written.items():
        assert one["batch"]["global_batch_size"] == (64 if name.endswith("-64") else 16)


def in_small(name: str, pack: Path, folder: Path) -> dict[str, Any]:
    """A quarter of the batch, and an outer step every second."""
    written = config.read(FILES[name])
    written["batch"]["global_batch_size"] //= 4
    if "largest" in written["batch"].get("ramp", {}):
        written["batch"]["ramp"]["largest"] //= 4
    if "outer_momentum" in written:
        written["outer_momentum"]["every_steps"] = 2
    return written | {
        "model": {"name": "bert", "layers": 1, "width": 8, "heads": 2, "positions": 64},
        "data": written["data"] | {"root": str(pack), "length": 8, "max_predictions": 2},
        "epochs": 0.2,
        "device": "cpu",
        "checkpoint": {"every_epochs": 0},
        "record": {"dir": str(folder / name), "to": []},
    }


@pytest.mark.worlds
def test_every_row_trains(tmp_path):
    pack = texts.pack_of_numbers(tmp_path / "pack")
    offenders = []
    for name in FILES:
        result = train(config.from_dict(in_small(name, pack, tmp_path), name), quiet=True)
        if result.status != "finished" or not math.isfinite(result.numbers["test_loss"]):
            offenders.append((name, result.status, result.reason))
    assert not offenders

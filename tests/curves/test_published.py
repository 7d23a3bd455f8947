"""MLPerf's convergence points: what stands in the package's files, the law through them, and files that are wrong."""

from __future__ import annotations

import pytest

from largebatch.errors import UserError
from largebatch.studies.curves import published
from largebatch.studies.curves.law import fit
from largebatch.studies.curves.recorded import measure

TABLE = {  # batches, E_min, B_crit, rms and largest error in %: fitted elsewhere to the same means with the weights 1/E
    "mlperf/resnet50": ((1632, 67840), 34.6, 46900, 3.7, 6),
    "mlperf/bert": ((256, 16384), 2.32e6, 12700, 6.4, 13),
    "mlperf/retinanet": ((256, 4096), 3.42, 1440, 6.6, 13),
    "mlperf/flux1": ((512, 4096), 6.11e6, 2770, 1.6, 3),
    "mlperf/llama31_8b": ((16, 128), 132e3, 84, 2.6, 4),
    "mlperf/llama31_405b": ((1152, 4608), 254e3, 5020, 0.4, 1),
}


def test_these_are_the_files():
    assert published.names() == sorted(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_the_law_through_mlperfs_points(name):
    """To half of the table's last digit: three digits of E_min and B_crit (84: two), tenths and whole percents."""
    batches, least, critical, rms, largest = TABLE[name]
    facts = measure(name, "largebatch study show")
    (curve,) = facts.curves
    law, unit = curve.law, facts.epoch or 1
    assert (curve.points[0].global_batch_size, curve.points[-1].global_batch_size) == batches
    assert f"{law.least_examples / unit:.3g}" == f"{least:.3g}"
    assert law.critical_batch_size == pytest.approx(critical, rel=0.006 if critical < 100 else 0.0035)
    assert 100 * law.rms_error == pytest.approx(rms, abs=0.051)
    assert 100 * law.largest_error == pytest.approx(largest, abs=0.51)
    assert law.critical_batch_size_low < critical < law.critical_batch_size_high
    assert law.perfect_until == pytest.approx(0.2 * law.critical_batch_size)


@pytest.mark.parametrize(
    ("batch", "lr", "epochs", "spread", "runs", "steps"),
    [
        (1632, 7.4, 35.0, 1.1, 17, 27_476), (3264, 10.5, 35.2, 0.8, 15, 13_817), (4096, 10, 40.0, 1.1, 10, 12_511),
        (8192, 17, 42.0, 1.1, 10, 6_568), (32768, 21.2, 56.0, 0.5, 10, 2_189), (58880, 23.246, 79.9, 0.9, 10, 1_739),
        (65536, 24.699, 84.5, 1.0, 10, 1_652), (67840, 24.699, 85.9, 0.7, 28, 1_621),
    ],
)  # fmt: skip
def test_the_runs_of_resnet50(batch, lr, epochs, spread, runs, steps):
    """Mean ± standard deviation of the epochs, and the steps, as they are tabulated elsewhere."""
    points = published.load(published.located("mlperf/resnet50"))
    point = points.curve().at(batch)
    seen = [run.examples / points.epoch for run in point.runs]
    mean = sum(seen) / len(seen)
    deviation = (sum((value - mean) ** 2 for value in seen) / (len(seen) - 1)) ** 0.5
    assert (point.settings["lr"], len(seen)) == (lr, runs)
    assert mean == pytest.approx(epochs, abs=0.051)
    assert deviation == pytest.approx(spread, abs=0.051)
    assert mean * points.epoch / batch == pytest.approx(steps, abs=steps * 0.05 / epochs + 1)


def test_a_file_of_ones_own(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "title: mine\nunit: sequences\npoints:\n  64: {lr: 0.1, examples: {100: 2, 120: 1}}\n"
        "  16: {examples: {90: 1}, unreached: {500: 2}}\n"
    )
    curve = published.load(published.located(str(file))).curve()
    assert [point.batch for point in curve.points] == [16, 64]
    assert [middle.examples for middle in curve.middles()] == [500, 100]
    assert [middle.exact for middle in curve.middles()] == [False, True]
    assert fit(curve.middles()) is None
    assert published.short_name(str(file)) == "mine"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title: x\npoints: {64: {}}", "points.64 has no runs; give epochs, examples or unreached"),
        ("title: x\npoints: {64: {epochs: {3: 1}}}", "points.64 is in epochs, so epoch is needed"),
        ("title: x\nepoch: 10\npoints: {64: {epochs: {3: 1}, examples: {3: 1}}}", "points.64 has epochs and examples"),
        ("title: x\npoints: {64: {exampels: {3: 1}}}", "unknown key points.64.exampels; did you mean examples?"),
        ("title: x\npoints: {64: {examples: {-3: 1}}}", "should be greater than 0"),
        ("title: x\npoints: {64: {examples: {3: 1.5}}}", "1.5 should be a valid integer"),
        ("title: x\npoints: {0: {examples: {3: 1}}}", "should be greater than 0"),
        ("title: x\npoints: {}", "points = {} dictionary should have at least 1 item"),
        (
            "title: x\nmiddle: mode\npoints: {64: {examples: {3: 1}}}",
            "middle = 'mode' is not known; valid: median or mean",
        ),
        ("points: {64: {examples: {3: 1}}}", "title is missing"),
        ("- 64", "holds no points"),
        ("title: x\ntitle: y", "given twice"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(tmp_path, text, said):
    file = tmp_path / "points.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as told:
        published.load(file)
    assert said in str(told.value)
    assert str(file) in str(told.value)


def test_names_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="did you mean mlperf/resnet50"):
        published.located("mlperf/resnet")
    with pytest.raises(UserError, match="neither a file of points"):
        published.located(str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match="cannot be read"):
        published.load(tmp_path)

"""Files of machines: what they may hold, the sentence for what they may not, and the machines of the package."""

from __future__ import annotations

import re

import pytest
from programs import REPOSITORY
from step_time.clusters import PACE, machine

from largebatch.errors import UserError
from largebatch.recipes.strict_yaml import parse
from largebatch.studies.cluster import machine as machines
from largebatch.studies.cluster.fit import fit
from largebatch.studies.cluster.machine import FOLDER, Link, Machine, Pace
from largebatch.studies.cluster.rows import StepRow, StepRows, WorkloadFacts
from largebatch.studies.cluster.skeleton import SKELETON

TEXT = """
name: two-nodes
devices_per_node: 8
inside: {bandwidth: 3e11, latency: 3e-6}
between: {bandwidth: 5e10}
peaks: {bf16: 9.9e14}
workloads:
  resnet50: {per_example: 1.3e-4, floor: 4e-3, intervals: {floor: [3e-3, 5e-3]}}
"""


def test_a_file_is_read(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(TEXT)
    read = machines.find(str(file))
    assert (read.name, read.devices_per_node, read.between.latency) == ("two-nodes", 8, 0)
    assert read.pace("resnet50").interval("floor") == (3e-3, 5e-3)
    assert read.pace("resnet50").interval("per_example") == (1.3e-4, 1.3e-4)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("bandwidth: 3e11", "bandwidth: -3e11", "m.yaml: inside.bandwidth = -300000000000.0 should be greater than 0"),
        ("bandwidth: 3e11", "bandwidth: 0", "m.yaml: inside.bandwidth = 0 should be greater than 0"),
        ("bandwidth: 3e11", "bandwidth: fast", "m.yaml: inside.bandwidth = 'fast' should be a valid number"),
        ("latency: 3e-6", "latency: -1", "m.yaml: inside.latency = -1 should be greater than or equal to 0"),
        ("between: {bandwidth: 5e10}", "", "m.yaml: between is missing"),
        ("between: {bandwidth: 5e10}", "between: {}", "m.yaml: between.bandwidth is missing"),
        ("devices_per_node: 8", "devices_per_node: 0", "m.yaml: devices_per_node = 0 should be greater than 0"),
        ("devices_per_node: 8", "devices_per_nod: 8", "m.yaml: devices_per_node is missing"),
        ("per_example: 1.3e-4, ", "", "m.yaml: workloads.resnet50.per_example is missing"),
        ("[3e-3, 5e-3]", "[5e-3, 3e-3]", "intervals.floor = [0.005, 0.003] should ascend"),
        ("{floor: [3e-3", "{flor: [3e-3", "intervals.flor is of no number that stands here"),
        (
            "{bandwidth: 5e10}",
            "{bandwidth: 5e10, intervals: {bandwidth: [0, 6e10]}}",
            "[0, 6e+10] should begin above 0",
        ),
        (
            "floor: 4e-3,",
            "floor: 4e-3, precision: half,",
            "m.yaml: workloads.resnet50.precision = 'half' is not known; valid: fp8, bf16",
        ),
        ("peaks: {bf16: 9.9e14}", "peaks: {bf16: 0}", "m.yaml: peaks.bf16 = 0 should be greater than 0"),
        ("between: {", "devices_per_host: 3\nbetween: {", "devices_per_host = 3 should divide devices_per_node = 8"),
        ("between: {", "launcher: mpi\nbetween: {", "m.yaml: launcher = 'mpi' is not known; valid: torchrun or none"),
        ("between: {", "reserve: -1\nbetween: {", "m.yaml: reserve = -1 should be greater than or equal to 0"),
        (
            "floor: 4e-3,",
            "floor: 4e-3, precision: bf16, flops: 2.4e11,",
            "workloads.resnet50: flops over per_example are 1.85e+15 FLOP/s, and a device computes at most 9.9e+14",
        ),
    ],
)
def test_an_impossible_number_is_told_in_a_sentence(old, new, sentence):
    assert old in TEXT
    with pytest.raises(UserError) as refused:
        machines.checked(parse(TEXT.replace(old, new), "m.yaml"), "m.yaml")
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_not_there_is_told_in_a_sentence(tmp_path):
    with pytest.raises(
        UserError, match="machine dgx-h10 is neither a file, MACHINE.yaml, nor known; did you mean dgx-h100"
    ):
        machines.find("dgx-h10")
    with pytest.raises(UserError, match="cannot be read"):
        machines.find(str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match="should hold keys"):
        machines.checked(None, "m.yaml")
    with pytest.raises(UserError, match="dgx-h100 has no pace of resnet5; did you mean resnet50"):
        machines.find("dgx-h100").pace("resnet5")


def test_what_is_written_is_read(tmp_path):
    whole = machine(workloads={"one": PACE}, sources=("somebody",), memory=8e10)
    file = tmp_path / "one.yaml"
    file.write_text(machines.written(whole))
    assert machines.load(file) == whole


def test_another_workload_computes_as_fast_by_its_flops():
    known = Pace(per_example=2e-3, floor=1e-3, flops=1e12, intervals={"per_example": (1e-3, 4e-3)})
    other = known.of_flops(3e12)
    assert other.per_example == pytest.approx(6e-3)
    assert other.interval("per_example") == pytest.approx((3e-3, 12e-3))
    assert (other.floor, other.flops) == (1e-3, 3e12)
    with pytest.raises(UserError, match="without flops"):
        PACE.of_flops(1.0)


def test_the_package_has_the_machines_people_have():
    assert {"dgx-v100", "dgx-a100", "dgx-h100", "dgx-h200", "dgx-b200"} <= set(machines.names())


@pytest.mark.parametrize(
    ("fit", "sentence"),
    [
        ({"covariance": [[1.0]]}, "m.yaml: covariance should have 7 lines of 7 numbers"),
        (
            {"parameters": ["inside.width", *["inside.latency"] * 6]},
            "fit.parameters has inside.width, which is no number",
        ),
    ],
)
def test_a_fit_that_is_not_of_its_machine(fit, sentence):
    written = machines.find("dgx-b200").model_dump(mode="json")
    with pytest.raises(UserError, match=re.escape(sentence)):
        machines.checked(written | {"fit": written["fit"] | fit}, "m.yaml")


def refitted(stated: Machine) -> Machine:
    assert stated.fit is not None
    rows = [
        StepRow(row.workload, row.devices, row.batch, row.seconds, row.accumulation, row.source)
        for row in stated.fit.rows
    ]
    facts = {
        name: WorkloadFacts(pace.gradient_bytes, pace.update_bytes, pace.flops, pace.precision)
        for name, pace in stated.workloads.items()
    }
    return fit(StepRows(tuple(rows), facts), stated.model_copy(update={"fit": None}))


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("*.yaml")))
def test_a_machine_of_the_package_is_what_its_rows_say(name):
    """Fitted anew to the rows in its own file it is the same, to what rounding leaves."""
    stated = machines.find(name)
    again = refitted(stated)
    assert stated.name == name
    assert stated.sources
    assert stated.peaks
    assert all(pace.precision and pace.flops for pace in stated.workloads.values())
    assert again.fit is not None
    assert stated.fit is not None
    assert again.fit.rms_error == pytest.approx(stated.fit.rms_error, rel=0.02, abs=1e-4)
    for where in ("inside", "between"):
        link, other = getattr(stated, where), getattr(again, where)
        assert isinstance(link, Link)
        assert link.peak is not None
        assert (link.bandwidth, link.latency) == pytest.approx((other.bandwidth, other.latency), rel=0.01)
    for workload, pace in stated.workloads.items():
        for key in ("per_example", "floor", "fixed"):
            assert getattr(pace, key) == pytest.approx(getattr(again.pace(workload), key), rel=0.01)
            low, high = pace.interval(key)
            assert low < getattr(pace, key) < high


def test_the_skeleton_is_a_machine_with_every_key():
    """As it is printed, and with what is commented out; the page shows it."""
    assert machines.checked(parse(SKELETON, "skeleton"), "skeleton").name == "ours"
    whole = re.sub(r"^( *)# (\w+:)", r"\1\2", SKELETON, flags=re.MULTILINE)
    assert whole.count("\n") == SKELETON.count("\n")
    read = machines.checked(parse(whole, "skeleton"), "skeleton")
    assert read.model_fields_set == set(Machine.model_fields) - {"title", "fit"}
    assert read.pace("resnet50").model_fields_set == set(Pace.model_fields) - {"intervals"}
    assert read.inside.model_fields_set == set(Link.model_fields) - {"intervals"}
    assert SKELETON in (REPOSITORY / "docs/planning_step.md").read_text()

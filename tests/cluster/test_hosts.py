"""Several hosts, each in a network namespace: the same run as on one."""

from __future__ import annotations

import pytest
from cluster_runs import EXACT, assert_same_end, plan, result, torchrun, undisturbed
from hosts import several
from programs import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", [2, 3])
def test_torchrun(recipe, tmp_path, number):
    written = recipe(**EXACT)
    with several(number, tmp_path / "hosts") as hosts:
        run = [torchrun(hosts, host, "-m", "largebatch", "train", written, nodes=str(number)) for host in hosts.names]
        assert [process.ends(seconds=120) for process in run] == [0] * number
    directory = tmp_path / "runs" / "tiny"
    assert plan(directory)["world_size"] == number
    assert result(directory)["status"] == "finished"
    assert_same_end(directory, undisturbed(written, tmp_path / "alone"))


@pytest.mark.real_data
def test_quickstart_with_torchrun(tmp_path):
    written = REPOSITORY / "configs" / "quickstart" / "lamb2019.yaml"
    directory = tmp_path / "run"
    short = ["steps=3", "lr.warmup.epochs=0.03", "record.every_steps=1", "record.to=[]"]
    short += ["device=cpu", "batch.bn_batch_size=512", "precision=fp64"]
    with several(2, tmp_path / "hosts") as hosts:
        run = [
            torchrun(hosts, host, "-m", "largebatch", "train", written, *short, f"record.dir={directory}", nodes="2")
            for host in hosts.names
        ]
        assert [process.ends(seconds=120) for process in run] == [0, 0]
    assert plan(directory)["world_size"] == 2
    assert_same_end(directory, undisturbed(written, tmp_path / "alone", *short), 1e-10)

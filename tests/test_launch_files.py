"""The scripts of launch/, run; Kubernetes' and Docker's files, read."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from pool import free_port
from programs import REPOSITORY, environment, wait_for_first_line

from largebatch.recipes.config import Run

LAUNCH = REPOSITORY / "launch"
KUBERNETES = sorted((LAUNCH / "kubernetes").glob("*.yaml"))
SCRIPTS = [LAUNCH / "torchrun.sh", LAUNCH / "deepspeed.sh", LAUNCH / "slurm.sbatch"]

SHOW = """#!/usr/bin/env bash
printf '%s\\n' "$@" >arguments
env >environment
exit "${CODE:-0}"
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A folder where ``-m largebatch`` is worlds/rank.py."""
    (tmp_path / "largebatch").mkdir()
    (tmp_path / "largebatch" / "__init__.py").touch()
    (tmp_path / "largebatch" / "__main__.py").write_text((REPOSITORY / "tests" / "worlds" / "rank.py").read_text())
    return tmp_path


@pytest.fixture
def show(tmp_path: Path) -> Callable[..., tuple[int, list[str], dict[str, str]]]:
    """Runs a script with an interpreter that writes down what it is asked: exit code, arguments, environment."""
    shown = tmp_path / "python"
    shown.write_text(SHOW)
    shown.chmod(0o755)

    def run(script: Path, *words: str, **variables: str) -> tuple[int, list[str], dict[str, str]]:
        ended = subprocess.run(
            [script, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60,
            env=environment(PYTHON=str(shown), **variables),
        )  # fmt: skip
        if not (tmp_path / "arguments").exists():
            return ended.returncode, [ended.stderr], {}
        seen = dict(line.partition("=")[::2] for line in (tmp_path / "environment").read_text().splitlines())
        return ended.returncode, (tmp_path / "arguments").read_text().splitlines(), seen

    return run


def heeds_interrupts() -> None:
    """A suite that a shell started in the background ignores SIGINT; no script can trap what it inherits ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def started(folder: Path, *command: object, **variables: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        list(map(str, command)), cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=environment(**{"PYTHON": sys.executable, "TMPDIR": str(folder), "PYTHONPATH": str(folder), **variables}),
        preexec_fn=heeds_interrupts,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def wait_for(process: subprocess.Popen[str], *files: Path) -> None:
    until = time.monotonic() + 120
    while not all(file.exists() for file in files):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def ended(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=120)
    return process.returncode


# launch/torchrun.sh


@pytest.mark.worlds
def test_one_machine(show):
    code, words, seen = show(LAUNCH / "torchrun.sh", "train", "a.yaml", "lr.base=0.1", NPROC_PER_NODE="2")
    assert code == 0
    assert words == [
        "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "--max-restarts=3",
        "-m", "largebatch", "train", "a.yaml", "lr.base=0.1",
    ]  # fmt: skip
    assert "SIGUSR1" in seen["PET_SIGNALS_TO_HANDLE"]
    assert seen["PET_SHUTDOWN_TIMEOUT"] == "120"
    assert not Path(seen["LARGEBATCH_STOP_FILE"]).exists(), "it is removed at the end"


@pytest.mark.worlds
def test_several_machines(show):
    variables = {"NNODES": "2:4", "RDZV_ENDPOINT": "host0:29500", "RDZV_ID": "seven", "NPROC_PER_NODE": "8"}
    _, words, _ = show(LAUNCH / "torchrun.sh", "--tee=3", "train", "a.yaml", **variables, MAX_RESTARTS="9")
    assert words[2:-4] == [
        "--tee=3", "--nproc-per-node=8", "--nnodes=2:4", "--rdzv-backend=c10d", "--rdzv-endpoint=host0:29500",
        "--rdzv-id=seven", "--max-restarts=9",
    ]  # fmt: skip
    _, words, _ = show(LAUNCH / "torchrun.sh", "doctor", **variables)
    assert "--max-restarts=0" in words, "what does not go on where it stopped is not started again"


@pytest.mark.worlds
def test_kubeflow_has_said_it_already(show):
    said = {"PET_NNODES": "2:4", "PET_RDZV_ENDPOINT": "job-worker-0:23456", "PET_NPROC_PER_NODE": "auto"}
    _, words, seen = show(LAUNCH / "torchrun.sh", "train", "a.yaml", **said, PET_MAX_RESTARTS="5")
    assert words[2:-4] == ["--max-restarts=5"]
    assert seen["PET_RDZV_CONF"] == "read_timeout=300"


@pytest.mark.worlds
@pytest.mark.parametrize(
    ("words", "variables", "sentence"),
    [
        ([], {}, "usage: torchrun.sh"),
        (["--tee=3"], {}, "usage: torchrun.sh"),
        (["train"], {"NNODES": "2", "NPROC_PER_NODE": "1"}, "NNODES = 2 needs RDZV_ENDPOINT"),
    ],
)
def test_mistakes_of_torchrun_sh(show, words, variables, sentence):
    code, told, _ = show(LAUNCH / "torchrun.sh", *words, **variables)
    assert code == 2
    assert sentence in told[0]


@pytest.mark.worlds
def test_a_failure_keeps_its_code(show):
    assert show(LAUNCH / "torchrun.sh", "train", NPROC_PER_NODE="1", CODE="1")[0] == 1
    assert show(LAUNCH / "deepspeed.sh", "train", CODE="7")[0] == 7


@pytest.mark.slow
def test_a_run_of_two_ranks_saves_on_a_signal(recipe, tmp_path):
    command = [LAUNCH / "torchrun.sh", "train", recipe(record__every_steps=1)]
    variables, run = {"NPROC_PER_NODE": "2", "PYTHONPATH": str(REPOSITORY)}, tmp_path / "runs/tiny"
    with started(tmp_path, *command, "epochs=100000", **variables) as process:
        wait_for(process, run / "metrics.jsonl")
        wait_for_first_line(process, run / "metrics.jsonl")
        process.send_signal(signal.SIGUSR1)
        said, _ = process.communicate(timeout=240)
    assert process.returncode == 138, said
    stopped = json.loads((run / "result.json").read_text())
    assert stopped["status"] == "stopped"
    assert json.loads((run / "plan.json").read_text())["world_size"] == 2
    assert any((run / "checkpoints").glob("step-*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_the_script_reaches_every_rank_once(stand_in, number):
    with started(stand_in, LAUNCH / "torchrun.sh", "train", "a=b", NPROC_PER_NODE="2") as process:
        wait_for(process, stand_in / "ready0", stand_in / "ready1")
        process.send_signal(number)
        if number != signal.SIGINT:
            time.sleep(0.1)
            process.send_signal(number)  # as a scheduler may: the ranks keep their time to save
        assert ended(process) == 128 + number
    assert (stand_in / "saved0").read_text() == (stand_in / "saved1").read_text() == "train a=b"
    assert not list(stand_in.glob("largebatch-stop*"))


@pytest.mark.worlds
def test_a_signal_before_there_are_ranks(tmp_path):
    slow = tmp_path / "python"
    slow.write_text("#!/usr/bin/env bash\ntrap 'exit 1' TERM\ntouch started\nwhile :; do sleep 0.05; done\n")
    slow.chmod(0o755)
    with started(tmp_path, LAUNCH / "torchrun.sh", "train", NPROC_PER_NODE="1", PYTHON=str(slow)) as process:
        wait_for(process, tmp_path / "started")
        process.send_signal(signal.SIGTERM)
        assert ended(process) == 143


@pytest.mark.slow
def test_the_other_machine_ends_too(stand_in):
    """Its ranks learn of the signal from the first machine's, and its torchrun does not wait for that one's return."""
    variables = {
        "NNODES": "2", "RDZV_ENDPOINT": f"127.0.0.1:{free_port()}", "NPROC_PER_NODE": "1", "STOP_SECONDS": "3",
    }  # fmt: skip
    command = (stand_in, LAUNCH / "torchrun.sh", "train")
    with started(*command, **variables) as first, started(*command, **variables) as second:
        wait_for(first, stand_in / "ready0", stand_in / "ready1")
        first.send_signal(signal.SIGUSR1)
        assert ended(first) == 138
        assert ended(second) == 138


# launch/deepspeed.sh

needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")


@pytest.mark.worlds
def test_deepspeed_options(show, tmp_path):
    _, words, _ = show(LAUNCH / "deepspeed.sh", "train", "a.yaml", NPROC_PER_NODE="2")
    assert words == [
        "-m", "deepspeed.launcher.runner", "--hostfile=", "--master_port=29500", "--num_gpus=2",
        "--module", "largebatch", "train", "a.yaml",
    ]  # fmt: skip
    hosts = str(tmp_path / "hosts")
    Path(hosts).write_text((LAUNCH / "hostfile.example").read_text())
    _, words, _ = show(LAUNCH / "deepspeed.sh", "train", HOSTFILE=hosts)
    assert words[2:5] == [f"--hostfile={hosts}", "--master_port=29500", "--launcher=pdsh"]
    variables = {"NO_SSH": "1", "NODE_RANK": "1", "MASTER_ADDR": "host0", "MASTER_PORT": "4000"}
    _, words, _ = show(LAUNCH / "deepspeed.sh", "train", HOSTFILE=hosts, **variables)
    assert words[3:7] == ["--master_port=4000", "--no_ssh", "--node_rank=1", "--master_addr=host0"]


@pytest.mark.worlds
@pytest.mark.parametrize(
    ("words", "variables", "sentence"),
    [
        ([], {}, "usage: deepspeed.sh"),
        (["train"], {"HOSTFILE": "nowhere"}, "HOSTFILE = nowhere cannot be read"),
        (["train"], {"NO_SSH": "1"}, "NO_SSH needs HOSTFILE"),
    ],
)
def test_mistakes_of_deepspeed_sh(show, words, variables, sentence):
    code, told, _ = show(LAUNCH / "deepspeed.sh", *words, **variables)
    assert code == 2
    assert sentence in told[0]


@pytest.mark.slow
@needs_deepspeed
def test_two_machines_of_a_hostfile_without_ssh(stand_in):
    (stand_in / "hosts").write_text("# both are this one\nhost0 slots=1\nhost1 slots=1\n")
    variables = {"HOSTFILE": "hosts", "NO_SSH": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = (stand_in, LAUNCH / "deepspeed.sh", "train", "a=b")
    with started(*command, **variables, NODE_RANK="0") as first, started(*command, **variables, NODE_RANK="1") as other:
        wait_for(first, stand_in / "ready0", stand_in / "ready1")
        first.send_signal(signal.SIGUSR1)
        assert ended(first) == ended(other) == 138
    assert (stand_in / "saved1").read_text() == "--local_rank=0 train a=b"


@pytest.mark.slow
@needs_deepspeed
def test_deepspeed_trains_on_this_machine(recipe, tmp_path):
    command = [LAUNCH / "deepspeed.sh", "train", recipe(engine__name="deepspeed")]
    variables = {"NPROC_PER_NODE": "2", "MASTER_PORT": str(free_port()), "PYTHONPATH": str(REPOSITORY)}
    with started(tmp_path, *command, **variables) as process:
        said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert json.loads((tmp_path / "runs/tiny/plan.json").read_text())["world_size"] == 2


# launch/slurm.sbatch

SRUN = """#!/usr/bin/env bash
# Starts the command once, as on one of the nodes, and hands on signals, as Slurm's does.
printf '%s\\n' "$@" >srun-arguments
while [[ $1 == --* ]]; do shift; done
if [[ -n ${CODE-} ]]; then exit "$CODE"; fi
"$@" &
trap 'kill -USR1 $!' USR1
trap 'kill -TERM $!' TERM
wait $! || true
wait $!
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >>scontrol-arguments
if [[ $1 == show ]]; then printf 'node003\\nnode004\\n'; fi
"""


@pytest.fixture
def slurm(stand_in: Path) -> tuple[Path, dict[str, str]]:
    """The folder of a job, with Slurm's programs and variables in it."""
    (stand_in / "bin").mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (stand_in / "bin" / name).write_text(text)
        (stand_in / "bin" / name).chmod(0o755)
    (stand_in / "launch").symlink_to(LAUNCH)
    (stand_in / "spool").write_text((LAUNCH / "slurm.sbatch").read_text())  # Slurm runs a copy
    return stand_in, {
        "PATH": f"{stand_in / 'bin'}:/usr/bin:/bin",
        "SLURM_SUBMIT_DIR": str(stand_in),
        "SLURM_JOB_ID": "8652143",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "node[003-004]",
        "SLURM_CPUS_PER_TASK": "16",
        "NPROC_PER_NODE": "1",
    }


@pytest.mark.slow
def test_the_job_queues_again_after_saving(slurm):
    folder, variables = slurm
    with started(folder, "bash", "spool", "train", "a=b", **variables) as process:
        wait_for(process, folder / "ready0")
        process.send_signal(signal.SIGUSR1)
        assert ended(process) == 138
    assert (folder / "saved0").read_text() == "train a=b"
    asked = (folder / "scontrol-arguments").read_text().splitlines()
    assert asked == ["show hostnames node[003-004]", "requeue 8652143"]
    words = (folder / "srun-arguments").read_text().splitlines()
    assert words[:2] == ["--ntasks=1", "--ntasks-per-node=1"]
    assert words[-3:] == [f"{folder}/launch/torchrun.sh", "train", "a=b"]


@pytest.mark.slow
def test_the_job_that_is_cancelled_or_fails_does_not(slurm):
    folder, variables = slurm
    with started(folder, "bash", "spool", "train", **variables) as process:
        wait_for(process, folder / "ready0")
        process.send_signal(signal.SIGTERM)
        assert ended(process) == 143
    for code in ("0", "1", "2", "138"):
        with started(folder, "bash", "spool", "train", **variables, CODE=code) as process:
            assert ended(process) == int(code)
    assert "requeue" not in (folder / "scontrol-arguments").read_text()


@pytest.mark.worlds
def test_what_the_nodes_are_told(slurm):
    folder, variables = slurm
    (folder / "bin" / "srun").write_text(SHOW)
    variables |= {"SLURM_JOB_NUM_NODES": "2", "SLURM_RESTART_COUNT": "1"}
    with started(folder, "bash", "spool", "train", **variables) as process:
        assert ended(process) == 0
    seen = dict(line.partition("=")[::2] for line in (folder / "environment").read_text().splitlines())
    assert seen["NNODES"] == "2"
    assert seen["RDZV_ENDPOINT"] == f"node003:{20000 + 8652143 % 9000}"
    assert seen["RDZV_ID"] == "8652143-1"
    assert seen["SRUN_CPUS_PER_TASK"] == "16"
    assert int(seen["STOP_SECONDS"]) < 120, "what --signal leaves"


@pytest.mark.worlds
def test_mistakes_of_slurm_sbatch(slurm):
    folder, variables = slurm
    for words, submitted, sentence in (
        ((), folder, "usage: sbatch"),
        (("train",), folder / "bin", "torchrun.sh is not there"),
    ):
        variables["SLURM_SUBMIT_DIR"] = str(submitted)
        with started(folder, "bash", "spool", *words, **variables) as process:
            said, _ = process.communicate(timeout=60)
        assert process.returncode == 2
        assert sentence in said


def test_slurm_is_asked_for_what_the_script_counts_on():
    text = (LAUNCH / "slurm.sbatch").read_text()
    asked = re.findall(r"^#SBATCH (.+)$", text, re.M)
    assert {"--signal=B:USR1@120", "--requeue", "--open-mode=append", "--ntasks-per-node=1"} <= set(asked)
    assert text.index("#SBATCH --output") < text.index("\nset -euo"), "Slurm stops reading at the first command"


# launch/kubernetes/, docker/


def documents() -> dict[str, list[dict]]:
    return {file.stem: list(yaml.safe_load_all(file.read_text())) for file in KUBERNETES}


def pods() -> dict[str, dict]:
    found = documents()
    worker = found["pytorchjob"][0]["spec"]["pytorchReplicaSpecs"]["Worker"]
    node = found["trainjob"][0]["spec"]["template"]["spec"]["replicatedJobs"][0]
    return {
        "pytorchjob": worker["template"]["spec"],
        "trainjob": node["template"]["spec"]["template"]["spec"],
        "job": found["job"][1]["spec"]["template"]["spec"],
    }


@pytest.mark.parametrize("name", ["pytorchjob", "trainjob", "job"])
def test_pods(name):
    pod = pods()[name]
    security, (container,) = pod["securityContext"], pod["containers"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == int(re.findall(r"ARG UID=(\d+)", dockerfile())[0])
    own = container["securityContext"]
    assert own["allowPrivilegeEscalation"] is False
    assert own["readOnlyRootFilesystem"] is True
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert pod["automountServiceAccountToken"] is False
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounts.values()) == set(volumes)
    memory = volumes[mounts["/dev/shm"]]["emptyDir"]
    assert memory["medium"] == "Memory"
    assert gibibytes(memory["sizeLimit"]) < gibibytes(container["resources"]["limits"]["memory"])
    assert "emptyDir" in volumes[mounts["/tmp"]]
    claims = {found["metadata"]["name"] for found in documents()["storage"]}
    assert {volumes[mounts[place]]["persistentVolumeClaim"]["claimName"] for place in ("/runs", "/data")} == claims
    seconds = next(int(entry["value"]) for entry in container["env"] if entry["name"] == "STOP_SECONDS")
    assert pod["terminationGracePeriodSeconds"] > seconds
    assert container["command"] == ["/app/launch/torchrun.sh"]
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] >= 1


def gibibytes(text: str) -> int:
    return int(text.removesuffix("Gi"))


def test_what_is_tried_again():
    found = documents()
    assert found["pytorchjob"][0]["spec"]["pytorchReplicaSpecs"]["Worker"]["restartPolicy"] == "ExitCode"
    job = found["job"][1]["spec"]
    again = {code for rule in job["podFailurePolicy"]["rules"] if rule["action"] == "Ignore" for code in codes(rule)}
    assert again == {128 + number for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)}
    runtime, train_job = found["trainjob"]
    assert runtime["spec"]["template"]["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert train_job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]


def codes(rule: dict) -> list[int]:
    return rule.get("onExitCodes", {}).get("values", [])


def test_the_plain_job_meets_at_its_own_service():
    service, job = documents()["job"]
    pod = job["spec"]["template"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["subdomain"] == service["metadata"]["name"]
    said = {entry["name"]: entry["value"] for entry in pod["spec"]["containers"][0]["env"]}
    port = service["spec"]["ports"][0]["port"]
    assert said["RDZV_ENDPOINT"] == f"{job['metadata']['name']}-0.{service['metadata']['name']}:{port}"
    assert int(said["NNODES"]) == job["spec"]["completions"] == job["spec"]["parallelism"]


MACHINE = {"name", "device", "engine", "data", "record", "resume", "checkpoint", "timeout_minutes", "compile", "title"}


def test_no_file_says_how_to_learn():
    """The scientist states what is trained; what starts it only says where."""
    science = set(Run.model_fields) - MACHINE
    assert {"lr", "batch", "optimizer", "epochs", "steps", "seed", "precision", "weight_decay"} <= science
    files = [file for folder in ("launch", "docker") for file in (REPOSITORY / folder).rglob("*") if file.is_file()]
    assert len(files) >= 10
    for file in files:
        for key in science:
            assert not re.search(rf"(?<![\w.-]){key}(\.\w+)*\s*[=:]", file.read_text()), f"{file.name}: {key}"
    assert re.search(r"(?<![\w.-])lr(\.\w+)*\s*[=:]", "launch/torchrun.sh train x.yaml lr.base=0.1")


def test_recipes_that_the_files_name_exist():
    for file in [*SCRIPTS, *KUBERNETES, REPOSITORY / "docker/compose.yaml", REPOSITORY / "docs/operating.md"]:
        for name in re.findall(r"configs/[\w/.-]+\.yaml", file.read_text()):
            assert (REPOSITORY / name).is_file(), f"{file.name}: {name}"


def dockerfile() -> str:
    return (REPOSITORY / "docker/Dockerfile").read_text()


def test_the_image():
    text = dockerfile()
    steps = [line.split()[0] for line in text.splitlines() if re.match(r"[A-Z]+ ", line)]
    base = re.findall(r"^ARG BASE=(\S+):(\S+)$", text, re.M)
    assert base
    assert base[0][1] != "latest"
    assert re.search(r"^USER \$\{UID\}", text, re.M)
    assert steps[-1] == "CMD"
    assert json.loads(text.rpartition("\nCMD ")[2]) == ["largebatch", "doctor"]
    assert "HEALTHCHECK" in steps
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ")]
    assert copied[0] == ["constraints.txt", "pyproject.toml"], "dependencies are a layer of their own"
    assert text.index("--requirement") < text.index("COPY largebatch")
    ignored = (REPOSITORY / ".dockerignore").read_text().split("\n")
    assert "*" in ignored
    for name in {name for names in copied for name in names}:
        assert (REPOSITORY / name).exists()
        assert f"!{name}" in ignored


@pytest.mark.worlds
def test_the_dependencies_of_the_image_are_the_projects(tmp_path):
    program = dockerfile().partition("<<'PYTHON'\n")[2].partition("\nPYTHON\n")[0]
    printed = subprocess.run(
        [sys.executable, "-", "deepspeed", "mllog"], input=program, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert printed.returncode == 0, printed.stderr
    names = {re.split(r"[<>=]", line)[0] for line in printed.stdout.splitlines()}
    assert {"torch", "torchvision", "typer", "deepspeed", "mlperf-logging"} <= names
    assert "pytest" not in names


def test_compose():
    services = yaml.safe_load((REPOSITORY / "docker/compose.yaml").read_text())["services"]
    assert set(services) == {"gpu", "cpu", "tensorboard"}
    for name, service in services.items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["profiles"] == [name]
        assert gibibytes(service["shm_size"].replace("gb", "Gi")) >= 1
    assert services["gpu"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert [port.startswith("127.0.0.1:") for port in services["tensorboard"]["ports"]] == [True]
    assert not any("ports" in services[name] for name in ("gpu", "cpu"))
    assert services["cpu"]["build"]["args"]["BASE"].startswith("ubuntu:")


@pytest.mark.worlds
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_bash_and_can_be_started(script):
    assert script.stat().st_mode & 0o111
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert subprocess.run(["bash", "-n", script]).returncode == 0

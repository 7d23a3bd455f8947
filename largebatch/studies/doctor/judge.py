"""The facts -> what would go wrong, a sentence with its remedy each. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from largebatch.studies.doctor.facts import GIB, Examined, by_host, size, spans

LEAST_BYTES = {"run_folder": GIB, "temporary_folder": GIB // 2}
LEAST_SHARED_MEMORY = GIB
LEAST_OPEN_FILES = 1024
LARGEST_CLOCK_DIFFERENCE = 1.0  # seconds


def judge(facts: Examined) -> list[str]:
    """What would go wrong. A sentence that holds on some hosts only begins with their names."""
    hosts = by_host(facts["ranks"])
    found: dict[str, list[str]] = {}
    for host, ranks in hosts.items():
        for sentence in dict.fromkeys(said for rank in ranks for said in _of_rank(rank, len(ranks), facts)):
            found.setdefault(sentence, []).append(host)
        for sentence in _of_host(ranks):
            found.setdefault(sentence, []).append(host)
    sentences = [
        text if len(where) == len(hosts) else f"on {', '.join(where)}: {text}" for text, where in found.items()
    ]
    return sentences + list(_of_all(facts, hosts))


def _of_rank(seen: Examined, ranks_here: int, facts: Examined) -> Iterator[str]:
    yield from seen["complaints"]
    device, environment = seen["device"], seen["environment"]
    if device["problem"]:
        yield device["problem"]
    if device["driver"] and not device["visible"] and device["asked"] != "cpu":
        built = f"built for CUDA {device['torch_cuda']}" if device["torch_cuda"] else "built without CUDA"
        yield (
            f"the NVIDIA driver {device['driver']} is there, but torch {seen['versions'].get('torch')}, {built}, sees "
            "no device; install a torch that fits the driver, or look at CUDA_VISIBLE_DEVICES"
        )
    for place, words in (("run_folder", facts["run_folder"]["path"]), ("temporary_folder", seen["temporary_folder"])):
        if seen["free_bytes"][place] < LEAST_BYTES[place]:
            kind = place.replace("_", " ")
            remedy = "choose another record.dir" if place == "run_folder" else "set TMPDIR to a folder with more"
            yield f"the {kind} {words} has {size(seen['free_bytes'][place])} free; make room or {remedy}"
    memory = seen["shared_memory_bytes"]
    needed = facts["image_folder"] or (device["type"] == "cuda" and ranks_here > 1)
    if needed and memory is not None and memory < LEAST_SHARED_MEMORY:
        yield (
            f"the shared memory /dev/shm holds {size(memory)}, and data workers and NCCL pass "
            "their data through it; give the container more (docker run --shm-size=8g, a memory "
            "emptyDir in Kubernetes) or set data.workers=0"
        )
    if seen["open_files"] is not None and seen["open_files"] < LEAST_OPEN_FILES:
        yield f"a process may open {seen['open_files']} files, data workers need more; ulimit -n 65536"
    if environment.get("PET_NNODES") and seen["launched_by"] is None:
        yield (
            "PET_NNODES is set and nothing started this process as a rank: Kubeflow means torchrun to be started in "
            "the pod, which reads these variables itself; start launch/torchrun.sh"
        )
    for key in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if environment.get(key) and not _names_an_interface(environment[key], seen["interfaces"]):
            yield f"{key} = {environment[key]} names no interface here; valid: {', '.join(seen['interfaces'])}"


def _names_an_interface(written: str, interfaces: list[str]) -> bool:
    """NCCL takes beginnings of names, after ``=`` whole ones, after ``^`` all but those; gloo takes whole ones."""
    if written.startswith("^"):
        return True
    wanted = written.removeprefix("=").split(",")
    return any(name.startswith(beginning) for name in interfaces for beginning in wanted if beginning)


def _of_host(ranks: list[Examined]) -> Iterator[str]:
    cores, threads = ranks[0]["cores"], sum(rank["threads"] for rank in ranks)
    if len(ranks) > 1 and threads > cores and all(rank["device"]["type"] == "cpu" for rank in ranks):
        yield (
            f"{len(ranks)} ranks take {threads} threads on {cores} cores; "
            f"set OMP_NUM_THREADS={max(1, cores // len(ranks))}"
            + (" and start fewer ranks" if len(ranks) > cores else "")
        )
    devices = [rank["device"]["uuid"] for rank in ranks if rank["device"].get("uuid")]
    if len(set(devices)) < len(devices):
        yield "two ranks have the same CUDA device; start at most one rank per device"


def _of_all(facts: Examined, hosts: dict[str, list[Examined]]) -> Iterator[str]:
    versions: dict[str, dict[str, list[int]]] = {}
    for rank in facts["ranks"]:
        for package in {name for other in facts["ranks"] for name in other["versions"]}:
            version = rank["versions"].get(package, "missing")
            versions.setdefault(package, {}).setdefault(version, []).append(rank["rank"])
    for package, by_version in sorted(versions.items()):
        if len(by_version) > 1:
            which = "; ".join(f"{version} for rank {spans(of)}" for version, of in sorted(by_version.items()))
            yield f"{package} differs between ranks ({which}); install the same everywhere"
    if len({rank["device"]["type"] for rank in facts["ranks"]}) > 1:
        without = [rank["rank"] for rank in facts["ranks"] if rank["device"]["type"] == "cpu"]
        yield f"rank {spans(without)} has no CUDA device and others have; all need the same kind, or device=cpu"
    difference = facts.get("clock_difference_seconds", 0.0)
    if difference > LARGEST_CLOCK_DIFFERENCE:
        yield f"clocks differ by {difference:.1f} s between ranks; synchronise the hosts' clocks (NTP)"
    group, folder = facts["group"], facts["run_folder"]
    if group and group["problem"]:
        yield f"an all-reduce over {group['backend']} failed: {group['problem']}; NCCL_DEBUG=INFO says more"
    if folder["problem"]:
        yield f"the run folder {folder['path']} cannot be written: {folder['problem']}; choose another record.dir"
    if folder["unseen_by_ranks"]:
        blind = [rank for rank in facts["ranks"] if rank["rank"] in folder["unseen_by_ranks"]]
        where = {host: spans([rank["rank"] for rank in here]) for host, here in by_host(blind).items()}
        which = ", ".join(f"rank {ranks} on {host}" for host, ranks in where.items())
        yield (
            f"the run folder {folder['path']} is not the same for all: {which} does not see what rank 0 writes there; "
            "choose a record.dir on storage that all hosts share"
        )

"""The facts -> what is printed, a line each."""

from __future__ import annotations

from collections.abc import Callable

from largebatch.studies.doctor.facts import Examined, by_host, size, spans
from largebatch.studies.doctor.look import TENSORBOARD_PORT


def lines(facts: Examined) -> dict[str, str]:
    """What is seen, a line each."""
    ranks, hosts = facts["ranks"], by_host(facts["ranks"])
    first, group, folder = ranks[0], facts["group"], facts["run_folder"]
    found = {"hosts": alike(hosts, lambda host: f"rank {spans([rank['rank'] for rank in host])}", always=True)}
    found["devices"] = alike(hosts, _words_of_devices)
    found["cores"] = alike(hosts, _words_of_cores)
    found["versions"] = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    if group:
        found["group"] = f"{group['backend']}, {len(ranks)} ranks by {first['launched_by']}, met at {first['address']}"
        found["all-reduce"] = "; ".join(
            f"{size(one['bytes'])} {1e3 * one['seconds_median']:.3g} ms"
            + (f" ({one['bus_bytes_per_second'] / 1e9:.3g} GB/s)" if one["bytes"] >= 2**20 else "")
            for one in group["all_reduce"]
        )
        found["clocks"] = f"within {facts['clock_difference_seconds']:.3f} s of each other"
    found["data"] = alike(
        hosts, lambda host: f"{host[0]['data_folder']}: {', '.join(host[0]['data_sets']) or 'no set'}"
    )
    found["run folder"] = f"{folder['path']}, {size(first['free_bytes']['run_folder'])} free" + (
        ", the same for all ranks" if group and not folder["problem"] and not folder["unseen_by_ranks"] else ""
    )
    found["disk"] = alike(
        hosts, lambda host: f"{host[0]['temporary_folder']} {size(host[0]['free_bytes']['temporary_folder'])} free"
    )
    found["memory"] = alike(hosts, lambda host: f"shared, {size(host[0]['shared_memory_bytes'])} in /dev/shm")
    found["open files"] = alike(hosts, lambda host: f"{host[0]['open_files'] or 'without limit'} at most")
    if any(rank["tensorboard_open"] for rank in ranks):
        where = [host for host, here in hosts.items() if here[0]["tensorboard_open"]]
        found["tensorboard"] = (
            f"port {TENSORBOARD_PORT} is open to all who reach {', '.join(where)}; it has no password"
        )
    if (recipe := first["recipe"]) is not None:
        found |= _words_of_recipe(recipe)
    return found


def _words_of_devices(ranks: list[Examined]) -> str:
    kinds: dict[str, int] = {}
    for rank in ranks:
        device = rank["device"]
        name = f"{device['name']} ({size(device['bytes'])})" if device["type"] == "cuda" else "cpu"
        kinds[name] = kinds.get(name, 0) + 1
    words = ", ".join(f"{count} × {name}" if count > 1 else name for name, count in kinds.items())
    device = ranks[0]["device"]
    if device["driver"] or device["visible"]:
        words += f", {device['visible']} visible, driver {device['driver']}, torch for CUDA {device['torch_cuda']}"
    return words


def _words_of_cores(ranks: list[Examined]) -> str:
    threads, set_to = ranks[0]["threads"], ranks[0]["omp_num_threads"]
    given = f"OMP_NUM_THREADS={set_to}" if set_to else "OMP_NUM_THREADS is not set"
    plural = ["s" * (count > 1) for count in (len(ranks), threads)]
    return f"{ranks[0]['cores']}; {len(ranks)} rank{plural[0]} × {threads} thread{plural[1]} ({given})"


def _words_of_recipe(recipe: Examined) -> dict[str, str]:
    found = {"recipe": f"{recipe['name']} on {recipe['data']} ({recipe['dataset_source'] or 'not found'})"}
    if batch := recipe["batch"]:
        more = [f"{phase['global_batch_size']:,}" for phase in batch["phases"]]
        found["batch"] = (
            f"{batch['global_batch_size']:,} = {batch['world_size']} × {batch['micro_batch_size']} × "
            f"{batch['accumulation_steps']} (ranks × micro-batch × accumulation), {batch['steps']:,} steps"
            + f" in {len(more)} phases of batch {', '.join(more)}"
            * bool(more)
        )
    if "checkpoint_bytes" in recipe:
        one = size(recipe["checkpoint_bytes"])
        found["checkpoint"] = f"about {one} each, {recipe['checkpoints_at_a_time']} at a time"
    if recipe["services"]:
        found["record.to"] = "; ".join(f"{name} {words}" for name, words in recipe["services"].items())
    return found


def alike(hosts: dict[str, list[Examined]], words: Callable[[list[Examined]], str], always: bool = False) -> str:
    """Said once where all hosts say the same, else for each."""
    said = {host: words(here) for host, here in hosts.items()}
    if len(set(said.values())) == 1 and not always:
        return next(iter(said.values()))
    return "; ".join(f"{host}: {text}" for host, text in said.items())

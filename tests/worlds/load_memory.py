"""What reading a checkpoint costs each rank in memory: results/checkpoint_memory/.

    torchrun --nproc-per-node 4 tests/worlds/load_memory.py save fsdp FOLDER 24
    torchrun --nproc-per-node 4 tests/worlds/load_memory.py load fsdp FOLDER 24

The model is so many linear layers of 1,024 by 1,024 under AdamW; 24 are 302 MB of weights and optimizer states. What
each rank needed is printed, and kept in FOLDER/memory.json. Linux alone says how much is resident, and which of it is
a process's own (anonymous) and which the file's (the page cache's, one copy for all ranks of a host).
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from largebatch import checkpoint
from largebatch.engines import Engine
from largebatch.engines.ddp import Ddp
from largebatch.engines.fsdp import Fsdp
from largebatch.machine import distributed
from largebatch.plan import batch
from largebatch.tasks.classification import Classification

WIDTH = 1024
STATUS = Path("/proc/self/status")
INTERVAL = 0.001  # seconds between two looks


def resident() -> dict[str, float]:
    """MB by the kernel's names: RssAnon, RssFile, and VmHWM, the highest of both together."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return {key: int(lines[key].split()[0]) * 1024 / 1e6 for key in ("RssAnon", "RssFile", "VmRSS", "VmHWM")}


@contextlib.contextmanager
def peaks() -> Iterator[dict[str, float]]:
    """Filled at the end: by how much this process grew inside, at most, of each kind."""
    grown: dict[str, float] = {}
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before, highest, ended = resident(), resident(), threading.Event()

    def look() -> None:
        while not ended.wait(INTERVAL):
            for key, now in resident().items():
                highest[key] = max(highest[key], now)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield grown
    finally:
        ended.set()
        thread.join()
    after = resident()
    grown["own"] = max(highest["RssAnon"], after["RssAnon"]) - before["RssAnon"]
    grown["of the file"] = max(highest["RssFile"], after["RssFile"]) - before["RssFile"]
    grown["together"] = after["VmHWM"] - before["VmRSS"]
    grown["own, kept after it"] = after["RssAnon"] - before["RssAnon"]


def prepared(name: str, layers: int) -> Engine:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
    engine = {"ddp": Ddp, "fsdp": Fsdp}[name](torch.device("cpu"), "fp32", channels_last=False, compile=False)
    engine.shard_safe = True
    model = engine.place(model)
    world = distributed.world_size()
    plan = batch.resolve(dataset_size=world, global_batch_size=world, world_size=world, steps=1)
    engine.prepare(model, torch.optim.AdamW(model.parameters()), plan, None)
    return engine


def save(engine: Engine, folder: Path) -> None:
    """After one step, so that there are optimizer states."""
    task, given = Classification(), (torch.ones(1, WIDTH), torch.zeros(1, dtype=torch.int64))
    engine.backward(task.loss(engine.forward(task, given), given))
    engine.step()
    writer = checkpoint.Writer(folder, checkpoint.Retention())
    writer.save(1, {}, engine.save(), {"statistics": engine.statistics()})
    outcome = writer.take()
    writer.close()
    assert outcome is not None
    assert outcome.path is not None, outcome.problem
    if distributed.is_first():
        print(f"saved {outcome.bytes / 1e6:.0f} MB by {distributed.world_size()} ranks")


def load(engine: Engine, folder: Path) -> list[dict[str, float]]:
    """What each rank needed for it."""
    with peaks() as grown:
        found = checkpoint.load_newest(folder)
        assert found is not None
        engine.load(found.state)
        del found
    return distributed.gather(grown)


def work(what: str, engine: str, folder: str, layers: str) -> None:
    with distributed.group(torch.device("cpu")):
        made = prepared(engine, int(layers))
        if what == "save":
            save(made, Path(folder))
            return
        of_ranks = load(made, Path(folder))
        if distributed.is_first():
            tell(engine, of_ranks)
            (Path(folder) / "memory.json").write_text(json.dumps(of_ranks))


def tell(engine: str, of_ranks: list[dict[str, float]]) -> None:
    print(f"{engine}, {len(of_ranks)} ranks: MB by which each grew, at most, while it loaded")
    for rank, grown in enumerate(of_ranks):
        print(f"  rank {rank}: {', '.join(f'{key} {value:.0f}' for key, value in grown.items())}")
    print(f"  all:    own {sum(grown['own'] for grown in of_ranks):.0f}")


if __name__ == "__main__":
    work(*sys.argv[1:])

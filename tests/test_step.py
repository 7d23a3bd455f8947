"""A step asks nothing of the device that the host would wait for; a compiled one is compiled once for each shape."""

from __future__ import annotations

import inspect
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import rich.console
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

import largebatch
from largebatch import cli
from largebatch.machine import distributed
from largebatch.recipes import config
from largebatch.run.assemble import assemble
from largebatch.run.loop import Loop, Steps

WAITS = {"_local_scalar_dense", "is_nonzero", "nonzero", "equal", "item", "masked_select", "unique_dim", "_unique2"}


class Watched(TorchDispatchMode):
    """Notes every operation whose result the host needs: on CUDA each of them would stop the step."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), more: Any = None) -> Any:
        if function.overloadpacket.__name__ in WAITS:
            self.found.append(function.overloadpacket.__name__)
        return function(*arguments, **(more or {}))


METHODS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "lars": {"optimizer": {"name": "lars"}, "weight_decay": {"value": 1e-4}},
    "lamb": {"optimizer": {"name": "lamb"}, "weight_decay": {"value": 0.1}},
    "clipped": {"max_grad_norm": 1.0},
    "accumulated": {"batch": {"global_batch_size": 100, "micro_batch_size": 25}},
    "ghost batch norm": {"batch": {"global_batch_size": 100, "bn_batch_size": 25}},
    "label smoothing, ema": {"loss": {"label_smoothing": 0.1}, "ema": {"decay": 0.9}},
    "sam": {"sam": {"rho": 0.05}},
    "augmented": {"data": {"name": "digits", "augment": "crop_flip"}},
}


def one_step(loop: Loop, micro_batches: Any) -> None:
    """As the loop does it where nothing is recorded."""
    step = loop.steps.make(loop.steps.begin(loop.step), micro_batches)
    loop.unread.append(step)
    loop.progress.made(step)


@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS)
def test_no_step_between_two_records_makes_the_host_wait(recipe, tmp_path, changes):
    path = recipe(**{"model": {"name": "tiny_cnn", "channels": [4, 8]}, **changes})
    run = config.load(path, ["record.every_steps=100", "steps=6"])
    job = assemble(run, torch.device("cpu"))
    with Loop(job, tmp_path, rich.console.Console(quiet=True), quiet=True) as loop:
        job.engine.model.train()
        stream = job.dataset.train.steps(job.plan, distributed.rank(), 0, job.placement, run.seed)
        for step, micro_batches in enumerate(stream):
            with Watched() as watched:
                one_step(loop, micro_batches)
            if step:  # optimizers make their states in the first
                assert not watched.found
    with Watched() as watched:
        float(torch.ones(()) * 2)
    assert watched.found, "else this test could not fail"


@pytest.mark.gpu
@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS)
def test_no_step_synchronises_on_a_device(recipe, tmp_path, changes):
    path = recipe(**{"model": {"name": "tiny_cnn", "channels": [4, 8]}, "device": "cuda", **changes})
    run = config.load(path, ["record.every_steps=100", "steps=6"])
    job = assemble(run, distributed.choose_device("cuda"))
    with Loop(job, tmp_path, rich.console.Console(quiet=True), quiet=True) as loop:
        job.engine.model.train()
        stream = job.dataset.train.steps(job.plan, 0, 0, job.placement, run.seed)
        try:
            for step, micro_batches in enumerate(stream):
                torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")
                one_step(loop, micro_batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.worlds
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_every_shape_is_compiled_once(recipe):
    """Sixteen steps of growing images, four sides: the model is compiled four times, not sixteen."""
    import torch._dynamo
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    count = CompileCounter()
    job = assemble(config.load(recipe(model={"name": "resnet20"}, compile=True)), torch.device("cpu"))
    job.engine.model.train()
    compiled = torch.compile(job.engine.model, dynamic=False, backend=count)
    job.engine.parallel = compiled
    for side in (8, 12, 16, 20) * 4:
        job.engine.backward(job.engine.forward(job.task, (torch.randn(10, 1, side, side),)).sum())
        job.engine.step()
    assert count.frame_count == 4
    torch._dynamo.reset()
    assert torch._dynamo.config.recompile_limit >= 64, "the engine makes room: beyond the limit torch runs eagerly"


def test_few_functions_lie_between_the_command_and_the_optimizer(recipe, monkeypatch):
    """At most eight of ours are on the stack in a step of the optimizer."""
    package, stacks = str(Path(largebatch.__file__).parent), []

    def look(*_: Any) -> None:
        stacks.append([frame for frame in traceback.extract_stack() if frame.filename.startswith(package)])

    monkeypatch.setattr(sys, "argv", ["largebatch", "train", str(recipe(steps=2, epochs=None))])
    hook = register_optimizer_step_pre_hook(look)
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code
    finally:
        hook.remove()
    assert len(stacks) == 2
    assert all(len(stack) <= 8 for stack in stacks), [frame.name for frame in stacks[0]]
    assert stacks[0][-2].name == "take", "the function that is the step"


def test_the_step_is_one_function():
    """Forward, loss, backward and the optimizer's step are called in it, in this order."""
    source = inspect.getsource(Steps.take)
    places = [source.index(call) for call in ("engine.forward(", "task.loss(", "engine.backward(", "engine.step(")]
    assert places == sorted(places)

"""The Triton kernels: every case of kernel_cases in the interpreter, and on CUDA, with what only CUDA can show."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from optim import kernel_cases
from optim.kernel_cases import CASES, LRS, MAKERS, gradients, grouped, weights
from packaging.version import Version
from programs import REPOSITORY, environment

from largebatch.optim import Lars


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str | None]:
    """What failed in Triton's interpreter, which a process must ask for before it imports Triton."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    triton, numpy = (Version(importlib.metadata.version(name)) for name in ("triton", "numpy"))
    if triton < Version("3.7") and numpy >= Version("2.4"):
        pytest.skip(f"the interpreter of Triton {triton} fails by itself with NumPy {numpy}: it needs one below 2.4")
    warnings = ["-W", "error", "-W", "ignore:Conversion of an array:DeprecationWarning"]  # Triton 3.6 makes them
    halves = [
        subprocess.Popen(
            [sys.executable, *warnings, "-m", "optim.kernel_cases", part, "2"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment(TRITON_INTERPRET="1", PYTHONPATH=f"{REPOSITORY}:{REPOSITORY / 'tests'}"),
        )
        for part in "01"
    ]  # fmt: skip
    failed = {}
    for half in halves:
        out, errors = half.communicate(timeout=600)
        assert half.returncode == 0, errors
        failed |= json.loads(out.splitlines()[-1])
    return failed


@pytest.mark.worlds
@pytest.mark.parametrize("name", CASES)
def test_the_kernels_equal_plain_in_the_interpreter(name, interpreted):
    assert interpreted[name] is None, interpreted[name]


@pytest.mark.worlds
def test_triton_may_be_absent():
    file = REPOSITORY / "tests" / "worlds" / "no_triton.py"
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr


def test_without_the_interpreter_the_cpu_keeps_to_torchs_kernels():
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    optimizer = Lars([parameter], 0.1, form="fused")
    optimizer.step()
    assert not optimizer._triton


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_the_kernels_equal_plain_on_cuda(name):
    CASES[name]("cuda:0")


@pytest.mark.gpu
@pytest.mark.parametrize("name", MAKERS)
def test_tensors_whose_addresses_do_not_allow_wide_loads(name):
    """Views that begin 4 bytes after an aligned address, of several chunks, whole and with a rest."""
    storage = torch.randn(70_001, generator=torch.Generator().manual_seed(0), device="cpu").cuda()
    ends = []
    for form in ("fused", "plain"):
        mine = storage.clone()
        parameters = [torch.nn.Parameter(mine[1:32_769]), torch.nn.Parameter(mine[32_770:])]
        optimizer = MAKERS[name](parameters, form=form)
        kernel_cases.train(optimizer)
        ends.append(optimizer)
    kernel_cases.same_optimizers(*ends, 5e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("on_device", [False, True])
def test_no_step_after_the_first_waits_for_the_device(name, on_device):
    parameters = [torch.nn.Parameter(w) for w in weights("cuda:0", torch.float32)]
    optimizer = MAKERS[name](parameters)
    optimizer.max_grad_norm = 1.0
    if on_device:
        optimizer.param_groups[0]["lr"] = torch.tensor(1.0, device="cuda:0")
    held = []
    for step, lr in enumerate(LRS):
        held.append(gradients(parameters, step))  # they lie elsewhere every time
        for parameter, grad in zip(parameters, held[-1], strict=True):
            parameter.grad = grad
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            if on_device:
                optimizer.param_groups[0]["lr"].fill_(lr)
            else:
                optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert optimizer._triton


@pytest.mark.gpu
@pytest.mark.parametrize("name", MAKERS)
def test_a_captured_step_follows_the_learning_rate(name):
    def end(captured: bool) -> list[torch.Tensor]:
        parameters = [torch.nn.Parameter(w) for w in weights("cuda:0", torch.float32)]
        optimizer = MAKERS[name](parameters)
        lr = optimizer.param_groups[0]["lr"] = torch.tensor(1.0, device="cuda:0")
        graph = torch.cuda.CUDAGraph()
        for p in parameters:
            p.grad = torch.zeros_like(p)
        for step in range(6):
            for p, grad in zip(parameters, gradients(parameters, step), strict=True):
                assert p.grad is not None
                p.grad.copy_(grad)
            lr.fill_(LRS[step % len(LRS)])
            if captured and step == 2:
                with torch.cuda.graph(graph):
                    optimizer.step()
            if captured and step >= 2:
                graph.replay()
            else:
                optimizer.step()
        return [*parameters, *(s for p in parameters for s in optimizer.state[p].values())]

    for eager, replayed in zip(end(False), end(True), strict=True):
        assert torch.equal(eager, replayed)


@pytest.mark.gpu
@pytest.mark.parametrize("name", MAKERS)
def test_a_captured_backward_pass_may_move_the_gradients(name):
    def end(captured: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Linear(300, 300).cuda()
        optimizer = MAKERS[name](model.parameters())
        optimizer.param_groups[0]["lr"] = torch.tensor(0.1, device="cuda:0")
        data = torch.randn(8, 300, device="cuda:0")

        def whole_step() -> None:
            optimizer.zero_grad(set_to_none=True)
            model(data).square().mean().backward()
            optimizer.step()

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            whole_step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        if captured:
            optimizer.zero_grad(set_to_none=True)
            with torch.cuda.graph(graph):
                whole_step()
        for _ in range(3):
            if captured:
                graph.replay()
            else:
                whole_step()
        return list(model.parameters())

    for eager, replayed in zip(end(False), end(True), strict=True):
        torch.testing.assert_close(eager, replayed, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "most"), [("lars", 3), ("lamb", 4)])
def test_a_step_is_a_few_launches_however_many_tensors_there_are(name, most):
    def launches(many: int) -> int:
        parameters = [torch.nn.Parameter(torch.ones(5, device="cuda:0")) for _ in range(many)]
        optimizer: Any = MAKERS[name](grouped(parameters, {}, {"adapt": False}))
        for p in parameters:
            p.grad = torch.ones_like(p)
        for _ in range(2):
            optimizer.step()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            optimizer.step()
            torch.cuda.synchronize()
        return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())

    assert launches(4) == launches(300) <= most

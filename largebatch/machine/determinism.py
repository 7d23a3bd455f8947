"""The same bits at every run with the same seed and world: torch's deterministic mode, on and off again.

Without it cuDNN tries its kernels at each new shape and keeps the fastest (``benchmark``): a run has few shapes.

What torch, cuDNN and cuBLAS offer is switched on; TF32, autocast and the number formats stay as they are, since they
round but do not vary. torch also fills memory that nobody has written (``fill_uninitialized_memory``): left on, because
a kernel that reads such memory is one more way to differ. An operation that has no deterministic form is named.

Other worlds, other machines and other versions add up in another order: no mode can make those equal.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

import torch

from largebatch.errors import UserError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = (":4096:8", ":16:8")  # torch asks for one of them; the second is smaller and slower
REFUSAL = re.compile(r"^(?:.*: )?(?P<operation>.+?) does not have a deterministic implementation", re.MULTILINE)


@contextlib.contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Inside, torch is deterministic if ``on``, else cuDNN chooses by measuring; afterwards as it was before.

    To be entered before anything is computed on CUDA: cuBLAS reads its variable when it is first used.
    """
    if not on:
        before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before
        return
    with _workspace(), _mode():
        try:
            yield
        except RuntimeError as error:
            if found := REFUSAL.search(str(error)):
                raise UserError(
                    f"deterministic = true cannot be kept: {found['operation']} has no deterministic form on this "
                    "device; set deterministic = false, or take a model without it"
                ) from None
            raise


@contextlib.contextmanager
def _workspace() -> Iterator[None]:
    there = os.environ.get(WORKSPACE)
    if there is not None and there not in WORKSPACES:
        raise UserError(
            f"the environment's {WORKSPACE} = {there} does not go with deterministic = true; valid: "
            f"{', '.join(WORKSPACES)}, or leave it unset"
        )
    os.environ[WORKSPACE] = there or WORKSPACES[0]
    try:
        yield
    finally:
        if there is None:
            del os.environ[WORKSPACE]


@contextlib.contextmanager
def _mode() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    mode = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    of_cudnn = cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
        cudnn.deterministic, cudnn.benchmark = of_cudnn

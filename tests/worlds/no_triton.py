"""The optimizers where Triton is not installed. A start of its own: Triton may not have been imported."""

import sys

sys.modules["triton"] = None  # type: ignore[assignment]

import torch  # noqa: E402

from largebatch.optim import Lars  # noqa: E402

p = torch.nn.Parameter(torch.ones(3))
p.grad = torch.ones(3)
Lars([p], 0.1).step()
assert (p < 1).all()

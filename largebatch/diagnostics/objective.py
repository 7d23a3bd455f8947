"""The mean loss over stated batches as a function of one flat vector of weights, with gradient and Hessian products.

    f(w) = (1/U)·Σ_batches Σ_examples loss(model_w(x), y)        U units on all ranks together: examples, unless stated
    H·v  = ∇(∇fᵀv)                                               one more backward (Pearlmutter 1994, "Fast Exact
                                                                 Multiplication by the Hessian", Neural Computation 6)

Which examples lie in a batch together matters only to batch norm with batch statistics; it is stated by whoever gives
the batches, so f does not depend on how many ranks share them. Every batch finds the buffers as the pass found them:
running statistics stand still, and no batch sees what another has left behind. Batches are added up in float64.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from largebatch.data.nested import examples_of
from largebatch.errors import UserError

PROBABILITIES = ("p", "drop_prob", "prob", "dropout")  # what layers that draw at random call it
RANDOM_LAYERS = ("Drop", "StochasticDepth", "MultiheadAttention", "RReLU")  # parts of their class names, timm's too
ONCE_ONLY = "this model has no Hessian, because one of its layers can be differentiated only once"
ROUNDING = 1e-4  # relative; a GPU's atomic additions differ by less from pass to pass, random layers by more


class Objective:
    """f over ``batches()``, this rank's (inputs, targets); vectors are flat, in float64, on the weights' device.

    ``loss(outputs, targets)`` is summed over the batch, whose outputs are ``forward(inputs)``: unless
    given, the model's. The sum is divided by the ``units`` of all batches' targets: unless given, by the examples.
    ``sum_over_ranks`` takes a float64 vector and gives its sum over ranks, the same bits on each; every pass calls it
    once. The model's mode is the caller's. As a context, the weights are put back at its end.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[], Iterable[tuple[Any, Any]]],
        examples: int,
        loss: Callable[[Any, Any], Tensor],
        sum_over_ranks: Callable[[Tensor], Tensor] = lambda sums: sums,
        forward: Callable[[Any], Any] | None = None,
        units: Callable[[Any], int | Tensor] | None = None,
    ) -> None:
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.trained:
            raise UserError("the model has no parameters to train, so its loss has neither gradient nor Hessian")
        if examples < 1:
            raise UserError(f"examples = {examples} must be at least 1")
        self.model, self.batches, self.examples, self.loss = model, batches, examples, loss
        self.forward, self.units = forward or model, units
        self.sum_over_ranks = sum_over_ranks
        self.sizes = [parameter.numel() for parameter in self.trained]
        self.parameters = sum(self.sizes)
        self.device = self.trained[0].device
        self.differentiated_twice = False
        self.eps = max(torch.finfo(parameter.dtype).eps for parameter in self.trained)
        self.kept = [parameter.detach().clone() for parameter in self.trained]

    def __enter__(self) -> Objective:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    @torch.no_grad()
    def restore(self) -> None:
        """Put back the weights that the model had when the objective was made, bit by bit."""
        for parameter, kept in zip(self.trained, self.kept, strict=True):
            parameter.copy_(kept)

    def weights(self) -> Tensor:
        return flat([parameter.detach() for parameter in self.trained]).double()

    @torch.no_grad()
    def set(self, w: Tensor) -> None:
        """The model's weights become ``w``, rounded to their own type."""
        for parameter, part in zip(self.trained, w.split(self.sizes), strict=True):
            parameter.copy_(part.view(parameter.shape))

    def value(self, w: Tensor | None = None) -> float:
        """f at ``w``, which stays set; without it at the weights as they are."""
        if w is not None:
            self.set(w)
        with torch.no_grad():
            return self._mean(0, lambda loss, sums: None)[0]

    def value_and_gradient(self, w: Tensor | None = None) -> tuple[float, Tensor]:
        if w is not None:
            self.set(w)

        def add(loss: Tensor, sums: Tensor) -> None:
            self._add(sums, self._derivatives([loss]))

        return self._mean(self.parameters, add)

    def hessian_product(self, v: Tensor) -> Tensor:
        """H·v at the weights as they are."""
        directions = self._shaped(v)

        def add(loss: Tensor, sums: Tensor) -> None:
            self._add_product(sums, self._derivatives([loss], create_graph=True), directions)

        return self._finite(self._mean(self.parameters, add)[1])

    def hessian(self, progress: Callable[[str], None] = lambda line: None) -> Tensor:
        """H as a matrix, row by row, which needs one forward pass per batch: for small models."""
        n, batch = self.parameters, 0

        def add(loss: Tensor, sums: Tensor) -> None:
            nonlocal batch
            batch += 1
            gradients = self._derivatives([loss], create_graph=True)
            direction = torch.zeros(n, dtype=torch.float64, device=self.device)
            for i, row in enumerate(sums.view(n, n)):
                direction.zero_()[i] = 1.0
                self._add_product(row, gradients, self._shaped(direction))
                if (i + 1) % 500 == 0 or i + 1 == n:
                    progress(f"Hessian, batch {batch}: {i + 1} of {n} rows")

        matrix = self._finite(self._mean(n * n, add)[1]).view(n, n)
        return (matrix + matrix.T) / 2

    def check_deterministic(self) -> tuple[float, Tensor]:
        """f and its gradient, if two passes agree on them and f is finite; else the reason why they do not."""
        value, gradient = self.value_and_gradient()
        if not math.isfinite(value) or not bool(gradient.isfinite().all()):
            told = f"the loss at these weights is {value}" if not math.isfinite(value) else "the gradient is not finite"
            raise UserError(f"{told}, so nothing can be said about its surroundings; valid: weights with a finite loss")
        again, gradient_again = self.value_and_gradient()
        if again == value and torch.equal(gradient_again, gradient):
            return value, gradient
        layers = [name or "the model" for name, module in self.model.named_modules() if draws_at_random(module)]
        if layers:
            named = ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
            raise UserError(
                f"the loss is another one in every pass, because these layers draw at random: {named}; "
                "valid: the model in evaluation mode, or their probabilities at 0"
            )
        of_value = abs(again - value) / (abs(value) or 1.0)
        of_gradient = float((gradient_again - gradient).norm()) / (float(gradient.norm()) or 1.0)
        if max(of_value, of_gradient) > ROUNDING:
            raise UserError(
                f"two passes over the same batches differ by {of_value:.1e} of the loss and {of_gradient:.1e} of the "
                f"gradient; valid: at most {ROUNDING:.0e}, with the same examples in every pass and nothing drawn at "
                "random"
            )
        return value, gradient

    def _mean(self, size: int, add: Callable[[Tensor, Tensor], None]) -> tuple[float, Tensor]:
        """f, and the mean over the units of what ``add(loss of a batch, sums)`` adds to ``size`` sums."""
        sums = torch.zeros(3 + size, dtype=torch.float64, device=self.device)
        with unchanged_buffers(self.model) as put_back:
            for inputs, targets in self.batches():
                with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
                    loss = self.loss(self.forward(inputs), targets)
                    add(loss, sums[3:])
                sums[0] += loss.detach()
                sums[1] += examples_of(inputs)
                sums[2] += examples_of(inputs) if self.units is None else self.units(targets)
                put_back()
        sums = self.sum_over_ranks(sums)
        seen = round(float(sums[1]))
        assert seen == self.examples, f"the batches of all ranks hold {seen} examples, not {self.examples}"
        sums /= sums[2].clamp(min=1)
        return float(sums[0]), sums[3:]

    def _derivatives(
        self, of: Sequence[Tensor], along: Sequence[Tensor] | None = None, create_graph: bool = False
    ) -> tuple[Tensor, ...]:
        """By every trained tensor; 0 for one that ``of`` does not depend on. ``along``: the graph stays."""
        return torch.autograd.grad(
            of, self.trained, along, along is not None or None, create_graph, allow_unused=True, materialize_grads=True
        )

    def _add_product(self, sums: Tensor, gradients: Sequence[Tensor], directions: Sequence[Tensor]) -> None:
        """Those gradients that no weight changes have no graph and add nothing."""
        pairs = [(g, d) for g, d in zip(gradients, directions, strict=True) if g.requires_grad]
        if not pairs:
            return
        of, along = zip(*pairs, strict=True)
        if not self.differentiated_twice:
            check_differentiable(of)
        try:
            self._add(sums, self._derivatives(of, along))
        except RuntimeError as error:
            if "is not implemented" not in str(error):  # torch's words for it
                raise
            raise UserError(f"{ONCE_ONLY}: {error}") from error
        self.differentiated_twice = True

    def _add(self, sums: Tensor, derivatives: Iterable[Tensor]) -> None:
        for part, derivative in zip(sums.split(self.sizes), derivatives, strict=True):
            part += derivative.reshape(-1)

    def _shaped(self, v: Tensor) -> list[Tensor]:
        """``v`` cut into tensors like the weights, in their type."""
        parts = v.split(self.sizes)
        return [part.view(w.shape).to(w) for w, part in zip(self.trained, parts, strict=True)]

    def _finite(self, product: Tensor) -> Tensor:
        if not bool(product.isfinite().all()):
            raise UserError(
                "the second derivative of the loss is not finite at these weights, though the first is; "
                "valid: layers and losses that are twice differentiable there"
            )
        return product


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All in one vector, in their own type."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def draws_at_random(module: nn.Module) -> bool:
    kind = type(module).__name__
    if not module.training or not any(part in kind for part in RANDOM_LAYERS):
        return False
    return kind == "RReLU" or any(float(getattr(module, name, None) or 0) > 0 for name in PROBABILITIES)


def check_differentiable(gradients: Iterable[Tensor]) -> None:
    """Refuse functions marked once_differentiable: torch would leave their part of the Hessian out without a word."""
    waiting, seen = [gradient.grad_fn for gradient in gradients], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            if node.name() == "torch::autograd::Error":
                raise UserError(f"{ONCE_ONLY}: a function marked once_differentiable")
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]


@contextlib.contextmanager
def unchanged_buffers(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Gives what puts every buffer back; it is also called at the end. Batch norms do not even try to move theirs."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    buffers = [
        (module._buffers, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    tensors = [buffer for *_, buffer in buffers]
    kept = [buffer.clone() for buffer in tensors]

    @torch.no_grad()
    def put_back() -> None:
        for names, name, buffer in buffers:
            names[name] = buffer
        if tensors:
            torch._foreach_copy_(tensors, kept)

    for norm in norms:
        norm.track_running_stats = False  # torch then normalises by the batch in training, by the buffers otherwise
    try:
        yield put_back
    finally:
        for norm in norms:
            norm.track_running_stats = True
        put_back()

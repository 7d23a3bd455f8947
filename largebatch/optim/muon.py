"""Muon: hidden weight matrices move along the orthogonalised momentum (Jordan et al. 2024, kellerjordan.github.io).

    B ← μ·B + (1−μ)·g          G = (1−μ)·g + μ·B with Nesterov, else B
    W ← (1 − η·λ)·W − η·s·O    O = UVᵀ of G = U·S·Vᵀ, nearly, by ``ns_steps`` Newton-Schulz iterations in bfloat16

    adjust_lr          s, for a matrix of A rows and B columns
    original           √max(1, A/B)          Jordan et al.
    match_rms_adamw    0.2·√max(A, B)        Liu et al. 2025 (2502.16982): takes AdamW's lr and weight decay

That is torch.optim.Muon, which does it here. Jordan's code has no (1−μ) before g; the orthogonalisation takes the scale
away. torch's takes matrices alone: a convolution's weight (O, I, H, W) is shown to it as (O, I·H·W), a view of the same
memory, so a channels-last weight shows its columns in another order, which orthogonalisation does not mind.

What is no hidden matrix takes torch's SGD with Nesterov momentum or AdamW (``others``), at lr × ``others_lr_scale``.
Weight decay is the group's: decoupled (θ −= η·λ·θ) in Muon and AdamW, L2 (g += λ·θ) in SGD.

A matrix is orthogonalised as a whole, so its weight must be whole on every rank. 16-bit parameters get no float32
master, as in torch's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from largebatch.errors import UserError, suggestion
from largebatch.optim.groups import is_norm

OTHERS = ("sgd", "adamw")
ADJUSTMENTS = ("original", "match_rms_adamw")
BUFFERS = {"muon": ("momentum_buffer",), "sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq", "step")}
AT_LEAST_ZERO = ("lr", "others_lr_scale", "weight_decay", "momentum", "others_momentum", "beta1", "beta2", "eps")
BELOW_ONE = ("momentum", "others_momentum", "beta1", "beta2")
MOST_ITERATIONS = 99  # torch's


def hidden_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of at least two dimensions between the first, which sees the image, and the last, the head.

    In the order of ``model.named_parameters()``. Vectors in disguise are none of them: a class token (1, 1, D), a layer
    scale (C, 1, 1), the affine map of a norm layer.
    """
    weights = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.dim() >= 2
        and 1 < parameter.shape[0] < parameter.numel()
        and not name.endswith("bias")
        and not is_norm(model.get_submodule(name.rpartition(".")[0]))
    }
    if len(weights) < 3:
        raise UserError(
            f"Muon needs a model with hidden weights; {type(model).__name__} has {len(weights)} weight matrices, and "
            "the first and the last are not Muon's"
        )
    return dict(itertools.islice(weights.items(), 1, len(weights) - 1))


def muon_groups(groups: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """The groups of :func:`largebatch.optim.parameter_groups`, each split in two by ``muon``: hidden weights or not."""
    hidden = {id(parameter) for parameter in hidden_weights(model).values()}
    known = {id(parameter) for parameter in model.parameters()}
    split: list[dict[str, Any]] = []
    for group in groups:
        members = list(zip(group["names"], group["params"], strict=True))
        if strangers := [name for name, parameter in members if id(parameter) not in known]:
            raise UserError(f"the parameter groups are of another model: this one does not hold their {strangers[0]}")
        for muon in (True, False):
            chosen = [(name, parameter) for name, parameter in members if (id(parameter) in hidden) is muon]
            if chosen:
                names, parameters = map(list, zip(*chosen, strict=True))
                split.append({**group, "params": parameters, "names": names, "muon": muon})
    return split


class Muon(Optimizer):
    """Every parameter group says by ``muon`` whether its tensors are Muon's; :func:`muon_groups` makes such groups.

    States are kept by the parameter itself, in its shape. ``p.grad`` is read, never written.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr: str = "original",
        others: str = "sgd",
        others_lr_scale: float = 1.0,
        others_momentum: float = 0.9,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps, "adjust_lr": adjust_lr,
            "others": others, "others_lr_scale": others_lr_scale, "others_momentum": others_momentum,
            "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay,
        }  # fmt: skip
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        try:
            check_group(len(self.param_groups) - 1, self.param_groups[-1])
        except UserError:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses, before anything is changed, a state of another model or optimizer (UserError)."""
        check_state(self.param_groups, state_dict)
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            if any(p.grad.is_sparse for p in moving):
                raise UserError("Muon takes dense gradients; this model has sparse ones")
            if not moving:
                continue
            if group["muon"]:
                self._step_matrices(moving, group)
            else:
                self._step_others(moving, group)
        return loss

    def _step_matrices(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        for weight in weights:
            check_matrix(weight, "a weight")
        matrices = [as_matrix(weight, weight) for weight in weights]
        of_torch = torch.optim.Muon(
            matrices,
            lr=float(group["lr"]),
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            nesterov=group["nesterov"],
            ns_steps=group["ns_steps"],
            adjust_lr_fn=group["adjust_lr"],
        )
        for weight, matrix in zip(weights, matrices, strict=True):
            assert weight.grad is not None
            matrix.grad = as_matrix(weight.grad, weight)
            of_torch.state[matrix] = {"momentum_buffer": as_matrix(self._momentum_buffer(weight), weight)}
        of_torch.step()

    def _momentum_buffer(self, weight: Tensor) -> Tensor:
        """Laid out as the weight, for the two are seen as matrices alike; a restored one may lie otherwise."""
        state = self.state[weight]
        buffer = state.get("momentum_buffer")
        if buffer is None or buffer.stride() != weight.stride():
            fresh = torch.zeros_like(weight, memory_format=torch.preserve_format)
            state["momentum_buffer"] = fresh if buffer is None else fresh.copy_(buffer)
        return state["momentum_buffer"]

    def _step_others(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        lr = float(group["lr"]) * group["others_lr_scale"]
        decay, momentum = group["weight_decay"], group["others_momentum"]
        of_torch: Optimizer
        if group["others"] == "sgd":
            of_torch = torch.optim.SGD(parameters, lr, momentum, weight_decay=decay, nesterov=momentum > 0)
        else:
            betas = (group["beta1"], group["beta2"])
            of_torch = torch.optim.AdamW(parameters, lr, betas, group["eps"], weight_decay=decay)
        of_torch.state = self.state
        of_torch.step()


def as_matrix(tensor: Tensor, weight: Tensor) -> Tensor:
    """(O, everything else), the columns in the order in which the memory of ``weight`` has them: of it, a view."""
    columns = sorted(range(1, weight.dim()), key=lambda dim: -weight.stride(dim))
    return tensor.detach().permute(0, *columns).reshape(weight.shape[0], -1)


def check_matrix(weight: Tensor, name: str) -> None:
    if weight.dim() < 2:
        raise UserError(
            f"Muon takes weights of at least two dimensions; {name} has shape {tuple(weight.shape)}: leave it to the "
            "others (muon = false), and let no engine flatten the weights (ZeRO does)"
        )
    if isinstance(weight, DTensor):
        raise UserError(
            f"Muon orthogonalises whole weights; {name} is sharded as {weight.placements}: use an engine that keeps "
            "whole weights on every rank"
        )
    if as_matrix(weight, weight).data_ptr() != weight.data_ptr():
        raise UserError(
            f"Muon sees a weight as a matrix in its own memory; {name} of shape {tuple(weight.shape)} has strides "
            f"{weight.stride()}: make it contiguous or channels-last"
        )


def check_group(number: int, group: dict[str, Any]) -> None:
    if not group["params"]:
        raise UserError(f"parameter group {number} has no parameters")
    if not isinstance(group.get("muon"), bool):
        raise UserError(
            f"parameter group {number} must say whether it is Muon's by muon = true or false, it says "
            f"{group.get('muon')!r}: make the groups with muon_groups"
        )
    for key, known in (("others", OTHERS), ("adjust_lr", ADJUSTMENTS)):
        if group[key] not in known:
            raise UserError(f"{key} = {group[key]!r} is not known{suggestion(str(group[key]), list(known))}")
    for key in AT_LEAST_ZERO:
        if not group[key] >= 0:
            raise UserError(f"{key} = {group[key]} in parameter group {number}; it must be at least 0")
        if key in BELOW_ONE and group[key] >= 1:
            raise UserError(f"{key} = {group[key]} in parameter group {number}; it must be below 1")
    if not (isinstance(group["ns_steps"], int) and 1 <= group["ns_steps"] <= MOST_ITERATIONS):
        raise UserError(
            f"ns_steps = {group['ns_steps']} in parameter group {number}; it must be a whole number from 1 to "
            f"{MOST_ITERATIONS}"
        )
    if group["muon"]:
        names = group.get("names") or [f"tensor {i} of parameter group {number}" for i in range(len(group["params"]))]
        for name, weight in zip(names, group["params"], strict=True):
            check_matrix(weight, name)


def check_state(own: list[dict[str, Any]], state_dict: dict[str, Any]) -> None:
    """The state is of these groups, with these optimizers, over these shapes."""
    groups = state_dict["param_groups"]
    sizes = [len(group["params"]) for group in groups]
    if sizes != [len(group["params"]) for group in own]:
        raise UserError(
            f"the state belongs to another model: its parameter groups hold {sizes} tensors, this optimizer's "
            f"{[len(group['params']) for group in own]}"
        )
    for number, (saved, here) in enumerate(zip(groups, own, strict=True)):
        for key in ("muon", "others"):
            if saved.get(key) != here[key]:
                raise UserError(
                    f"the state belongs to another optimizer: its parameter group {number} has {key} = "
                    f"{saved.get(key)!r}, here it is {here[key]!r}"
                )
        wanted = BUFFERS["muon" if here["muon"] else here["others"]]
        for index, parameter in zip(saved["params"], here["params"], strict=True):
            check_tensors(index, state_dict["state"].get(index, {}), wanted, tuple(parameter.shape))


def check_tensors(index: int, saved: dict[str, Any], wanted: tuple[str, ...], shape: tuple[int, ...]) -> None:
    if saved and (missing := [name for name in wanted if name not in saved]):
        raise UserError(
            f"the state belongs to another optimizer: parameter {index} has {', '.join(map(str, saved))}, Muon needs "
            f"{', '.join(missing)} here"
        )
    for name, value in saved.items():
        if isinstance(value, Tensor) and name != "step" and tuple(value.shape) != shape:
            raise UserError(
                f"the state belongs to another model: parameter {index} has {name} of shape {tuple(value.shape)}, "
                f"here it is {shape}"
            )

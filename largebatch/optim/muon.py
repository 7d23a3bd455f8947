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
from torch._compile import _disable_dynamo
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim._muon import muon
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from largebatch.errors import UserError, suggestion
from largebatch.optim import loading
from largebatch.optim.contract import check_wrappers
from largebatch.optim.groups import is_norm
from largebatch.optim.loading import Group, State

OTHERS = ("sgd", "adamw")
ADJUSTMENTS = ("original", "match_rms_adamw")
BUFFERS = {"muon": ("momentum_buffer",), "sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq", "step")}
AT_LEAST_ZERO = ("lr", "others_lr_scale", "weight_decay", "momentum", "others_momentum", "beta1", "beta2", "eps")
BELOW_ONE = ("momentum", "others_momentum", "beta1", "beta2")
MOST_ITERATIONS = 99  # torch's, as are
NS_COEFFICIENTS, NS_EPS = (3.4445, -4.7750, 2.0315), 1e-7


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


def muon_groups(groups: list[Group], model: nn.Module) -> list[Group]:
    """The groups of :func:`largebatch.optim.parameter_groups`, each split in two by ``muon``: hidden weights or not."""
    hidden = {id(parameter) for parameter in hidden_weights(model).values()}
    known = {id(parameter) for parameter in model.parameters()}
    split: list[Group] = []
    for group in groups:
        members = list(zip(group["names"], group["params"], strict=True))
        if strangers := [name for name, parameter in members if id(parameter) not in known]:
            raise UserError(f"the parameter groups are of another model: this one does not hold their {strangers[0]}")
        for is_hidden in (True, False):
            chosen = [(name, parameter) for name, parameter in members if (id(parameter) in hidden) is is_hidden]
            if chosen:
                names, parameters = map(list, zip(*chosen, strict=True))
                split.append({**group, "params": parameters, "names": names, "muon": is_hidden})
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

    def add_param_group(self, param_group: Group) -> None:
        super().add_param_group(param_group)
        try:
            check_group(len(self.param_groups) - 1, self.param_groups[-1])
        except UserError:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: State) -> None:
        """Refuses, before anything is changed, a state of another model or optimizer (UserError)."""
        loading.load(self, state_dict, lambda state: check_state(self.param_groups, state), lambda _: None)

    @_disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            check_wrappers("Muon", moving, False, None)
            if not moving:
                continue
            if group["muon"]:
                self._step_matrices(moving, group)
            else:
                self._step_others(moving, group)
        return loss

    def _step_matrices(self, weights: list[Tensor], group: Group) -> None:
        for weight in weights:
            check_matrix(weight, "a weight")
        muon(
            [as_matrix(weight, weight) for weight in weights],
            [as_matrix(weight.grad, weight) for weight in weights if weight.grad is not None],
            [as_matrix(self._momentum_buffer(weight), weight) for weight in weights],
            lr=float(group["lr"]),
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            nesterov=group["nesterov"],
            ns_coefficients=NS_COEFFICIENTS,
            ns_steps=group["ns_steps"],
            eps=NS_EPS,
            adjust_lr_fn=group["adjust_lr"],
            has_complex=False,
        )

    def _momentum_buffer(self, weight: Tensor) -> Tensor:
        """Laid out as the weight, for the two are seen as matrices alike; a restored one may lie otherwise."""
        state = self.state[weight]
        buffer = state.get("momentum_buffer")
        if buffer is None or buffer.stride() != weight.stride():
            fresh = torch.zeros_like(weight, memory_format=torch.preserve_format)
            state["momentum_buffer"] = fresh if buffer is None else fresh.copy_(buffer)
        return state["momentum_buffer"]

    def _step_others(self, parameters: list[Tensor], group: Group) -> None:
        lr = float(group["lr"]) * group["others_lr_scale"]
        grads = [p.grad for p in parameters if p.grad is not None]
        states = [self.state[p] for p in parameters]
        if group["others"] == "adamw":
            for parameter, state in zip(parameters, states, strict=True):
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32)
                    for name in ("exp_avg", "exp_avg_sq"):
                        state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            kept = [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")]
            adamw(
                parameters, grads, kept[0], kept[1], [], kept[2], has_complex=any(p.is_complex() for p in parameters),
                amsgrad=False, beta1=group["beta1"], beta2=group["beta2"], lr=lr, weight_decay=group["weight_decay"],
                eps=group["eps"], maximize=False,
            )  # fmt: skip
            return
        momentum = group["others_momentum"]
        buffers = [state.get("momentum_buffer") for state in states]
        sgd(
            parameters, grads, buffers, weight_decay=group["weight_decay"], momentum=momentum, lr=lr, dampening=0.0,
            nesterov=momentum > 0, maximize=False,
        )  # fmt: skip
        if momentum > 0:
            for state, buffer in zip(states, buffers, strict=True):
                state["momentum_buffer"] = buffer


def as_matrix(tensor: Tensor, weight: Tensor) -> Tensor:
    """(O, everything else), the columns in the order in which the memory of ``weight`` has them: of it, a view."""
    columns = sorted(range(1, weight.dim()), key=lambda dim: -weight.stride(dim))
    return tensor.detach().permute(0, *columns).reshape(weight.shape[0], -1)


def check_matrix(weight: Tensor, name: str) -> None:
    if weight.dim() < 2:
        raise UserError(
            f"Muon takes weights of at least two dimensions; {name} has shape {tuple(weight.shape)}: leave it to the "
            "others (muon = false), and let no engine flatten the weights (ZeRO and FSDP1 do)"
        )
    if weight.is_complex():
        raise UserError(f"Muon orthogonalises real weights; {name} is complex: leave it to the others (muon = false)")
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


def check_group(number: int, group: Group) -> None:
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


def check_state(param_groups: list[Group], state_dict: State) -> None:
    """The state is of these groups, with these optimizers, over these shapes."""
    loading.check_groups(param_groups, state_dict)
    for number, (saved, here) in enumerate(zip(state_dict["param_groups"], param_groups, strict=True)):
        for key in ("muon", "others"):
            if saved.get(key) != here[key]:
                raise UserError(
                    f"the state belongs to another optimizer: its parameter group {number} has {key} = "
                    f"{saved.get(key)!r}, here it is {here[key]!r}"
                )
        wanted = BUFFERS["muon" if here["muon"] else here["others"]]
        for index, parameter in zip(saved["params"], here["params"], strict=True):
            loading.check_tensors("Muon", index, state_dict["state"].get(index, {}), wanted, tuple(parameter.shape))

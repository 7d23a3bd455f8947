"""Muon: hidden weight matrices move along the orthogonalised momentum (Jordan et al. 2024, kellerjordan.github.io).

    M ← μ·M + (1−μ)·g              D = (1−μ)·g + μ·M with Nesterov, else M
    O = UVᵀ of D = U·S·Vᵀ, nearly, by ``ns_steps`` Newton-Schulz iterations     (:mod:`largebatch.optim.newton_schulz`)
    W ← (1 − η·λ)·W − η·s·O        λ is decoupled from the update

    match       s, for a matrix of A rows and B columns
    none        1
    spectral    √max(1, A/B)       the step's spectral norm suits what the layer maps from and to (Jordan et al.)
    rms         0.2·√max(A, B)     the step's root mean square is AdamW's: takes its lr and λ (2502.16982, eq. 4)

    variant         match       Nesterov   whose
    jordan2024      spectral    yes        Jordan et al., and torch.optim.Muon; the weight decay came later
    moonlight2025   rms         yes        Liu et al. 2025, Muon is Scalable for LLM Training (2502.16982)
    orscale         none        yes        Lou & You 2026 (2605.07815), with a trust ratio: :mod:`.muon_trust`
    orscale_lm      rms         yes        the same for language models: the ratio begins at 1
    normuon         rms         no         Li et al. 2025 (2510.05491), Algorithm 1: rows of O are made equally long,

        v ← β·v + (1−β)·mean of each row of O²     Ô = O / (√v + 1e-10)     O ← √min(A, B) · Ô/‖Ô‖_F

    so that with ``rms`` the step is 0.2·η·√(A·B)·Ô/‖Ô‖_F, as there. Its authors' code differs: Nesterov, ``spectral``,
    and ‖O‖_F as it is in the place of √min(A, B).

``normalised``: before each step W ← √A·W/‖W‖_F, so that rows have a mean square length of 1 (airbench's Muon; Jordan
2024); a matrix of zeros stays. With norms after each convolution W's scale has no effect but on the size of steps.

Jordan's and Liu's code has no (1−μ) before g; the orthogonalisation takes the scale away. A convolution's weight
(O, I, H, W) is the matrix (O, I·H·W), its columns in the order of the axes, wherever it lies in memory.

What is no hidden matrix (:mod:`largebatch.optim.matrices`) takes torch's SGD with Nesterov momentum or AdamW
(``others``), at lr × ``others_lr_scale``. Weight decay is the group's: decoupled (θ −= η·λ·θ) in Muon and AdamW, L2
(g += λ·θ) in SGD.

A matrix is orthogonalised as a whole, by one rank of the world, whatever cuts it: :mod:`largebatch.optim.dealt`. What
travels is of the iteration's type, into which it would be rounded anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from largebatch.errors import UserError, suggestion
from largebatch.optim import loading, muon_trust, newton_schulz
from largebatch.optim.dealt import Deal, DealtLayer, Traffic, layer_of_tensor, layers_of_partition
from largebatch.optim.loading import Group, State
from largebatch.optim.muon_others import step_others
from largebatch.optim.muon_settings import TYPES, VARIANTS, check_group, of_today
from largebatch.optim.muon_trust import CALIBRATION
from largebatch.optim.sharded import ShardedOptimizer
from largebatch.optim.shards import Partition, Shards, add_up

ROW_EPS = 1e-10
ROWS = "row_second_moment"


class Muon(ShardedOptimizer):
    """Every parameter group says by ``muon`` whether its tensors are Muon's; ``muon_groups`` makes such groups.

    ``match``, ``nesterov`` and the bounds of the trust ratio that are None are the variant's. ``p.grad`` is read, never
    written.
    """

    BESIDE = (ROWS, CALIBRATION)
    LATER: Mapping[str, Any] = {
        "variant": "jordan2024", "row_beta": 0.95, "normalised": False, "min_trust_ratio": None,
        "max_trust_ratio": None,
    }  # fmt: skip

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        momentum: float = 0.95,
        nesterov: bool | None = None,
        ns_steps: int = 5,
        match: str | None = None,
        variant: str = "jordan2024",
        row_beta: float = 0.95,
        normalised: bool = False,
        min_trust_ratio: float | None = None,
        max_trust_ratio: float | None = None,
        others: str = "sgd",
        others_lr_scale: float = 1.0,
        others_momentum: float = 0.9,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        iteration: str = "bf16",
        form: str = "auto",
    ) -> None:
        for key, value, known in (
            ("variant", variant, VARIANTS),
            ("iteration", iteration, TYPES),
            ("form", form, newton_schulz.FORMS),
        ):
            if value not in known:
                raise UserError(f"{key} = {value!r} is not known{suggestion(str(value), list(known))}")
        own = VARIANTS[variant]
        defaults = {
            "lr": lr, "momentum": momentum, "nesterov": own.nesterov if nesterov is None else nesterov,
            "ns_steps": ns_steps, "match": own.match if match is None else match, "variant": variant,
            "row_beta": row_beta, "normalised": normalised, "min_trust_ratio": min_trust_ratio,
            "max_trust_ratio": max_trust_ratio, "others": others, "others_lr_scale": others_lr_scale,
            "others_momentum": others_momentum, "beta1": beta1, "beta2": beta2, "eps": eps,
            "weight_decay": weight_decay,
        }  # fmt: skip
        self.form, self.iteration = form, iteration
        self.among: Any = None
        self.traffic = Traffic()
        self._deals: dict[tuple[int, ...], tuple[list[MuonLayer], list[Dealing]]] = {}
        super().__init__(params, defaults)

    def deal_among(self, group: Any) -> None:
        """Tensors that lie whole on every rank of this process group are the same there, gradients too, from now on:
        each is computed by one of them. None, as it begins: every rank computes them all."""
        if group is not self.among:
            self.among = group
            self.forget_layout()

    def forget_layout(self) -> None:
        self._deals.clear()

    def buffers_of(self, group: Group) -> tuple[str, ...]:
        if not group["muon"] and group["others"] == "adamw":
            return ("exp_avg", "exp_avg_sq")
        return ("momentum_buffer",) if group["muon"] or group["others_momentum"] > 0 else ()

    def counts(self, group: Group) -> bool:
        return not group["muon"] and group["others"] == "adamw"

    def measures(self, group: Group) -> bool:
        return group["muon"]

    def settings_of(self, group: Group) -> Group:
        return of_today(group)

    def _check_group(self, number: int, group: Group) -> None:
        check_group(number, group)
        super()._check_group(number, group)

    def _check_state(self, state_dict: State) -> None:
        """The state is of these groups, with these optimizers, over these shapes."""
        loading.check_groups(self.param_groups, state_dict)
        for number, (saved, here) in enumerate(zip(state_dict["param_groups"], self.param_groups, strict=True)):
            for key in ("muon", "others"):
                if saved.get(key) != here[key]:
                    raise UserError(
                        f"the state belongs to another optimizer: its parameter group {number} has {key} = "
                        f"{saved.get(key)!r}, here it is {here[key]!r}"
                    )
        super()._check_state(state_dict)

    def _check_tensors(self, index: Any, saved: State, group: Group, parameter: Tensor) -> None:
        super()._check_tensors(index, saved, group, parameter)
        for key, wanted in ((ROWS, tuple(parameter.shape[:1])), (CALIBRATION, (1,))):
            beside = saved.get(key)
            if isinstance(beside, Tensor) and tuple(beside.shape) != wanted:
                raise UserError(
                    f"the state belongs to another model: parameter {index} has {key} of shape "
                    f"{tuple(beside.shape)}, here it is {wanted}"
                )

    @_disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        matrices: list[tuple[Shards, Group]] = []
        for number, group in enumerate(self.param_groups):
            moving = [p for p in group["params"] if p.grad is not None]
            if not moving:
                continue
            shards = self._shards(number, group, moving)
            shards.grads = [g.to(w.dtype) for g, w in zip(shards.grads, shards.weights, strict=True)]
            if group["muon"]:
                matrices.append((shards, group))
            else:
                step_others(shards, group)
                round_off(shards)
        if matrices:
            self._step_matrices(matrices)
        for shards, _ in matrices:
            round_off(shards)
        return loss

    def partitions_of(self, group: Group) -> dict[int, Partition]:
        """The second rule steps each element by itself, and a flat tensor as one."""
        return self.partitions if group["muon"] else {}

    def _step_matrices(self, work: list[tuple[Shards, Group]]) -> None:
        layers, dealings = self._dealt(work)
        normalise(work, [one.layer.rows for one in layers])
        parts: list[list[Tensor]] = [[] for _ in layers]
        places = []  # of each part of each group: its layer
        for shards, group in work:
            first = sum(len(before.names) for before, _ in work[: len(places)])
            places.append([first + row for row in shards.rows])
            for place, direction in zip(places[-1], directions(shards, group), strict=True):
                parts[place].append(direction)
        steps: list[list[Tensor]] = [[] for _ in layers]
        for dealing in dealings:
            for number, of_layer in zip(dealing.numbers, self._orthogonalised(dealing, layers, parts), strict=True):
                steps[number] = of_layer
        trusted: list[MuonSteps] = []
        first = 0
        for (shards, group), of_parts in zip(work, places, strict=True):
            waiting = {place: iter(steps[place]) for place in of_parts}
            ends = [next(waiting[place]) for place in of_parts]
            scales = [matched(group["match"], layers[n].layer.rows, layers[n].layer.columns) for n in of_parts]
            if VARIANTS[group["variant"]].trust is None:
                lr = float(group["lr"])
                for weight, end, scale in zip(shards.weights, ends, scales, strict=True):
                    weight.mul_(1 - lr * group["weight_decay"]).add_(end, alpha=-lr * scale)
            else:
                trusted.append(MuonSteps(shards, group, layers[first : first + len(shards.names)], ends, scales))
            first += len(shards.names)
        if trusted:
            self._step_trusted(trusted)

    def _step_trusted(self, work: list[MuonSteps]) -> None:
        """The groups with a trust ratio. Collective where shards make a layer."""
        steps = [muon_trust.decayed(one.shards, one.ends, one.scales, one.group["weight_decay"]) for one in work]
        lengths = muon_trust.lengths([(one.shards, step) for one, step in zip(work, steps, strict=True)])
        for one, step, (weight_norms, step_norms) in zip(work, steps, lengths, strict=True):
            trust = VARIANTS[one.group["variant"]].trust
            assert trust is not None
            calibrated = self._calibrated(one.layers, weight_norms, step_norms) if trust.calibrated else 1.0
            ratios = trust.ratio(weight_norms, calibrated * step_norms, one.group)
            rates = (float(one.group["lr"]) * ratios).unbind()
            for weight, direction, row in zip(one.shards.weights, step, one.shards.rows, strict=True):
                weight.sub_(direction.mul_(rates[row].to(weight.dtype)))

    def _calibrated(self, layers: list[MuonLayer], weight_norms: Tensor, step_norms: Tensor) -> Tensor:
        """c of the layers; 1 where it is not known yet."""
        kept = torch.cat([self._kept_beside(one, CALIBRATION, 1, one.master_type) for one in layers])
        now = muon_trust.calibration_of(kept, weight_norms, step_norms)
        for one, value in zip(layers, now.split(1), strict=True):
            self._keep_beside(one, CALIBRATION, value)
        return torch.where(now > 0, now, 1.0).to(step_norms.dtype)

    def _dealt(self, work: list[tuple[Shards, Group]]) -> tuple[list[MuonLayer], list[Dealing]]:
        """All layers of the step in their order, and who computes them; the same at every step."""
        key = (id(self.among), *(id(one) for shards, group in work for one in (group, *shards.given)))
        if key not in self._deals:
            layers = [layer for shards, group in work for layer in self._layers(shards, group)]
            together: dict[tuple[int, torch.device], list[int]] = {}
            for number, one in enumerate(layers):
                together.setdefault((id(one.layer.group), one.parameter.device), []).append(number)
            dealings = []
            for numbers in together.values():
                normalised = [i for i, n in enumerate(numbers) if VARIANTS[layers[n].group["variant"]].equal_rows]
                dealings.append(Dealing(Deal([layers[n].layer for n in numbers], normalised), numbers, normalised))
            self._deals[key] = layers, dealings
        return self._deals[key]

    def _layers(self, shards: Shards, group: Group) -> Iterator[MuonLayer]:
        names = iter(shards.names)
        for parameter in shards.given:
            partition = self.partitions.get(id(parameter))
            if partition is None:
                yield MuonLayer(layer_of_tensor(next(names), parameter, self.among), parameter, group)
            else:
                yield from (MuonLayer(layer, parameter, group) for layer in layers_of_partition(partition))

    def _orthogonalised(
        self, dealing: Dealing, layers: list[MuonLayer], parts: list[list[Tensor]]
    ) -> list[list[Tensor]]:
        """What is here of the orthogonalised layers of a deal, in their order."""
        deal, numbers = dealing.deal, dealing.numbers
        device = layers[numbers[0]].parameter.device
        kind = TYPES[self.iteration]
        gathered = deal.gather([parts[number] for number in numbers], kind, device)
        ends: dict[int, Tensor] = {}
        for steps in dict.fromkeys(layers[numbers[i]].group["ns_steps"] for i in gathered):
            those = [i for i in gathered if layers[numbers[i]].group["ns_steps"] == steps]
            iterated = newton_schulz.orthogonalised([gathered[i] for i in those], steps, self.form)
            ends |= zip(those, iterated, strict=True)
        counted = len(ends)
        if dealing.normalised:
            kind = torch.promote_types(kind, torch.float32)
            for place, i in enumerate(dealing.normalised, start=deal.matrices):
                if i in ends:
                    one = layers[numbers[i]]
                    rows = self._kept_beside(one, ROWS, one.layer.rows, kind)
                    ends[i], ends[place] = equal_rows(ends[i].to(kind), rows, one.group["row_beta"])
        received = deal.give_back(ends, kind, device)
        for place, i in enumerate(dealing.normalised, start=deal.matrices):
            self._keep_beside(layers[numbers[i]], ROWS, received[place][0])
        self.traffic = self.traffic.and_then(deal.traffic._replace(orthogonalised=counted))
        return received[: deal.matrices]

    def _kept_beside(self, one: MuonLayer, key: str, numbers: int, kind: torch.dtype) -> Tensor:
        """Numbers of a layer, that many; zeros, where there are none yet."""
        kept = self.state[one.parameter].get(key)
        kept = kept.get(one.layer.name) if isinstance(kept, dict) else kept
        return torch.zeros(numbers, dtype=kind, device=one.parameter.device) if kept is None else kept.to(kind)

    def _keep_beside(self, one: MuonLayer, key: str, numbers: Tensor) -> None:
        """On every rank, for they are few, in the weights' type; of a flat partition by the layer's name."""
        state = self.state[one.parameter]
        if id(one.parameter) in self.partitions:
            state.setdefault(key, {})[one.layer.name] = numbers.to(one.master_type, copy=True)
        else:
            state[key] = numbers.to(one.master_type, copy=True)

    def __getstate__(self) -> State:
        left = {"_deals": {}, "among": None}
        return {**super().__getstate__(), "iteration": self.iteration, "traffic": self.traffic, **left}


class MuonLayer(NamedTuple):
    layer: DealtLayer
    parameter: Tensor  # that it is, or that holds it
    group: Group

    @property
    def master_type(self) -> torch.dtype:
        return torch.promote_types(self.parameter.dtype, torch.float32)


class MuonSteps(NamedTuple):
    """Of a group, O and s of each part."""

    shards: Shards
    group: Group
    layers: list[MuonLayer]
    ends: list[Tensor]
    scales: list[float]


class Dealing(NamedTuple):
    deal: Deal
    numbers: list[int]  # which of the step's layers are its own
    normalised: list[int]  # which of these have rows of equal length


def normalise(work: list[tuple[Shards, Group]], rows: list[int]) -> None:
    """The weights of groups that are ``normalised``, by norms of whole layers; ``rows`` are those of all layers.

    Collective where shards make a layer.
    """
    those: list[tuple[Shards, list[int]]] = []
    first = 0
    for shards, group in work:
        if group["normalised"]:
            those.append((shards, rows[first : first + len(shards.names)]))
        first += len(shards.names)
    if not those:
        return
    squares = add_up([shards.sums(shards.weights) for shards, _ in those], [shards.groups for shards, _ in those])
    for (shards, heights), of_layers in zip(those, squares, strict=True):
        norms = of_layers[:, 0].sqrt()
        wanted = torch.tensor(heights, dtype=norms.dtype, device=norms.device).sqrt()
        factors = torch.where(norms > 0, wanted / norms, 1.0)
        for weight, row in zip(shards.weights, shards.rows, strict=True):
            weight.mul_(factors[row].to(weight.dtype))


def directions(shards: Shards, group: Group) -> list[Tensor]:
    """D of each part, with M moved on."""
    if not len(shards):
        return []
    buffers, momentum = shards.buffers["momentum_buffer"], group["momentum"]
    torch._foreach_lerp_(buffers, shards.grads, 1 - momentum)
    return list(torch._foreach_lerp(shards.grads, buffers, momentum)) if group["nesterov"] else buffers


def equal_rows(matrix: Tensor, second_moment: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """NorMuon's O of ``matrix``, and its v."""
    second_moment = second_moment.lerp(matrix.square().mean(dim=1), 1 - beta)
    divided = matrix / (second_moment.sqrt() + ROW_EPS)[:, None]
    length = torch.linalg.vector_norm(divided, dtype=torch.float64).to(matrix.dtype)
    scale = math.sqrt(min(matrix.shape)) / length
    return divided * torch.where(length > 0, scale, 0.0), second_moment


def matched(match: str, rows: int, columns: int) -> float:
    """s."""
    if match == "rms":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / columns)) if match == "spectral" else 1.0


def round_off(shards: Shards) -> None:
    """Parameters of half precision follow their masters."""
    for weight, rounded in zip(shards.weights, shards.rounded, strict=True):
        if rounded is not None:
            rounded.copy_(weight)
    shards.forget_grads()

"""What the phases of a run tell its optimizer: the settings of its parameter groups, anew at every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from largebatch.optim import Treatment
from largebatch.optim.groups import as_given
from largebatch.optim.loading import Group
from largebatch.optimizers import Surroundings
from largebatch.recipes.decided import Decided, Phase


class Settings:
    """The values of all keys of the parameter groups in which any phase differs from the recipe.

    Which keys these are, an optimizer of the phase's own section shows that is built over the same parameters. Each
    phase says all of them, so nothing is left over from another, be it by a resume.
    """

    def __init__(
        self,
        decided: Decided,
        optimizer: torch.optim.Optimizer,
        treatments: Sequence[Treatment],
        around: Surroundings,
    ) -> None:
        self.treatments, self.around = treatments, around
        decayed = {row.name for row in treatments if row.decayed}
        own = [_settings(group) for group in optimizer.param_groups]
        whole = []
        for phase in decided.phases:
            groups = _built(phase, optimizer, around) if phase.optimizer != decided.optimizer else own
            if phase.weight_decay != decided.weight_decay:
                decays = [not decayed.isdisjoint(group["names"]) for group in optimizer.param_groups]
                groups = [
                    {**group, "weight_decay": phase.weight_decay} if is_decayed else group
                    for group, is_decayed in zip(groups, decays, strict=True)
                ]
            whole.append(groups)
        differing = [
            {key for groups in whole for key in groups[number] if groups[number][key] != group.get(key)}
            for number, group in enumerate(own)
        ]
        self.of_recipe, *self.of_phases = (
            [{key: group[key] for key in keys} for group, keys in zip(groups, differing, strict=True)]
            for groups in (own, *whole)
        )

    def for_phases_of(self, decided: Decided, optimizer: torch.optim.Optimizer) -> Settings:
        """Of the same recipe and ``optimizer``, where what was decided is another now."""
        self.tell(optimizer.param_groups, None)
        return Settings(decided, optimizer, self.treatments, self.around)

    def tell(self, groups: Sequence[Group], phase: int | None) -> None:
        """The ``groups`` are set as they are in this phase, counted from 0; None: as outside of phases."""
        of_groups = self.of_recipe if phase is None else self.of_phases[phase]
        for group, settings in zip(groups, of_groups, strict=True):
            group.update(settings)


def _built(phase: Phase, optimizer: torch.optim.Optimizer, around: Surroundings) -> list[Group]:
    """The settings of its groups, if it were the phase's own."""
    built = phase.optimizer.build(as_given(optimizer.param_groups), 0.0, around)
    return [_settings(group) for group in built.param_groups]


def _settings(group: Group) -> Group:
    """What comes from the sections of a recipe, but for the learning rate."""
    return {key: value for key, value in group.items() if key not in ("params", "names", "adapt", "lr")}

"""scikit-learn's 442 patients: ten measurements, and how far the disease went a year later (Efron et al. 2004).

342 are trained on. Inputs and targets are standardised by the mean and the standard deviation of the 342, so that a
squared error of 1 is that of always answering their mean. For ``regression``.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from largebatch.data.sets import Asked, DataSet, evaluated_on
from largebatch.data.sets._scikit_learn import COMES_WITH_IT, loaded

if TYPE_CHECKING:
    from largebatch.data.dataset import Split, Splits

INPUTS, TARGETS = 10, ("progression",)


class Diabetes(DataSet):
    name = "diabetes"
    task = "regression"
    examples = 342
    test_examples = 100
    origin = COMES_WITH_IT

    def outputs(self, asked: Asked) -> int:
        return len(TARGETS)

    def shape(self, asked: Asked) -> tuple[int, ...]:
        return (INPUTS,)

    def resident_bytes(self, asked: Asked) -> int:
        return 4 * (INPUTS + len(TARGETS))

    def is_outlined(self, asked: Asked, stated: bool) -> bool:
        return True

    def outline(self, asked: Asked, splits: tuple[Split, Split], source: str, outputs: int) -> Splits:
        import torch

        from largebatch.data.dataset import Splits

        return Splits(
            name=self.name,
            example=(torch.zeros(1, INPUTS), torch.zeros(1, outputs)),
            outputs=outputs,
            train=splits[0],
            test=splits[1],
            source=source,
            task=self.task,
            classes=list(TARGETS),
            facts={"evaluated on": evaluated_on(asked)},
        )

    def build(self, asked: Asked) -> Splits:
        import torch

        from largebatch.data.contents import listing_of_numbers
        from largebatch.data.resident import TensorSplit, divided

        inputs, targets = (part.astype(np.float64) for part in loaded("diabetes", self.name, scaled=False))
        order = np.random.Generator(np.random.PCG64(442)).permutation(len(inputs))
        rows = {"train": order[: self.examples], "test": order[self.examples :]}
        columns = np.column_stack((inputs, targets))
        of_training = columns[rows["train"]]
        mean, std = of_training.mean(0), of_training.std(0)
        columns = ((columns - mean) / std).astype(np.float32)
        train, test, read = divided(lambda part: np.split(columns[rows[part]], [INPUTS], axis=1), asked.hold_out)
        splits = TensorSplit(tuple(map(torch.from_numpy, train))), TensorSplit(tuple(map(torch.from_numpy, test)))
        made = self.outline(asked, splits, "diabetes, scikit-learn's load_diabetes", len(TARGETS))
        listed = {part: listing_of_numbers(TARGETS, arrays) for part, arrays in read.items()}
        scales = {"mean": mean[:INPUTS], "std": std[:INPUTS], "target_mean": mean[INPUTS:], "target_std": std[INPUTS:]}
        return dataclasses.replace(
            made, contents=lambda: listed, preparation={key: numbers.tolist() for key, numbers in scales.items()}
        )

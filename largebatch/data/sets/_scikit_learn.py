"""What comes with scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np

from largebatch.data.published import NoFiles
from largebatch.errors import UserError

COMES_WITH_IT = NoFiles("it comes with scikit-learn")


def loaded(name: str, of: str, **how: Any) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of ``sklearn.datasets.load_<name>``, for the data set ``of``."""
    try:
        from sklearn import datasets
    except ImportError:
        raise UserError(f"data set {of} comes with scikit-learn, which is not installed") from None
    inputs, targets = getattr(datasets, f"load_{name}")(return_X_y=True, **how)
    return np.asarray(inputs), np.asarray(targets)

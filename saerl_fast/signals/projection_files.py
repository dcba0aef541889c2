"""A fitted FeatureProjection on disk: projection.json beside projection.safetensors (estimator_files.py)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saerl_fast.errors import FormatError, SaerlError
from saerl_fast.signals.estimator_files import EstimatorFormat, check_array

if TYPE_CHECKING:
    from saerl_fast.signals.projection import FeatureProjection

FORMAT = EstimatorFormat(
    name="saerl_fast.FeatureProjection",
    version=1,
    json_file="projection.json",
    arrays_file="projection.safetensors",
    parameters={"n_components": int, "value_transform": str, "n_iter": int, "max_rows": (int, type(None))},
    state={"n_features_in": int, "seed": int, "n_components": int},
    arrays=("components", "idf", "singular_values"),
)


def save_projection(estimator: FeatureProjection, folder: str | os.PathLike[str]) -> None:
    """Write both files."""
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(estimator)
    FORMAT.save(estimator, {name: getattr(estimator, f"{name}_") for name in FORMAT.arrays}, folder)


def load_projection(folder: str | os.PathLike[str]) -> FeatureProjection:
    """Read and check both files. random_state becomes the seed that was in use."""
    from saerl_fast.signals.projection import FeatureProjection

    parameters, state, arrays = FORMAT.load(folder)
    described, arrays_path = Path(folder) / FORMAT.json_file, Path(folder) / FORMAT.arrays_file
    estimator = FeatureProjection(**parameters, random_state=state["seed"])
    try:
        estimator._check_parameters()
    except SaerlError as error:
        raise FormatError(f"{described}: {error}") from error
    kept, width = state["n_components"], state["n_features_in"]
    if not 1 <= kept <= min(estimator.n_components, width) or state["seed"] < 0:
        raise FormatError(f"{described}: the numbers do not fit together: {state}")
    check_array(arrays_path, "components", arrays, (kept, width), np.float32)
    check_array(arrays_path, "idf", arrays, (width,), np.float64)
    check_array(arrays_path, "singular_values", arrays, (kept,), np.float64)
    if (arrays["idf"] < 1).any():
        raise FormatError(f"{arrays_path}: idf holds a weight below 1")
    for name, value in (state | arrays).items():
        setattr(estimator, f"{name}_", value)
    return estimator

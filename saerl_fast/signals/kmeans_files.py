"""A fitted StreamingKMeans on disk: kmeans.json beside kmeans.safetensors (estimator_files.py)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saerl_fast.errors import FormatError, SaerlError
from saerl_fast.signals.estimator_files import NUMBER, Arrays, EstimatorFormat, check_array

if TYPE_CHECKING:
    from saerl_fast.signals.kmeans import StreamingKMeans

FORMAT = EstimatorFormat(
    name="saerl_fast.StreamingKMeans",
    version=1,
    json_file="kmeans.json",
    arrays_file="kmeans.safetensors",
    parameters={
        "n_clusters": int,
        "metric": str,
        "value_transform": str,
        "max_iter": int,
        "tol": NUMBER,
        "n_init": int,
        "decay": NUMBER,
        "reassignment_ratio": NUMBER,
    },
    state={"n_features_in": int, "seed": int, "n_batches": int, "n_iter": int, "inertia": NUMBER},
    arrays=("centroids", "means", "counts", "recent_counts"),
)


def save_kmeans(estimator: StreamingKMeans, folder: str | os.PathLike[str]) -> None:
    """Write both files."""
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(estimator)
    arrays: Arrays = {
        "centroids": estimator.cluster_centers_,
        "means": estimator.means_,
        "counts": estimator.counts_,
        "recent_counts": estimator.recent_counts_,
    }
    FORMAT.save(estimator, arrays, folder)


def load_kmeans(folder: str | os.PathLike[str]) -> StreamingKMeans:
    """Read and check both files. random_state becomes the seed that was in use."""
    from saerl_fast.signals.kmeans import StreamingKMeans

    parameters, state, arrays = FORMAT.load(folder)
    described, arrays_path = Path(folder) / FORMAT.json_file, Path(folder) / FORMAT.arrays_file
    estimator = StreamingKMeans(**parameters, random_state=state["seed"])
    try:
        estimator._check_parameters()
    except SaerlError as error:
        raise FormatError(f"{described}: {error}") from error
    if min(state["n_features_in"], state["seed"] + 1, state["n_batches"] + 1) < 1:
        raise FormatError(f"{described}: a number is below zero: {state}")
    wide = (estimator.n_clusters, state["n_features_in"])
    for name in ("centroids", "means"):
        check_array(arrays_path, name, arrays, wide, np.float32)
    for name in ("counts", "recent_counts"):
        check_array(arrays_path, name, arrays, wide[:1], np.int64)
    for name, value in state.items():
        setattr(estimator, f"{name}_", value)
    estimator.cluster_centers_, estimator.means_ = arrays["centroids"], arrays["means"]
    estimator.counts_, estimator.recent_counts_ = arrays["counts"], arrays["recent_counts"]
    estimator.inertia_history_ = (state["inertia"],)
    return estimator

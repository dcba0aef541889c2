"""A fitted StreamingKMeans on disk: kmeans.json beside kmeans.safetensors. Nothing is pickled."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saerl_fast.errors import FormatError, SaerlError

if TYPE_CHECKING:
    from saerl_fast.signals.kmeans import StreamingKMeans

JSON_FILE = "kmeans.json"
ARRAYS_FILE = "kmeans.safetensors"
FORMAT = "saerl_fast.StreamingKMeans"
FORMAT_VERSION = 1

_NUMBER = (int, float)
_PARAMETERS: dict[str, type | tuple[type, ...]] = {
    "n_clusters": int,
    "metric": str,
    "value_transform": str,
    "max_iter": int,
    "tol": _NUMBER,
    "n_init": int,
    "decay": _NUMBER,
    "reassignment_ratio": _NUMBER,
}
_STATE: dict[str, type | tuple[type, ...]] = {
    "n_features_in": int,
    "seed": int,
    "n_batches": int,
    "n_iter": int,
    "inertia": _NUMBER,
}
_KEYS = {"format", "format_version", "parameters", "state", "arrays_sha256"}


def save_kmeans(estimator: StreamingKMeans, folder: str | os.PathLike[str]) -> None:
    """Write both files; the JSON file comes last and holds the hash of the other."""
    from safetensors.numpy import save
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(estimator)
    arrays = {
        "centroids": estimator.cluster_centers_,
        "means": estimator.means_,
        "counts": estimator.counts_,
        "recent_counts": estimator.recent_counts_,
    }
    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    described = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "parameters": {name: getattr(estimator, name) for name in _PARAMETERS},
        "state": {name: getattr(estimator, f"{name}_") for name in _STATE},
        "arrays_sha256": hashlib.sha256(content).hexdigest(),
    }
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    _write(target / ARRAYS_FILE, content)
    _write(target / JSON_FILE, json.dumps(described, indent=1).encode())


def load_kmeans(folder: str | os.PathLike[str]) -> StreamingKMeans:
    """Read and check both files. random_state becomes the seed that was in use."""
    from saerl_fast.formats.safetensors_file import read_json, read_tensors
    from saerl_fast.signals.kmeans import StreamingKMeans

    path = Path(folder) / JSON_FILE
    if not path.is_file():
        raise FormatError(f"wanted a folder with {JSON_FILE}; {folder} has none")
    described = read_json(path)
    if described.get("format") != FORMAT or described.get("format_version") != FORMAT_VERSION:
        raise FormatError(
            f"{path}: wanted format {FORMAT} {FORMAT_VERSION}; "
            f"got {described.get('format')!r} {described.get('format_version')!r}"
        )
    if set(described) != _KEYS:
        raise FormatError(f"{path}: wanted the keys {sorted(_KEYS)}; got {sorted(described)}")
    parameters = _typed(path, described["parameters"], _PARAMETERS)
    state = _typed(path, described["state"], _STATE)
    arrays_path = Path(folder) / ARRAYS_FILE
    tensors = read_tensors(arrays_path, names={"centroids", "means", "counts", "recent_counts"})
    if hashlib.sha256(arrays_path.read_bytes()).hexdigest() != described["arrays_sha256"]:
        raise FormatError(f"{arrays_path}: its SHA-256 is not the one that {JSON_FILE} gives; save it again")
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    estimator = StreamingKMeans(**parameters, random_state=state["seed"])
    _check(arrays_path, estimator, state, arrays)
    for name, value in state.items():
        setattr(estimator, f"{name}_", value)
    estimator.cluster_centers_, estimator.means_ = arrays["centroids"], arrays["means"]
    estimator.counts_, estimator.recent_counts_ = arrays["counts"], arrays["recent_counts"]
    estimator.inertia_history_ = (state["inertia"],)
    return estimator


def _typed(path: Path, found: Any, wanted: dict[str, type | tuple[type, ...]]) -> dict[str, Any]:
    if not isinstance(found, dict) or set(found) != set(wanted):
        raise FormatError(f"{path}: wanted an object with {sorted(wanted)}; got {found!r}")
    for name, kind in wanted.items():
        if not isinstance(found[name], kind) or isinstance(found[name], bool):
            raise FormatError(f"{path}: {name} has the wrong type: {found[name]!r}")
    return found


def _check(path: Path, estimator: StreamingKMeans, state: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    try:
        estimator._check_parameters()
    except SaerlError as error:
        raise FormatError(f"{path.parent / JSON_FILE}: {error}") from error
    if min(state["n_features_in"], state["seed"] + 1, state["n_batches"] + 1) < 1:
        raise FormatError(f"{path.parent / JSON_FILE}: a number is below zero: {state}")
    wide = (estimator.n_clusters, state["n_features_in"])
    wanted = {
        "centroids": (wide, np.float32),
        "means": (wide, np.float32),
        "counts": (wide[:1], np.int64),
        "recent_counts": (wide[:1], np.int64),
    }
    for name, (shape, dtype) in wanted.items():
        array = arrays.get(name)
        if array is None or array.shape != shape or array.dtype != dtype:
            got = None if array is None else (list(array.shape), str(array.dtype))
            raise FormatError(f"{path}: {name} must be {list(shape)} {np.dtype(dtype)}; got {got}")
        if not np.isfinite(array).all() or (dtype is np.int64 and (array < 0).any()):
            raise FormatError(f"{path}: {name} holds NaN, infinity or a count below zero")


def _write(path: Path, content: bytes) -> None:
    """Write beside the target, then rename: a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

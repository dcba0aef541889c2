"""A fitted estimator on disk: a JSON file beside a safetensors file, whose hash it holds. Nothing is pickled."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saerl_fast.errors import FormatError

Types = Mapping[str, type | tuple[type, ...]]
Arrays = dict[str, NDArray[Any]]

NUMBER = (int, float)
_KEYS = {"format", "format_version", "parameters", "state", "arrays_sha256"}


@dataclass(frozen=True)
class EstimatorFormat:
    """What the two files hold. Names of `state` and of the arrays are without the trailing underscore."""

    name: str
    version: int
    json_file: str
    arrays_file: str
    parameters: Types
    state: Types
    arrays: tuple[str, ...]

    def save(self, estimator: Any, arrays: Arrays, folder: str | os.PathLike[str]) -> None:
        """Write both files; the JSON file comes last."""
        from safetensors.numpy import save

        content = save({name: np.ascontiguousarray(arrays[name]) for name in self.arrays})
        described = {
            "format": self.name,
            "format_version": self.version,
            "parameters": {name: getattr(estimator, name) for name in self.parameters},
            "state": {name: getattr(estimator, f"{name}_") for name in self.state},
            "arrays_sha256": hashlib.sha256(content).hexdigest(),
        }
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        _write(target / self.arrays_file, content)
        _write(target / self.json_file, json.dumps(described, indent=1).encode())

    def load(self, folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any], Arrays]:
        """Parameters, state and arrays: present, of the right types, and of one saving. Raises FormatError."""
        from saerl_fast.formats.safetensors_file import as_arrays, read_file, read_json

        path = Path(folder) / self.json_file
        if not path.is_file():
            raise FormatError(f"wanted a folder with {self.json_file}; {folder} has none")
        described = read_json(path)
        if described.get("format") != self.name or described.get("format_version") != self.version:
            raise FormatError(
                f"{path}: wanted format {self.name} {self.version}; "
                f"got {described.get('format')!r:.80} {described.get('format_version')!r:.80}"
            )
        if set(described) != _KEYS:
            raise FormatError(f"{path}: wanted the keys {sorted(_KEYS)}; got {sorted(described)}")
        parameters = _typed(path, described["parameters"], self.parameters)
        state = _typed(path, described["state"], self.state)
        arrays_path = Path(folder) / self.arrays_file
        _, tensors = read_file(arrays_path, set(self.arrays), found := hashlib.sha256())
        if found.hexdigest() != described["arrays_sha256"]:
            raise FormatError(f"{arrays_path}: its SHA-256 is not the one that {self.json_file} gives; save it again")
        return parameters, state, as_arrays(tensors, str(arrays_path))


def check_array(path: Path, name: str, arrays: Arrays, shape: tuple[int, ...], dtype: type) -> None:
    """Raise FormatError unless the array is there, of this shape and type, and holds finite numbers."""
    array = arrays.get(name)
    if array is None or array.shape != shape or array.dtype != dtype:
        got = None if array is None else (list(array.shape), str(array.dtype))
        raise FormatError(f"{path}: {name} must be {list(shape)} {np.dtype(dtype)}; got {got}")
    if not np.isfinite(array).all() or (dtype is np.int64 and (array < 0).any()):
        raise FormatError(f"{path}: {name} holds NaN, infinity or a count below zero")


def _typed(path: Path, found: Any, wanted: Types) -> dict[str, Any]:
    if not isinstance(found, dict) or set(found) != set(wanted):
        raise FormatError(f"{path}: wanted an object with {sorted(wanted)}; got {found!r:.200}")
    for name, kind in wanted.items():
        if not isinstance(found[name], kind) or isinstance(found[name], bool):
            raise FormatError(f"{path}: {name} has the wrong type: {found[name]!r:.80}")
    return found


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

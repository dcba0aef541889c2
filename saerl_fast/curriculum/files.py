"""A plan on disk: plan.json (what it is) and plan.safetensors (its arrays). No pickle."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saerl_fast.curriculum.plan import PARTIAL, BatchPlan, ids_digest
from saerl_fast.curriculum.policies import Policy
from saerl_fast.durable import replace
from saerl_fast.errors import CorruptStoreError, FormatError, InputError, PlanError

FORMAT = "saerl-plan"
FORMAT_VERSION = 1
JSON_NAME = "plan.json"
ARRAYS_NAME = "plan.safetensors"
LARGEST_JSON = 2**20  # what the reader takes

# name -> (dtype, dimensions)
ARRAYS: dict[str, tuple[str, int]] = {
    "rows": ("int64", 2),
    "padded": ("bool", 2),
    "dropped": ("int64", 2),
    "codes": ("int32", 1),
    "reasons": ("uint8", 1),
    "difficulty": ("float64", 1),
    "quality": ("float64", 1),
    "ids": ("int64", 1),
    "id_bytes": ("uint8", 1),
    "id_ends": ("int64", 1),
}
OPTIONAL = {"difficulty", "quality", "ids", "id_bytes", "id_ends"}

# name -> types of the value in plan.json
FIELDS: dict[str, tuple[type, ...]] = {
    "cluster_labels": (list,),
    "reason_names": (list,),
    "threshold": (float, type(None)),
    "policy": (dict,),
    "seed": (int,),
    "partial": (str,),
    "drop_lowest": (float,),
    "max_difficulty": (float, type(None)),
    "fingerprint": (str, type(None)),
    "ids_sha256": (str,),
    "arrays_bytes": (int,),
    "arrays_sha256": (str,),
}


def save_plan(plan: BatchPlan, folder: str | Path) -> Path:
    """Writes both files, each under a temporary name first; plan.json last, so that a folder with plan.json
    is complete. Same plan, same bytes: nothing of the time or the place goes in."""
    from safetensors.numpy import save

    folder = Path(folder)
    arrays = save(_arrays_of(plan))
    text = json.dumps(_describe(plan, arrays), indent=1, allow_nan=False).encode()
    if len(text) > LARGEST_JSON:
        raise PlanError(f"{len(plan.cluster_labels)} cluster labels are too many to save; cluster more coarsely")
    target = folder / JSON_NAME
    if target.exists() and target.read_bytes() != text:
        raise PlanError(f"{folder} holds another plan; save to another folder, or remove that plan first")
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / ARRAYS_NAME, arrays)
    replace(target, text)
    return folder


def load_plan(folder: str | Path) -> BatchPlan:
    """Checks sizes, checksum, dtypes, dimensions and ranges, then the invariants of the plan itself."""
    folder = Path(folder)
    known = _read_description(folder / JSON_NAME)
    arrays = _read_arrays(folder / ARRAYS_NAME, known)
    ids = _ids_from(arrays, folder)
    if ids_digest(ids) != known["ids_sha256"]:
        raise CorruptStoreError(f"{folder}: the ids do not match ids_sha256 in {JSON_NAME}")
    try:
        return BatchPlan(
            ids=ids,
            rows=arrays["rows"],
            padded=arrays["padded"],
            dropped=arrays["dropped"],
            codes=arrays["codes"],
            cluster_labels=tuple(known["cluster_labels"]),
            difficulty=arrays.get("difficulty"),
            quality=arrays.get("quality"),
            reasons=arrays["reasons"],
            reason_names=tuple(known["reason_names"]),
            threshold=known["threshold"],
            policy=Policy(**known["policy"]),
            seed=known["seed"],
            partial=known["partial"],
            drop_lowest=known["drop_lowest"],
            max_difficulty=known["max_difficulty"],
            fingerprint=known["fingerprint"],
        )
    except (PlanError, InputError, TypeError) as error:
        raise PlanError(f"{folder} does not hold a valid plan: {error}") from error


def _arrays_of(plan: BatchPlan) -> dict[str, NDArray[Any]]:
    arrays = {
        name: getattr(plan, name)
        for name in ("rows", "padded", "dropped", "codes", "reasons", "difficulty", "quality")
        if getattr(plan, name) is not None
    }
    if plan.ids.dtype != object:
        arrays["ids"] = plan.ids
    else:
        encoded = [value.encode("utf-8", "surrogatepass") for value in plan.ids]
        arrays["id_bytes"] = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        arrays["id_ends"] = np.cumsum([len(value) for value in encoded], dtype=np.int64)
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _describe(plan: BatchPlan, arrays: bytes) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "versions": {"saerl_fast": _version(), "numpy": np.__version__},
        "summary": {"rows": len(plan.ids), "steps": plan.steps, "prompts_per_step": plan.prompts_per_step}
        | {"epochs": plan.epochs, "digest": plan.digest},
        "cluster_labels": list(plan.cluster_labels),
        "reason_names": list(plan.reason_names),
        "threshold": plan.threshold,
        "policy": asdict(plan.policy),
        "seed": plan.seed,
        "partial": plan.partial,
        "drop_lowest": plan.drop_lowest,
        "max_difficulty": plan.max_difficulty,
        "fingerprint": plan.fingerprint,
        "ids_sha256": ids_digest(plan.ids),
        "arrays_bytes": len(arrays),
        "arrays_sha256": hashlib.sha256(arrays).hexdigest(),
    }


def _version() -> str:
    try:
        return metadata.version("saerl-fast")
    except metadata.PackageNotFoundError:
        return "not installed"


def _read_description(path: Path) -> dict[str, Any]:
    from saerl_fast.formats.safetensors_file import read_json

    if not path.is_file():
        raise FormatError(f"wanted a plan, a folder with {JSON_NAME}; got {path.parent}, which has none")
    known = read_json(path)
    if known.get("format") != FORMAT:
        raise FormatError(f'{path}: wanted "format": "{FORMAT}", got {known.get("format")!r:.80}')
    version = known.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise FormatError(
            f"{path}: wanted format_version {FORMAT_VERSION}, got {version!r}; "
            "make the plan again, or use the version of saerl_fast that made it"
        )
    for name, types in FIELDS.items():
        if type(known.get(name)) not in types or (name not in known):
            raise FormatError(f"{path}: wanted {name} of type {types[0].__name__}, got {known.get(name)!r:.80}")
    if known["partial"] not in PARTIAL:
        raise FormatError(f"{path}: wanted partial as one of {', '.join(PARTIAL)}; got {known['partial']!r}")
    if not all(type(label) in (int, str) for label in known["cluster_labels"]):
        raise FormatError(f"{path}: wanted cluster_labels that are integers or strings")
    if not all(type(name) is str for name in known["reason_names"]):
        raise FormatError(f"{path}: wanted reason_names that are strings")
    return known


def _read_arrays(path: Path, known: dict[str, Any]) -> dict[str, NDArray[Any]]:
    from saerl_fast.formats.safetensors_file import as_arrays, read_file

    if not path.is_file():
        raise CorruptStoreError(f"wanted {path}, which {JSON_NAME} names; it is missing")
    if path.stat().st_size != known["arrays_bytes"]:
        raise CorruptStoreError(f"{path}: wanted {known['arrays_bytes']} bytes, got {path.stat().st_size}")
    _, tensors = read_file(path, digest=(found := hashlib.sha256()))
    if found.hexdigest() != known["arrays_sha256"]:
        raise CorruptStoreError(f"{path}: the content does not match its checksum; make the plan again")
    arrays = as_arrays(tensors, str(path))
    missing = ARRAYS.keys() - OPTIONAL - arrays.keys()
    unknown = arrays.keys() - ARRAYS.keys()
    if missing or unknown:
        raise FormatError(f"{path}: arrays missing: {sorted(missing)}, unknown: {sorted(unknown)}")
    for name, array in arrays.items():
        dtype, dimensions = ARRAYS[name]
        if str(array.dtype) != dtype or array.ndim != dimensions:
            raise FormatError(
                f"{path}: wanted {name} as {dtype} with {dimensions} dimensions, got {array.dtype} {array.shape}"
            )
    return arrays


def _ids_from(arrays: dict[str, NDArray[Any]], folder: Path) -> NDArray[Any]:
    if "ids" in arrays:
        return arrays["ids"]
    if "id_bytes" not in arrays or "id_ends" not in arrays:
        raise FormatError(f"{folder}: wanted ids, or id_bytes with id_ends; got neither")
    joined, ends = arrays["id_bytes"].tobytes(), arrays["id_ends"]
    if len(ends) == 0 or ends[0] < 0 or (ends[1:] < ends[:-1]).any() or ends[-1] != len(joined):
        raise FormatError(f"{folder}: id_ends does not tile id_bytes")
    ids = np.empty(len(ends), dtype=object)
    start = 0
    try:
        for row, end in enumerate(ends.tolist()):
            ids[row] = joined[start:end].decode("utf-8", "surrogatepass")
            start = end
    except UnicodeDecodeError as error:
        raise FormatError(f"{folder}: id_bytes is not UTF-8 ({error})") from error
    return ids

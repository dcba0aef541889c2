"""What a plan is made of, checked: ids, cluster labels, difficulty, quality, row status."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saerl_fast.errors import DtypeError, InputError, NonFiniteError

Floats = NDArray[np.float64]
Ids = NDArray[Any]

READABLE = ("ok", "truncated", "windowed")
"""Statuses of rows that were read; rows of any other status stay out of the plan."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """S rows. ids [S] int64 or object (str); codes [S] int32, an index into labels, -1 for an unread row
    without a label; labels [K]; difficulty and quality [S] float64; status [S] object (str)."""

    ids: Ids
    codes: NDArray[np.int32]
    labels: tuple[int | str, ...]
    difficulty: Floats | None
    quality: Floats | None
    status: NDArray[Any]

    @property
    def readable(self) -> NDArray[np.bool_]:
        return np.isin(self.status, READABLE)


def read_inputs(
    ids: ArrayLike | Sequence[Any],
    clusters: ArrayLike | Sequence[Any] | None,
    difficulty: ArrayLike | None,
    quality: ArrayLike | None,
    status: Sequence[str] | NDArray[Any] | None,
) -> Inputs:
    """All columns as arrays of one length; raises InputError, DtypeError or NonFiniteError otherwise."""
    id_array = read_ids(ids)
    count = len(id_array)
    if status is None:
        statuses = np.full(count, "ok", dtype=object)
    else:
        statuses = _column("status", status, count).astype(object)
        if not all(isinstance(value, str) for value in statuses):
            raise DtypeError('status: wanted strings such as "ok" and "empty", got other values')
    readable = np.isin(statuses, READABLE)
    codes, labels = _read_clusters(clusters, count, readable)
    return Inputs(
        ids=id_array,
        codes=codes,
        labels=labels,
        difficulty=_read_floats("difficulty", difficulty, id_array, readable),
        quality=_read_floats("quality", quality, id_array, readable),
        status=statuses,
    )


def read_ids(ids: ArrayLike | Sequence[Any]) -> Ids:
    """[S] int64, or [S] object holding str; each id once."""
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise DtypeError(f"ids: wanted a list or an array with one id per row, got {type(ids).__name__}")
    listed: list[Any] = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    if not listed:
        raise InputError("ids: wanted at least one row, got none")
    kinds = {type(value) for value in listed}
    array: Ids
    if all(issubclass(kind, str) for kind in kinds):
        array = np.empty(len(listed), dtype=object)
        array[:] = [str(value) for value in listed]
    elif all(issubclass(kind, (int, np.integer)) and kind is not bool for kind in kinds):
        try:
            array = np.array(listed, dtype=np.int64)
        except OverflowError as error:
            raise InputError("ids: wanted integers below 2**63 in size; pass larger ones as strings") from error
    else:
        raise DtypeError(f"ids: wanted all integers or all strings, got {_names(kinds)}")
    _require_unique(listed)
    return array


def _names(kinds: set[type]) -> str:
    return " and ".join(sorted(kind.__name__ for kind in kinds))


def _require_unique(ids: list[Any]) -> None:
    if len(set(ids)) == len(ids):
        return
    repeated = [value for value, times in Counter(ids).items() if times > 1]
    some = ", ".join(repr(value) for value in repeated[:5])
    raise InputError(
        f"ids: wanted each id once, got {len(repeated)} of them several times: {some}. "
        "Give every row its own id, such as its row number"
    )


def _column(name: str, values: Any, count: int) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != 1 or len(array) != count:
        raise InputError(f"{name}: wanted one value for each of the {count} ids, got shape {array.shape}")
    return array


def _read_clusters(
    clusters: ArrayLike | Sequence[Any] | None, count: int, readable: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], tuple[int | str, ...]]:
    if clusters is None:
        return np.zeros(count, dtype=np.int32), (0,)
    array = _column("clusters", clusters, count)
    codes = np.full(count, -1, dtype=np.int32)
    if not readable.any():
        return codes, (0,)
    wanted = array[readable]
    if wanted.dtype == object and not all(isinstance(value, str) for value in wanted):
        kinds = _names({type(value) for value in wanted})
        raise DtypeError(f"clusters: wanted integers or strings for every row that is read, got {kinds}")
    if wanted.dtype.kind not in "iuOUT":
        raise DtypeError(f"clusters: wanted integer labels (or topic names), got {array.dtype}")
    labels, inverse = np.unique(wanted, return_inverse=True)
    codes[readable] = inverse
    names = [str(label) if isinstance(label, str) else int(label) for label in labels.tolist()]
    return codes, tuple(names)


def _read_floats(name: str, values: ArrayLike | None, ids: Ids, readable: NDArray[np.bool_]) -> Floats | None:
    if values is None:
        return None
    array = _column(name, values, len(ids))
    try:
        floats: Floats = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DtypeError(f"{name}: wanted numbers, got {array.dtype} ({error})") from error
    bad = np.flatnonzero(readable & ~np.isfinite(floats))
    if len(bad):
        raise NonFiniteError(
            f"{name}: wanted a finite number for every row that is read, got {floats[bad[0]]} for id "
            f"{ids[bad[0]]!r} and {len(bad) - 1} more. Predict or impute them, or give those rows a status"
        )
    return floats


def whole_number(name: str, value: SupportsIndex, least: int) -> int:
    """``value`` as an int of at least ``least``; raises InputError otherwise."""
    if isinstance(value, bool):
        raise InputError(f"{name}: wanted a whole number from {least} up, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError as error:
        raise InputError(f"{name}: wanted a whole number from {least} up, got {value!r}") from error
    if number < least:
        raise InputError(f"{name}: wanted a whole number from {least} up, got {number}")
    return number

"""Checks of what users hand to the estimators: rows of features, and labels that may have gaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from saerl_fast.errors import DtypeError, InputError, NonFiniteError, SaerlError, ShapeError

MIN_LABELS = 10
"""Fewer labelled rows than this are refused."""


def checked_rows(estimator: Any, rows: Any, *, reset: bool) -> sparse.csr_array | NDArray[np.float32]:
    """The rows [S, M] as float32: a canonical CSR array if they were sparse, else a dense array.

    reset: this call learns the width (fit); otherwise the width must be the one learnt. The input is
    never changed. Raises InputError, NonFiniteError, DtypeError.
    """
    checked = validated(estimator, rows, reset=reset)
    if not sparse.issparse(checked):
        dense: NDArray[np.float32] = checked
        return dense
    return canonical(checked)


def validated(estimator: Any, rows: Any, *, reset: bool, finite: bool = True) -> Any:
    """The rows [S, M] as float32, CSR or dense, as scikit-learn checks them; finite: whether it looks for NaN."""
    from sklearn.utils.validation import validate_data

    try:
        return validate_data(
            estimator, rows, accept_sparse="csr", dtype=np.float32, order="C", reset=reset, ensure_all_finite=finite
        )
    except ValueError as error:
        raise _named(estimator, error) from error
    except TypeError as error:
        raise DtypeError(f"{type(estimator).__name__}: {error}") from error


def canonical(rows: Any) -> sparse.csr_array:
    """CSR with sorted, distinct indices in each row; shares the arrays where they already are so."""
    csr = sparse.csr_array(rows)
    if not csr.has_canonical_format:
        csr = csr.copy()
        csr.sum_duplicates()
    return csr


def numeric_labels(
    labels: Any, n_rows: int, name: str, *, smallest: int = MIN_LABELS
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Labels as numbers, and which rows have one.

    labels: one per row; None, NaN and the empty string mean "no label". -> values float64 [S] (0 where
    there is none), known bool [S]. Raises ShapeError for a wrong length, DtypeError for what is not a
    number, NonFiniteError for infinity, InputError for fewer than `smallest` labels or all equal.
    """
    column = one_column(labels, n_rows, name)
    values = np.zeros(n_rows)
    known = np.zeros(n_rows, dtype=bool)
    for row, label in enumerate(column.tolist()):
        if is_missing(label):
            continue
        number = _number(label, row, name)
        if number == number:
            values[row], known[row] = number, True
    if np.isinf(values).any():
        raise NonFiniteError(
            f"{name}: labels must be finite; row {int(np.isinf(values).argmax())} holds infinity. "
            "Use None or NaN for a row without a label"
        )
    refuse_useless(values[known], n_rows, name, smallest)
    return values, known


def one_column(labels: Any, n_rows: int, name: str) -> NDArray[Any]:
    """Labels as one array of n_rows entries."""
    from sklearn.utils.validation import column_or_1d

    if labels is None:
        raise InputError(f"{name} requires y to be passed, but the target y is None")
    if isinstance(labels, Sequence) and not isinstance(labels, str):
        # numpy would turn a list of numbers and None, or of numbers and words, into something else
        labels = np.fromiter(labels, dtype=object, count=len(labels))
    try:
        column: NDArray[Any] = column_or_1d(labels, warn=True)
    except (ValueError, TypeError) as error:
        raise ShapeError(f"{name}: labels must be one column, a value per row: {error}") from error
    if len(column) != n_rows:
        raise ShapeError(f"{name}: one label per row is wanted, {n_rows}; got {len(column)}")
    return column


def is_missing(label: Any) -> bool:
    """None, NaN, pandas' NA and the empty string stand for "no label"."""
    if label is None or type(label).__name__ == "NAType":
        return True
    if isinstance(label, str):
        return not label.strip()
    return isinstance(label, float) and label != label


def refuse_useless(known: NDArray[Any], n_rows: int, name: str, smallest: int = MIN_LABELS) -> None:
    """Raise where there is nothing to learn from: too few labels, or all of one value."""
    if len(known) < smallest:
        raise InputError(
            f"{name}: at least {smallest} labelled rows are wanted; got {len(known)} labels "
            f"(n_samples={n_rows}). Label more rows"
        )
    if len(np.unique(known)) == 1:
        raise InputError(
            f"{name}: labels must differ; all {len(known)} are {_plain(known[0])!r} (one class only). "
            "Label rows of other values, or leave this signal out"
        )


def _number(label: Any, row: int, name: str) -> float:
    try:
        return float(label)
    except (TypeError, ValueError) as error:
        raise DtypeError(
            f"{name}: labels must be numbers, or None where there is none; row {row} holds {label!r}. "
            "Map words to numbers first"
        ) from error


def _named(estimator: Any, error: ValueError) -> SaerlError:
    text = f"{type(estimator).__name__}: {error}"
    return NonFiniteError(text) if "NaN" in text or "infinity" in text else InputError(text)


def _plain(label: Any) -> Any:
    """A label as Python writes it: 'Algebra', not np.str_('Algebra')."""
    return label.item() if isinstance(label, np.generic) else label

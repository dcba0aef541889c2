"""Values of pooled features before a linear model sees them: a root, then one scale per column, never centred.

Mean-pooled SAE features are counts in disguise: a few large values, many small ones. The square root evens
them out; dividing each column by its standard deviation, without subtracting the mean, keeps the rows sparse.

Measured on 7,474 MATH problems (SAE of 4,096 latents on MiniLM, three splits of 5,474 and 2,000 rows, best of
three penalties), topic accuracy and Spearman with the difficulty level:

    square root, column scale   0.764  0.610        square root, no scale   0.765  0.612
    square root, column maximum 0.763  0.612        log1p, column scale     0.757  0.604
    cube root, column scale     0.764  0.608

The choice among the first three is within noise (0.01); log1p is behind on every split.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from saerl_fast.errors import InputError

ValueTransform = Literal["sqrt", "log1p", "none"]
VALUE_TRANSFORMS = ("sqrt", "log1p", "none")


def check_value_transform(name: str, how: str) -> None:
    """Raise InputError for a word that is not one of VALUE_TRANSFORMS."""
    if how not in VALUE_TRANSFORMS:
        raise InputError(f"{name}: value_transform must be one of {', '.join(VALUE_TRANSFORMS)}; got {how!r}")


def transform_values(values: NDArray[np.float32], how: str) -> NDArray[np.float32]:
    """sign(v) f(|v|), with f the square root, log(1 + v), or nothing; zero stays zero."""
    if how == "none":
        return values
    even = np.sqrt if how == "sqrt" else np.log1p
    if values.size == 0 or values.min() >= 0:  # SAE features are; NaN goes the other way
        whole: NDArray[np.float32] = even(values)
        return whole
    evened: NDArray[np.float32] = even(np.abs(values))
    return np.copysign(evened, values)


def transform_rows(rows: sparse.csr_array | NDArray[np.float32], how: str) -> sparse.csr_array:
    """The rows as CSR with transformed values. The input is not changed."""
    csr = sparse.csr_array(rows)
    return sparse.csr_array((transform_values(csr.data, how), csr.indices, csr.indptr), shape=csr.shape)


def column_moments(rows: sparse.csr_array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each column over all rows, zeros included; float64, in row order."""
    n_rows, width = rows.shape
    values = rows.data.astype(np.float64)
    mean = np.bincount(rows.indices, weights=values, minlength=width) / n_rows
    square = np.bincount(rows.indices, weights=values * values, minlength=width) / n_rows
    variance = square - mean * mean
    # what is left of a constant column is rounding
    variance[variance <= 1e-12 * square] = 0
    return mean, np.sqrt(variance)


def inverse_or_zero(scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / scale, and 0 where scale is 0: a column that never varies says nothing."""
    return np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)


def scale_columns(rows: sparse.csr_array, factor: NDArray[np.float64]) -> sparse.csr_array:
    """Each column times its factor, in float32."""
    data = rows.data * factor.astype(np.float32)[rows.indices]
    return sparse.csr_array((data, rows.indices, rows.indptr), shape=rows.shape)


def unit_length(rows: sparse.csr_array, weights: NDArray[np.float64]) -> sparse.csr_array:
    """Each row divided, in float32, by the length that it has with its columns weighted; a zero row stays zero.

    The weights are not multiplied in. Lengths are added up in float64.
    """
    squares = sparse.csr_array((np.square(rows.data, dtype=np.float64), rows.indices, rows.indptr), shape=rows.shape)
    length = np.sqrt(squares @ np.square(weights))
    data = rows.data * np.repeat(inverse_or_zero(length).astype(np.float32), np.diff(rows.indptr))
    return sparse.csr_array((data, rows.indices, rows.indptr), shape=rows.shape)


def mean_square_norm(rows: sparse.csr_array | NDArray[np.float32]) -> float:
    """The mean over the rows of |x|^2."""
    values = rows.data if sparse.issparse(rows) else np.ravel(rows)
    return float(np.square(values, dtype=np.float64).sum() / rows.shape[0])

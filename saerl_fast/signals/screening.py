"""Univariate screening: which few thousand of the features a slower model gets to see."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from saerl_fast.signals.scaling import column_moments, inverse_or_zero


def correlations(rows: sparse.csr_array, labels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson correlation of each column [M] with the labels [S]; 0 for a constant column.

    Cov(x, y) = mean of x (y - mean y), which needs no centring of x: rows stay sparse.
    """
    centred = labels - labels.mean()
    per_entry = np.repeat(centred, np.diff(rows.indptr))
    covariance = np.bincount(rows.indices, weights=rows.data * per_entry, minlength=rows.shape[1]) / len(labels)
    _, deviation = column_moments(rows)
    found: NDArray[np.float64] = covariance * inverse_or_zero(deviation) * inverse_or_zero(np.array([labels.std()]))
    return found


def screen(rows: sparse.csr_array, labels: NDArray[np.float64], n_features: int) -> NDArray[np.int64]:
    """The n_features columns of largest |correlation|, ascending by index; ties go to the lower index.

    Constant columns are never kept, so fewer may come back. Give it training rows only: screened on
    all rows, a model of pure noise looks good on its held-out part.
    """
    strength = np.abs(correlations(rows, labels))
    best = np.argsort(-strength, kind="stable")[:n_features]
    return np.sort(best[strength[best] > 0]).astype(np.int64)

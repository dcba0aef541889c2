"""Elastic net on screened columns, its two penalties chosen by cross-validation in which screening takes part."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from saerl_fast.signals.scaling import column_moments, inverse_or_zero
from saerl_fast.signals.screening import screen

logger = logging.getLogger(__name__)

FOLDS = 3
WEAKEST = 0.01
"""The weakest penalty, as a share of the one at which all weights are zero."""
TOLERANCE = 1e-3
MAX_SWEEPS = 1000


@dataclass(frozen=True)
class Penalty:
    """The penalty alpha * (l1_ratio |w|_1 + (1 - l1_ratio) / 2 |w|_2^2) beside the mean of (y - Xw - b)^2 / 2,
    where each column of X is divided by its standard deviation. path: the alphas from the strongest down to it."""

    path: tuple[float, ...]
    l1_ratio: float

    @property
    def alpha(self) -> float:
        return self.path[-1]


@dataclass(frozen=True)
class ElasticNetModel:
    """prediction = rows @ weights + intercept. weights float64 [M], zero outside `selected`."""

    weights: NDArray[np.float64]
    intercept: float
    selected: NDArray[np.int64]
    penalty: Penalty

    def predict(self, rows: sparse.csr_array) -> NDArray[np.float64]:
        return np.asarray(rows @ self.weights + self.intercept, dtype=np.float64)


@dataclass(frozen=True)
class _Screened:
    """The kept columns of some rows, each with mean 0 and standard deviation 1; labels with mean 0."""

    columns: NDArray[np.float32]
    labels: NDArray[np.float32]
    selected: NDArray[np.int64]
    mean: NDArray[np.float64]
    factor: NDArray[np.float64]
    label_mean: float


def choose_penalty(
    rows: sparse.csr_array,
    labels: NDArray[np.float64],
    *,
    max_features: int,
    n_alphas: int,
    l1_ratios: Sequence[float],
    seed: int,
) -> Penalty:
    """The penalty of least squared error over three folds.

    Each fold screens its columns on its own training rows, so that the rows it is judged by have no
    part in the choice of columns. rows [n, M] transformed values, labels [n], n >= 6.
    """
    from sklearn.model_selection import KFold

    whole = _screened(rows, labels, max_features)
    paths = {ratio: _alphas(whole, ratio, n_alphas) for ratio in l1_ratios}
    errors = {ratio: np.zeros(n_alphas) for ratio in l1_ratios}
    for fitted, tested in KFold(FOLDS, shuffle=True, random_state=seed).split(labels[:, None]):
        part = _screened(rows[fitted], labels[fitted], max_features)
        gram = part.columns.T @ part.columns
        judged = _as_screened(rows[tested], part)
        for ratio in l1_ratios:
            predicted = judged @ _weights(part, gram, paths[ratio], ratio) + part.label_mean
            errors[ratio] += np.square(predicted - labels[tested][:, None]).sum(axis=0)
    best = min(l1_ratios, key=lambda ratio: float(errors[ratio].min()))
    return Penalty(tuple(paths[best][: int(errors[best].argmin()) + 1].tolist()), best)


def fit_elastic_net(
    rows: sparse.csr_array, labels: NDArray[np.float64], penalty: Penalty, max_features: int
) -> ElasticNetModel:
    """Screen the columns on these rows, then fit at one penalty. rows [n, M] transformed values, labels [n]."""
    part = _screened(rows, labels, max_features)
    path = np.array(penalty.path)
    scaled = _weights(part, part.columns.T @ part.columns, path, penalty.l1_ratio)[:, -1] * part.factor
    weights = np.zeros(rows.shape[1])
    weights[part.selected] = scaled
    intercept = part.label_mean - float(scaled @ part.mean)
    return ElasticNetModel(weights, intercept, part.selected, penalty)


def _screened(rows: sparse.csr_array, labels: NDArray[np.float64], max_features: int) -> _Screened:
    selected = screen(rows, labels, max_features)
    kept = rows[:, selected]
    mean, deviation = column_moments(kept)
    factor = inverse_or_zero(deviation)
    dense = _standardised(kept, mean, factor)
    centred = (labels - labels.mean()).astype(np.float32)
    return _Screened(dense, centred, selected, mean, factor, float(labels.mean()))


def _standardised(
    kept: sparse.csr_array, mean: NDArray[np.float64], factor: NDArray[np.float64]
) -> NDArray[np.float32]:
    # at most max_features wide, so dense is small
    dense: NDArray[np.float32] = kept.toarray(order="F")
    dense -= mean.astype(np.float32)
    dense *= factor.astype(np.float32)
    return dense


def _as_screened(rows: sparse.csr_array, part: _Screened) -> NDArray[np.float32]:
    return _standardised(rows[:, part.selected], part.mean, part.factor)


def _alphas(part: _Screened, l1_ratio: float, n_alphas: int) -> NDArray[np.float64]:
    """From the alpha at which the first weight leaves zero downwards, evenly in the logarithm."""
    if len(part.selected) == 0:
        return np.ones(n_alphas)
    strongest = float(np.abs(part.labels @ part.columns).max()) / len(part.labels) / l1_ratio
    return np.geomspace(strongest, strongest * WEAKEST, n_alphas)


def _weights(
    part: _Screened, gram: NDArray[np.float32], alphas: NDArray[np.float64], l1_ratio: float
) -> NDArray[np.float64]:
    """Weights [kept columns, alphas] by coordinate descent on the Gram matrix."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import enet_path

    if len(part.selected) == 0:
        return np.zeros((0, len(alphas)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        _, weights, _ = enet_path(
            part.columns,
            part.labels,
            l1_ratio=l1_ratio,
            alphas=alphas,
            precompute=gram,
            Xy=part.columns.T @ part.labels,
            tol=TOLERANCE,
            max_iter=MAX_SWEEPS,
            # everything is float32 in the wanted order already; the checks cost more than small fits
            check_input=False,
            # not needed for cyclic descent, but without it numpy's global generator is drawn from
            random_state=0,
        )
    for warning in caught:
        logger.debug("elastic net, l1_ratio %g: %s", l1_ratio, warning.message)
    return np.asarray(weights, dtype=np.float64)

"""Linear models and the search for their penalty: the same search for every kind of feature.

Rows are brought to a mean squared norm of 1 first, so that one grid of penalties means the same for
sparse features, hidden states and words. The penalty is chosen inside the rows given, on a part of them;
of equal ones the strongest is taken.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from saerl_fast.signals.scaling import mean_square_norm

logger = logging.getLogger(__name__)

Rows = sparse.csr_array | NDArray[np.float32]
Score = Callable[[NDArray[Any], NDArray[Any]], float]
"""(predictions, labels) -> a number, higher is better"""

RIDGE_PENALTIES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
LOGISTIC_INVERSE_PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
INNER_FOLDS = 4
SINGLE_FOLD_FROM = 1000
"""From this many rows on, one fold of the four chooses the penalty; below it, all in turn."""
DENSE_SOLVE_UP_TO = 1024
"""Dense rows of up to this width are solved directly, others by conjugate gradients."""


@dataclass(frozen=True)
class LinearModel:
    """prediction = rows @ weights + intercept; weights float64 [M]."""

    weights: NDArray[np.float64]
    intercept: float
    penalty: float

    def predict(self, rows: Rows) -> NDArray[np.float64]:
        return np.asarray(rows @ self.weights + self.intercept, dtype=np.float64)


def fit_ridge(rows: Rows, labels: NDArray[np.float64], score: Score, *, seed: int) -> LinearModel:
    """Ridge: the least |y - Xw - b|^2 + penalty |w|^2, of the penalty with the best inner score.

    rows [n, M]; labels float64 [n], n >= 2.
    """
    unit = 1 / np.sqrt(mean_square_norm(rows) or 1.0)
    scaled = rows * np.float32(unit)
    totals = np.zeros(len(RIDGE_PENALTIES))
    for fitted, tested in inner_folds(len(labels), seed):
        weights, intercepts = _ridge(scaled[fitted], labels[fitted], RIDGE_PENALTIES, tol=1e-3)
        totals += [score(found, labels[tested]) for found in (scaled[tested] @ weights + intercepts).T]
    penalty = RIDGE_PENALTIES[int(totals.argmax())]
    weights, intercepts = _ridge(scaled, labels, (penalty,), tol=1e-5)
    return LinearModel(weights[:, 0] * unit, float(intercepts[0]), penalty)


def fit_logistic(rows: Rows, classes: NDArray[Any], *, seed: int) -> tuple[Any, float]:
    """Multinomial logistic regression, of the penalty with the best inner accuracy.

    rows [n, M]; classes [n], at least two kinds -> (the fitted sklearn LogisticRegression, which takes rows
    as they were given, and its inverse penalty C). Newton's method with conjugate gradients: on rows that
    are 21 % dense it was three times as fast as L-BFGS. Each penalty starts from the solution before.
    """
    from sklearn.linear_model import LogisticRegression

    unit = 1 / np.sqrt(mean_square_norm(rows) or 1.0)
    scaled = rows * np.float32(unit)
    best = _best_inverse_penalty(scaled, classes, seed)
    model = LogisticRegression(solver="newton-cg", tol=1e-5, max_iter=100, C=best)
    _fit(model, scaled, classes)
    model.coef_ = model.coef_ * unit
    return model, best


def inner_folds(n_rows: int, seed: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(rows to fit on, rows to choose by): one pair from SINGLE_FOLD_FROM rows on, else all folds."""
    from sklearn.model_selection import KFold

    folds = KFold(min(INNER_FOLDS, n_rows), shuffle=True, random_state=seed).split(np.zeros((n_rows, 1)))
    for number, (fitted, tested) in enumerate(folds):
        if number == 0 or n_rows < SINGLE_FOLD_FROM:
            yield fitted, tested


def _ridge(
    rows: Rows, labels: NDArray[np.float64], penalties: Sequence[float], tol: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights [M, p] and intercepts [p], one column for each penalty."""
    from sklearn.linear_model import Ridge

    direct = not sparse.issparse(rows) and rows.shape[1] <= DENSE_SOLVE_UP_TO
    model = Ridge(alpha=np.array(penalties), solver="cholesky" if direct else "sparse_cg", tol=tol)
    model.fit(rows, np.repeat(labels[:, None], len(penalties), axis=1))
    weights = np.asarray(model.coef_, dtype=np.float64).reshape(len(penalties), -1)
    return weights.T, np.asarray(model.intercept_, dtype=np.float64).reshape(-1)


def _best_inverse_penalty(scaled: Rows, classes: NDArray[Any], seed: int) -> float:
    from sklearn.linear_model import LogisticRegression

    totals = np.zeros(len(LOGISTIC_INVERSE_PENALTIES))
    for fitted, tested in inner_folds(len(classes), seed):
        if len(np.unique(classes[fitted])) < 2:
            logger.warning("a part of the training rows holds one class only; it has no say in the penalty")
            continue
        # the stopping rule is absolute: a looser one would leave each fit where the one before ended
        model = LogisticRegression(solver="newton-cg", tol=1e-5, max_iter=100, warm_start=True)
        inner_rows, inner_classes = scaled[fitted], classes[fitted]
        for place, inverse in enumerate(LOGISTIC_INVERSE_PENALTIES):
            _fit(model.set_params(C=inverse), inner_rows, inner_classes)
            totals[place] += (model.predict(scaled[tested]) == classes[tested]).mean()
    return LOGISTIC_INVERSE_PENALTIES[int(totals.argmax())]


def _fit(model: Any, rows: Rows, classes: NDArray[Any]) -> None:
    """Fit, with the solver's warnings in the log instead of on the screen.

    One thread of BLAS: products with a few columns gain nothing from more, and on a busy machine the
    waiting threads cost ten times the work.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1, user_api="blas"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(rows, classes)
    for warning in caught:
        logger.debug("logistic regression at C=%g: %s", model.C, warning.message)

"""Honest scores: how well predictions of rows that a model never saw agree with their labels."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saerl_fast.errors import InputError

logger = logging.getLogger(__name__)

SPLIT_FROM = 200
"""From this many labelled rows on, one part is held out; below it, cross-validation."""
MIN_OF_EACH = 3
"""A score of two values needs this many rows of each."""

Predict = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]
"""(rows to fit on, rows to predict) -> predictions of the latter"""


class NearChanceWarning(UserWarning):
    """A probe's held-out score is not clearly above that of guessing."""


def spearman(predicted: NDArray[Any], true: NDArray[Any]) -> float:
    """Spearman's rank correlation, ties at their mean rank; 0 where a side is constant and so orders nothing."""
    from scipy.stats import rankdata

    if np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(predicted), rankdata(true))[0, 1])


def area_under_curve(predicted: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    """Chance that a positive row is predicted above a negative one, ties counting half; 0.5 if one kind is absent."""
    from scipy.stats import rankdata

    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if n_positive == 0 or n_negative == 0:
        return 0.5
    rank_sum = float(rankdata(predicted)[positive].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


def held_out_report(
    predict: Predict, labels: NDArray[np.float64], *, two_values: bool, share: float, seed: int
) -> dict[str, Any]:
    """Score `predict` on labelled rows that it does not fit on.

    labels float64 [n], all known. two_values: the metric is the area under the ROC curve, else Spearman.
    share: part of the rows that is held out (from SPLIT_FROM rows on; below, 5 folds or fewer take turns
    and their scores are averaged).

    -> metric, score, chance (the score of guessing), standard_error (of guessing, at this n), n (rows scored),
    n_fitted (rows fitted on), how, near_chance (score below chance + 2 standard errors)
    """
    _check(labels, two_values, share)
    splits = list(_splits(labels, two_values, share, seed))
    scores, errors = [], []
    for fitted, tested in splits:
        found, true = predict(fitted, tested), labels[tested]
        if two_values:
            positive = true == labels.max()
            scores.append(area_under_curve(found, positive))
            errors.append(_auc_error(positive))
        else:
            scores.append(spearman(found, true))
            errors.append(1 / np.sqrt(max(len(true) - 1, 1)))
    score, chance = float(np.mean(scores)), 0.5 if two_values else 0.0
    error = float(np.sqrt(np.square(errors).sum()) / len(errors))
    return {
        "metric": "auc" if two_values else "spearman",
        "score": score,
        "chance": chance,
        "standard_error": error,
        "n": sum(len(tested) for _, tested in splits),
        "n_fitted": int(np.mean([len(fitted) for fitted, _ in splits])),
        "how": "held-out split" if len(splits) == 1 else f"{len(splits)}-fold cross-validation",
        "near_chance": bool(score < chance + 2 * error),
    }


def warn_near_chance(name: str, report: dict[str, Any]) -> None:
    """Warn when a report is near chance; log it in any case."""
    logger.info("%s: %s", name, report)
    if report["near_chance"]:
        warnings.warn(
            f"{name}: held-out {report['metric']} {report['score']:.3f} over {report['n']} rows is near chance "
            f"({report['chance']} + 2 standard errors of {report['standard_error']:.3f}); "
            "do not steer by it. More labels or another feature set may help",
            NearChanceWarning,
            stacklevel=3,
        )


def _check(labels: NDArray[np.float64], two_values: bool, share: float) -> None:
    if not 0 < share < 1:
        raise InputError(f"held_out must lie between 0 and 1; got {share}")
    if two_values:
        fewest = min(int((labels == value).sum()) for value in np.unique(labels))
        if fewest < MIN_OF_EACH:
            raise InputError(
                f"labels of two values need at least {MIN_OF_EACH} rows of each; got {fewest} of one. Label more rows"
            )


def _splits(
    labels: NDArray[np.float64], two_values: bool, share: float, seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    from sklearn.model_selection import KFold, ShuffleSplit, StratifiedKFold, StratifiedShuffleSplit

    if len(labels) >= SPLIT_FROM:
        kind = StratifiedShuffleSplit if two_values else ShuffleSplit
        splitter = kind(n_splits=1, test_size=share, random_state=seed)
    else:
        # folds of ten rows at least, else a rank correlation means nothing; a value of each kind in each fold
        folds = int(np.clip(len(labels) // 10, 2, 5))
        if two_values:
            folds = min(folds, int(np.unique(labels, return_counts=True)[1].min()))
        splitter = (StratifiedKFold if two_values else KFold)(folds, shuffle=True, random_state=seed)
    yield from splitter.split(np.zeros((len(labels), 1)), labels)


def _auc_error(positive: NDArray[np.bool_]) -> float:
    """Standard deviation of the area under the curve for random predictions (Mann and Whitney, 1947)."""
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if n_positive == 0 or n_negative == 0:
        return 0.5
    return float(np.sqrt((len(positive) + 1) / (12 * n_positive * n_negative)))

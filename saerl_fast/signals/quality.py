"""QualityProbe: predicts how good a row is, from a few labels, to leave out the worst."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from saerl_fast.errors import InputError
from saerl_fast.signals.held_out import area_under_curve, held_out_report, spearman, warn_near_chance
from saerl_fast.signals.inputs import is_missing, numeric_labels, one_column
from saerl_fast.signals.linear import LinearModel, fit_ridge
from saerl_fast.signals.probe import LinearProbe, seed_from
from saerl_fast.signals.scaling import check_value_transform, column_moments, inverse_or_zero, scale_columns


class QualityProbe(LinearProbe):
    """Ridge regression on all features, each divided by its standard deviation; two values or a scale as labels.

    value_transform "sqrt" | "log1p" | "none" of the pooled values (scaling.py has the measurements);
    good_label: for labels that are words, the one that means good; held_out: share of the labelled rows that
    the score is measured on; refit: whether the final model is fitted on all labelled rows after the score
    was taken; random_state: chooses held-out rows and folds.

    After fit: score_report_ (dict: metric "auc" for two values, else "spearman"; score, chance,
    standard_error, n, n_fitted, how, near_chance, refit), coef_ float64 [M] on the transformed values,
    intercept_, penalty_, n_labelled_, n_features_in_.
    """

    def __init__(
        self,
        *,
        value_transform: str = "sqrt",
        good_label: Any = None,
        held_out: float = 0.2,
        refit: bool = True,
        random_state: Any = None,
    ) -> None:
        self.value_transform = value_transform
        self.good_label = good_label
        self.held_out = held_out
        self.refit = refit
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> QualityProbe:
        """X: CSR or dense [S, M]; y: a value per row, None or NaN where unknown, higher is better.

        Raises ShapeError (wrong length), InputError (fewer than 10 labels, all equal, words without
        good_label), NonFiniteError, DtypeError. Warns NearChanceWarning when the held-out score is near
        chance; `threshold` then refuses.
        """
        check_value_transform("QualityProbe", self.value_transform)
        rows = self._rows(X, reset=True)
        values, known = numeric_labels(self._as_numbers(y, rows.shape[0]), rows.shape[0], "QualityProbe")
        pool, labels = rows, values[known]
        rows = rows[np.flatnonzero(known)]
        two_values = len(np.unique(labels)) == 2
        seed = seed_from(self.random_state)
        part: LinearModel | None = None

        def predict(fitted: NDArray[np.int64], tested: NDArray[np.int64]) -> NDArray[np.float64]:
            nonlocal part
            part = fit_quality(rows[fitted], labels[fitted], two_values=two_values, seed=seed)
            return part.predict(rows[tested])

        report = held_out_report(predict, labels, two_values=two_values, share=self.held_out, seed=seed)
        if self.refit or part is None or report["how"] != "held-out split":
            part = fit_quality(rows, labels, two_values=two_values, seed=seed)
        self.coef_, self.intercept_, self.penalty_ = part.weights, part.intercept, part.penalty
        self.n_labelled_ = len(labels)
        self.score_report_ = report | {"refit": bool(self.refit) or report["how"] != "held-out split"}
        self.fit_predictions_ = part.predict(pool)
        warn_near_chance("QualityProbe", report)
        return self

    def threshold(self, drop_lowest: float = 0.05, *, X: Any = None, force: bool = False) -> float:
        """The predicted quality below which the lowest `drop_lowest` of the rows lie.

        X: the rows to be filtered [S, M]; without it, the rows given to fit, labelled or not. Keep rows with
        `predict(rows) >= threshold`. Raises InputError when the held-out score is near chance, unless force.
        """
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self)
        if not 0 <= drop_lowest < 1:
            raise InputError(f"QualityProbe.threshold: drop_lowest must lie in [0, 1); got {drop_lowest}")
        report = self.score_report_
        if report["near_chance"] and not force:
            raise InputError(
                f"QualityProbe.threshold: the held-out {report['metric']} is {report['score']:.3f} over "
                f"{report['n']} rows, near that of guessing; a filter by it drops rows at random. "
                "Label more rows, or pass force=True"
            )
        predictions = self.fit_predictions_ if X is None else self.predict(X)
        return float(np.quantile(predictions, drop_lowest, method="higher"))

    def _as_numbers(self, y: Any, n_rows: int) -> Any:
        """Words to 1 for good and 0 for the other; numbers as they are."""
        if y is None:
            return y
        column = one_column(y, n_rows, "QualityProbe")
        found = [label for label in column.tolist() if not is_missing(label)]
        if self.good_label is None:
            words = sorted({label for label in found if isinstance(label, str)})
            if words:
                raise InputError(
                    f"QualityProbe: labels must be numbers, or good_label must say which word is good; got {words[:4]}"
                )
            return column
        if self.good_label not in found:
            raise InputError(f"QualityProbe: good_label {self.good_label!r} is not among the labels")
        return [None if is_missing(label) else float(label == self.good_label) for label in column.tolist()]


def fit_quality(rows: sparse.csr_array, labels: NDArray[np.float64], *, two_values: bool, seed: int) -> LinearModel:
    """Ridge on columns scaled by their standard deviation over these rows; weights for the rows as given."""
    _, deviation = column_moments(rows)
    factor = inverse_or_zero(deviation)
    score = rank_score(two_values, float(labels.max()))
    model = fit_ridge(scale_columns(rows, factor), labels, score, seed=seed)
    return LinearModel(model.weights * factor, model.intercept, model.penalty)


def rank_score(two_values: bool, highest: float) -> Any:
    """Area under the curve for two values, of which `highest` is the positive one; else Spearman."""
    if two_values:
        return lambda predicted, true: area_under_curve(predicted, true == highest)
    return spearman

"""DifficultyProxy: predicts difficulty for all rows from the labels of a few."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from saerl_fast.errors import InputError
from saerl_fast.signals.elastic_net import ElasticNetModel, Penalty, choose_penalty, fit_elastic_net
from saerl_fast.signals.held_out import held_out_report, warn_near_chance
from saerl_fast.signals.inputs import numeric_labels
from saerl_fast.signals.probe import LinearProbe, seed_from
from saerl_fast.signals.scaling import check_value_transform


class DifficultyProxy(LinearProbe):
    """Elastic net on the features that vary most with the labels (Zou and Hastie, 2005).

    max_features: columns kept by univariate screening; n_alphas, l1_ratios: the grid of penalties;
    value_transform "sqrt" | "log1p" | "none" of the pooled values (scaling.py has the measurements);
    held_out: share of the labelled rows that the score is measured on; refit: whether the final model is
    fitted on all labelled rows after the score was taken (the score then belongs to the same recipe on fewer
    rows); random_state: chooses held-out rows and folds.

    After fit: score_report_ (dict: metric, score, chance, standard_error, n, n_fitted, how, near_chance,
    refit), coef_ float64 [M] on the transformed values, intercept_, selected_ int64, the screened columns,
    alpha_ and l1_ratio_, n_labelled_, n_features_in_.

    Memory: labelled rows x max_features in float32, and one CSR copy of the values.
    """

    def __init__(
        self,
        max_features: int = 2000,
        *,
        n_alphas: int = 20,
        l1_ratios: tuple[float, ...] = (0.02, 0.1, 0.5, 0.9),
        value_transform: str = "sqrt",
        held_out: float = 0.2,
        refit: bool = True,
        random_state: Any = None,
    ) -> None:
        self.max_features = max_features
        self.n_alphas = n_alphas
        self.l1_ratios = l1_ratios
        self.value_transform = value_transform
        self.held_out = held_out
        self.refit = refit
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> DifficultyProxy:
        """X: CSR or dense [S, M]; y: a number per row, None or NaN where unknown, higher is harder.

        Raises ShapeError (wrong length), InputError (fewer than 10 labels, all equal, a parameter out of
        range), NonFiniteError, DtypeError. Warns NearChanceWarning when the held-out score is near chance.
        """
        self._check_parameters()
        rows = self._rows(X, reset=True)
        values, known = numeric_labels(y, rows.shape[0], "DifficultyProxy")
        rows, labels = rows[np.flatnonzero(known)], values[known]
        seed = seed_from(self.random_state)
        part: ElasticNetModel | None = None

        def predict(fitted: NDArray[np.int64], tested: NDArray[np.int64]) -> NDArray[np.float64]:
            nonlocal part
            part = self._fit_part(rows[fitted], labels[fitted], seed)
            return part.predict(rows[tested])

        report = held_out_report(predict, labels, two_values=False, share=self.held_out, seed=seed)
        self._keep(self._final(rows, labels, part, report["how"], seed))
        self.n_labelled_ = len(labels)
        self.score_report_ = report | {"refit": bool(self.refit) or report["how"] != "held-out split"}
        warn_near_chance("DifficultyProxy", report)
        return self

    def _fit_part(self, rows: sparse.csr_array, labels: NDArray[np.float64], seed: int) -> ElasticNetModel:
        """The whole recipe on some rows: nothing is learnt from any other."""
        penalty = choose_penalty(
            rows,
            labels,
            max_features=self.max_features,
            n_alphas=self.n_alphas,
            l1_ratios=self.l1_ratios,
            seed=seed,
        )
        return fit_elastic_net(rows, labels, penalty, self.max_features)

    def _final(
        self,
        rows: sparse.csr_array,
        labels: NDArray[np.float64],
        part: ElasticNetModel | None,
        how: str,
        seed: int,
    ) -> ElasticNetModel:
        """The model to keep: on all labelled rows, or the one that was scored."""
        if part is None or how != "held-out split":
            return self._fit_part(rows, labels, seed)
        if not self.refit:
            return part
        # the penalty is relative to n, so it carries over to a quarter more rows
        penalty: Penalty = part.penalty
        return fit_elastic_net(rows, labels, penalty, self.max_features)

    def _keep(self, model: ElasticNetModel) -> None:
        if len(model.selected) == 0:
            raise InputError(
                f"DifficultyProxy: none of the {len(model.weights)} features varies together with the labels; "
                "there is nothing to fit. Check that rows and labels belong together"
            )
        self.coef_ = model.weights
        self.intercept_ = model.intercept
        self.selected_ = model.selected
        self.alpha_ = model.penalty.alpha
        self.l1_ratio_ = model.penalty.l1_ratio

    def _check_parameters(self) -> None:
        check_value_transform("DifficultyProxy", self.value_transform)
        if self.max_features < 1 or self.n_alphas < 1:
            raise InputError(
                "DifficultyProxy: max_features and n_alphas must be at least 1; "
                f"got {self.max_features} and {self.n_alphas}"
            )
        if not self.l1_ratios or not all(0 < ratio <= 1 for ratio in self.l1_ratios):
            raise InputError(f"DifficultyProxy: l1_ratios must lie in (0, 1]; got {self.l1_ratios}")

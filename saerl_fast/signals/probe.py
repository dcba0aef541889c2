"""What DifficultyProxy and QualityProbe share: checked input, an honest score, weights on transformed values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, RegressorMixin

from saerl_fast.signals.inputs import canonical, checked_rows
from saerl_fast.signals.scaling import transform_rows


class LinearProbe(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A linear model of sign(x) f(|x|), where f is `value_transform`. Base class, not for direct use.

    After fit: coef_ float64 [M], weights on the transformed values; intercept_; score_report_;
    n_labelled_; n_features_in_.
    """

    value_transform: str

    def predict(self, X: Any) -> NDArray[np.float64]:
        """One prediction per row: float64 [S]. X: CSR or dense [S, M]."""
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self)
        rows = self._rows(X, reset=False)
        return np.asarray(rows @ self.coef_ + self.intercept_, dtype=np.float64)

    def _rows(self, X: Any, *, reset: bool) -> sparse.csr_array:
        """Checked rows as CSR with transformed values."""
        return transform_rows(canonical(checked_rows(self, X, reset=reset)), self.value_transform)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.required = True
        return tags


def seed_from(random_state: Any) -> int:
    """A seed for this fit. None: a fresh one. A numpy RandomState is drawn from; the global one never is."""
    if random_state is None:
        return int(np.random.default_rng().integers(2**31))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31))
    return int(random_state)

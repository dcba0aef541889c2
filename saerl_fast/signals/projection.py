"""FeatureProjection: pooled features in a few dense columns, where k-means takes a fraction of the time."""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from saerl_fast.errors import InputError
from saerl_fast.ops import project_weighted
from saerl_fast.signals.inputs import checked_rows
from saerl_fast.signals.leading_directions import as_tensors, leading_directions
from saerl_fast.signals.probe import seed_from
from saerl_fast.signals.scaling import check_value_transform, scale_columns, scale_rows, transform_rows

logger = logging.getLogger(__name__)


class FeatureProjection(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Rows of features [S, M], CSR or dense, to dense float32 rows [S, r]: feature tf-idf and a truncated SVD.

        w = f(x) * idf,   idf = ln((1 + S) / (1 + rows that have the feature)) + 1
        z = (w / |w|) V,  V [M, r]: the leading right singular vectors of the fitted rows w / |w|, of which a sample of
                          `max_rows` stands for all

    What latent semantic analysis (Deerwester et al., 1990) does with words, done with features. Nothing is centred, so
    a row without features is a row of zeros. The length of z is the share of its row that the r directions hold.

    n_components: r; fewer where the fitted rows have no more directions, which is logged (n_components_ says how many);
    value_transform "sqrt" | "log1p" | "none": f; n_iter: blocks of 64 directions tried beyond those that the components
    fill, of a Lanczos iteration (leading_directions.py); max_rows: rows that the directions are learnt from, drawn at
    random where there are more (the weights idf come from all rows); random_state: int, Generator, RandomState or None.
    numpy's and torch's global generators are neither used nor changed.

    After fit: components_ float32 [r, M], orthonormal; idf_ float64 [M]; singular_values_ float64 [r] (where a sample
    stood for the rows, scaled up to their number); n_components_; n_features_in_. The bits do not depend on the number
    of threads.

    In front of StreamingKMeans it is the fast route; docs/measured.md has its times and the quality of its clusters
    (`kmeans_fit`):

        make_pipeline(FeatureProjection(128), StreamingKMeans(16)).fit_predict(rows)

    There `inertia_`, `transform` and `cluster_centers_` [K, r] of the k-means are those of the projected rows;
    `inverse_transform(cluster_centers_)` names their features. For a stream, fit the projection on a first sample, then
    call `partial_fit(projection.transform(batch))`: what a row is projected to does not depend on the rows beside it.
    """

    components_: NDArray[np.float32]
    idf_: NDArray[np.float64]
    singular_values_: NDArray[np.float64]
    n_components_: int
    seed_: int

    def __init__(
        self,
        n_components: int = 128,
        *,
        value_transform: str = "sqrt",
        n_iter: int = 1,
        max_rows: int = 2048,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.value_transform = value_transform
        self.n_iter = n_iter
        self.max_rows = max_rows
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> FeatureProjection:
        """Learn the weights and directions from the rows X (CSR or dense [S, M]). y is ignored.

        Raises InputError (all rows are zero; a parameter out of range), NonFiniteError, DtypeError.
        """
        self._learn(self._rows(X, reset=True))
        return self

    def fit_transform(self, X: Any, y: Any = None) -> NDArray[np.float32]:
        """`fit`, then `transform` of the same rows, which are checked once. y is ignored."""
        rows = self._rows(X, reset=True)
        self._learn(rows)
        return self._projected(rows)

    def transform(self, X: Any) -> NDArray[np.float32]:
        """The rows X (CSR or dense [S, M]) in the learnt directions: float32 [S, n_components_]."""
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self)
        return self._projected(self._rows(X, reset=False))

    def inverse_transform(self, X: Any) -> NDArray[np.float32]:
        """Projected rows [S, r] as features again: float32 [S, M], in units of f(x), up to the length of each row."""
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self)
        projected = np.asarray(X, dtype=np.float32)
        if projected.ndim != 2 or projected.shape[1] != self.n_components_:
            raise InputError(
                f"FeatureProjection: inverse_transform wants rows [S, {self.n_components_}]; "
                f"got {list(projected.shape)}"
            )
        features: NDArray[np.float32] = (projected @ self.components_ / self.idf_).astype(np.float32)
        return features

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a fitted estimator as projection.json and projection.safetensors into the folder, which is made."""
        from saerl_fast.signals.projection_files import save_projection

        save_projection(self, folder)

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> FeatureProjection:
        """Read what `save` wrote; every value is checked. Raises FormatError, UnsafeFileError."""
        from saerl_fast.signals.projection_files import load_projection

        return load_projection(folder)

    def _rows(self, X: Any, *, reset: bool) -> sparse.csr_array:
        """Checked rows with distinct, sorted columns."""
        self._check_parameters()
        return sparse.csr_array(checked_rows(self, X, reset=reset))

    def _learn(self, rows: sparse.csr_array) -> None:
        n_rows, width = rows.shape
        having = _rows_with(rows)
        if not having.any():
            raise InputError(
                f"FeatureProjection: all {n_rows} rows are zero (n_samples={n_rows}); there is nothing to project. "
                "Leave out rows without features"
            )
        self.idf_ = np.log((1 + n_rows) / (1 + having)) + 1
        self.seed_ = seed_from(self.random_state)
        rng = np.random.default_rng(self.seed_)
        sample = self._sample(rows, rng)
        values, self.components_ = leading_directions(
            scale_rows(scale_columns(transform_rows(sample, self.value_transform), self.idf_)),
            self.n_components,
            n_iter=self.n_iter,
            rng=rng,
        )
        self.singular_values_ = values * np.sqrt(n_rows / sample.shape[0])
        self.n_components_ = len(self.components_)
        if self.n_components_ < self.n_components:
            logger.info(
                "FeatureProjection: %d components were asked for; the %d rows of %d features have %d directions",
                self.n_components, sample.shape[0], width, self.n_components_,
            )  # fmt: skip

    def _sample(self, rows: sparse.csr_array, rng: np.random.Generator) -> sparse.csr_array:
        """Rows to learn directions from: `max_rows` of them, in their order, or all."""
        n_rows = rows.shape[0]
        if n_rows <= self.max_rows:
            return rows
        sample = rows[np.sort(rng.choice(n_rows, self.max_rows, replace=False))]
        # a sample of empty rows says nothing of the others
        return sample if sample.data.any() else rows

    def _projected(self, rows: sparse.csr_array) -> NDArray[np.float32]:
        """The rows in the learnt directions. The rows, which are far larger than what comes out, are read once."""
        directions = torch.from_numpy(self.components_.T)
        weights = torch.from_numpy(self.idf_.astype(np.float32))
        projected: NDArray[np.float32] = project_weighted(
            as_tensors(rows), directions, weights, self.value_transform
        ).numpy()
        return projected

    def _check_parameters(self) -> None:
        check_value_transform("FeatureProjection", self.value_transform)
        for name, least in (("n_components", 1), ("n_iter", 0), ("max_rows", 1)):
            if getattr(self, name) < least:
                raise InputError(f"FeatureProjection: {name} must be at least {least}; got {getattr(self, name)}")

    @property
    def _n_features_out(self) -> int:
        """scikit-learn names the columns by it."""
        return self.n_components_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _rows_with(rows: sparse.csr_array) -> NDArray[np.int64]:
    """For each feature, the number of rows that have it [M]."""
    indices = rows.indices if rows.data.all() else rows.indices[rows.data != 0]
    found: NDArray[np.int64] = torch.bincount(torch.from_numpy(indices), minlength=rows.shape[1]).numpy()
    return found

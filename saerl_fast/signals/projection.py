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
from saerl_fast.signals.counted_rows import Counts, as_tensors, counted_rows
from saerl_fast.signals.inputs import checked_rows
from saerl_fast.signals.leading_directions import leading_directions
from saerl_fast.signals.probe import seed_from
from saerl_fast.signals.row_sample import unit_sample
from saerl_fast.signals.scaling import check_value_transform

logger = logging.getLogger(__name__)

SAMPLE_SHARE = 8
"""One row of so many is learnt from: a small topic keeps its part of the sample however many rows there are."""
LEAST_ROWS, LEAST_PER_COMPONENT, MOST_PER_COMPONENT = 1024, 8, 64
"""But no fewer rows than the first, and no fewer and no more per component than the others."""


class FeatureProjection(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Rows of features [S, M], CSR or dense, to dense float32 rows [S, r]: feature tf-idf and a truncated SVD.

        w = f(x) * idf,   idf = ln((1 + S) / (1 + rows that have the feature)) + 1
        z = (w / |w|) V,  V [M, r]: the leading right singular vectors of the fitted rows w / |w|, of which a sample
                          stands for all

    What latent semantic analysis (Deerwester et al., 1990) does with words, done with features. Nothing is centred, so
    a row without features is a row of zeros. The length of z is the share of its row that the r directions hold.

    n_components: r; fewer where the fitted rows have no more directions, which is logged (n_components_ says how many);
    value_transform "sqrt" | "log1p" | "none": f; n_iter: blocks of a Lanczos iteration tried beyond the ceil(r / 64)
    that r directions fill (leading_directions.py); max_rows: rows that the directions are learnt from at most, drawn at
    random where there are more (the weights idf come from all rows), None: an eighth of them, but from 8 to 64 per
    component, and 1,024 in any case; random_state: int, Generator, RandomState or None. numpy's and torch's global
    generators are neither used nor changed.

    Topics of which few rows come into the sample lose their directions first. Where rare topics matter more than
    time, max_rows=len(rows) learns from all.

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
        max_rows: int | None = None,
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
        self._check_parameters()
        self._learn(*counted_rows(self, X, reset=True))
        return self

    def fit_transform(self, X: Any, y: Any = None) -> NDArray[np.float32]:
        """`fit`, then `transform` of the same rows, which are checked once. y is ignored."""
        self._check_parameters()
        rows, having = counted_rows(self, X, reset=True)
        self._learn(rows, having)
        return self._projected(rows)

    def transform(self, X: Any) -> NDArray[np.float32]:
        """The rows X (CSR or dense [S, M]) in the learnt directions: float32 [S, n_components_]."""
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self)
        self._check_parameters()
        return self._projected(sparse.csr_array(checked_rows(self, X, reset=False)))

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

    def _learn(self, rows: sparse.csr_array, having: Counts) -> None:
        """From checked rows and, for each feature, the number of them that have it."""
        n_rows, width = rows.shape
        if not having.any():
            raise InputError(
                f"FeatureProjection: all {n_rows} rows are zero (n_samples={n_rows}); there is nothing to project. "
                "Leave out rows without features"
            )
        self.idf_ = np.log((1 + n_rows) / (1 + having)) + 1
        self.seed_ = seed_from(self.random_state)
        rng = np.random.default_rng(self.seed_)
        sample = unit_sample(rows, self._chosen(n_rows, rng), self.value_transform, self.idf_)
        if not sample.data.any():
            # empty rows say nothing of the others
            sample = unit_sample(rows, np.arange(n_rows), self.value_transform, self.idf_)
        values, self.components_ = leading_directions(
            sample, self.n_components, n_iter=self.n_iter, rng=rng, weights=self.idf_
        )
        self.singular_values_ = values * np.sqrt(n_rows / sample.shape[0])
        self.n_components_ = len(self.components_)
        if self.n_components_ < self.n_components:
            logger.info(
                "FeatureProjection: %d components were asked for; the %d rows of %d features have %d directions",
                self.n_components, sample.shape[0], width, self.n_components_,
            )  # fmt: skip

    def _chosen(self, n_rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """The rows to learn directions from, in their order: some of them, or all."""
        most = self.max_rows
        if most is None:
            most = min(n_rows // SAMPLE_SHARE, MOST_PER_COMPONENT * self.n_components)
            most = max(most, LEAST_PER_COMPONENT * self.n_components, LEAST_ROWS)
        if n_rows <= most:
            return np.arange(n_rows)
        return np.sort(rng.choice(n_rows, most, replace=False))

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
            given = getattr(self, name)
            if given is not None and given < least:
                raise InputError(f"FeatureProjection: {name} must be at least {least}; got {given}")

    @property
    def _n_features_out(self) -> int:
        """scikit-learn names the columns by it."""
        return self.n_components_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

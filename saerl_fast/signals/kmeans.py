"""StreamingKMeans: k-means over sparse or dense rows, all at once or batch by batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin

from saerl_fast.codes import CsrRows
from saerl_fast.errors import InputError
from saerl_fast.ops.reference import Metric
from saerl_fast.signals.cluster_rows import ClusterRows, cluster_rows
from saerl_fast.signals.inputs import checked_rows
from saerl_fast.signals.kmeans_stream import KMeansStream, generator
from saerl_fast.signals.lloyd import Clustering, fitted
from saerl_fast.signals.probe import seed_from
from saerl_fast.signals.scaling import check_value_transform
from saerl_fast.signals.tensor_rows import check_width, in_tensors, prepared, tensor_rows


class StreamingKMeans(TransformerMixin, ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """k-means (Lloyd, 1982), and its mini-batch form (Sculley, 2010), on CSR or dense rows [S, M].

    n_clusters; metric "cosine" (spherical: rows and centroids have length 1, distance 1 - cosine; a row of
    zeros is at distance 1 from all and goes to cluster 0) or "euclidean" (squared distance);
    value_transform "none" | "sqrt" | "log1p": what is done to the values first ("sqrt" suits mean-pooled SAE
    features, counts in disguise of which a few are large: scaling.py);
    max_iter, tol: `fit` ends when an iteration gains no more than this share of the inertia;
    n_init: starts, of which the best is kept; decay: share of its weight that a centroid keeps at each
    `partial_fit` (1: all rows count the same); reassignment_ratio: in `partial_fit`, a cluster that wins less
    than this share of an even part of the rows starts anew from a far row; random_state: int, Generator,
    RandomState or None. numpy's and torch's global generators are neither used nor changed.

    After fit or partial_fit: cluster_centers_ float32 [K, M] (in transformed values), counts_ int64 [K] (rows
    each stands for), labels_ int32 [S] (of the last call's rows), inertia_, inertia_history_, n_iter_,
    n_batches_, n_features_in_.

    Rows on a GPU stay there: X may be a torch tensor [S, M], dense on a device or in torch's CSR layout
    (torch.sparse_csr_tensor) anywhere, and every pass over it runs on that device. Labels, distances and
    centroids are numpy arrays all the same. A row of data is never densified as a whole: sparse rows go to
    `saerl_fast.ops` as they are. Under the euclidean metric distances far below the squared norms of the rows
    drown in float32; centre such data.
    """

    cluster_centers_: NDArray[np.float32]
    means_: NDArray[np.float32]
    counts_: NDArray[np.int64]
    recent_counts_: NDArray[np.int64]
    labels_: NDArray[np.int32]
    inertia_: float
    inertia_history_: tuple[float, ...]
    n_iter_: int
    n_batches_: int
    seed_: int

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        metric: str = "cosine",
        value_transform: str = "none",
        max_iter: int = 100,
        tol: float = 1e-3,
        n_init: int = 1,
        decay: float = 1.0,
        reassignment_ratio: float = 0.05,
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.metric = metric
        self.value_transform = value_transform
        self.max_iter = max_iter
        self.tol = tol
        self.n_init = n_init
        self.decay = decay
        self.reassignment_ratio = reassignment_ratio
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> StreamingKMeans:
        """Cluster all rows of X (CSR or dense [S, M]); forgets what was learnt before. y is ignored.

        Raises InputError (fewer rows, or fewer different rows, than clusters; a parameter out of range),
        NonFiniteError, DtypeError.
        """
        self._check_parameters()
        rows = self._rows(X, reset=True)
        seed = seed_from(self.random_state)
        starts = []
        for start in range(self.n_init):
            rng = generator(seed, 0, start)
            starts.append(fitted(rows, self.n_clusters, max_iter=self.max_iter, tol=self.tol, rng=rng))
        found, history = min(starts, key=lambda ended: ended[0].inertia)
        self._keep(found, history, seed)
        return self

    def partial_fit(self, X: Any, y: Any = None) -> StreamingKMeans:
        """Learn from one more batch of rows (CSR or dense [S, M]). y is ignored.

        The first batch seeds the centroids and must hold n_clusters different rows. Each centroid is the mean
        of the rows it has won, old ones discounted by `decay`. What raises, as `fit` does, leaves the estimator
        as it was.
        """
        self._check_parameters()
        stream = KMeansStream(self)
        stream.learn(self._rows(X, reset=not hasattr(self, "cluster_centers_")))
        stream.keep()
        return self

    @contextmanager
    def learning(self, n_features: int) -> Iterator[Callable[[CsrRows], None]]:
        """`partial_fit`, batch after batch, for rows that are on a device: ``with kmeans.learning(M) as learn:`` hands
        out learn(rows), which gives the device its work and does not wait for it, but for the first batch of all.

        rows: CsrRows [S, M], S at least 1, all on one device; the caller vouches for them: finite, indices ascending in
        each row. What was learnt is in the estimator when the block has ended, and not where it raised. This is what
        ``featurize(kmeans=...)`` feeds. Raises InputError (a width other than the one learnt); `learn` raises as
        `partial_fit`; the end NonFiniteError where distances did not fit float32.
        """
        self._check_parameters()
        known = getattr(self, "n_features_in_", None) if hasattr(self, "cluster_centers_") else None
        check_width(self, n_features, known)
        stream = KMeansStream(self)

        def learn(rows: CsrRows) -> None:
            stream.learn(prepared(rows, n_features, self._metric, self.value_transform))

        yield learn
        stream.keep()
        if hasattr(self, "cluster_centers_"):
            self.n_features_in_ = n_features

    def predict(self, X: Any) -> NDArray[np.int32]:
        """The cluster of each row: int32 [S]. A row's cluster does not depend on the rows beside it."""
        labels: NDArray[np.int32] = self._known_rows(X).assign(self.cluster_centers_)[0]
        return labels

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Distance of each row to each centroid: float32 [S, K]; 1 - cosine, or the euclidean distance."""
        far = self._known_rows(X).distances(self.cluster_centers_)
        return np.sqrt(far) if self.metric == "euclidean" else far

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a fitted estimator as kmeans.json and kmeans.safetensors into the folder, which is made."""
        from saerl_fast.signals.kmeans_files import save_kmeans

        save_kmeans(self, folder)

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> StreamingKMeans:
        """Read what `save` wrote; every value is checked. Raises FormatError, UnsafeFileError."""
        from saerl_fast.signals.kmeans_files import load_kmeans

        return load_kmeans(folder)

    def _rows(self, X: Any, *, reset: bool) -> ClusterRows:
        if in_tensors(X):
            return tensor_rows(self, X, self._metric, self.value_transform, reset=reset)
        return cluster_rows(checked_rows(self, X, reset=reset), self._metric, self.value_transform)

    @property
    def _metric(self) -> Metric:
        return "cosine" if self.metric == "cosine" else "euclidean"

    def _known_rows(self, X: Any) -> ClusterRows:
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self)
        return self._rows(X, reset=False)

    def _keep(self, found: Clustering, history: tuple[float, ...], seed: int) -> None:
        self.seed_ = seed
        self.n_batches_ = 0
        self.means_, self.cluster_centers_ = found.means, found.centroids
        self.labels_ = found.labels
        self.counts_ = np.bincount(found.labels, minlength=self.n_clusters).astype(np.int64)
        self.recent_counts_ = np.zeros(self.n_clusters, dtype=np.int64)
        self.inertia_, self.inertia_history_ = found.inertia, history
        self.n_iter_ = len(history)

    def _check_parameters(self) -> None:
        check_value_transform("StreamingKMeans", self.value_transform)
        if self.metric not in ("cosine", "euclidean"):
            raise InputError(f"StreamingKMeans: metric must be cosine or euclidean; got {self.metric!r}")
        wanted = {
            "n_clusters": self.n_clusters >= 1,
            "max_iter": self.max_iter >= 1,
            "n_init": self.n_init >= 1,
            "tol": self.tol >= 0,
            "decay": 0 < self.decay <= 1,
            "reassignment_ratio": 0 <= self.reassignment_ratio < 1,
        }
        for name, fits in wanted.items():
            if not fits:
                raise InputError(f"StreamingKMeans: {name} is out of range; got {getattr(self, name)}")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

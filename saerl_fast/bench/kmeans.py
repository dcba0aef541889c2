"""One iteration of k-means on pooled rows: the nearest centroid of each row, then the sums of the clusters."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from saerl_fast import ops
from saerl_fast.bench import proof
from saerl_fast.bench.contest import Call, Contest
from saerl_fast.bench.data import mean_centroids, pooled_rows
from saerl_fast.bench.encode import backend_of

CHUNK_NUMBERS = 2**24
"""Numbers in a densified chunk (64 MB)."""


def kmeans_iter(rows: int, latents: int, clusters: int, density: float) -> Contest:
    """Against scikit-learn on CSR, on the dense array, and densified chunks with BLAS, whichever is fastest.

    scikit-learn is called at its inner iteration, without its validation, copies and second assignment.
    """
    from scipy import sparse

    csr = pooled_rows(rows, latents, density)
    centroids = mean_centroids(csr, latents, clusters)
    indptr, indices, values = (part.numpy() for part in csr)
    data = sparse.csr_matrix((values, indices, indptr.astype(np.int32)), shape=(rows, latents))

    def ours() -> tuple[Tensor, Tensor, Tensor]:
        labels, _ = ops.kmeans_assign(csr, centroids)
        sums, counts = ops.kmeans_update(csr, labels, clusters, n_latents=latents)
        return labels, sums, counts

    return Contest(
        ours=ours,
        baselines={
            "scikit-learn on CSR": sklearn_iteration(data, centroids),
            "scikit-learn on dense": sklearn_iteration(data.toarray(), centroids),
            "densified chunks with BLAS": lambda: densified_iteration(data, centroids),
        },
        prove=lambda result: proof.clustered(result, csr, centroids),
        backend=f"{backend_of('kmeans_assign')}, {backend_of('kmeans_update')}",
        facts={"mean_density": data.nnz / (rows * latents)},
    )


def sklearn_iteration(data: Any, centroids: Tensor) -> Call:
    """One Lloyd iteration on the data [S, M], CSR or dense."""
    from scipy import sparse
    from sklearn.cluster import _k_means_lloyd
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    kind = "sparse" if sparse.issparse(data) else "dense"
    lloyd = getattr(_k_means_lloyd, f"lloyd_iter_chunked_{kind}")
    rows, clusters = data.shape[0], len(centroids)
    weights = np.ones(rows, dtype=np.float32)
    libraries = ThreadpoolController()

    def iteration() -> object:
        new, counts = np.zeros_like(centroids.numpy()), np.zeros(clusters, dtype=np.float32)
        labels, shift = np.full(rows, -1, dtype=np.int32), np.zeros(clusters, dtype=np.float32)
        # as in KMeans.fit: the chunks run in parallel, the product inside each does not
        with libraries.limit(limits=1, user_api="blas"):
            lloyd(data, weights, centroids.numpy(), new, counts, labels, shift, torch.get_num_threads())
        return labels, new

    return iteration


def densified_iteration(data: Any, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A chunk of rows at a time as a dense array: one product to assign, one index_add to sum."""
    rows, latents = data.shape
    clusters = len(centroids)
    squares = centroids.square().sum(dim=1)
    labels, sums = torch.empty(rows, dtype=torch.int64), torch.zeros(clusters, latents)
    step = max(1, CHUNK_NUMBERS // latents)
    for start in range(0, rows, step):
        x = torch.from_numpy(data[start : start + step].toarray())
        label = torch.addmm(squares, x, centroids.T, alpha=-2).argmin(dim=1)
        sums.index_add_(0, label, x)
        labels[start : start + step] = label
    return labels, sums, torch.bincount(labels, minlength=clusters)

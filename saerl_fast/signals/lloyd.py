"""Lloyd's iteration: assign every row, move every centroid to the mean of its rows, until nothing is gained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saerl_fast.errors import NonFiniteError
from saerl_fast.signals.cluster_rows import ClusterRows, unit_rows
from saerl_fast.signals.seeding import draw, seed_centroids

SAMPLE_TOL = 0.3
"""On a sample, where moves are cheap, `fit` ends at so much less of a gain."""


CLUSTERS_TRIED = 32
"""Starts are made on a sample until they have so many clusters together."""


@dataclass(frozen=True)
class Clustering:
    """means [K, M] float32: means of rows; centroids [K, M] float32: the same, of length 1 under the cosine
    metric; labels [S] int32, distances [S] float32 and inertia, their sum, belong to these centroids."""

    means: NDArray[np.float32]
    centroids: NDArray[np.float32]
    labels: NDArray[np.int32]
    distances: NDArray[np.float32]
    inertia: float


def fitted(
    rows: ClusterRows, n_clusters: int, *, max_iter: int, tol: float, rng: np.random.Generator
) -> tuple[Clustering, tuple[float, ...]]:
    """Seeds, and `lloyd` from them.

    Where the seeds come from a sample, they are first moved on the sample alone, at a fraction of the cost: most moves
    that all rows would need are made there, and a few on all rows are left.
    Of few clusters, whose optima differ most, several starts are moved there, and the best goes on.
    """
    start = seed_centroids(rows, n_clusters, rng)
    centroids, sample = start.centroids, start.sample
    if sample is not rows:
        settled = [lloyd(sample, centroids, max_iter=max_iter, tol=SAMPLE_TOL * tol, rng=rng)[0]]
        while len(settled) * n_clusters < CLUSTERS_TRIED:
            again = seed_centroids(sample, n_clusters, rng).centroids
            settled.append(lloyd(sample, again, max_iter=max_iter, tol=SAMPLE_TOL * tol, rng=rng)[0])
        centroids = min(settled, key=lambda ended: ended.inertia).means
    return lloyd(rows, centroids, max_iter=max_iter, tol=tol, rng=rng)


def lloyd(
    rows: ClusterRows, seeds: NDArray[np.float32], *, max_iter: int, tol: float, rng: np.random.Generator
) -> tuple[Clustering, tuple[float, ...]]:
    """From the seeds [K, M] to a local optimum of the inertia, the sum over the rows of the distance to their
    centroid (squared, or 1 - cosine). -> the clustering, and the inertia of the seeds and after each move

    Ends when a move gains no more than the share `tol` of the inertia, or after `max_iter` moves. The
    inertia never rises: an empty cluster takes a row away from another, which can only lower it, and a
    move that gains nothing but rounding is not kept.
    """
    found = _clustering(rows, seeds)
    history = [found.inertia]
    for _ in range(max_iter):
        moved = _clustering(rows, _moved(rows, found, rng))
        gain = found.inertia - moved.inertia
        if gain <= 0:
            break
        found = moved
        history.append(found.inertia)
        all_used = bool(np.bincount(found.labels, minlength=len(seeds)).all())
        if gain <= tol * history[-2] and all_used:
            break
    return found, tuple(history)


def _clustering(rows: ClusterRows, means: NDArray[np.float32]) -> Clustering:
    centroids = as_centroids(means, rows)
    labels, distances = rows.assign(centroids)
    inertia = float(distances.sum(dtype=np.float64))
    if not np.isfinite(inertia):
        raise NonFiniteError("StreamingKMeans: squared distances between rows exceed float32; scale the rows down")
    return Clustering(means, centroids, labels, distances, inertia)


def _moved(rows: ClusterRows, found: Clustering, rng: np.random.Generator) -> NDArray[np.float32]:
    """The means [K, M] of the rows of each cluster, after empty clusters have been given a row each."""
    sums, counts = rows.sums(found.labels, len(found.means))
    empty = np.flatnonzero(is_empty(sums, counts, rows))
    if len(empty):
        _fill(empty, rows, sums, counts, found.labels.copy(), found.distances, rng)
    means = sums / np.maximum(counts, 1)[:, None]
    return np.where(counts[:, None] > 0, means, found.means).astype(np.float32)


def as_centroids(means: NDArray[np.float32], rows: ClusterRows) -> NDArray[np.float32]:
    """Means [K, M] as centroids: of length 1 under the cosine metric."""
    return unit_rows(means) if rows.metric == "cosine" else means


def is_empty(sums: NDArray[Any], counts: NDArray[np.int64], rows: ClusterRows) -> NDArray[np.bool_]:
    """Clusters [K] without rows, or, under the cosine metric, whose rows sum to no direction."""
    empty: NDArray[np.bool_] = counts == 0
    if rows.metric == "cosine":
        empty = empty | ~sums.any(axis=1)
    return empty


def _fill(
    empty: NDArray[Any],
    rows: ClusterRows,
    sums: NDArray[np.float64],
    counts: NDArray[np.int64],
    labels: NDArray[np.int32],
    score: NDArray[np.float32],
    rng: np.random.Generator,
) -> None:
    """Move one row to each empty cluster, drawn in proportion to its distance; changes its arguments.

    Only clusters that keep a row give one away. A cluster stays empty when no row is away from its centroid.
    """
    weights = score * rows.may_seed
    for cluster in empty.tolist():
        drawn = draw(weights * (counts[labels] > 1), 1, rng)
        if len(drawn) == 0:
            return
        row, giver = int(drawn[0]), int(labels[drawn[0]])
        moved = rows.pick(drawn)[0].astype(np.float64)
        sums[giver] -= moved
        counts[giver] -= 1
        sums[cluster] += moved
        counts[cluster] += 1
        labels[row], weights[row] = cluster, 0

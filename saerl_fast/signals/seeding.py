"""Where clusters start: k-means++ (Arthur and Vassilvitskii, 2007), greedy over a few trials each."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saerl_fast.errors import InputError
from saerl_fast.kernels import kmeans_cpu
from saerl_fast.ops.choice import Call, choose
from saerl_fast.ops.table import TABLE
from saerl_fast.signals.cluster_rows import ClusterRows

SAMPLE_PER_CLUSTER, SAMPLE_LEAST = 32, 2048
"""Rows that seeds are drawn from: so many per cluster, and no fewer than the second number."""


class Seeds(NamedTuple):
    """Where clusters start."""

    centroids: NDArray[np.float32]
    """[K, M]"""
    sample: ClusterRows
    """The rows that they were drawn from: all, or a sample that stands for them."""


def seed_centroids(rows: ClusterRows, n_clusters: int, rng: np.random.Generator) -> Seeds:
    """n_clusters different rows as centroids [K, M], each drawn with a chance in proportion to its distance.

    Of 2 + ln K draws, the one that leaves the least total distance is taken. Where there are more than twice
    SAMPLE_PER_CLUSTER K rows and twice SAMPLE_LEAST, a sample of the rows stands for all. Raises InputError when there
    are fewer rows, or fewer different rows, than clusters.
    """
    if len(rows) < n_clusters:
        raise InputError(
            f"StreamingKMeans: n_clusters={n_clusters} needs at least that many rows; got n_samples={len(rows)}. "
            "Pass more rows or ask for fewer clusters"
        )
    n_sample = max(SAMPLE_PER_CLUSTER * n_clusters, SAMPLE_LEAST)
    if 2 * n_sample < len(rows):
        sample = rows.take(np.sort(rng.choice(len(rows), n_sample, replace=False)))
        chosen = far_rows(sample, n_clusters, rng)
        if len(chosen) == n_clusters:
            return Seeds(sample.pick(np.array(chosen)), sample)
    # all rows, also where the sample held too few different ones
    chosen = far_rows(rows, n_clusters, rng)
    if len(chosen) < n_clusters:
        raise InputError(
            f"StreamingKMeans: n_clusters={n_clusters}, but the {len(rows)} rows hold only {len(chosen)} "
            f"different {'directions' if rows.metric == 'cosine' else 'points'}, as far as float32 tells. "
            "Ask for fewer clusters or remove duplicates"
        )
    return Seeds(rows.pick(np.array(chosen)), rows)


def far_rows(rows: ClusterRows, n_clusters: int, rng: np.random.Generator) -> list[int]:
    """Up to n_clusters different rows; fewer where no row is left that differs from all that were chosen."""
    draws = rng.random((n_clusters, 2 + int(math.log(n_clusters))))
    if isinstance(rows.tensor, Tensor) and _on_cpu(rows.tensor):
        may_seed = torch.from_numpy(rows.may_seed)
        return kmeans_cpu.far_rows(rows.tensor.contiguous(), may_seed, torch.from_numpy(draws)).tolist()
    nearest = rows.may_seed.astype(np.float32)
    # rows that cannot be seeds stay at distance 0
    limit = np.where(rows.may_seed, np.float32(np.inf), np.float32(0))
    chosen: list[int] = []
    for points in draws:
        trials = places(nearest, points if chosen else points[:1])
        if len(trials) == 0:
            break
        # [trials, S]: the distances that would be left
        left = np.minimum(limit, rows.distances(rows.pick(trials)).T)
        left[np.arange(len(trials)), trials] = 0
        best = int(left.sum(axis=1, dtype=np.float64).argmin())
        chosen.append(int(trials[best]))
        nearest = limit = left[best]
    return chosen


def _on_cpu(rows: Tensor) -> bool:
    """Whether rows like these are assigned by the compiled backend: then it draws the seeds too."""
    return choose(TABLE, "kmeans_assign", Call(rows.device.type, sparse=False), None) == "cpu"


def draw(weights: NDArray[Any], n_draws: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Places of `weights` [S], drawn with replacement in proportion to them; none if all are zero."""
    return places(weights, rng.random(n_draws))


def places(weights: NDArray[Any], points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Where points of [0, 1) fall, of which each of `weights` [S] takes a share; none if all are zero."""
    totals = np.cumsum(weights, dtype=np.float64)
    if not totals[-1] > 0:
        return np.zeros(0, dtype=np.int64)
    found = np.searchsorted(totals, points * totals[-1], side="right")
    # a point rounded up to the total would fall past the end
    fallen: NDArray[np.int64] = np.minimum(found, int(np.flatnonzero(weights)[-1])).astype(np.int64)
    return fallen

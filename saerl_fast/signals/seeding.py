"""Where clusters start: k-means++ (Arthur and Vassilvitskii, 2007), greedy over a few trials each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saerl_fast.errors import InputError
from saerl_fast.signals.cluster_rows import ClusterRows


def seed_centroids(rows: ClusterRows, n_clusters: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """n_clusters different rows as centroids [K, M], each drawn with a chance in proportion to its distance.

    Of 2 + ln K draws, the one that leaves the least total distance is taken. Raises InputError when there are
    fewer rows, or fewer different rows, than clusters.
    """
    if len(rows) < n_clusters:
        raise InputError(
            f"StreamingKMeans: n_clusters={n_clusters} needs at least that many rows; got n_samples={len(rows)}. "
            "Pass more rows or ask for fewer clusters"
        )
    n_trials = 2 + int(math.log(n_clusters))
    nearest = rows.may_seed.astype(np.float32)
    chosen: list[int] = []
    while len(chosen) < n_clusters:
        trials = draw(nearest, n_trials if chosen else 1, rng)
        if len(trials) == 0:
            raise InputError(
                f"StreamingKMeans: n_clusters={n_clusters}, but the {len(rows)} rows hold only {len(chosen)} "
                f"different {'directions' if rows.metric == 'cosine' else 'points'}, as far as float32 tells. "
                "Ask for fewer clusters or remove duplicates"
            )
        left = rows.distances(rows.pick(trials)) * rows.may_seed[:, None]
        if chosen:
            left = np.minimum(nearest[:, None], left)
        left[trials, np.arange(len(trials))] = 0
        best = int(left.sum(axis=0, dtype=np.float64).argmin())
        chosen.append(int(trials[best]))
        nearest = left[:, best]
    return rows.pick(np.array(chosen))


def draw(weights: NDArray[Any], n_draws: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Places of `weights` [S], drawn with replacement in proportion to them; none if all are zero."""
    totals = np.cumsum(weights, dtype=np.float64)
    if not totals[-1] > 0:
        return np.zeros(0, dtype=np.int64)
    found = np.searchsorted(totals, rng.random(n_draws) * totals[-1], side="right")
    # a point rounded up to the total would fall past the end
    places: NDArray[np.int64] = np.minimum(found, int(np.flatnonzero(weights)[-1])).astype(np.int64)
    return places

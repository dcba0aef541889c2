"""Whose turn it is: a weighted rotation of clusters in which all of them end together."""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import cycle

import numpy as np
from numpy.typing import NDArray


def rotate(sizes: NDArray[np.int64], runs: list[int], rng: np.random.Generator) -> NDArray[np.int32]:
    """The cluster at each place of the plan.

    sizes [K] int64, rows of each cluster, all > 0
    runs  lengths of the runs that make one batch; each run is one cluster where its rows suffice
    -> [sum(sizes)] int32, cluster k occurring sizes[k] times

    After any number of places t, cluster k has had its share t * sizes[k] / sum(sizes) to within one run:
    never a whole run ahead, never a whole run behind. So all clusters last to the end of the plan.
    Of the clusters that are not ahead of their share, the one whose next run is due first gets the turn
    (the chairman assignment of Tijdeman, 1980; WF2Q in networks). A cluster that has less than a run left
    gives what it has, and the next in line fills up the run. Ties fall by ``rng``.
    """
    total = int(sizes.sum())
    if len(sizes) == 1:
        return np.zeros(total, dtype=np.int32)
    names = rng.permutation(len(sizes))
    size: list[int] = sizes[names].tolist()
    left = list(size)
    run = sum(runs) / len(runs)
    # (share had so far, cluster) and (share due when its next run is over, cluster)
    waiting = [(0.0, cluster) for cluster in range(len(size))]
    ready: list[tuple[float, int]] = []
    turns: list[int] = []
    lengths: list[int] = []
    placed = 0
    for room in cycle(runs):
        while room and placed < total:
            now = placed / total
            while waiting and waiting[0][0] <= now:
                cluster = heappop(waiting)[1]
                due = (size[cluster] - left[cluster] + min(run, left[cluster])) / size[cluster]
                heappush(ready, (due, cluster))
            # never empty: the shares had so far average to now, and division rounds monotonically
            cluster = heappop(ready)[1]
            taken = min(room, left[cluster])
            turns.append(cluster)
            lengths.append(taken)
            room -= taken
            placed += taken
            left[cluster] -= taken
            if left[cluster]:
                heappush(waiting, ((size[cluster] - left[cluster]) / size[cluster], cluster))
        if placed == total:
            break
    return np.repeat(names[turns].astype(np.int32), lengths)

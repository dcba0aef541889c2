"""partial_fit, batch after batch, as work that a device is given: nobody waits for it until the stream ends.

    kept_k  = floor(decay n_k),   n'_k = kept_k + rows won by k          (Sculley, 2010, with whole batches)
    m'_k    = (kept_k m_k + sum of the rows won) / n'_k                  in float64, rounded to float32 once

What is learnt lies beside the rows as tensors. On a CPU these are the same steps on the same memory: an estimator fed
batch by batch and one fed through a stream hold the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saerl_fast.errors import NonFiniteError
from saerl_fast.ops import kmeans_assign_queued, kmeans_update_queued
from saerl_fast.signals.cluster_rows import ClusterRows, unit_rows
from saerl_fast.signals.lloyd import as_centroids
from saerl_fast.signals.probe import seed_from
from saerl_fast.signals.seeding import seed_centroids

if TYPE_CHECKING:
    from saerl_fast.signals.kmeans import StreamingKMeans

WINDOW = 50
"""Rows per cluster between two looks for clusters that have grown small."""


@dataclass
class _Learnt:
    """Beside the rows: means and centroids float32 [K, M], counts and recent int64 [K]."""

    means: Tensor
    centroids: Tensor
    counts: Tensor
    recent: Tensor
    """Rows won since the last look for small clusters."""


class KMeansStream:
    """What a StreamingKMeans has learnt, on its way through batches. The estimator is read at the beginning and
    written by `keep` alone, so that a stream that fails leaves it as it was."""

    def __init__(self, estimator: StreamingKMeans) -> None:
        self._estimator = estimator
        self._fitted = hasattr(estimator, "cluster_centers_")
        self._learnt: _Learnt | None = None
        self._seed = estimator.seed_ if self._fitted else 0
        self._n_batches = estimator.n_batches_ if self._fitted else 0
        self._since = int(estimator.recent_counts_.sum()) if self._fitted else 0
        self._labels: Tensor | None = None
        self._inertia: list[Tensor] = []

    def learn(self, rows: ClusterRows) -> None:
        """One more batch. The first that an estimator ever sees seeds the clusters, and is waited for."""
        now = self._begin(rows) if self._learnt is None else self._learnt
        k, decay = self._estimator.n_clusters, self._estimator.decay
        labels, score = kmeans_assign_queued(rows.tensor, now.centroids, metric=rows.metric)
        sums, won = kmeans_update_queued(rows.tensor, labels, k, rows.shape[1])
        kept = (now.counts.double() * decay).floor().long() if decay < 1 else now.counts
        counts = kept + won
        blended = now.means.double().mul_(kept.double()[:, None]).add_(sums).div_(counts.clamp(min=1)[:, None])
        # the seed stays where nothing came
        means = torch.where(counts[:, None] > 0, blended.float(), now.means)
        recent = now.recent + won
        # every row is won by one cluster: how many were is known here
        self._since += len(rows)
        if self._since >= WINDOW * k:
            means, counts = self._restart_small(rows, score, means, counts, recent)
            recent, self._since = torch.zeros_like(recent), 0
        self._learnt = _Learnt(means, _centroids(means, rows.metric), counts, recent)
        self._labels = labels
        self._inertia.append(_total(score))
        self._n_batches += 1

    def keep(self) -> None:
        """Write what was learnt into the estimator; here the device is waited for.

        Raises NonFiniteError where distances did not fit float32.
        """
        if self._learnt is None or self._labels is None:
            return
        inertia = tuple(torch.stack(self._inertia).tolist())
        if not np.isfinite(inertia).all():
            raise NonFiniteError("StreamingKMeans: squared distances between rows exceed float32; scale the rows down")
        kept, learnt = self._estimator, self._learnt
        history = kept.inertia_history_ if self._fitted else ()
        if not self._fitted:
            kept.seed_, kept.n_iter_ = self._seed, 1
        kept.means_, kept.cluster_centers_ = _fetched(learnt.means), _fetched(learnt.centroids)
        kept.counts_, kept.recent_counts_ = _fetched(learnt.counts), _fetched(learnt.recent)
        kept.labels_, kept.inertia_ = _fetched(self._labels), inertia[-1]
        kept.inertia_history_ = (*history, *inertia)
        kept.n_batches_ = self._n_batches

    def _begin(self, rows: ClusterRows) -> _Learnt:
        """What the estimator holds, beside the rows; where it holds nothing, seeds, which weigh nothing."""
        held, device = self._estimator, rows.squares.device
        if self._fitted:
            arrays = held.means_, held.cluster_centers_, held.counts_, held.recent_counts_
        else:
            self._seed = seed_from(held.random_state)
            means = seed_centroids(rows, held.n_clusters, generator(self._seed, 0, 0)).centroids
            none = np.zeros(held.n_clusters, dtype=np.int64)
            arrays = means, as_centroids(means, rows), none, none
        return _Learnt(*(torch.from_numpy(array).to(device) for array in arrays))

    def _restart_small(
        self, rows: ClusterRows, score: Tensor, means: Tensor, counts: Tensor, recent: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Means and counts after clusters that won too few rows of late have moved to a row each, drawn without
        replacement in proportion to its distance: the rows with the largest distance / Exp(1) (Efraimidis and
        Spirakis, 2006), so that how many are needed need not be known."""
        even = self._since / self._estimator.n_clusters
        small = (recent.double() < self._estimator.reassignment_ratio * even) | (counts == 0)
        weights = score.double()
        if rows.metric == "cosine":
            small |= ~means.any(dim=1)
            weights = weights * (rows.squares > 0)
        drawn = generator(self._seed, 1, self._n_batches).standard_exponential(len(rows))
        order = (weights / torch.from_numpy(drawn).to(weights.device)).argsort(descending=True, stable=True)
        rank = small.cumsum(0) - 1
        row = order[rank.clamp(0, len(rows) - 1)]
        moved = small & (rank < len(rows)) & (weights[row] > 0)
        fresh = _dense_at(rows, torch.where(moved, row, len(rows)), len(means))
        return torch.where(moved[:, None], fresh, means), torch.where(moved, 1, counts)


def generator(seed: int, stream: int, number: int) -> np.random.Generator:
    """An own generator for each start (stream 0) and each batch (stream 1), whatever came before."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, number)))


def _dense_at(rows: ClusterRows, chosen: Tensor, n_clusters: int) -> Tensor:
    """Row chosen[k], dense, for every k [K, M]; what comes out for a chosen row of S, which is none, means nothing.
    The others are distinct. Waits for nothing."""
    tensor, (n_rows, width) = rows.tensor, rows.shape
    if isinstance(tensor, Tensor):
        return tensor[chosen.clamp(max=n_rows - 1)]
    cluster = torch.full((n_rows + 1,), n_clusters, device=chosen.device)
    cluster[chosen] = torch.arange(n_clusters, device=chosen.device)
    # an entry of a row that was not chosen goes to a place behind the last cluster
    target = cluster[:-1].repeat_interleave(tensor.indptr.diff(), output_size=len(tensor.values))
    dense = torch.zeros(n_clusters + 1, width, device=chosen.device)
    dense[target, tensor.indices.long()] = tensor.values
    return dense[:-1]


def _centroids(means: Tensor, metric: str) -> Tensor:
    """As `as_centroids`. On a CPU by numpy: torch's sum over a long row may depend on the number of threads."""
    if metric != "cosine":
        return means
    if means.device.type == "cpu":
        return torch.from_numpy(unit_rows(means.numpy()))
    squares = means.double().square().sum(dim=1)
    unit = torch.where(squares > 0, squares.rsqrt(), 0)
    return (means.double() * unit[:, None]).float()


def _total(score: Tensor) -> Tensor:
    """The sum of the distances, float64; on a CPU by numpy, as above."""
    if score.device.type == "cpu":
        return torch.tensor(score.numpy().sum(dtype=np.float64))
    return score.double().sum()


def _fetched(tensor: Tensor) -> NDArray[Any]:
    return tensor.cpu().numpy()

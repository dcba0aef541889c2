"""Rows as k-means sees them: tensors for the operations, unit length where only the direction counts."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from saerl_fast.kernels.precision import full_float32
from saerl_fast.ops import CsrRows, kmeans_assign, kmeans_update, project
from saerl_fast.ops.reference import Metric
from saerl_fast.signals.scaling import transform_values

ROUNDING = 2e-6
"""Squared distances below this share of the squared norms are rounding of float32."""


@dataclass(frozen=True)
class ClusterRows:
    """S rows of width M, float32, dense or CSR; of length 1 under the cosine metric (a zero row stays zero).

    squares float64 [S], the square norms, beside the rows
    """

    tensor: Tensor | CsrRows
    shape: tuple[int, int]
    squares: Tensor
    metric: Metric

    def __len__(self) -> int:
        return self.shape[0]

    @functools.cached_property
    def square_norms(self) -> NDArray[np.float64]:
        """The square norms on the host [S]; of rows on a device, waited for when they are first asked for."""
        return self.squares.cpu().numpy()

    @property
    def may_seed(self) -> NDArray[np.bool_]:
        """Which rows can be a centroid [S]: under the cosine metric, those with a direction."""
        return self.square_norms > 0 if self.metric == "cosine" else np.ones(len(self), dtype=bool)

    def assign(self, centroids: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Labels [S] and distances [S] (squared, or 1 - cosine) to the nearest centroid."""
        labels, score = kmeans_assign(self.tensor, self._beside(centroids), metric=self.metric)
        return labels.cpu().numpy(), score.cpu().numpy()

    def sums(self, labels: NDArray[np.int32], n_clusters: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Per cluster, the sum of its rows [K, M] and their number [K]."""
        sums, counts = kmeans_update(self.tensor, self._beside(labels), n_clusters, n_latents=self.shape[1])
        return sums.cpu().numpy().astype(np.float64), counts.cpu().numpy()

    def distances(self, centroids: NDArray[np.float32]) -> NDArray[np.float32]:
        """Distances [S, C] to every one of a few centroids, as in `assign`, and exactly 0 where rounding rules."""
        if len(self) == 0:
            return np.zeros((0, len(centroids)), dtype=np.float32)
        points = self._beside(np.ascontiguousarray(centroids))
        if isinstance(self.tensor, Tensor):
            with full_float32():
                products = points @ self.tensor.T
        else:
            products = project(self.tensor, points.T.contiguous()).T
        # a row per centroid: long runs are what numpy is quick at
        far: NDArray[np.float32] = np.ascontiguousarray(products.cpu().numpy())
        # what overflows becomes infinite or NaN, and is refused once rows are assigned
        with np.errstate(over="ignore", invalid="ignore"):
            if self.metric == "cosine":
                # centroids here are unit or zero, as the rows are
                np.subtract(1, far, out=far)
                far[far <= ROUNDING] = 0
            else:
                other = np.square(centroids.astype(np.float64)).sum(axis=1)
                scale = self.square_norms.astype(np.float32) + other.astype(np.float32)[:, None]
                far *= -2
                far += scale
                far[far <= ROUNDING * scale] = 0
        return far.T

    def take(self, rows: NDArray[np.int64]) -> ClusterRows:
        """Some of the rows, in the order given."""
        chosen = self._beside(rows)
        shape, squares = (len(rows), self.shape[1]), self.squares[chosen]
        if isinstance(self.tensor, Tensor):
            return ClusterRows(self.tensor[chosen], shape, squares, self.metric)
        indptr, indices, values = self.tensor
        lengths = indptr.diff()[chosen]
        starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        # entry e of the result lies at e - (its row's start there) + (its row's start here)
        entries = torch.arange(int(starts[-1]), device=starts.device) + (
            indptr[chosen] - starts[:-1]
        ).repeat_interleave(lengths)
        return ClusterRows(CsrRows(starts, indices[entries], values[entries]), shape, squares, self.metric)

    def pick(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """A few rows as a dense array."""
        if isinstance(self.tensor, Tensor):
            return self.tensor[self._beside(rows)].cpu().numpy()
        dense = np.zeros((len(rows), self.shape[1]), dtype=np.float32)
        for place, row in enumerate(rows.tolist()):
            span = slice(int(self.tensor.indptr[row]), int(self.tensor.indptr[row + 1]))
            dense[place, self.tensor.indices[span].cpu().numpy()] = self.tensor.values[span].cpu().numpy()
        return dense

    def _beside(self, array: NDArray[Any]) -> Tensor:
        """The array as a tensor where the rows are."""
        rows = self.tensor if isinstance(self.tensor, Tensor) else self.tensor.values
        return torch.from_numpy(array).to(rows.device)


def cluster_rows(checked: sparse.csr_array | NDArray[np.float32], metric: Metric, value_transform: str) -> ClusterRows:
    """Transformed, and under the cosine metric normalised, rows. The input is not changed or kept."""
    shape = (int(checked.shape[0]), int(checked.shape[1]))
    if sparse.issparse(checked):
        values = transform_values(checked.data, value_transform)
        squares = _row_sums(np.square(values, dtype=np.float64), checked.indptr)
        if metric == "cosine":
            values = values * np.repeat(_unit(squares), np.diff(checked.indptr)).astype(np.float32)
            squares = (squares > 0).astype(np.float64)
        csr = CsrRows(
            torch.from_numpy(checked.indptr.astype(np.int64)),
            torch.from_numpy(checked.indices.astype(np.int32)),
            _tensor(values, checked.data),
        )
        return ClusterRows(csr, shape, torch.from_numpy(squares), metric)
    dense = transform_values(checked, value_transform)
    squares = np.square(dense, dtype=np.float64).sum(axis=1)
    if metric == "cosine":
        dense = dense * _unit(squares).astype(np.float32)[:, None]
        squares = (squares > 0).astype(np.float64)
    return ClusterRows(_tensor(dense, checked), shape, torch.from_numpy(squares), metric)


def unit_rows(dense: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1; a zero row stays zero."""
    squares = np.square(dense, dtype=np.float64).sum(axis=1)
    return (dense * _unit(squares)[:, None]).astype(np.float32)


def _unit(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.divide(1.0, np.sqrt(squares), out=np.zeros_like(squares), where=squares > 0)
    return found


def _row_sums(values: NDArray[np.float64], indptr: NDArray[Any]) -> NDArray[np.float64]:
    n_rows = len(indptr) - 1
    row = np.repeat(np.arange(n_rows), np.diff(indptr))
    return np.bincount(row, weights=values, minlength=n_rows).astype(np.float64)


def _tensor(values: NDArray[np.float32], source: NDArray[np.float32]) -> Tensor:
    # torch warns about memory that it may not write to, though nothing here writes
    if values is source and not values.flags.writeable:
        values = values.copy()
    return torch.from_numpy(np.ascontiguousarray(values))

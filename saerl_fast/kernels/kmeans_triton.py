"""The two steps of k-means in Triton: assignment of sparse and of dense rows, sums of dense rows.

    label = argmin_k bias_k + factor * x.c_k      bias, factor = |c_k|^2, -2    or, by cosine, 0, -1 / |c_k|
    sums_k = sum of the rows of cluster k

Floor:  sparse rows: each entry gathers a row of the K centroids from the L2 cache, nnz * K * 4 bytes: 100k rows of
        737 entries (3 % of 24,576) and K = 256 are 75 GB, 14 ms at 5.5 TB/s. From a density of about 1 % on, rows
        made dense on the way to the tensor cores would be faster; that kernel is not written.
        Dense rows: 2 S K M operations at the float32 rate of the card: 1M rows, M = 256, K = 256: 131 Gflop.
        Sums: each row once from memory.
Trick:  no [S, K] array exists. A program keeps the nearest centroid of its rows, and the centroids pass by in tiles.
        Sums: labels are sorted, and runs of equal ones cut into pieces and added up (gathered_sums.py).

Products are float32 sums of float32 products ("ieee": no TF32), so that labels differ from those of any other float32
Lloyd only where two distances agree to rounding; the squared norms of the rows are float64. Ties go to the lower
cluster. A NaN distance, or an index outside of the centroids, makes the score NaN. Not timed yet: docs/measured.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from saerl_fast.kernels.gathered_sums import gathered_sum, run_sums
from saerl_fast.kernels.pieces import cut, grouped
from saerl_fast.kernels.triton_runtime import on_device_of

if TYPE_CHECKING:
    from saerl_fast.codes import CsrRows

SMALLEST_NORM = 1e-12
"""A shorter row has cosine 0, as in torch.nn.functional.normalize."""
FEWEST_PIECES = 512
"""Rows of a cluster are cut so that about so many pieces exist at least: four per multiprocessor."""
SHORTEST = 128
"""Rows that a piece may have in any case."""


@triton.jit
def nearest_in_tile(products, clusters, bias, factor, n_clusters, best, label, spoilt):
    """The nearer of what was nearest so far and the clusters of one tile [R, T]."""
    there = clusters < n_clusters
    offset = tl.load(bias + clusters, mask=there, other=float("inf"))
    far = offset[None, :] + factor * products
    spoilt = spoilt | (tl.max((far != far).to(tl.int32), axis=1) > 0)
    far = tl.where(far == far, far, float("inf"))
    least, where = tl.min(far, axis=1, return_indices=True, return_indices_tie_break_left=True)
    found = tl.min(clusters, axis=0) + where
    nearer = least < best
    return tl.where(nearer, least, best), tl.where(nearer, found, label), spoilt


@triton.jit
def nearest_sparse_kernel(
    indptr, columns, values, table, bias, factor, labels, nearest, squares,
    n_entries, n_latents, n_clusters, stride,
    TILE: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """One row per program; table [M, K]."""
    row = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(indptr + row), tl.load(indptr + row + 1)
    broken = (begin < 0) | (end < begin) | (end > n_entries)
    end = tl.where(broken, begin, end)
    best = tl.full([1], float("inf"), dtype=tl.float32)
    label = tl.zeros([1], dtype=tl.int32)
    spoilt = tl.zeros([1], dtype=tl.int32) > 0
    for start in range(0, n_clusters, TILE):
        clusters = start + tl.arange(0, TILE)
        products, outside = gathered_sum(
            begin, end, columns, values, table, n_latents, stride, clusters, n_clusters, True, TILE
        )
        broken = broken | outside
        best, label, spoilt = nearest_in_tile(
            products[None, :], clusters, bias, factor, n_clusters, best, label, spoilt
        )
    square = tl.zeros([ENTRIES], dtype=tl.float64)
    for first in range(begin, end, ENTRIES):
        entries = first + tl.arange(0, ENTRIES)
        value = tl.load(values + entries, mask=entries < end, other=0.0).to(tl.float32).to(tl.float64)
        square += value * value
    one = tl.arange(0, 1)
    tl.store(labels + row + one, label)
    tl.store(nearest + row + one, tl.where(spoilt | broken, float("nan"), best))
    tl.store(squares + row, tl.sum(square, axis=0))


@triton.jit
def nearest_dense_kernel(
    rows, centroids, bias, factor, labels, nearest, squares,
    n_rows, n_latents, n_clusters, row_stride, column_stride,
    ROWS: tl.constexpr, TILE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """ROWS rows per program; centroids [K, M] float32, contiguous."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    known = row < n_rows
    best = tl.full([ROWS], float("inf"), dtype=tl.float32)
    label = tl.zeros([ROWS], dtype=tl.int32)
    spoilt = tl.zeros([ROWS], dtype=tl.int32) > 0
    square = tl.zeros([ROWS], dtype=tl.float64)
    for start in range(0, n_clusters, TILE):
        clusters = start + tl.arange(0, TILE)
        products = tl.zeros([ROWS, TILE], dtype=tl.float32)
        for first in range(0, n_latents, CHANNELS):
            channels = first + tl.arange(0, CHANNELS)
            inside = channels < n_latents
            places = row[:, None] * row_stride + channels.to(tl.int64)[None, :] * column_stride
            x = tl.load(rows + places, mask=known[:, None] & inside[None, :], other=0.0).to(tl.float32)
            places = clusters.to(tl.int64)[None, :] * n_latents + channels[:, None]
            c = tl.load(centroids + places, mask=(clusters < n_clusters)[None, :] & inside[:, None], other=0.0)
            products = tl.dot(x, c, products, input_precision="ieee")
            if start == 0:
                square += tl.sum(x.to(tl.float64) * x.to(tl.float64), axis=1)
        best, label, spoilt = nearest_in_tile(products, clusters, bias, factor, n_clusters, best, label, spoilt)
    tl.store(labels + row, label, mask=known)
    tl.store(nearest + row, tl.where(spoilt, float("nan"), best), mask=known)
    tl.store(squares + row, square, mask=known)


def assign(rows: Tensor | CsrRows, centroids: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """The contract of `ops.kmeans_assign`; shapes and types are checked, indices are not, none is float64."""
    centres = centroids.float()
    if metric == "cosine":
        centres, factor = functional.normalize(centres), -1.0
        bias = torch.zeros(len(centres), device=centres.device)
    else:
        bias, factor = centres.square().sum(dim=1), -2.0
    # sparse rows would pass over an infinity where they hold zero; so every distance to it is made NaN
    bias = torch.where(centroids.isfinite().all(dim=1), bias, torch.nan)
    n_rows = rows.shape[0] if isinstance(rows, Tensor) else rows.indptr.shape[0] - 1
    labels = torch.empty(n_rows, dtype=torch.int32, device=centres.device)
    nearest = torch.empty(n_rows, dtype=torch.float32, device=centres.device)
    squares = torch.empty(n_rows, dtype=torch.float64, device=centres.device)
    if n_rows:
        _nearest(rows, centres, bias, factor, (labels, nearest, squares))
    if metric == "cosine":
        return labels, (1 + nearest / squares.sqrt().clamp(min=SMALLEST_NORM)).float().clamp(min=0)
    return labels, (nearest + squares).float().clamp(min=0)


def _nearest(
    rows: Tensor | CsrRows, centres: Tensor, bias: Tensor, factor: float, found: tuple[Tensor, Tensor, Tensor]
) -> None:
    n_clusters, n_latents = centres.shape
    tile = min(256, max(16, triton.next_power_of_2(n_clusters)))
    with on_device_of(centres):
        if isinstance(rows, Tensor):
            nearest_dense_kernel[(triton.cdiv(len(rows), 64),)](
                rows, centres.contiguous(), bias, factor, *found, len(rows), n_latents, n_clusters, *rows.stride(),
                ROWS=64, TILE=min(tile, 32), CHANNELS=16, num_warps=8,
            )  # fmt: skip
            return
        table = centres.T.contiguous()
        nearest_sparse_kernel[(len(found[0]),)](
            rows.indptr.contiguous(), rows.indices.contiguous(), rows.values.contiguous(), table, bias, factor, *found,
            len(rows.indices), n_latents, n_clusters, table.stride(0), TILE=tile, ENTRIES=256,
        )  # fmt: skip


def update(rows: Tensor, labels: Tensor, n_clusters: int, n_latents: int) -> tuple[Tensor, Tensor]:
    """The contract of `ops.kmeans_update` for dense rows; arguments are checked, none is float64."""
    order, starts = grouped(labels, n_clusters)
    most = max(SHORTEST, -(-len(rows) // FEWEST_PIECES))
    side_by_side = rows if rows.stride(1) == 1 and rows.stride(0) >= 0 else rows.contiguous()
    return run_sums(cut(starts, len(rows), most), order, None, side_by_side), starts.diff()

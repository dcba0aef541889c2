"""The nearest centroid of sparse and of dense rows in Triton, in float32 throughout.

    label = argmin_k bias_k + factor * x.c_k      bias, factor = |c_k|^2, -2    or, by cosine, 0, -1

Floor:  sparse rows: each entry gathers a row of the K centroids from the L2 cache, nnz * K * 4 bytes: 100k rows of
        737 entries (3 % of 24,576) and K = 256 are 75 GB, 14 ms at 5.5 TB/s.
        Dense rows: 2 S K M operations at the float32 rate of the card: 1M rows, M = 256, K = 256: 131 Gflop.
Trick:  no [S, K] array exists. A program keeps the nearest centroid of its rows, and the centroids pass by in tiles.
        Rows may be named by a queue whose length only the device knows: programs take turns until it is empty.

These are for few clusters, for very sparse rows, and for the rows that a screen leaves open (nearest_triton.py).
Products are float32 sums of float32 products ("ieee": no TF32), so that labels differ from those of any other float32
Lloyd only where two distances agree to rounding; the squared norms of the rows are float64. Ties go to the lower
cluster. A NaN distance, or an index outside of the centroids, makes the score NaN. How far from the floor it is, is not
known: not timed yet, docs/measured.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from saerl_fast.kernels.gathered_sums import gathered_sum
from saerl_fast.kernels.triton_runtime import device_of, on_device_of

if TYPE_CHECKING:
    from saerl_fast.codes import CsrRows


class Centres(NamedTuple):
    """What a distance to K centroids is made of."""

    table: Tensor
    """[K, M] float32, contiguous"""
    bias: Tensor
    """[K] float32; NaN for a centroid that is not finite"""
    factor: float


class Found(NamedTuple):
    """What is written for S rows."""

    labels: Tensor
    """int32"""
    nearest: Tensor
    """float32: bias + factor x.c of the label"""
    squares: Tensor
    """float64: |x|^2"""


class Queue(NamedTuple):
    """Rows that are to be assigned, and how many of them there are, known on the device alone."""

    rows: Tensor
    """[S] int64"""
    length: Tensor
    """[1] int32"""


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
    indptr, columns, values, table, bias, factor, labels, nearest, squares, queue, count,
    n_rows, n_entries, n_latents, n_clusters, stride,
    QUEUED: tl.constexpr, TILE: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """One row at a time; table [M, K]."""
    n_places = n_rows
    if QUEUED:
        n_places = tl.load(count)
    for place in range(tl.program_id(0).to(tl.int64), n_places, tl.num_programs(0)):
        row = place
        if QUEUED:
            row = tl.load(queue + place)
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
    rows, centroids, bias, factor, labels, nearest, squares, queue, count,
    n_rows, n_latents, n_clusters, row_stride, column_stride,
    QUEUED: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """ROWS rows at a time; centroids [K, M] float32, contiguous."""
    n_places = n_rows
    if QUEUED:
        n_places = tl.load(count)
    for piece in range(tl.program_id(0).to(tl.int64), tl.cdiv(n_places, ROWS), tl.num_programs(0)):
        row = piece * ROWS + tl.arange(0, ROWS)
        known = row < n_places
        if QUEUED:
            row = tl.load(queue + row, mask=known, other=0)
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


def exact_nearest(rows: Tensor | CsrRows, centres: Centres, found: Found, queue: Queue | None = None) -> None:
    """Write the nearest centroid of every row, or of those in the queue."""
    table, bias, factor = centres
    n_clusters, n_latents = table.shape
    n_rows = len(found.labels)
    tile = min(256, max(16, int(triton.next_power_of_2(n_clusters))))
    # an argument that is absent gets a tensor of its type that is not read
    named = queue or Queue(found.labels, found.labels)
    turns = 8 * device_of(table)[0]
    with on_device_of(table):
        if isinstance(rows, Tensor):
            size = 64 if queue is None else 32
            pieces = triton.cdiv(n_rows, size)
            nearest_dense_kernel[(pieces if queue is None else min(pieces, turns),)](
                rows, table, bias, factor, *found, *named, n_rows, n_latents, n_clusters, *rows.stride(),
                QUEUED=queue is not None, ROWS=size, TILE=min(tile, 32), CHANNELS=16, num_warps=8,
            )  # fmt: skip
            return
        across = table.T.contiguous()
        nearest_sparse_kernel[(n_rows if queue is None else min(n_rows, turns),)](
            rows.indptr, rows.indices, rows.values, across, bias, factor, *found, *named, n_rows, len(rows.indices),
            n_latents, n_clusters, across.stride(0), QUEUED=queue is not None, TILE=tile, ENTRIES=256,
        )  # fmt: skip

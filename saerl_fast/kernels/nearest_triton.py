"""The nearest centroid of many rows in Triton, on the tensor cores: screened by rounded products, certified row by row.

    label = argmin_k d_k,   d_k = bias_k + factor x.c_k                  as kmeans_triton.py
    d^_k  = bias_k + factor x^.c^_k                                      x^, c^: x and c rounded to TF32 or bfloat16

Floor:  dense rows: x once from memory, and 2 S K M operations: 1M rows, M = 256, K = 256 are 1 GB, 0.24 ms, and
        131 Gflop, 0.35 ms at what TF32 reaches on an H200. Sparse rows, made dense in bfloat16 chunks: 4 bytes a latent
        (written and read), 1 ms per billion, and 2 S K M operations: 100,000 rows, M = 24,576, K = 256 are 2.4 ms and
        1.26 Tflop, 2.1 ms. Gathering takes 4 K bytes an entry from the L2 cache instead: 14 ms at 3 % of the latents.
Trick:  no [S, K] array: a tile of products is reduced to its two nearest while it is in registers. Tiles of clusters
        are programs of their own, side by side, so that they read x together; a second pass merges them and reads x
        once more, for what the screen left open: the exact product with the one centroid chosen, and the bound

            |d_k - d^_k| <= E = |factor| (|x - x^| max|c^| + |x| max|c - c^| + slack |x| max|c^|) + rounding

        Where the second nearest is farther than the nearest by more than 2 E, the label is that of float64, proved. The
        rows that are left are queued on the device and assigned in float32 by nearest_exact.py; so is what has NaN,
        infinity, a bad index, or an index twice in a row, for all of which no bound holds. Nobody waits.

The slack is that of topk_bf16.py for each run of RUN channels: tensor cores may drop a unit in the last place per
product. Runs are added up outside of them, so that 24,576 channels cost no more than one run.

How far from the floor it is, is not known: not timed yet, docs/measured.md.
"""

from __future__ import annotations

import triton
import triton.language as tl

TF32_HALF, TF32_MASK = tl.constexpr(0x1000), tl.constexpr(-0x2000)
WIDER = tl.constexpr(1.0 + 2.0**-18)
"""What the rounding of the bound itself is paid with."""
RUN = 1024
"""Channels that the tensor cores add up by themselves."""


@triton.jit
def as_tf32(x):
    """float32 rounded to what TF32 holds, so that nothing is left to how a tensor core would do it. A NaN may come
    out as a number: the error against it stays NaN."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits + TF32_HALF) & TF32_MASK).to(tl.float32, bitcast=True)


@triton.jit
def densify_kernel(
    indptr, columns, values, chunk, first_row, n_entries, n_latents, stride, ENTRIES: tl.constexpr, BLOCK: tl.constexpr
):
    """One row per program, from first_row on: chunk[program] = the row, dense, in the type of the chunk."""
    local = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(indptr + first_row + local), tl.load(indptr + first_row + local + 1)
    end = tl.where((begin < 0) | (end < begin) | (end > n_entries), begin, end)
    for first in range(0, stride, BLOCK):
        place = first + tl.arange(0, BLOCK)
        tl.store(chunk + local * stride + place, tl.zeros([BLOCK], dtype=tl.float32), mask=place < stride)
    # the zeros of all threads are there before the first entry is
    tl.debug_barrier()
    for first in range(begin, end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        column = tl.load(columns + entry, mask=entry < end, other=-1).to(tl.int64)
        value = tl.load(values + entry, mask=entry < end, other=0.0).to(tl.float32)
        tl.store(chunk + local * stride + column, value, mask=(column >= 0) & (column < n_latents))


@triton.jit
def screen_kernel(
    rows, rounded, bias, factor, best, second, label, n_rows, n_latents, n_clusters, row_stride, column_stride, stride,
    TF32: tl.constexpr, WIDEN: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, CHANNELS: tl.constexpr,
    RUN: tl.constexpr,
):  # fmt: skip
    """The two nearest of TILE clusters by rounded products: best, second, label [tiles, n_rows].

    rows [n_rows, M], rounded here where TF32; rounded [K, M] in the same type, rows `stride` apart.
    """
    n_tiles = tl.cdiv(n_clusters, TILE)
    tile, row_tile = tl.program_id(0) % n_tiles, tl.program_id(0) // n_tiles
    row = row_tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cluster = tile * TILE + tl.arange(0, TILE)
    known, there = row < n_rows, cluster < n_clusters
    products = tl.zeros([ROWS, TILE], dtype=tl.float32)
    for run in range(0, n_latents, RUN):
        part = tl.zeros([ROWS, TILE], dtype=tl.float32)
        for step in range(0, RUN, CHANNELS):
            channel = run + step + tl.arange(0, CHANNELS)
            inside = channel < n_latents
            places = row[:, None] * row_stride + channel.to(tl.int64)[None, :] * column_stride
            x = tl.load(rows + places, mask=known[:, None] & inside[None, :], other=0.0)
            places = cluster.to(tl.int64)[None, :] * stride + channel[:, None]
            c = tl.load(rounded + places, mask=there[None, :] & inside[:, None], other=0.0)
            if TF32:
                x = as_tf32(x.to(tl.float32))
            if WIDEN:
                x, c = x.to(tl.float32), c.to(tl.float32)
            part = tl.dot(x, c, part, input_precision="tf32")
        products += part
    offset = tl.load(bias + cluster, mask=there, other=float("inf"))
    far = offset[None, :] + factor * products
    # what is no number is decided elsewhere: its row has no bound
    far = tl.where(far == far, far, float("inf"))
    least, where = tl.min(far, axis=1, return_indices=True, return_indices_tie_break_left=True)
    next = tl.min(tl.where(tl.arange(0, TILE)[None, :] == where[:, None], float("inf"), far), axis=1)
    at = tile.to(tl.int64) * n_rows + row
    tl.store(best + at, least, mask=known)
    tl.store(second + at, next, mask=known)
    tl.store(label + at, tile * TILE + where, mask=known)


@triton.jit
def merged(best, second, label, row, known, n_rows, n_tiles):
    """The nearest of all clusters, the second nearest, and the label of the nearest; ties to the lower cluster."""
    least = tl.load(best + row, mask=known, other=0.0)
    next = tl.load(second + row, mask=known, other=0.0)
    found = tl.load(label + row, mask=known, other=0)
    for tile in range(1, n_tiles):
        at = tl.full([1], n_rows, dtype=tl.int64) * tile + row
        here = tl.load(best + at, mask=known, other=0.0)
        after = tl.load(second + at, mask=known, other=0.0)
        next = tl.minimum(tl.minimum(next, after), tl.maximum(least, here))
        found = tl.where(here < least, tl.load(label + at, mask=known, other=0), found)
        least = tl.minimum(least, here)
    return least, next, found


@triton.jit
def decided(least, next, square, missed, limits, factor, slack):
    """Whether the bound proves the label.

    limits: max |c^|, max |c - c^|, max |bias|   square, missed: |x|^2, |x - x^|^2, float64
    """
    longest, rounding, offset = tl.load(limits), tl.load(limits + 1), tl.load(limits + 2)
    size, error = tl.sqrt(square).to(tl.float32), tl.sqrt(missed).to(tl.float32)
    times = tl.abs(factor)
    bound = times * (error * longest + size * rounding + slack * (size + error) * longest)
    bound += 4 * 5.9604645e-8 * (offset + times * size * longest)
    # false where anything is NaN, and where all distances are infinite
    return next - least > 2 * WIDER * bound


@triton.jit
def settle_dense_kernel(
    rows, centroids, bias, factor, limits, slack, best, second, label, labels, nearest, squares, queue, count,
    first_row, n_rows, n_latents, n_tiles, row_stride, column_stride,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Labels [n_rows], nearest = d of the label in float32, squares = |x|^2; rows that are not decided are queued,
    counted from first_row on."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    known = row < n_rows
    least, next, found = merged(best, second, label, row, known, n_rows, n_tiles)
    square = tl.zeros([ROWS, CHANNELS], dtype=tl.float64)
    missed = tl.zeros([ROWS, CHANNELS], dtype=tl.float64)
    product = tl.zeros([ROWS, CHANNELS], dtype=tl.float32)
    for first in range(0, n_latents, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        inside = known[:, None] & (channel < n_latents)[None, :]
        places = row[:, None] * row_stride + channel.to(tl.int64)[None, :] * column_stride
        x = tl.load(rows + places, mask=inside, other=0.0).to(tl.float32)
        places = found.to(tl.int64)[:, None] * n_latents + channel[None, :]
        product += x * tl.load(centroids + places, mask=inside, other=0.0)
        apart = (x - as_tf32(x)).to(tl.float64)
        square += x.to(tl.float64) * x.to(tl.float64)
        missed += apart * apart
    total = tl.sum(square, axis=1)
    sure = decided(least, next, total, tl.sum(missed, axis=1), limits, factor, slack)
    offset = tl.load(bias + found, mask=known, other=0.0)
    tl.store(labels + row, found, mask=known)
    tl.store(nearest + row, offset + factor * tl.sum(product, axis=1), mask=known)
    tl.store(squares + row, total, mask=known)
    open = (known & (sure == 0)).to(tl.int32)
    n_open = tl.sum(open, axis=0)
    if n_open > 0:
        # an integer: who comes first decides the place in the queue, and no result
        place = tl.atomic_add(count, n_open) + tl.cumsum(open, axis=0) - 1
        tl.store(queue + place, row + first_row, mask=open > 0)


@triton.jit
def settle_sparse_kernel(
    indptr, columns, values, centroids, bias, factor, limits, slack, best, second, label, labels, nearest, squares,
    queue, count, first_row, n_rows, n_entries, n_latents, n_tiles, ENTRIES: tl.constexpr,
):  # fmt: skip
    """The same for one sparse row per program; best, second, label are those of the n_rows rows from first_row on."""
    local = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    row = tl.program_id(0).to(tl.int64) + first_row
    least, next, found = merged(best, second, label, local, local < n_rows, n_rows, n_tiles)
    begin, end = tl.load(indptr + row), tl.load(indptr + row + 1)
    broken = (begin < 0) | (end < begin) | (end > n_entries)
    end = tl.where(broken, begin, end)
    square = tl.zeros([1, ENTRIES], dtype=tl.float64)
    missed = tl.zeros([1, ENTRIES], dtype=tl.float64)
    product = tl.zeros([1, ENTRIES], dtype=tl.float32)
    odd = tl.zeros([1, ENTRIES], dtype=tl.int32)
    for first in range(begin, end, ENTRIES):
        entry = (first + tl.arange(0, ENTRIES))[None, :]
        there = entry < end
        column = tl.load(columns + entry, mask=there, other=0).to(tl.int64)
        before = tl.load(columns + entry - 1, mask=there & (entry > begin), other=-1).to(tl.int64)
        value = tl.load(values + entry, mask=there, other=0.0).to(tl.float32)
        inside = there & (column >= 0) & (column < n_latents)
        # not ascending: a latent may be there twice, and the dense row hold one of them
        odd += (there & ((column >= n_latents) | (column <= before))).to(tl.int32)
        product += value * tl.load(centroids + found.to(tl.int64)[:, None] * n_latents + column, mask=inside, other=0.0)
        apart = (value - value.to(tl.bfloat16).to(tl.float32)).to(tl.float64)
        square += value.to(tl.float64) * value.to(tl.float64)
        missed += apart * apart
    total = tl.sum(square, axis=1)
    sure = decided(least, next, total, tl.sum(missed, axis=1), limits, factor, slack)
    sure = sure & (tl.sum(odd, axis=1) == 0) & (broken == 0)
    one = tl.arange(0, 1)
    tl.store(labels + row + one, found)
    tl.store(nearest + row + one, tl.load(bias + found) + factor * tl.sum(product, axis=1))
    tl.store(squares + row + one, total)
    n_open = tl.sum((sure == 0).to(tl.int32), axis=0)
    if n_open > 0:
        tl.store(queue + tl.atomic_add(count, n_open), row)

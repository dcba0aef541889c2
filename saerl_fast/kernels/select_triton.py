"""Selects that read the maxima or counts of groups and the groups that matter, in Triton: one program per row.

    topk:       values[i], columns[i] = topk_j scores[i, j]
    threshold:  row i keeps { (j, scores[i, j]) : scores[i, j] > theta[j] }, columns ascending

Floor:  topk reads 4 (M / GROUP + k GROUP) bytes a row: 14 kB of 196 kB at M 49,152, k 64 and groups of 32, 3.3 ns of
        an H200's memory. threshold reads a byte a group and the groups that keep something.
Trick:  the k groups with the largest maxima, of equal ones the leftmost, hold the k best scores (the proof is in
        csrc/cuda/select_row.cuh), so the work of a row is bounded whatever is in it, ties included. Score and column
        are packed into one int64, whose order is "larger score first, then lower column": sorting is deciding ties.

Where the compiled module is there, its select finishes in place of topk_kernel. Not timed yet: docs/measured.md.
"""

from __future__ import annotations

import triton
import triton.language as tl

from saerl_fast.kernels.scores_triton import LEAST_INT, MOST_INT, SPOILT_COUNT, key_of

LEAST_LONG = tl.constexpr(-(2**63))


@triton.jit
def packed(key, position):
    """One int64 whose order is that of the key, and of equal ones the lower position first."""
    return (key.to(tl.int64) << 32) | (position ^ MOST_INT).to(tl.int64)


@triton.jit
def position_in(pack):
    return ((pack & MOST_INT) ^ MOST_INT).to(tl.int32)


@triton.jit
def value_in(pack):
    key = (pack >> 32).to(tl.int32)
    return (key ^ ((key >> 31) & MOST_INT)).to(tl.float32, bitcast=True)


@triton.jit
def best_of(packs, KEPT: tl.constexpr):
    """The KEPT largest of packs, descending; tl.topk cannot leave one alone."""
    if KEPT == 1:  # noqa: SIM108
        best = tl.max(packs, axis=0, keep_dims=True)
    else:
        best = tl.topk(packs, KEPT)
    return best


@triton.jit
def topk_kernel(
    scores, ranks, values, columns, n_latents, scores_stride, n_groups, k,
    RELU: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, CHOSEN: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """GROUPS, CHOSEN and KEPT: the next powers of two of n_groups, min(k, n_groups) and k."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, GROUPS)
    rank = tl.load(ranks + row * n_groups + group, mask=group < n_groups, other=0)
    key = rank ^ LEAST_INT
    spoilt = tl.max(key, axis=0) == MOST_INT
    best_groups = best_of(packed(key, group), CHOSEN)
    number = tl.arange(0, CHOSEN)
    chosen = (number < k) & (number < n_groups)
    first = tl.where(chosen, position_in(best_groups), 0) * GROUP
    column = first[:, None] + tl.arange(0, GROUP)[None, :]
    there = chosen[:, None] & (column < n_latents)
    score = tl.load(scores + row * scores_stride + column, mask=there, other=0.0)
    pack = tl.where(there, packed(key_of(score), column), LEAST_LONG)
    best = best_of(tl.reshape(pack, [CHOSEN * GROUP]), KEPT)
    value, at = value_in(best), position_in(best)
    if RELU:
        value = tl.where(value > 0, value, 0.0)
    place = tl.arange(0, KEPT)
    value = tl.where(spoilt, float("nan"), value)
    at = tl.where(spoilt, place, at)
    tl.store(values + row * k + place, value, mask=place < k)
    tl.store(columns + row * k + place, at, mask=place < k)


@triton.jit
def row_counts_kernel(counts, row_counts, n_groups, GROUPS: tl.constexpr):
    """Entries of each row from those of its groups; -1 for a row with a NaN."""
    row = tl.program_id(0).to(tl.int64)
    total, spoilt = 0, 0
    for start in range(0, n_groups, GROUPS):
        group = start + tl.arange(0, GROUPS)
        count = tl.load(counts + row * n_groups + group, mask=group < n_groups, other=0).to(tl.int32)
        total += tl.sum(count, axis=0)
        spoilt = max(spoilt, tl.max(count, axis=0))
    tl.store(row_counts + row, tl.where(spoilt == SPOILT_COUNT, -1, total).to(tl.int64))


@triton.jit
def threshold_kernel(
    scores, theta, counts, row_counts, starts, columns, values, n_latents, scores_stride, n_groups, capacity,
    GROUP: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """The entries of one row from place starts[row] on; what would lie at `capacity` or beyond is left out.

    SPAN groups at a time: a group that keeps nothing is not read.
    """
    row = tl.program_id(0).to(tl.int64)
    next = tl.load(starts + row)
    if tl.load(row_counts + row) < 0:
        tl.store(columns + next, 0, mask=next < capacity)
        tl.store(values + next, float("nan"), mask=next < capacity)
    else:
        for start in range(0, n_groups, SPAN):
            group = start + tl.arange(0, SPAN)
            count = tl.load(counts + row * n_groups + group, mask=group < n_groups, other=0).to(tl.int32)
            column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
            there = (count > 0)[:, None] & (column < n_latents)
            score = tl.load(scores + row * scores_stride + column, mask=there, other=0.0)
            kept = there & (score > tl.load(theta + column, mask=there, other=float("inf")))
            before = tl.cumsum(count, axis=0) - count
            within = tl.cumsum(kept.to(tl.int32), axis=1) - 1
            place = next + before[:, None] + within
            tl.store(columns + place, column, mask=kept & (place < capacity))
            tl.store(values + place, score, mask=kept & (place < capacity))
            next += tl.sum(count, axis=0)

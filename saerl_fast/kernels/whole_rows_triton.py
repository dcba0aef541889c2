"""The rows that a screen could not settle, scored for every latent in float64: as many as there are, nobody waits.

    h(i, j) = scale[j] * ((x[i] - b_dec) . w_enc[j] + b_enc[j])     i among the open rows, all j
    best[i], found[i] = topk_j h(i, j)                              by column; ties to the lower

Floor:  none of it where no row is open. For each row 2 D M float64 operations, 75 million at D 1536 and 24,576 latents:
        2.3 us at 34 TFLOP/s; and for each ROWS rows one read of w_enc, 151 MB, 35 us of an H200's memory.
Trick:  how many rows are open only the device knows. Their list is made there, and the loops of the kernels end where
        it does, so that short launches are all that an empty list costs. The scores lie in a place as large as that of
        the screen's, half of a chunk in float64; a second pair of launches takes what is beyond it. The select halves
        the interval of the k-th score, as a number whose bits are in order, until k scores reach its lower end: about
        20 passes over a row that stays in the L2 cache, and no limit to ties or k.

The product is not made on the tensor cores: Triton 3.6 cannot compile a float64 one for them. Not timed yet:
docs/measured.md.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saerl_fast.kernels.published import Published
from saerl_fast.kernels.scores_triton import MOST_INT, rows_of_x
from saerl_fast.kernels.triton_runtime import on_device_of

ROWS, LATENTS, CHANNELS = 16, 8, 16
"""Of a tile of the product: 16 float64 sums a thread."""
BLOCK = 1024
MOST_LONG = tl.constexpr(2**63 - 1)
LEAST_LONG = tl.constexpr(-(2**63))


@triton.jit
def long_key_of(value):
    """float64 as int64 of the same order; -0 is +0."""
    bits = (value + 0.0).to(tl.int64, bitcast=True)
    return bits ^ ((bits >> 63) & MOST_LONG)


@triton.jit
def whole_scores_kernel(
    x, row_index, open_rows, n_open, w, centre, bias, scale, scores, first, room, n_rows, x_rows, n_latents, width,
    x_row_stride, x_column_stride, w_stride, HAS_INDEX: tl.constexpr, HAS_CENTRE: tl.constexpr,
    HAS_SCALE: tl.constexpr, ROWS: tl.constexpr, LATENTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """scores [room, n_latents] of the open rows first, first + 1, ...: LATENTS of each per program."""
    latent = tl.program_id(0).to(tl.int64) * LATENTS + tl.arange(0, LATENTS)
    real = latent < n_latents
    count = tl.minimum(tl.load(n_open).to(tl.int32) - first, room)
    for start in range(0, count, ROWS):
        slot = start + tl.arange(0, ROWS)
        there = slot < count
        row = tl.load(open_rows + first + slot, mask=there, other=0)
        source, named = rows_of_x(row_index, row, n_rows, x_rows, HAS_INDEX)
        named = named & there
        starts = source.to(tl.int64) * x_row_stride
        total = tl.zeros([ROWS, LATENTS, CHANNELS], dtype=tl.float64)
        for begin in range(0, width, CHANNELS):
            channel = begin + tl.arange(0, CHANNELS)
            inside = channel < width
            places = starts[:, None] + channel.to(tl.int64)[None, :] * x_column_stride
            left = tl.load(x + places, mask=named[:, None] & inside[None, :], other=0.0).to(tl.float64)
            if HAS_CENTRE:
                left -= tl.load(centre + channel, mask=inside, other=0.0).to(tl.float64)[None, :]
            w_places = latent[:, None] * w_stride + channel[None, :]
            right = tl.load(w + w_places, mask=real[:, None] & inside[None, :], other=0.0).to(tl.float64)
            total += left[:, None, :] * right[None, :, :]
        h = tl.sum(total, axis=2) + tl.load(bias + latent, mask=real, other=0.0).to(tl.float64)[None, :]
        if HAS_SCALE:
            h *= tl.load(scale + latent, mask=real, other=0.0).to(tl.float64)[None, :]
        h += tl.where(named, 0.0, float("nan")).to(tl.float64)[:, None]
        at = slot.to(tl.int64)[:, None] * n_latents + latent[None, :]
        tl.store(scores + at, h, mask=there[:, None] & real[None, :])


@triton.jit
def kth_key(scores, begin, n_latents, k, BLOCK: tl.constexpr):
    """The largest key that k scores of a row reach, or a lower one that exactly k do; how many are above it; and
    whether there is a NaN."""
    low, high, spoilt = MOST_LONG, LEAST_LONG, 0
    for start in range(0, n_latents, BLOCK):
        column = start + tl.arange(0, BLOCK)
        there = column < n_latents
        value = tl.load(scores + begin + column, mask=there, other=0.0)
        key = long_key_of(value)
        spoilt = tl.maximum(spoilt, tl.max((value != value).to(tl.int32), axis=0))
        low = tl.minimum(low, tl.min(tl.where(there, key, MOST_LONG), axis=0))
        high = tl.maximum(high, tl.max(tl.where(there, key, LEAST_LONG), axis=0))
    reached = n_latents
    while (low < high) & (reached != k):
        # the middle, rounded up, of two numbers whose difference may not fit 64 bits
        middle = (low & high) + ((low ^ high) >> 1) + ((low ^ high) & 1)
        count = 0
        for start in range(0, n_latents, BLOCK):
            column = start + tl.arange(0, BLOCK)
            there = column < n_latents
            key = long_key_of(tl.load(scores + begin + column, mask=there, other=0.0))
            count += tl.sum((there & (key >= middle)).to(tl.int32), axis=0)
        enough = count >= k
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
        reached = tl.where(enough, count, reached)
    above = 0
    for start in range(0, n_latents, BLOCK):
        column = start + tl.arange(0, BLOCK)
        there = column < n_latents
        key = long_key_of(tl.load(scores + begin + column, mask=there, other=0.0))
        above += tl.sum((there & (key > low)).to(tl.int32), axis=0)
    return low, above, spoilt


@triton.jit
def whole_select_kernel(
    scores, open_rows, n_open, best, found, first, n_latents, per_row, k, BLOCK: tl.constexpr
):  # fmt: skip
    """The k best of an open row, by column, at the head of its per_row places; behind them -inf of no latent."""
    slot = tl.program_id(0)
    if first + slot < tl.load(n_open):
        row = tl.load(open_rows + first + slot)
        begin = slot.to(tl.int64) * n_latents
        low, above, spoilt = kth_key(scores, begin, n_latents, k, BLOCK)
        if spoilt != 0:
            taken = k
            for start in range(0, k, BLOCK):
                place = start + tl.arange(0, BLOCK)
                tl.store(best + row * per_row + place, float("nan"), mask=place < k)
                tl.store(found + row * per_row + place, place, mask=place < k)
        else:
            taken, equal_ones = 0, 0
            for start in range(0, n_latents, BLOCK):
                column = start + tl.arange(0, BLOCK)
                there = column < n_latents
                value = tl.load(scores + begin + column, mask=there, other=0.0)
                key = long_key_of(value)
                equal = (there & (key == low)).to(tl.int32)
                rank = equal_ones + tl.cumsum(equal, axis=0) - equal
                chosen = (there & (key > low)) | ((equal != 0) & (rank < k - above))
                place = taken + tl.cumsum(chosen.to(tl.int32), axis=0) - 1
                tl.store(best + row * per_row + place, value, mask=chosen)
                tl.store(found + row * per_row + place, column, mask=chosen)
                taken += tl.sum(chosen.to(tl.int32), axis=0)
                equal_ones += tl.sum(equal, axis=0)
        for start in range(0, per_row, BLOCK):
            place = start + tl.arange(0, BLOCK)
            rest = (place >= taken) & (place < per_row)
            tl.store(best + row * per_row + place, float("-inf"), mask=rest)
            tl.store(found + row * per_row + place, MOST_INT, mask=rest)


def score_open_rows(
    x: Tensor,
    row_index: Tensor | None,
    encoder: Published,
    settled: Tensor,
    k: int,
    best: Tensor,
    found: Tensor,
) -> None:
    """Write the k best, by column, at the head of best [N, C] float64 and found [N, C] int32 where not settled [N].

    Arguments as those of `rescore`. A row with a NaN gets NaN of the latents 0..k-1.
    """
    w, bias, centre, scale = encoder
    n_rows, n_latents = len(settled), len(w)
    if not n_rows:
        return
    number = (~settled).cumsum(0)
    n_open, places = number[-1:], torch.arange(n_rows, device=x.device)
    # the settled ones all go to a place behind the list
    open_rows = places.new_empty(n_rows + 1).scatter_(0, torch.where(settled, n_rows, number - 1), places)
    room = -(-n_rows // 2)
    scores = torch.empty(room, n_latents, dtype=torch.float64, device=x.device)
    with on_device_of(x):
        for first in range(0, n_rows, room):
            whole_scores_kernel[(triton.cdiv(n_latents, LATENTS),)](
                x, open_rows if row_index is None else row_index, open_rows, n_open, w,
                bias if centre is None else centre, bias, bias if scale is None else scale, scores, first, room, n_rows,
                x.shape[0], n_latents, x.shape[1], *x.stride(), w.stride(0), HAS_INDEX=row_index is not None,
                HAS_CENTRE=centre is not None, HAS_SCALE=scale is not None, ROWS=ROWS, LATENTS=LATENTS,
                CHANNELS=CHANNELS, num_warps=4,
            )  # fmt: skip
            whole_select_kernel[(room,)](
                scores, open_rows, n_open, best, found, first, n_latents, best.shape[1], k, BLOCK=BLOCK, num_warps=4
            )

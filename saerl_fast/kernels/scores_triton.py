"""The matrix product of an encode in Triton, with an epilogue that leaves what a select needs to read little.

    h(i, j) = scale[j] * ((x[row_index[i]] - b_dec) . w_enc[j] + b_enc[j])     float32 accumulators
    maxima[i, g] = max of h(i, j) over the columns j of group g, as a rank     (select_triton.py)
    counts[i, g] = columns j of group g with h(i, j) > theta[j]                (select_triton.py)

Floor:  2 N M D operations: 96 ns a token at D 1536, M 24,576 and 790 TFLOP/s of an H200, and 191 ns at 49,152. The
        scores are written while the next tile multiplies (4 M bytes a token: 23 and 46 ns of the memory's time).
Trick:  cuBLAS leaves scores that have to be read whole to find the best of them. Here each tile is reduced while it
        is in registers: 4 / GROUP more bytes are written, and a select reads those and k groups. Bias, scale and the
        gather by row_index cost no pass of their own. One program per multiprocessor goes from tile to tile, rows
        first within stripes of eight, so that the tiles under way share rows of x and of w_enc in the L2 cache.

16-bit x and w_enc of one type go to the tensor cores as they are, and b_dec comes folded into the bias
(folded_bias.py). Other types are multiplied in float32 without shortcuts, and b_dec is subtracted from x first. A
row_index that names no row of x makes a row of NaN; nothing is read there.

An input norm x' = (x - mean) factor is applied without a copy of x, from what row_norms_triton.py knows of its rows:

    AFTER    (x' - b_dec) . w = (x . w - mean sum(w)) factor - b_dec . w       16-bit x and w, on the tensor cores
    BEFORE   x' in float32 as a tile is loaded                                 other types

AFTER keeps x as it is, where x' rounded to 16 bits would change the set. It multiplies numbers of the size of x, not of
x - mean: up to a mean of 2 standard deviations (STEEP) these are 2.24 times as long, and so is the error of the
accumulation; its own roundings are below 6 2^-24 |x'| |w|, of the 16 2^-24 that "exact" allows. Rows that are steeper,
few or none, are multiplied again BEFORE, in a second launch that ends at once where a chunk has none: nobody waits.

The wide tile of Hopper takes 210 to 254 of 255 registers and spills nothing (tests/kernels/test_compile_ahead.py).
Where the addresses allow, w_enc and x come by the bulk copy engine (tensor descriptors: Hopper and newer), else
each thread fetches its own part. Not timed yet: docs/measured.md.
"""

from __future__ import annotations

import triton
import triton.language as tl

LEAST_INT = tl.constexpr(-(2**31))
MOST_INT = tl.constexpr(2**31 - 1)
SPOILT_COUNT = tl.constexpr(255)
AFTER, BEFORE = tl.constexpr(1), tl.constexpr(2)
"""Where an input norm is applied: to the products, or to x."""


@triton.jit
def key_of(value):
    """Floats as int32 of the same order; -0 is +0, NaN above all, and no number is LEAST_INT."""
    bits = (value + 0.0).to(tl.int32, bitcast=True)
    return tl.where(value != value, MOST_INT, bits ^ ((bits >> 31) & MOST_INT))


@triton.jit
def place_of_tile(tile, n_row_tiles, n_column_tiles, STRIPE: tl.constexpr):
    """Which rows and columns a tile has: row tiles in stripes, and column by column within a stripe."""
    per_stripe = STRIPE * n_column_tiles
    first_row = (tile // per_stripe) * STRIPE
    height = min(n_row_tiles - first_row, STRIPE)
    within = tile % per_stripe
    return first_row + within % height, within // height


@triton.jit
def rows_of_x(row_index, row, n_rows, x_rows, HAS_INDEX: tl.constexpr):
    """The rows of x behind the rows of the result, and which of them there are; 0 where there is none."""
    inside = row < n_rows
    source = row
    if HAS_INDEX:
        source = tl.load(row_index + row, mask=inside, other=-1)
    named = inside & (source >= 0) & (source < x_rows)
    return tl.where(named, source, 0), named


@triton.jit
def product_of_tile(
    x, w, centre, mean, rest, factor, source, named, latent, row, first_row, first_latent, n_rows, n_latents, width,
    x_row_stride, x_column_stride, w_row_stride, w_column_stride,
    X_BLOCKS: tl.constexpr, W_BLOCKS: tl.constexpr, HAS_CENTRE: tl.constexpr, WIDEN: tl.constexpr, NORM: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(x - centre) w^T of one tile [BLOCK_N, BLOCK_M] float32; x' in place of x where NORM is BEFORE."""
    total = tl.zeros([BLOCK_N, BLOCK_M], dtype=tl.float32)
    if NORM == BEFORE:
        high = tl.load(mean + row, mask=row < n_rows, other=0.0)[:, None]
        low = tl.load(rest + row, mask=row < n_rows, other=0.0)[:, None]
        times = tl.load(factor + row, mask=row < n_rows, other=0.0)[:, None]
    for start in range(0, width, BLOCK_D):
        channel = start + tl.arange(0, BLOCK_D)
        inside = channel < width
        if X_BLOCKS:
            left = x.load([first_row, start])
        else:
            x_places = source.to(tl.int64)[:, None] * x_row_stride + channel.to(tl.int64)[None, :] * x_column_stride
            left = tl.load(x + x_places, mask=named[:, None] & inside[None, :], other=0.0)
        if W_BLOCKS:
            right = w.load([first_latent, start]).T
        else:
            w_places = latent.to(tl.int64)[None, :] * w_row_stride + channel.to(tl.int64)[:, None] * w_column_stride
            right = tl.load(w + w_places, mask=(latent < n_latents)[None, :] & inside[:, None], other=0.0)
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        if NORM == BEFORE:
            left = tl.where(inside[None, :], (left - high - low) * times, 0.0)
        if HAS_CENTRE:
            left -= tl.load(centre + channel, mask=inside, other=0.0)[None, :]
        total = tl.dot(left, right, total, input_precision="ieee")
    return total


@triton.jit
def leave_part(
    h, first_row, first_latent, bias, scale, theta, mean, factor, sums, named, inside_rows, row_error, row_size,
    latent_size, latent_error, scores, groups, n_latents, n_groups, scores_stride,
    HAS_SCALE: tl.constexpr, COUNT: tl.constexpr, BOUND: tl.constexpr, NORM: tl.constexpr, CENTRED: tl.constexpr,
    BLOCK_N: tl.constexpr, PART: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """What becomes of PART columns of a tile of products h [BLOCK_N, PART]: scores, and one number per group.

    inside_rows: the rows of the tile that are written.
    """
    local_row = tl.arange(0, BLOCK_N)
    row = first_row + local_row
    latent = first_latent + tl.arange(0, PART)
    real = latent < n_latents
    if NORM == AFTER:
        if CENTRED:
            middle = tl.load(mean + row, mask=inside_rows, other=0.0)
            h -= middle[:, None] * tl.load(sums + latent, mask=real, other=0.0)[None, :]
        h *= tl.load(factor + row, mask=inside_rows, other=0.0)[:, None]
    h += tl.load(bias + latent, mask=real, other=0.0)[None, :]
    if HAS_SCALE:
        h *= tl.load(scale + latent, mask=real, other=0.0)[None, :]
    if BOUND:
        error_here = tl.load(row_error + row, mask=inside_rows, other=0.0)
        h += error_here[:, None] * tl.load(latent_size + latent, mask=real, other=0.0)[None, :]
        size_here = tl.load(row_size + row, mask=inside_rows, other=0.0)
        h += size_here[:, None] * tl.load(latent_error + latent, mask=real, other=0.0)[None, :]
    h += tl.where(named, 0.0, float("nan"))[:, None]
    # the corner is reached in 64 bits; inside of a tile 32 do, and spare half of the registers for addresses
    corner = first_row.to(tl.int64) * scores_stride + first_latent
    offsets = local_row[:, None] * scores_stride + tl.arange(0, PART)[None, :]
    tl.store(scores + corner + offsets, h, mask=inside_rows[:, None] & real[None, :])
    if COUNT:
        least = tl.load(theta + latent, mask=real, other=float("inf"))[None, :]
        # a NaN on either side weighs more than all that a group can keep
        kept = tl.where((h != h) | (least != least), 1024, (h > least).to(tl.int32))
        kept = tl.where(real[None, :], kept, 0)
        kept = tl.sum(tl.reshape(kept, [BLOCK_N, PART // GROUP, GROUP]), axis=2)
        found = tl.where(kept >= 1024, SPOILT_COUNT, kept).to(tl.uint8)
    else:
        key = tl.where(real[None, :], key_of(h), LEAST_INT)
        # as an unsigned number of the same order: the rank of csrc/cuda/rank.cuh
        found = tl.max(tl.reshape(key, [BLOCK_N, PART // GROUP, GROUP]), axis=2) ^ LEAST_INT
    group = first_latent // GROUP + tl.arange(0, PART // GROUP)
    at = local_row[:, None] * n_groups + group[None, :]
    in_table = inside_rows[:, None] & (group < n_groups)[None, :]
    tl.store(groups + first_row.to(tl.int64) * n_groups + at, found, mask=in_table)


@triton.jit
def leave_halves(
    h, first_row, first_latent, bias, scale, theta, mean, factor, sums, named, inside_rows, row_error, row_size,
    latent_size, latent_error, scores, groups, n_latents, n_groups, scores_stride,
    HAS_SCALE: tl.constexpr, COUNT: tl.constexpr, BOUND: tl.constexpr, NORM: tl.constexpr, CENTRED: tl.constexpr,
    BLOCK_N: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """`leave_part` half by half, since the accumulators leave no registers for the whole."""
    PART: tl.constexpr = COLUMNS // 2
    left, right = tl.split(tl.permute(tl.reshape(h, [BLOCK_N, 2, PART]), (0, 2, 1)))
    leave_part(
        left, first_row, first_latent, bias, scale, theta, mean, factor, sums, named, inside_rows, row_error, row_size,
        latent_size, latent_error, scores, groups, n_latents, n_groups, scores_stride,
        HAS_SCALE, COUNT, BOUND, NORM, CENTRED, BLOCK_N, PART, GROUP,
    )  # fmt: skip
    leave_part(
        right, first_row, first_latent + PART, bias, scale, theta, mean, factor, sums, named, inside_rows, row_error,
        row_size, latent_size, latent_error, scores, groups, n_latents, n_groups, scores_stride,
        HAS_SCALE, COUNT, BOUND, NORM, CENTRED, BLOCK_N, PART, GROUP,
    )  # fmt: skip


@triton.jit
def scores_kernel(
    x, w, bias, scale, centre, row_index, theta, row_error, row_size, latent_size, latent_error, mean, rest, factor,
    sums, steep, some_steep, scores, groups, n_rows, x_rows, n_latents, width, n_groups,
    x_row_stride, x_column_stride, w_row_stride, w_column_stride, scores_stride,
    HAS_INDEX: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_CENTRE: tl.constexpr, WIDEN: tl.constexpr,
    X_BLOCKS: tl.constexpr, W_BLOCKS: tl.constexpr, COUNT: tl.constexpr, BOUND: tl.constexpr,
    NORM: tl.constexpr, CENTRED: tl.constexpr, ONLY_STEEP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, STRIPE: tl.constexpr,
):  # fmt: skip
    """Scores [n_rows, n_latents] float32, and per group of columns the maximum (int32 ranks) or the count (uint8).

    BOUND: the scores are upper bounds h + row_error[i] latent_size[j] + row_size[i] latent_error[j].
    NORM: of x' in place of x, by mean, rest and factor of its rows and the sums of the rows of w (CENTRED: there is a
    mean). ONLY_STEEP: rows with steep[i] = 1 alone are written, and nothing is done where some_steep[0] is 0.
    """
    n_row_tiles, n_column_tiles = tl.cdiv(n_rows, BLOCK_N), tl.cdiv(n_latents, BLOCK_M)
    n_tiles = n_row_tiles * n_column_tiles
    if ONLY_STEEP:
        n_tiles = tl.where(tl.load(some_steep) != 0, n_tiles, 0)
    for tile in range(tl.program_id(0), n_tiles, tl.num_programs(0)):
        row_tile, column_tile = place_of_tile(tile, n_row_tiles, n_column_tiles, STRIPE)
        first_row, first_latent = row_tile * BLOCK_N, column_tile * BLOCK_M
        row = first_row + tl.arange(0, BLOCK_N)
        latent = first_latent + tl.arange(0, BLOCK_M)
        source, named = rows_of_x(row_index, row, n_rows, x_rows, HAS_INDEX)
        written, reach = row < n_rows, width
        if ONLY_STEEP:
            written = written & (tl.load(steep + row, mask=written, other=0) != 0)
            reach = tl.where(tl.max(written.to(tl.int32), axis=0) != 0, width, 0)
        products = product_of_tile(
            x, w, centre, mean, rest, factor, source, named, latent, row, first_row, first_latent, n_rows, n_latents,
            reach, x_row_stride, x_column_stride, w_row_stride, w_column_stride,
            X_BLOCKS, W_BLOCKS, HAS_CENTRE, WIDEN, NORM, BLOCK_N, BLOCK_M, BLOCK_D,
        )  # fmt: skip
        if COUNT:
            # theta takes registers too: behind a norm, halves spill and quarters do not. GROUP divides a quarter
            PART: tl.constexpr = BLOCK_M // 2
            left, right = tl.split(tl.permute(tl.reshape(products, [BLOCK_N, 2, PART]), (0, 2, 1)))
            leave_halves(
                left, first_row, first_latent, bias, scale, theta, mean, factor, sums, named, written, row_error,
                row_size, latent_size, latent_error, scores, groups, n_latents, n_groups, scores_stride,
                HAS_SCALE, COUNT, BOUND, NORM, CENTRED, BLOCK_N, PART, GROUP,
            )  # fmt: skip
            leave_halves(
                right, first_row, first_latent + PART, bias, scale, theta, mean, factor, sums, named, written,
                row_error, row_size, latent_size, latent_error, scores, groups, n_latents, n_groups, scores_stride,
                HAS_SCALE, COUNT, BOUND, NORM, CENTRED, BLOCK_N, PART, GROUP,
            )  # fmt: skip
        else:
            leave_halves(
                products, first_row, first_latent, bias, scale, theta, mean, factor, sums, named, written, row_error,
                row_size, latent_size, latent_error, scores, groups, n_latents, n_groups, scores_stride,
                HAS_SCALE, COUNT, BOUND, NORM, CENTRED, BLOCK_N, BLOCK_M, GROUP,
            )  # fmt: skip

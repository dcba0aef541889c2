"""Rows rounded to bfloat16, and how far that moved them, in Triton: what the bounds of a screen are made of.

    x^[i] = bfloat16(x[row_index[i]]);   kept = |x^|,  moved = |x - x^|,  apart = |x - centre|     summed in float64

Floor:  each row is read once and written at half its width: 9 kB a token at D 1536 in float32, 2 ns of an H200's
        memory; 3 kB and nothing written where x is bfloat16 already. Of w_enc with 24,576 latents 226 MB, 53 us a call.
Trick:  gather, rounding and all three norms are one pass over a row, where torch makes five and writes
        between them. How far from the floor it is, is not known: not timed yet, docs/measured.md.

The difference of a float32 and its rounding is a float32, so nothing is lost in `moved`. A row that row_index does not
name has norms of NaN, as a row with a NaN or an infinity has.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saerl_fast.kernels.scores_triton import rows_of_x
from saerl_fast.kernels.triton_runtime import on_device_of

ROWS, BLOCK = 8, 128
"""Of a tile: three float64 sums of each number."""


class Rounded(NamedTuple):
    """Rows as a bfloat16 product takes them, and the norms [N] float64."""

    rows: Tensor | None
    """[N, D] bfloat16, contiguous; None where x is bfloat16, and is taken where it lies"""
    kept: Tensor
    moved: Tensor
    apart: Tensor


@triton.jit
def to_bfloat16(value):
    """float32 that bfloat16 holds, to the nearest, ties to even; by hand, since the interpreter would cut off."""
    bits = value.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def round_rows_kernel(
    x, row_index, centre, rounded, kept, moved, apart, n_rows, x_rows, width, row_stride, column_stride,
    HAS_INDEX: tl.constexpr, HAS_CENTRE: tl.constexpr, ROUND: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS rows per program. ROUND: x is wider than bfloat16."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    source, named = rows_of_x(row_index, row, n_rows, x_rows, HAS_INDEX)
    start = source.to(tl.int64) * row_stride
    kept_squares = tl.zeros([ROWS, BLOCK], dtype=tl.float64)
    moved_squares = tl.zeros([ROWS, BLOCK], dtype=tl.float64)
    apart_squares = tl.zeros([ROWS, BLOCK], dtype=tl.float64)
    for first in range(0, width, BLOCK):
        channel = first + tl.arange(0, BLOCK)
        written = (row < n_rows)[:, None] & (channel < width)[None, :]
        inside = written & named[:, None]
        places = start[:, None] + channel.to(tl.int64)[None, :] * column_stride
        value = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
        near = value
        if ROUND:
            near = to_bfloat16(value)
            gap = (value - near).to(tl.float64)
            moved_squares += gap * gap
            tl.store(rounded + row[:, None] * width + channel[None, :], near.to(tl.bfloat16), mask=written)
        kept_squares += near.to(tl.float64) * near.to(tl.float64)
        far = value.to(tl.float64)
        if HAS_CENTRE:
            far -= tl.load(centre + channel, mask=channel < width, other=0.0).to(tl.float64)[None, :]
        apart_squares += far * far
    real = row < n_rows
    unnamed = tl.where(named, 0.0, float("nan")).to(tl.float64)
    tl.store(kept + row, tl.sqrt(tl.sum(kept_squares, axis=1)) + unnamed, mask=real)
    tl.store(moved + row, tl.sqrt(tl.sum(moved_squares, axis=1)) + unnamed, mask=real)
    tl.store(apart + row, tl.sqrt(tl.sum(apart_squares, axis=1)) + unnamed, mask=real)


def round_rows(x: Tensor, row_index: Tensor | None = None, centre: Tensor | None = None) -> Rounded:
    """x [R, D] float32, bfloat16 or float16   row_index [N] int64, centre [D] float32: contiguous."""
    n_rows = x.shape[0] if row_index is None else row_index.shape[0]
    wide = x.dtype != torch.bfloat16
    rows = torch.empty(n_rows, x.shape[1], dtype=torch.bfloat16, device=x.device) if wide else None
    kept, moved, apart = (torch.empty(n_rows, dtype=torch.float64, device=x.device) for _ in range(3))
    if n_rows:
        with on_device_of(x):
            round_rows_kernel[(triton.cdiv(n_rows, ROWS),)](
                x, kept if row_index is None else row_index, kept if centre is None else centre,
                x if rows is None else rows, kept, moved, apart, n_rows, x.shape[0], x.shape[1], *x.stride(),
                HAS_INDEX=row_index is not None, HAS_CENTRE=centre is not None, ROUND=wide, ROWS=ROWS, BLOCK=BLOCK,
                num_warps=4,
            )  # fmt: skip
    return Rounded(rows, kept, moved, apart)

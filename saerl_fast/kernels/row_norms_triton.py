"""What an input norm needs to know of each row of x, in Triton: its mean, and by what it is multiplied.

    layer_norm              x' = (x - mean) factor      factor = 1 / (std + 1e-5), std by D - 1
    constant_norm_rescale   x' = x factor               factor = sqrt(D) / |x|

Floor:  the rows that count are read once: 3 kB a token at D 1536 in 16 bits, 0.7 ns of an H200's memory, of 96 ns for
        the product with 24,576 latents.
Trick:  one program reads a row twice, the second time from the caches, so that the deviations are taken from the mean
        itself; sums are float64. The mean is kept in two float32, and x - mean loses nothing where it is large. x' is
        never written: the product applies it (scores_triton.py). How far from the floor it is, is not known: not timed
        yet, docs/measured.md.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saerl_fast.kernels.scores_triton import rows_of_x
from saerl_fast.kernels.triton_runtime import on_device_of

EPS = 1e-5
"""As LAYER_NORM_EPS of the reference."""
STEEP = 2.0
"""Rows whose mean is more than so many of their standard deviations are multiplied in float32 (scores_triton.py)."""


class RowNorms(NamedTuple):
    """x' = (x - mean - rest) factor, row by row; all [N]."""

    mean: Tensor
    """float32"""
    rest: Tensor
    """float32: what rounding took from the mean"""
    factor: Tensor
    """float32"""
    steep: Tensor
    """int32: 1 for a row whose mean outweighs what is left of it"""

    def of(self, rows: slice) -> RowNorms:
        return RowNorms(*(part[rows] for part in self))


@triton.jit
def row_norms_kernel(
    x, row_index, mean, rest, factor, steep, n_rows, x_rows, width, row_stride, column_stride,
    HAS_INDEX: tl.constexpr, CENTRED: tl.constexpr, EPS: tl.constexpr, STEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row of the result per program."""
    row = tl.program_id(0) + tl.arange(0, 1)
    source, named = rows_of_x(row_index, row, n_rows, x_rows, HAS_INDEX)
    start = source.to(tl.int64) * row_stride
    middle = tl.zeros([1], dtype=tl.float64)
    if CENTRED:
        total = tl.zeros([1, BLOCK], dtype=tl.float64)
        for first in range(0, width, BLOCK):
            channel = first + tl.arange(0, BLOCK)
            places = start[:, None] + channel.to(tl.int64)[None, :] * column_stride
            total += tl.load(x + places, mask=named[:, None] & (channel < width)[None, :], other=0.0).to(tl.float64)
        middle = tl.sum(total, axis=1) / width
    squares = tl.zeros([1, BLOCK], dtype=tl.float64)
    for first in range(0, width, BLOCK):
        channel = first + tl.arange(0, BLOCK)
        inside = named[:, None] & (channel < width)[None, :]
        places = start[:, None] + channel.to(tl.int64)[None, :] * column_stride
        apart = tl.load(x + places, mask=inside, other=0.0).to(tl.float64) - middle[:, None]
        squares += tl.where(inside, apart * apart, 0.0)
    square = tl.sum(squares, axis=1)
    if CENTRED:  # noqa: SIM108
        scale = 1.0 / (tl.sqrt(square / (width - 1.0)) + EPS)
    else:
        scale = tl.sqrt(width / square)
    high = middle.to(tl.float32)
    tl.store(mean + row, high)
    tl.store(rest + row, (middle - high.to(tl.float64)).to(tl.float32))
    tl.store(factor + row, scale.to(tl.float32))
    tl.store(steep + row, (tl.abs(middle) * scale > STEEP).to(tl.int32))


def row_norms(x: Tensor, row_index: Tensor | None, norm: str) -> RowNorms:
    """x [R, D]   row_index [N] int64, contiguous; a row that it does not name has factor infinity or a mean of 0."""
    n_rows = x.shape[0] if row_index is None else row_index.shape[0]
    mean, rest, factor = (torch.empty(n_rows, dtype=torch.float32, device=x.device) for _ in range(3))
    found = RowNorms(mean, rest, factor, torch.empty(n_rows, dtype=torch.int32, device=x.device))
    if n_rows:
        with on_device_of(x):
            row_norms_kernel[(n_rows,)](
                x, found.mean if row_index is None else row_index, *found, n_rows, x.shape[0], x.shape[1], *x.stride(),
                HAS_INDEX=row_index is not None, CENTRED=norm == "layer_norm", EPS=EPS, STEEP=STEEP, BLOCK=1024,
                num_warps=4,
            )  # fmt: skip
    return found

"""Weighted sums of gathered rows, in Triton: what decode, project, their gradients and dense cluster sums are made of.

    out[p] = bias + sum over the entries e of piece p of weights[e] * table[sources[e]]
    dots[e] = x[row of e] . table[sources[e]]

Floor:  each gathered row once from the L2 cache, or from memory where the table does not fit there: for a token of
        64 latents, D = 1536 and bfloat16, 197 kB, 36 ns at 5.5 TB/s.
Trick:  one program owns a piece and a stretch of columns and holds the sum in registers; four rows are on their way
        at once, and are added one after the other. A piece that is a run of thousands of entries (a latent that fires
        everywhere, a large cluster) is cut first (pieces.py), and the parts are added in their order.

Every sum has one order, given by the shapes alone: no atomics, the same bits each time. A source outside of the table
is not read and makes its sum NaN. Triton, not CUDA C++: nothing here needs shared memory, and one source serves all
types of weights. Not timed yet: docs/measured.md.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saerl_fast.kernels.pieces import Pieces
from saerl_fast.kernels.triton_runtime import on_device_of

WIDEST = 512
"""Columns of one program."""
AHEAD = tl.constexpr(4)
"""Rows that are on their way at once."""


@triton.jit
def gathered_sum(
    begin, end, sources, weights, table, n_sources, stride, columns, width,
    HAS_WEIGHTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum [BLOCK] float32 of one piece, in the order of its entries, and whether a source was none."""
    total = tl.zeros([BLOCK], dtype=tl.float32)
    outside = begin < 0
    for first in range(begin, end, AHEAD):
        for step in tl.static_range(AHEAD):
            entry = first + step
            there = entry < end
            source = tl.load(sources + entry, mask=there, other=0).to(tl.int64)
            valid = (source >= 0) & (source < n_sources)
            outside = outside | (there & (valid == 0))
            inside = columns < tl.where(there & valid, width, 0)
            row = tl.load(table + source * stride + columns, mask=inside, other=0.0).to(tl.float32)
            if HAS_WEIGHTS:
                row = row * tl.load(weights + entry, mask=there, other=0.0).to(tl.float32)
            total += row
    return total, outside


@triton.jit
def sum_pieces_kernel(
    begins, ends, targets, sources, weights, table, bias, out, parts,
    n_entries, n_sources, n_out, width, stride,
    HAS_TARGETS: tl.constexpr, HAS_WEIGHTS: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One piece and BLOCK columns per program: into out[target], or into parts[-1 - target] where that is negative."""
    piece = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    target = piece
    if HAS_TARGETS:
        target = tl.load(targets + piece)
    begin, end = tl.load(begins + piece), tl.load(ends + piece)
    broken = (begin < 0) | (end < begin) | (end > n_entries)
    end = tl.where(broken, begin, end)
    total, outside = gathered_sum(
        begin, end, sources, weights, table, n_sources, stride, columns, width, HAS_WEIGHTS, BLOCK
    )
    if HAS_BIAS:
        total += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    total = tl.where(broken | outside, float("nan"), total)
    if target < 0:
        tl.store(parts + (-1 - target) * width + columns, total, mask=inside)
    elif target < n_out:
        tl.store(out + target * width + columns, total, mask=inside)


@triton.jit
def add_parts_kernel(first_parts, n_parts, parts, out, width, BLOCK: tl.constexpr):
    """out[run] = the sum of its parts, in their order; runs of one piece are there already."""
    run = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    first, count = tl.load(first_parts + run), tl.load(n_parts + run)
    if count > 1:
        total = tl.zeros([BLOCK], dtype=tl.float32)
        for part in range(first, first + count):
            total += tl.load(parts + part * width + columns, mask=inside, other=0.0)
        tl.store(out + run * width + columns, total, mask=inside)


@triton.jit
def dots_kernel(
    indptr, sources, x, table, dots, n_entries, n_sources, width, x_stride, stride,
    ENTRIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The dots of one row, ENTRIES at a time."""
    row = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(indptr + row), tl.load(indptr + row + 1)
    broken = (begin < 0) | (end < begin) | (end > n_entries)
    end = tl.where(broken, begin, end)
    for first in range(begin, end, ENTRIES):
        entries = first + tl.arange(0, ENTRIES)
        there = entries < end
        source = tl.load(sources + entries, mask=there, other=0).to(tl.int64)
        valid = (source >= 0) & (source < n_sources)
        products = tl.zeros([ENTRIES, BLOCK], dtype=tl.float32)
        for start in range(0, width, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = columns < width
            here = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
            places = source[:, None] * stride + columns[None, :]
            taken = tl.load(table + places, mask=(there & valid)[:, None] & inside[None, :], other=0.0)
            products += here[None, :] * taken.to(tl.float32)
        found = tl.where(valid, tl.sum(products, axis=1), float("nan"))
        tl.store(dots + entries, found, mask=there)


def sums(
    pieces: tuple[Tensor, Tensor], sources: Tensor, weights: Tensor | None, table: Tensor, bias: Tensor | None
) -> Tensor:
    """out float32 [P, W] of the pieces (begins, ends): int64 [P] each.

    sources [nnz] int32 or int64; weights [nnz]; table [*, W], columns side by side; bias [W]
    """
    begins, ends = pieces
    out = torch.empty(len(begins), table.shape[1], dtype=torch.float32, device=table.device)
    if out.numel():
        _sum_pieces(begins, ends, None, sources, weights, table, bias, out, None)
    return out


def run_sums(pieces: Pieces, sources: Tensor, weights: Tensor | None, table: Tensor) -> Tensor:
    """out float32 [runs, W], one sum per run of entries; a long run in parts."""
    width = table.shape[1]
    out = torch.empty(pieces.n_runs, width, dtype=torch.float32, device=table.device)
    parts = torch.empty(pieces.most_parts, width, dtype=torch.float32, device=table.device)
    if out.numel():
        _sum_pieces(pieces.begins, pieces.ends, pieces.targets, sources, weights, table, None, out, parts)
        block = _block(width)
        grid = (pieces.n_runs, triton.cdiv(width, block))
        with on_device_of(out):
            add_parts_kernel[grid](pieces.first_parts, pieces.counts, parts, out, width, BLOCK=block)
    return out


def dots(indptr: Tensor, sources: Tensor, x: Tensor, table: Tensor) -> Tensor:
    """float32 [nnz]: for each entry, the dot of its row of x [N, W] and its row of the table [*, W]."""
    found = torch.empty(len(sources), dtype=torch.float32, device=x.device)
    if len(found) and len(x):
        block = min(256, _block(x.shape[1]))
        with on_device_of(x):
            dots_kernel[(len(x),)](
                indptr, sources, x, table, found, len(sources), len(table), x.shape[1], x.stride(0), table.stride(0),
                ENTRIES=8, BLOCK=block,
            )  # fmt: skip
    return found


def _sum_pieces(
    begins: Tensor, ends: Tensor, targets: Tensor | None, sources: Tensor, weights: Tensor | None, table: Tensor,
    bias: Tensor | None, out: Tensor, parts: Tensor | None,
) -> None:  # fmt: skip
    width = table.shape[1]
    block = _block(width)
    # what is not there is not read: any address will do
    absent = out
    with on_device_of(out):
        sum_pieces_kernel[(len(begins), triton.cdiv(width, block))](
            begins, ends, absent if targets is None else targets, sources, absent if weights is None else weights,
            table, absent if bias is None else bias, out, absent if parts is None else parts,
            len(sources), len(table), len(out), width, table.stride(0),
            HAS_TARGETS=targets is not None, HAS_WEIGHTS=weights is not None, HAS_BIAS=bias is not None, BLOCK=block,
        )  # fmt: skip


def _block(width: int) -> int:
    return min(WIDEST, max(16, int(triton.next_power_of_2(width))))

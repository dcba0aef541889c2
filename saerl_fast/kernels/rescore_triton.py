"""Chosen scores of an encoder once more, in float64: what stands behind a screen.

    exact[i, c] = scale[j] * ((x[row_index[i]] - b_dec) . w_enc[j] + b_enc[j]),   j = latents[i, c]

Floor:  x and w_enc once from memory, and for each pair D numbers of each from wherever they are. At D 1536 and 74
        pairs a token, w_enc gathered row by row from memory would be 455 kB a token: 106 ns, more than the product.
Trick:  the pairs are taken latent by latent. A row of w_enc is then fetched once per chunk of tokens and stays in the
        L1 cache, and what is gathered is x: half as wide in bfloat16, and a chunk of it fits the L2 cache.

A product of float32 numbers is exact in float64, and D of them add up with an error of D 2^-53. A pair whose latent is
negative is passed over: its place keeps what it holds; one of a row that row_index does not name is a NaN. Most of the
time is expected to go into turning numbers into float64. Not timed yet: docs/measured.md.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from saerl_fast.kernels.published import Published
from saerl_fast.kernels.scores_triton import rows_of_x
from saerl_fast.kernels.triton_runtime import on_device_of

PAIRS = 8
CHANNELS = 128


@triton.jit
def rescore_kernel(
    order, latents, x, row_index, w, centre, bias, scale, exact, n_pairs, per_row, n_rows, x_rows, width,
    x_row_stride, x_column_stride, w_stride, HAS_INDEX: tl.constexpr, HAS_CENTRE: tl.constexpr, HAS_SCALE: tl.constexpr,
    PAIRS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """PAIRS pairs per program, as `order` has them."""
    place = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    pair = tl.load(order + place, mask=place < n_pairs, other=0)
    latent = tl.load(latents + pair, mask=place < n_pairs, other=-1).to(tl.int64)
    wanted = (place < n_pairs) & (latent >= 0)
    latent = tl.where(wanted, latent, 0)
    source, named = rows_of_x(row_index, pair // per_row, n_rows, x_rows, HAS_INDEX)
    start_of_row = source.to(tl.int64) * x_row_stride
    total = tl.zeros([PAIRS, CHANNELS], dtype=tl.float64)
    for start in range(0, width, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        inside = channel < width
        both = wanted[:, None] & inside[None, :]
        places = start_of_row[:, None] + channel.to(tl.int64)[None, :] * x_column_stride
        left = tl.load(x + places, mask=both & named[:, None], other=0.0).to(tl.float64)
        if HAS_CENTRE:
            left -= tl.load(centre + channel, mask=inside, other=0.0).to(tl.float64)[None, :]
        right = tl.load(w + latent[:, None] * w_stride + channel[None, :], mask=both, other=0.0)
        total += left * right.to(tl.float64)
    h = tl.sum(total, axis=1) + tl.load(bias + latent, mask=wanted, other=0.0).to(tl.float64)
    if HAS_SCALE:
        h *= tl.load(scale + latent, mask=wanted, other=0.0).to(tl.float64)
    tl.store(exact + pair, tl.where(named, h, float("nan")), mask=wanted)


def rescore(x: Tensor, row_index: Tensor | None, encoder: Published, latents: Tensor, exact: Tensor) -> None:
    """Write exact [N, C] float64 where latents [N, C] int32 names one (from 0 on).

    x [R, D], any strides   row_index [N] int64, latents and exact contiguous
    """
    if not latents.numel():
        return
    w, bias, centre, scale = encoder
    order = latents.reshape(-1).argsort()
    with on_device_of(x):
        rescore_kernel[(triton.cdiv(latents.numel(), PAIRS),)](
            order, latents, x, order if row_index is None else row_index, w, bias if centre is None else centre, bias,
            bias if scale is None else scale, exact, latents.numel(), latents.shape[1], latents.shape[0], x.shape[0],
            x.shape[1], *x.stride(), w.stride(0), HAS_INDEX=row_index is not None, HAS_CENTRE=centre is not None,
            HAS_SCALE=scale is not None, PAIRS=PAIRS, CHANNELS=CHANNELS, num_warps=4,
        )  # fmt: skip

"""Chosen scores of an encoder once more, in float64: what stands behind a screen.

    exact[i, c] = scale[j] * ((x[i] - b_dec) . w_enc[j] + b_enc[j]),   j = latents[i, c]

Floor:  x and w_enc once from memory, and for each pair D numbers of each from wherever they are. At D 1536 and 74
        pairs a token, w_enc gathered row by row from memory would be 455 kB a token: 106 ns, more than the product.
Trick:  the pairs are taken latent by latent. A row of w_enc is then fetched once per chunk of tokens and stays in the
        L1 cache, and what is gathered is x: half as wide in bfloat16, and a chunk of it fits the L2 cache.

A product of float32 numbers is exact in float64, and D of them add up with an error of D 2^-53. A pair whose latent is
negative is passed over: its place keeps what it holds. Not timed yet: docs/measured.md.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from saerl_fast.kernels.triton_runtime import on_device_of

PAIRS = 8
CHANNELS = 128


@triton.jit
def rescore_kernel(
    order, latents, x, w, centre, bias, scale, exact, n_pairs, per_row, width, x_stride, w_stride,
    HAS_CENTRE: tl.constexpr, HAS_SCALE: tl.constexpr, PAIRS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """PAIRS pairs per program, as `order` has them."""
    place = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    pair = tl.load(order + place, mask=place < n_pairs, other=0)
    latent = tl.load(latents + pair, mask=place < n_pairs, other=-1).to(tl.int64)
    wanted = (place < n_pairs) & (latent >= 0)
    latent = tl.where(wanted, latent, 0)
    row = pair // per_row
    total = tl.zeros([PAIRS, CHANNELS], dtype=tl.float64)
    for start in range(0, width, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        inside = channel < width
        both = wanted[:, None] & inside[None, :]
        left = tl.load(x + row[:, None] * x_stride + channel[None, :], mask=both, other=0.0).to(tl.float64)
        if HAS_CENTRE:
            left -= tl.load(centre + channel, mask=inside, other=0.0).to(tl.float64)[None, :]
        right = tl.load(w + latent[:, None] * w_stride + channel[None, :], mask=both, other=0.0)
        total += left * right.to(tl.float64)
    h = tl.sum(total, axis=1) + tl.load(bias + latent, mask=wanted, other=0.0).to(tl.float64)
    if HAS_SCALE:
        h *= tl.load(scale + latent, mask=wanted, other=0.0).to(tl.float64)
    tl.store(exact + pair, h, mask=wanted)


def rescore(
    x: Tensor, w: Tensor, bias: Tensor, centre: Tensor | None, scale: Tensor | None, latents: Tensor, exact: Tensor
) -> None:
    """Write exact [N, C] float64 where latents [N, C] int32 names one (from 0 on).

    x [N, D], w [M, D]: columns side by side; bias, scale [M], centre [D] float32. latents and exact contiguous.
    """
    if not latents.numel():
        return
    n_pairs, width = latents.numel(), x.shape[1]
    order = latents.reshape(-1).argsort()
    with on_device_of(x):
        rescore_kernel[(triton.cdiv(n_pairs, PAIRS),)](
            order, latents, x, w, bias if centre is None else centre, bias, bias if scale is None else scale, exact,
            n_pairs, latents.shape[1], width, x.stride(0), w.stride(0),
            HAS_CENTRE=centre is not None, HAS_SCALE=scale is not None, PAIRS=PAIRS, CHANNELS=CHANNELS, num_warps=4,
        )  # fmt: skip

"""The fold of b_dec into the bias of an encoder, in Triton.

    folded[j] = b_enc[j] - sum_d w[j, d] b_dec[d]        summed in float64, rounded once

Floor:  one read of w: 75 MB at D 1536 and M 24,576 in 16 bits, 18 us of an H200's memory, once a call.
Trick:  none: a tile of w per program, longer on the side that lies together, so that rows of [D, M] weights are read
        as whole lines too. How far from the floor it is, is not known: not timed yet, docs/measured.md.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from saerl_fast.kernels.triton_runtime import on_device_of

TILES = {"rows": (16, 128), "columns": (128, 16)}
"""Latents and channels of a tile, by what lies together in memory: 256 bytes of 16-bit weights."""


@triton.jit
def fold_kernel(
    w, b_enc, b_dec, folded, n_latents, width, row_stride, column_stride,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    latent = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    real = latent < n_latents
    total = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float64)
    for start in range(0, width, BLOCK_D):
        channel = start + tl.arange(0, BLOCK_D)
        inside = channel < width
        places = latent[:, None] * row_stride + channel[None, :].to(tl.int64) * column_stride
        part = tl.load(w + places, mask=real[:, None] & inside[None, :], other=0.0).to(tl.float64)
        total += part * tl.load(b_dec + channel, mask=inside, other=0.0).to(tl.float64)[None, :]
    bias = tl.load(b_enc + latent, mask=real, other=0.0).to(tl.float64)
    tl.store(folded + latent, (bias - tl.sum(total, axis=1)).to(tl.float32), mask=real)


def fold(w: Tensor, b_enc: Tensor, b_dec: Tensor, folded: Tensor) -> None:
    """Write folded [M]; the contract is that of `folded_bias`."""
    n_latents, width = w.shape
    latents, channels = TILES["columns" if w.stride(0) == 1 and w.stride(1) != 1 else "rows"]
    with on_device_of(w):
        fold_kernel[(triton.cdiv(n_latents, latents),)](
            w, b_enc, b_dec, folded, n_latents, width, *w.stride(), BLOCK_M=latents, BLOCK_D=channels, num_warps=4
        )

"""The int8 matrix product of torch, used only where it is exact.

Floor:  2 N M D operations at the rate of the byte instructions, a tenth to a quarter of the float32 time.
Trap:   without AVX-512 VNNI the library adds byte products in 16 bits, which saturate: most sums are wrong, and
        nothing says so. An environment variable can take VNNI away too (ONEDNN_MAX_CPU_ISA). So the processor is
        asked, and products that would saturate are tried once before the first use.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from saerl_fast.kernels import native

CHANNEL_STEP = 64
"""Rows of bytes are padded with zeros to a multiple of this: one cache line."""
MAX_CHANNELS = 2**17
"""Sums of 127 * 127 over so many channels stay below 2^31."""


def missing() -> str | None:
    """Why there is no exact int8 product here, or None."""
    if reason := native.missing():
        return reason
    if reason := native.module().int8_product_refused():
        return str(reason)
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):  # type: ignore[no-untyped-call]
        return "torch's oneDNN is absent or switched off, without which its int8 product is slow"
    return _saturation()


def multiply(x: Tensor, w: Tensor, out: Tensor) -> None:
    """out [N, M] int32 = x [N, D] int8 @ w [M, D]^T int8; all contiguous."""
    torch._int_mm(x, w.T, out=out)


@functools.cache
def _saturation() -> str | None:
    """Try products whose pairs of terms exceed 16 bits, in shapes of every kind that the blocks have."""
    generator = torch.Generator().manual_seed(0)
    for rows, latents, width in ((1, 1, 64), (3, 70, 64), (40, 512, 256), (130, 33, 1536)):
        signs = torch.randint(0, 2, (rows + latents, width), generator=generator, dtype=torch.int64) * 2 - 1
        signs[0], signs[rows] = 1, 1
        numbers = 127 * signs
        out = torch.empty(rows, latents, dtype=torch.int32)
        multiply(numbers[:rows].to(torch.int8), numbers[rows:].to(torch.int8), out)
        if not torch.equal(out.double(), numbers[:rows].double() @ numbers[rows:].double().T):
            return "torch's int8 product is not exact here: it failed the saturation test"
    return None

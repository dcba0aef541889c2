"""The bias of an encoder with b_dec folded in, so that 16-bit x can go to the tensor cores as it is.

    folded = b_enc - w_enc b_dec,   so that   (x - b_dec) w_enc^T + b_enc = x w_enc^T + folded

Made anew for each call, at what it would cost to look whether w_enc is still what it was: no cache can be stale.
"""

from __future__ import annotations

from importlib import import_module

import torch
from torch import Tensor

from saerl_fast.kernels import triton_runtime

BLOCK_NUMBERS = 2**22
"""Numbers of w_enc that are made float64 at a time (32 MB), where there is no Triton."""


def folded_bias(w_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
    """b_enc - w_enc b_dec [M] float32, summed in float64 and rounded once.

    w_enc [M, D]   b_enc [M], b_dec [D] float32, contiguous
    """
    folded = torch.empty_like(b_enc)
    if triton_runtime.refuses(w_enc.device.type) is None:
        # Triton may not be there, so the module that holds the kernel is imported here
        import_module("saerl_fast.kernels.fold_triton").fold(w_enc, b_enc, b_dec, folded)
        return folded
    step = max(1, BLOCK_NUMBERS // max(1, w_enc.shape[1]))
    for start in range(0, len(w_enc), step):
        rows = slice(start, start + step)
        folded[rows] = torch.addmv(b_enc[rows].double(), w_enc[rows].double(), b_dec.double(), alpha=-1)
    return folded


def row_sums(w_enc: Tensor) -> Tensor:
    """The sum of each row of w_enc [M, D]: float32 [M], summed in float64 and rounded once."""
    none, ones = (make(n, device=w_enc.device) for make, n in zip((torch.zeros, torch.ones), w_enc.shape, strict=True))
    return -folded_bias(w_enc, none, ones)

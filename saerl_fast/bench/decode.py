"""Sparse codes back to activations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from saerl_fast import ops
from saerl_fast.bench.contest import Contest, Verdict
from saerl_fast.bench.data import token_codes
from saerl_fast.bench.encode import backend_of
from saerl_fast.ops import TopKCodes

ROUNDING = 2.0**-24
BLOCK_ROWS = 256


def decode(rows: int, width: int, latents: int, k: int) -> Contest:
    """Against torch's embedding_bag with weights, and the product with the dense codes, whichever is faster."""
    codes = token_codes(rows, k, latents)
    generator = torch.Generator().manual_seed(5)
    w_dec = functional.normalize(torch.randn(latents, width, generator=generator))
    b_dec = torch.randn(width, generator=generator)

    def bag() -> Tensor:
        indices = codes.indices.long()
        return functional.embedding_bag(indices, w_dec, mode="sum", per_sample_weights=codes.values) + b_dec

    def dense() -> Tensor:
        return torch.addmm(b_dec, dense_codes(codes, latents), w_dec)

    return Contest(
        ours=lambda: (ops.decode(codes, w_dec, b_dec),),
        baselines={"torch embedding_bag": bag, "dense product": dense},
        prove=lambda result: decoded(result[0], codes, w_dec, b_dec),
        backend=backend_of("decode"),
        facts={"gathered_mb": rows * k * width * 4 / 1e6},
    )


def dense_codes(codes: TopKCodes, latents: int) -> Tensor:
    """The dense array [N, M] that the codes stand for, in the type of their values."""
    array = torch.zeros(len(codes.indices), latents, dtype=codes.values.dtype)
    return array.scatter_(1, codes.indices.long(), codes.values)


def decoded(result: Tensor, codes: TopKCodes, w_dec: Tensor, b_dec: Tensor) -> Verdict:
    """In float64: sums of k + 1 numbers differ by at most (k + 1) 2^-24 times the sum of their sizes."""
    if result.shape != (len(codes.indices), w_dec.shape[1]):
        return Verdict(f"wanted [{len(codes.indices)}, {w_dec.shape[1]}]; got {list(result.shape)}")
    w, b = w_dec.double(), b_dec.double()
    terms = codes.indices.shape[1] + 1
    for start in range(0, len(result), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        values = dense_codes(TopKCodes(codes.values[block].double(), codes.indices[block]), len(w))
        error = (result[block] - torch.addmm(b, values, w)).abs()
        if not bool((error <= terms * ROUNDING * torch.addmm(b.abs(), values.abs(), w.abs())).all()):
            return Verdict(f"a number is off by {float(error.max()):.3g}")
    return Verdict()

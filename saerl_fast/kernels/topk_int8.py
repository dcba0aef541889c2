"""topk_encode on the CPU by int8 screening: exact, and faster than the float32 product alone.

    h = scale * ((x - b_dec) w_enc^T + b_enc);   values, indices = topk_j h     in float64, rounded to float32 once

Floor:  the int8 product (2 N M D byte operations) and a float64 dot for each of the k latents of a row.
Trick:  int8_screening.py, csrc/cpu/screened_topk.h. About four k latents per row cannot be ruled out by the bytes;
        nearly all of those beyond k are by their float32 scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saerl_fast.kernels import native
from saerl_fast.kernels.int8_screening import Screening, most_survivors, trust
from saerl_fast.kernels.screening_counts import count

PAYS_NOT = "the float32 product is faster for so few channels or latents, or so many kept ones"
"""Why `pays` said no."""


def encode(
    x: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    k: int,
    b_dec: Tensor | None,
    scale: Tensor | None,
    row_index: Tensor | None,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    """The contract of `ops.topk_encode`; arguments are checked, none is float64.

    The bits of a row do not depend on the other rows, the number of threads, or the processor. Raises
    BackendUnavailable where a score lies outside of its bound, which means that the int8 product was not exact.
    """
    return encode_certified(x, w_enc, b_enc, k, b_dec, scale, row_index, relu)[:2]


def encode_certified(
    x: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    k: int,
    b_dec: Tensor | None,
    scale: Tensor | None,
    row_index: Tensor | None,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The contract of `ops.topk_encode_certified`; the rest as `encode`."""
    n_rows = x.shape[0] if row_index is None else row_index.shape[0]
    values = torch.empty(n_rows, k, dtype=torch.float32)
    indices = torch.empty(n_rows, k, dtype=torch.int32)
    certified = torch.empty(n_rows, dtype=torch.bool)
    if n_rows == 0:
        return values, indices, certified
    screening = Screening(x, w_enc, b_enc, b_dec, scale, row_index)
    screen = native.ScreenedTopK(k, survivors_limit(k, len(b_enc)), trust(x.shape[1]))
    for rows in screening.blocks():
        encoder = screening.absorb(screen, rows)
        result = screen.finish(encoder, values[rows], indices[rows], certified[rows], relu)
        count("topk_encode", rows.stop - rows.start, result)
    return values, indices, certified


def survivors_limit(k: int, n_latents: int) -> int:
    """A row that keeps more latents than this is scored whole."""
    return max(4 * k, most_survivors(n_latents))


def pays(width: int, n_latents: int, k: int) -> bool:
    """Whether screening is faster than backend `cpu`.

    A rule on shapes alone, so that a row does not change its backend with the size of its batch: what a row costs for
    its survivors grows with k, what the product saves with D M. On a processor without AMX the smallest
    shapes of the rule are 1.6 times as fast (results file of 2026-11-24, int8-pays); with AMX it may change over later.
    """
    return width >= 384 and n_latents >= 4096 and 64 * k <= n_latents

"""topk_encode for published float32 weights, screened by a bfloat16 product, with a certificate for each row.

    h = scale * ((x - b_dec) w_enc^T + b_enc);   values, indices = topk_j h     in float64, rounded to float32 once

Floor:  the bfloat16 product, and a float32 row of w_enc for each latent scored again (6 kB at D 1536).
Trick:  the product runs on x^ and w^, rounded to bfloat16, and its epilogue turns each score into an upper bound of
        the exact one (Cauchy-Schwarz, as topk_int8.py):

            h - estimate <= |scale_j| ((|x - x^| + slack |x^|) |w^_j| + |x - b_dec| |w_j - w^_j|) + |bias| slack

        The best by bound are scored in float64. A row is certified when the smallest bound among them is below the
        k-th exact score: all that was left out is then proved to be out. Other rows are scored whole, in float64.

The slack covers the accumulation: tensor cores may drop up to one unit in the last place per product, in all
D 2^-23 |x^| |w^|; twice that is taken. The rescoring is torch's gather and product, not yet a kernel.

Not timed yet: docs/measured.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saerl_fast.kernels.encode_triton import ScoreChunks, UpperBounds, select
from saerl_fast.kernels.latent_groups import group_size_for, most_kept

RESCORED_NUMBERS = 2**25
"""Numbers of w_enc gathered at once (128 MB)."""
WIDER = 1.0 + 2.0**-18
"""What the rounding of the bound itself is paid with."""


def encode(
    x: Tensor, w_enc: Tensor, b_enc: Tensor, k: int, b_dec: Tensor | None, scale: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """values [N, k] float32, indices [N, k] int32, and certified [N] bool: rows that the screen alone decided.

    x [N, D], w_enc [M, D] float32; b_enc, scale [M], b_dec [D]. All rows are exact; those not certified were scored
    whole. A row with a NaN gives NaN values and indices 0..k-1.
    """
    n_latents = w_enc.shape[0]
    candidates = min(n_latents, max(2 * k, k + 64), most_kept(n_latents, k))
    x, w, bias = x.float(), w_enc.float(), b_enc.float()
    centre = x.new_zeros(x.shape[1]) if b_dec is None else b_dec.float()
    factor = None if scale is None else scale.float()
    chunks = _screen(x, w, bias, centre, factor, candidates)
    bounds, found = select(chunks, candidates, relu=False)
    exact = _rescored(x, w, bias, centre, factor, found)
    # by score, and of equal ones the lower index: sort by index first, stably by score then
    order = found.long().argsort(dim=1)
    order = order.gather(1, exact.gather(1, order).argsort(dim=1, descending=True, stable=True))
    best = exact.gather(1, order)[:, :k]
    indices = found.gather(1, order)[:, :k]
    certified = (bounds[:, -1].double() < best[:, -1]) | (candidates == n_latents)
    certified &= best.isfinite().all(dim=1) & bounds.isfinite().all(dim=1)
    values = best.float()
    whole = (~certified).nonzero()[:, 0]
    step = max(1, RESCORED_NUMBERS // max(n_latents, 1))
    for rows in torch.split(whole, step):
        values[rows], indices[rows] = _whole(x[rows], w, bias, centre, factor, k)
    if relu:
        values = torch.where(values > 0, values, torch.where(values.isnan(), values, 0.0))
    return values, indices, certified


def _screen(x: Tensor, w: Tensor, bias: Tensor, centre: Tensor, scale: Tensor | None, k: int) -> ScoreChunks:
    """The product of rounded x and w, its scores raised to upper bounds."""
    x_half, w_half = x.bfloat16(), w.bfloat16()
    slack = 2.0**-22 * (x.shape[1] + 64)
    x_size, w_size = _norm(x_half), _norm(w_half)
    size = w_size if scale is None else w_size * scale.abs()
    error = _norm(w.double() - w_half.double())
    folded = bias.double() - w_half.double() @ centre.double()
    raised = folded + 2.0**-21 * folded.abs() * (1.0 if scale is None else torch.where(scale < 0, -1.0, 1.0).double())
    bounds = UpperBounds(
        ((_norm(x.double() - x_half.double()) + slack * x_size) * WIDER).float(),
        (_norm(x.double() - centre.double()) * WIDER).float(),
        (size * WIDER).float(),
        ((error if scale is None else error * scale.abs()) * WIDER).float(),
    )
    group = group_size_for(w.shape[0], k)
    return ScoreChunks(x_half, w_half, raised.float(), None, scale, None, group, bounds=bounds)


def _norm(rows: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(rows.double(), dim=1)
    return norm


def _rescored(x: Tensor, w: Tensor, bias: Tensor, centre: Tensor, scale: Tensor | None, latents: Tensor) -> Tensor:
    """h [N, candidates] float64 of the latents named."""
    exact = torch.empty(latents.shape, dtype=torch.float64, device=x.device)
    step = max(1, RESCORED_NUMBERS // max(1, latents.shape[1] * x.shape[1]))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        chosen = latents[rows].long()
        centred = x[rows].double() - centre.double()
        dots = torch.einsum("nd,nkd->nk", centred, w[chosen].double()) + bias.double()[chosen]
        exact[rows] = dots if scale is None else dots * scale.double()[chosen]
    return exact


def _whole(x: Tensor, w: Tensor, bias: Tensor, centre: Tensor, scale: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    h = (x.double() - centre.double()) @ w.double().T + bias.double()
    h = h if scale is None else h * scale.double()
    ordered, order = h.sort(dim=1, descending=True, stable=True)
    spoilt = h.isnan().any(dim=1, keepdim=True)
    values = torch.where(spoilt, torch.nan, ordered[:, :k]).float()
    return values, torch.where(spoilt, torch.arange(k, device=x.device), order[:, :k]).int()

"""topk_encode on a GPU for published float32 weights: screened by a bfloat16 product, exact, and certified row by row.

    h = scale * ((x - b_dec) w_enc^T + b_enc);   values, indices = topk_j h     in float64, rounded to float32 once

Floor:  the bfloat16 product (scores_triton.py), and D numbers of x and of w_enc for each of the k latents of a row.
Trick:  the product runs on x^ and w^, rounded to bfloat16, and its epilogue raises each score to an upper bound of the
        exact one (Cauchy-Schwarz, as int8_screening.py):

            h - estimate <= |scale_j| ((|x - x^| + slack |x^|) |w^_j| + |x - b_dec| |w_j - w^_j|) + |bias| slack

        The k with the highest bounds are scored in float64. Their smallest score t is a lower bound of the k-th best,
        so of the next ones only those whose bound reaches t are scored too. A row is certified when the bounds end
        below its k-th score before the list of candidates does: all that was left out is then proved to be out. Other
        rows are scored whole in float64, and counted (ops.screening_counts).

Rounding only the weights, as a cast to bfloat16 does, changes the set in one row of nine; here the set is that of the
published weights. x in bfloat16, as a hook hands it over, is not rounded at all.

The slack covers the accumulation: tensor cores may drop up to one unit in the last place per product, in all
D 2^-23 |x^| |w^|; twice that is taken. It waits once per call, to see which rows were not certified. Not timed yet:
docs/measured.md.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saerl_fast.kernels import triton_runtime
from saerl_fast.kernels.encode_triton import ScoreChunks, UpperBounds, select
from saerl_fast.kernels.folded_bias import folded_bias
from saerl_fast.kernels.int8_screening import count
from saerl_fast.kernels.latent_groups import group_size_for, most_kept
from saerl_fast.kernels.native import ScreenResult
from saerl_fast.kernels.rescore_triton import rescore

NUMBERS = 2**24
"""Numbers of a chunk: of x, of w_enc or of whole scores (128 MB in float64)."""
WIDER = 1.0 + 2.0**-18
"""What the rounding of the bound itself is paid with."""


class Encoder(NamedTuple):
    """The encoder as published; columns of w side by side."""

    w: Tensor
    """[M, D] float32"""
    bias: Tensor
    """[M] float32"""
    centre: Tensor | None
    """[D] float32"""
    scale: Tensor | None
    """[M] float32"""


class Screen(NamedTuple):
    """The encoder rounded to bfloat16, and what the rounding can change."""

    w: Tensor
    """[M, D] bfloat16"""
    bias: Tensor
    """[M] float32: b_dec folded in, raised by its roundings"""
    size: Tensor
    """[M] float32: |scale_j| |w^_j|"""
    error: Tensor
    """[M] float32: |scale_j| |w_j - w^_j|"""


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
    """The contract of `ops.topk_encode`; arguments are checked, none is float64."""
    centre, factor = (None if part is None else part.float().contiguous() for part in (b_dec, scale))
    encoder = Encoder(w_enc.float().contiguous(), b_enc.float().contiguous(), centre, factor)
    n_rows = x.shape[0] if row_index is None else row_index.shape[0]
    values = torch.empty(n_rows, k, dtype=torch.float32, device=x.device)
    indices = torch.empty(n_rows, k, dtype=torch.int32, device=x.device)
    certified = torch.empty(n_rows, dtype=torch.bool, device=x.device)
    scored = torch.zeros((), dtype=torch.int64, device=x.device)
    screen = screen_of(encoder)
    for rows in _chunks(n_rows, x.shape[1]):
        chunk = x[rows] if row_index is None else x[row_index[rows]]
        found = certify(chunk.contiguous(), encoder, screen, k)
        values[rows], indices[rows], certified[rows] = found[:3]
        scored += found[3]
    whole, pairs = torch.stack([(~certified).sum(), scored]).tolist()
    if whole:
        rest = (~certified).nonzero()[:, 0]
        for rows in _chunks(whole, w_enc.shape[0]):
            chosen = rest[rows]
            chunk = x[chosen if row_index is None else row_index[chosen]]
            values[chosen], indices[chosen] = score_whole(chunk, encoder, k)
    count("topk_encode", n_rows, ScreenResult(whole=whole, sieved=0, scored=pairs, outside=0, worst=0.0), plain="cuda")
    if relu:
        values = torch.where(values > 0, values, torch.where(values.isnan(), values, 0.0))
    return values, indices


def _chunks(n_rows: int, width: int) -> list[slice]:
    step = max(1, NUMBERS // width)
    return [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]


def screen_of(encoder: Encoder) -> Screen:
    """The encoder rounded, made anew for each call: four reads of w_enc."""
    w, bias, centre, scale = encoder
    rounded = w.bfloat16()
    folded = bias if centre is None else folded_bias(_as_read(rounded), bias, centre)
    upward = 1.0 if scale is None else torch.where(scale < 0, -1.0, 1.0)
    size, error = _norms(rounded), torch.empty(len(w), dtype=torch.float64, device=w.device)
    for rows in _chunks(*w.shape):
        # the difference of a number and its rounding is exact in float32
        error[rows] = _norms(w[rows] - rounded[rows].float())
    weight = 1.0 if scale is None else scale.double().abs()
    return Screen(
        rounded,
        folded + 2.0**-21 * folded.abs() * upward,
        (size * weight * WIDER).float(),
        (error * weight * WIDER).float(),
    )


def _as_read(rounded: Tensor) -> Tensor:
    # the interpreter has no bfloat16 of its own
    return rounded.float() if triton_runtime.interpreted() else rounded


def certify(x: Tensor, encoder: Encoder, screen: Screen, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """values [n, k] float32, indices [n, k] int32, certified [n] bool, and the number of pairs scored.

    x [n, D] contiguous. What stands in the rows that are not certified means nothing.
    """
    n_latents = len(encoder.w)
    candidates = min(n_latents, max(2 * k, k + 64), most_kept(n_latents, k))
    bounds, found = select(upper_bounds(x, encoder, screen, candidates), candidates, relu=False)
    exact = torch.full(found.shape, -torch.inf, dtype=torch.float64, device=x.device)
    first = found.clone()
    first[:, k:] = -1
    rescore(x, *encoder, first, exact)
    least = exact[:, :k].amin(dim=1, keepdim=True)
    late = torch.where(bounds.double() >= least, found, -1)
    late[:, :k] = -1
    rescore(x, *encoder, late, exact)
    # descending by score, and of equal ones the lower index: by index first, then stably by score
    order = found.argsort(dim=1)
    order = order.gather(1, exact.gather(1, order).argsort(dim=1, descending=True, stable=True))[:, :k]
    best = exact.gather(1, order)
    proved = bounds[:, -1].double() < best[:, -1]
    proved = (proved | (candidates == n_latents)) & best.isfinite().all(dim=1) & bounds.isfinite().all(dim=1)
    return best.float(), found.gather(1, order), proved, (late >= 0).sum() + k * len(x)


def upper_bounds(x: Tensor, encoder: Encoder, screen: Screen, k: int) -> ScoreChunks:
    """The product of rounded x and w, its scores raised to upper bounds of the exact ones, ready for a select of k."""
    rounded = x.bfloat16()
    slack = 2.0**-22 * (x.shape[1] + 64)
    error = slack * _norms(rounded)
    if x.dtype != torch.bfloat16:
        error += _norms(x.float() - rounded.float())
    size = _norms(x if encoder.centre is None else x.float() - encoder.centre)
    bounds = UpperBounds((error * WIDER).float(), (size * WIDER).float(), screen.size, screen.error)
    group = group_size_for(len(screen.w), k)
    return ScoreChunks(rounded, screen.w, screen.bias, None, encoder.scale, None, group, bounds=bounds)


def _norms(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return norms


def score_whole(x: Tensor, encoder: Encoder, k: int) -> tuple[Tensor, Tensor]:
    """The k best of rows scored for every latent in float64: values float32, indices int32."""
    w, bias, centre, scale = encoder
    centred = x.double() if centre is None else x.double() - centre.double()
    h = torch.cat([centred @ w[part].double().T for part in _chunks(*w.shape)], dim=1) + bias.double()
    h = h if scale is None else h * scale.double()
    ordered, order = h.sort(dim=1, descending=True, stable=True)
    spoilt = h.isnan().any(dim=1, keepdim=True)
    values = torch.where(spoilt, torch.nan, ordered[:, :k]).float()
    return values, torch.where(spoilt, torch.arange(k, device=x.device), order[:, :k]).int()

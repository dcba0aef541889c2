"""topk_encode on a GPU for published float32 weights: screened by a bfloat16 product, exact, and certified row by row.

    h = scale * ((x - b_dec) w_enc^T + b_enc);   values, indices = topk_j h     in float64, rounded to float32 once

Floor:  the bfloat16 product (scores_triton.py: 96 ns a token at D 1536 and 24,576 latents), and D numbers of x and of
        w_enc for each of the k latents of a row (rescore_triton.py).
Trick:  the product runs on x^ and w^, rounded to bfloat16, and its epilogue raises each score to an upper bound of the
        exact one (Cauchy-Schwarz, as int8_screening.py):

            h - estimate <= |scale_j| ((|x - x^| + slack |x^|) |w^_j| + |x - b_dec| |w_j - w^_j|) + |bias| slack

        The k with the highest bounds are scored in float64. Their smallest score t is a lower bound of the k-th best,
        so of the next ones only those whose bound reaches t are scored too. A row is certified when the bounds end
        below its k-th score before the list of candidates does: all that was left out is then proved to be out. Other
        rows are scored whole in float64, on the device and without a limit to their number (whole_rows_triton.py).
        So is a row with a score above its bound: there the proof does not hold, whatever the reason.

Rounding only the weights, as a cast to bfloat16 does, changes the set in one row of nine; here the set is that of the
published weights. x in bfloat16, as a hook hands it over, is not rounded at all, nor are the rows that count copied:
the product takes them by row_index, as the scores in float64 do. Wider x is rounded chunk by chunk, in the pass that
gathers it and takes its norms (rounding_triton.py).

The slack covers the accumulation: tensor cores may drop up to one unit in the last place per product, in all
D 2^-23 |x^| |w^|; twice that is taken. Nothing waits for the device: the counts stay there until they are asked for.
Not timed yet: docs/measured.md.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saerl_fast.kernels import triton_runtime
from saerl_fast.kernels.encode_triton import ScoreChunks, UpperBounds, select
from saerl_fast.kernels.folded_bias import folded_bias
from saerl_fast.kernels.latent_groups import group_size_for, most_kept
from saerl_fast.kernels.published import Published
from saerl_fast.kernels.rescore_triton import rescore
from saerl_fast.kernels.rounding_triton import round_rows
from saerl_fast.kernels.scores_cuda import rows_per_chunk
from saerl_fast.kernels.screening_counts import count_on_device
from saerl_fast.kernels.whole_rows_triton import score_open_rows

WIDER = 1.0 + 2.0**-18
"""What the rounding of the bound itself is paid with."""


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


class Certified(NamedTuple):
    """The k best of each row, how they are known to be, and what it took."""

    values: Tensor
    """[n, k] float32"""
    indices: Tensor
    """[n, k] int32"""
    certified: Tensor
    """[n] bool: by the screen; the other rows were scored whole"""
    counts: Tensor
    """[3] int64: rows scored whole, pairs scored besides, and of these above their bound"""


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
    """The contract of `ops.topk_encode`; arguments are checked but for row_index, none is float64."""
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
    """The contract of `ops.topk_encode_certified`; arguments are checked but for row_index, none is float64."""
    encoder = Published.of(w_enc, b_enc, b_dec, scale)
    n_rows = x.shape[0] if row_index is None else row_index.shape[0]
    row_index = None if row_index is None else row_index.contiguous()
    values = torch.empty(n_rows, k, dtype=torch.float32, device=x.device)
    indices = torch.empty(n_rows, k, dtype=torch.int32, device=x.device)
    certified = torch.empty(n_rows, dtype=torch.bool, device=x.device)
    counts = torch.zeros(3, dtype=torch.int64, device=x.device)
    screen = screen_of(encoder)
    tokens = rows_per_chunk(n_rows, len(w_enc))
    for start in range(0, n_rows, tokens):
        rows = slice(start, min(start + tokens, n_rows))
        chunk, index = (x[rows], None) if row_index is None else (x, row_index[rows])
        found = certify(chunk, index, encoder, screen, k)
        values[rows], indices[rows], certified[rows] = found[:3]
        counts += found.counts
    count_on_device("topk_encode", n_rows, counts)
    if relu:
        values = torch.where(values > 0, values, torch.where(values.isnan(), values, 0.0))
    return values, indices, certified


def screen_of(encoder: Published) -> Screen:
    """The encoder rounded, made anew for each call: one read of w_enc, and one of its rounding where there is b_dec."""
    w, bias, centre, scale = encoder
    rounded, kept, moved, _ = round_rows(w)
    if rounded is None:  # pragma: no cover - w is float32
        rounded = w
    folded = bias if centre is None else folded_bias(_as_read(rounded), bias, centre)
    upward = 1.0 if scale is None else torch.where(scale < 0, -1.0, 1.0)
    weight = WIDER if scale is None else WIDER * scale.double().abs()
    return Screen(rounded, folded + 2.0**-21 * folded.abs() * upward, (kept * weight).float(), (moved * weight).float())


def _as_read(rounded: Tensor) -> Tensor:
    # the interpreter has no bfloat16 of its own
    return rounded.float() if triton_runtime.interpreted() else rounded


def certify(x: Tensor, row_index: Tensor | None, encoder: Published, screen: Screen, k: int) -> Certified:
    """A chunk of rows: x [R, D], or those of it that row_index [n] names."""
    n_latents = len(encoder.w)
    candidates = min(n_latents, max(2 * k, k + 64), most_kept(n_latents, k))
    bounds, found = select(upper_bounds(x, row_index, encoder, screen, candidates), candidates, relu=False)
    exact = torch.full(found.shape, -torch.inf, dtype=torch.float64, device=x.device)
    first = found.clone()
    first[:, k:] = -1
    rescore(x, row_index, encoder, first, exact)
    least = exact[:, :k].amin(dim=1, keepdim=True)
    late = torch.where(bounds.double() >= least, found, -1)
    late[:, :k] = -1
    rescore(x, row_index, encoder, late, exact)
    # also where either is a NaN; what was not scored is -inf, and at most its bound
    broken = ~(exact <= bounds)
    beaten = (exact > bounds[:, -1:]).sum(dim=1) >= k
    certified = (beaten | (candidates == n_latents)) & ~broken.any(dim=1) & bounds.isfinite().all(dim=1)
    outside = (broken & exact.isfinite() & bounds.isfinite()).sum()
    whole = (~certified).sum()
    scored = ((late >= 0).sum(dim=1) + k).masked_fill_(~certified, 0).sum()
    score_open_rows(x, row_index, encoder, certified, k, exact, found)
    # descending by score, and of equal ones the lower index: by index first, then stably by score
    order = found.argsort(dim=1)
    order = order.gather(1, exact.gather(1, order).argsort(dim=1, descending=True, stable=True))[:, :k]
    counts = torch.stack([whole, scored, outside])
    return Certified(exact.gather(1, order).float(), found.gather(1, order), certified, counts)


def upper_bounds(x: Tensor, row_index: Tensor | None, encoder: Published, screen: Screen, k: int) -> ScoreChunks:
    """The product of rounded x and w, its scores raised to upper bounds of the exact ones, ready for a select of k."""
    rounded, kept, moved, apart = round_rows(x, row_index, encoder.centre)
    slack = 2.0**-22 * (x.shape[1] + 64)
    row_error = ((moved + slack * kept) * WIDER).float()
    bounds = UpperBounds(row_error, (apart * WIDER).float(), screen.size, screen.error)
    if rounded is not None:
        x, row_index = rounded, None
    group = group_size_for(len(screen.w), k)
    return ScoreChunks(x, screen.w, screen.bias, None, encoder.scale, row_index, group, bounds=bounds)

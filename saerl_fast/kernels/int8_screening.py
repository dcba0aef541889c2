"""What the operations that screen by int8 products share: bounds, and blocks of products.

    h = scale * ((x - b_dec) w_enc^T + b_enc)     in float64, rounded to float32 once

Trick:  csrc/cpu/screening.h. The product of rounded rows bounds every score (Cauchy-Schwarz); what is ruled out is
        proved to be out, and the few that are left are scored in float64, so what is kept is what float64 keeps,
        without the rule for near ties that float32 needs.

The bound of pair (i, j), with y, v the scaled and rotated rows and dy, dv what rounding changed in them:

    |score - estimate| <= |scale_j| ((|dy_i| + SLACK |y_i|) (|v_j| + |dv_j|) + |y_i| |dv_j|) (1 + SLACK)
                          + BIAS_SLACK (|scale_j b_j| + theta_j)

SLACK covers what is not Cauchy-Schwarz: float32 arithmetic on the estimate and on the bound itself (12 roundings of
2^-24, of numbers that are at most 2 |y| |v|, in all below 0.75 * 2^-19 |y| |v|), and float64 arithmetic of the
score, of scaling and rotation (two factors whose product is 1 within 2^-50, sums of 64) and of the norms
((D + 100) 2^-53, below 2^-35). BIAS_SLACK covers the roundings of the bias, and of a threshold
theta_j where there is one: it is subtracted before the products come and added again to what they leave (5 roundings
of 2^-24). Numbers are kept so far from the ends of the float32 range that nothing over- or underflows
(screen_kernels.h, Quantised); rows outside are scored whole, latents outside are scored for every row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from saerl_fast.kernels import int8_product, native
from saerl_fast.kernels.int8_weights import SAMPLE_ROWS, Int8WeightsCache, QuantisedRows, quantise

TOKENS = 1024
"""Rows of one block: the weights are read from memory once for all of them."""
FEW_TOKENS = 512
"""Rows of one block where the weights stay in the cache anyway, so that less has to be held."""
CACHED_NUMBERS = 2**22
"""So many weights stay in the cache."""
PRODUCTS = 2**18
"""Numbers of one block of products: 1 MB of int32, which stay in the cache."""
SLACK = 2.0**-19
BIAS_SLACK = 2.0**-21
LEAST_SCALE, MOST_SCALE, MOST_BIAS = 2.0**-30, 2.0**30, 2.0**90
MOST_SURVIVORS = 8192
"""Beyond these, or a quarter of all latents, a row is scored whole."""
TRUST = 2.5
"""Root of D times the share of a bound that `trust` gives: 3.5 times the usual error."""

CACHE = Int8WeightsCache()


class RowTerms(NamedTuple):
    """The factors of the bound that belong to a row: [N] float32 each."""

    step: Tensor
    spread: Tensor
    size: Tensor


class LatentTerms(NamedTuple):
    """The factors and summands of the bound that belong to a latent: [M] float32 each."""

    scale: Tensor
    reach: Tensor
    error: Tensor
    low: Tensor
    high: Tensor


class Screening:
    """One call of an operation: what is prepared for all rows, and the products of each block of them.

    The arguments are those of `ops.topk_encode`, checked, none float64, and one row at least.
    theta [M] float64, not below 0: screen the scores less these.
    """

    def __init__(
        self,
        x: Tensor,
        w_enc: Tensor,
        b_enc: Tensor,
        b_dec: Tensor | None,
        scale: Tensor | None,
        row_index: Tensor | None,
        theta: Tensor | None = None,
    ) -> None:
        self._x, self._row_index = x, row_index
        self._n_rows = x.shape[0] if row_index is None else row_index.shape[0]
        self._shift = torch.zeros(x.shape[1]) if b_dec is None else b_dec.float().contiguous()
        sample = slice(0, min(self._n_rows, SAMPLE_ROWS))
        self._weights = CACHE.get(w_enc, sample.stop, lambda: self._rows(sample) - self._shift)
        self._bias = b_enc.float().contiguous()
        self._scale = None if scale is None else scale.float().contiguous()
        self._latents = latent_terms(self._weights.rows, self._bias, self._scale, theta)
        self._tokens = min(TOKENS if w_enc.numel() > CACHED_NUMBERS else FEW_TOKENS, self._n_rows)
        self._width = min(PRODUCTS // self._tokens, len(self._bias))
        self._products = torch.empty(self._tokens * self._width, dtype=torch.int32)

    def blocks(self) -> Iterator[slice]:
        """The rows, so many at a time as one screen takes."""
        return (slice(start, min(start + self._tokens, self._n_rows)) for start in range(0, self._n_rows, self._tokens))

    def absorb(self, screen: native.Screen, rows: slice) -> native.ScreenedEncoder:
        """Multiply block by block into the buffer, and hand each block to the screen while it is in the cache.

        -> what the exact scores of these rows are computed from
        """
        x = self._rows(rows).contiguous()
        wide_shift = self._shift.double()
        quantised = quantise(x, wide_shift, -self._weights.exponents)
        screen.start(self._latents, row_terms(quantised))
        w = self._weights.rows.q
        for first in range(0, len(w), self._width):
            width = min(self._width, len(w) - first)
            products = self._products[: len(x) * width].view(len(x), width)
            int8_product.multiply(quantised.q, w[first : first + width], products)
            screen.absorb(products)
        return native.ScreenedEncoder(x, wide_shift, self._shift, self._weights.w, self._bias, self._scale)

    def _rows(self, rows: slice) -> Tensor:
        return (self._x[rows] if self._row_index is None else self._x[self._row_index[rows]]).float()


def row_terms(x: QuantisedRows) -> RowTerms:
    """Step, |dy| + SLACK |y| and |y|; the second never zero, so that an unbounded latent stays one."""
    spread = ((x.errors + SLACK * x.norms) * (1 + SLACK)).clamp(min=2.0**-100)
    size = torch.where(x.steps.isnan(), torch.inf, x.norms * (1 + SLACK))
    return RowTerms(x.steps, spread.float(), size.float())


def latent_terms(w: QuantisedRows, bias: Tensor, scale: Tensor | None, theta: Tensor | None = None) -> LatentTerms:
    """Terms of the bound of the scores, or of the scores less theta; a latent outside of the range of float32
    arithmetic gets an infinite one."""
    factor = torch.ones(len(bias), dtype=torch.float64) if scale is None else scale.double()
    size = factor.abs()
    offset = factor * bias.double()
    margin = BIAS_SLACK * offset.abs()
    if theta is not None:
        offset, margin = offset - theta, margin + BIAS_SLACK * theta
    fits = w.steps.isfinite() & ((size == 0) | ((size >= LEAST_SCALE) & (size <= MOST_SCALE)))
    # -inf is how dead latents are masked: it bounds itself
    fits &= (margin <= BIAS_SLACK * MOST_BIAS) | (offset == -torch.inf)
    low, high = offset - margin, offset + margin
    return LatentTerms(
        torch.where(fits, w.steps.double() * factor, 0).float(),
        torch.where(fits, (w.norms + w.errors) * size, torch.inf).float(),
        torch.where(fits, w.errors * size, 0).float(),
        torch.where(fits, torch.where(offset == -torch.inf, offset, low), 0).float(),
        torch.where(fits, torch.where(offset == -torch.inf, offset, high), 0).float(),
    )


def trust(width: int) -> float:
    """The share of its bound that a score is seldom further away from its estimate.

    The proof takes the worst directions; real errors point anywhere, so that they are about Gaussian, and 0.7 / sqrt(D)
    of the bound in the root mean square. Where less is trusted, more survives; where more, rows are scored whole.
    """
    return TRUST / math.sqrt(max(width, int8_product.CHANNEL_STEP))


def most_survivors(n_latents: int) -> int:
    """A row that keeps more latents than this is dearer to screen than to score whole."""
    return min(n_latents // 4, MOST_SURVIVORS)

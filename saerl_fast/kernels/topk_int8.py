"""topk_encode on the CPU by int8 screening: exact, and faster than the float32 product alone.

    h = scale * ((x - b_dec) w_enc^T + b_enc);   values, indices = topk_j h     in float64, rounded to float32 once

Floor:  the int8 product (2 N M D byte operations) and a float64 dot for each of the k latents of a row.
Trick:  csrc/cpu/screening.h. The product of rounded rows bounds every score (Cauchy-Schwarz); about three k latents
        per row cannot be ruled out and are scored in float64. What is ruled out is proved to be out, so the set is
        that of float64, without the rule for near ties that float32 needs.

The bound of pair (i, j), with y, v the scaled rows and dy, dv what rounding changed in them:

    |score - estimate| <= |scale_j| ((|dy_i| + SLACK |y_i|) (|v_j| + |dv_j|) + |y_i| |dv_j|) (1 + SLACK)
                          + BIAS_SLACK |scale_j b_j|

SLACK covers what is not Cauchy-Schwarz: float32 arithmetic on the estimate and on the bound itself (12 roundings of
2^-24, of numbers that are at most 2 |y| |v|, in all below 0.75 * 2^-19 |y| |v|), and float64 arithmetic of the
score and of the norms ((D + 8) 2^-53, below 2^-35). BIAS_SLACK covers the roundings of the bias. Numbers are kept
so far from the ends of the float32 range that nothing over- or underflows (screen_kernels.h, Quantised); rows
outside are scored whole, latents outside are scored for every row.
"""

from __future__ import annotations

import functools
import logging
import threading
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from saerl_fast.errors import BackendUnavailable
from saerl_fast.kernels import int8_product, native
from saerl_fast.kernels.int8_weights import SAMPLE_ROWS, Int8WeightsCache, QuantisedRows, quantise

logger = logging.getLogger(__name__)

TOKENS = 1024
"""Rows of one block."""
LATENTS = 256
"""Columns of one block of products: with TOKENS rows 1 MB of int32, which stay in the cache."""
SLACK = 2.0**-19
BIAS_SLACK = 2.0**-21
LEAST_SCALE, MOST_SCALE, MOST_BIAS = 2.0**-30, 2.0**30, 2.0**90
MOST_SURVIVORS = 8192
"""A row that keeps more latents than this, or a quarter of all, is scored whole (but never below 4 k)."""

PAYS_NOT = "the float32 product is faster for so few channels or latents, or so many kept ones"
"""Why `pays` said no."""

MANY_WHOLE = 0.25
"""Share of a block's rows scored whole beyond which screening is slower than backend `cpu`."""

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


@dataclass(frozen=True, slots=True)
class ScreeningCounts:
    """What screening has done in this process so far."""

    rows: int = 0
    whole_rows: int = 0
    """Rows that could not be screened (not finite, out of range, too many survivors), scored for all latents."""
    sieved: int = 0
    """Pairs of row and latent scored in float32, in the other rows."""
    scored: int = 0
    """Pairs of row and latent scored in float64, in the other rows."""
    worst: float = 0.0
    """Largest error of an estimate in units of its bound; the proof says at most 1."""


_counts = ScreeningCounts()
_counts_lock = threading.Lock()


def screening_counts() -> ScreeningCounts:
    """The totals since the process began."""
    return _counts


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
    n_rows = x.shape[0] if row_index is None else row_index.shape[0]
    values = torch.empty(n_rows, k, dtype=torch.float32)
    indices = torch.empty(n_rows, k, dtype=torch.int32)
    if n_rows == 0:
        return values, indices
    shift = torch.zeros(x.shape[1]) if b_dec is None else b_dec.float().contiguous()
    sample = slice(0, min(n_rows, SAMPLE_ROWS))
    weights = CACHE.get(w_enc, sample.stop, lambda: _rows(x, row_index, sample) - shift)
    bias = b_enc.float().contiguous()
    scale = None if scale is None else scale.float().contiguous()
    latents = latent_terms(weights.rows, bias, scale)
    products = torch.empty(min(TOKENS, n_rows) * min(LATENTS, len(bias)), dtype=torch.int32)
    for start in range(0, n_rows, TOKENS):
        rows = slice(start, min(start + TOKENS, n_rows))
        block = _rows(x, row_index, rows).contiguous()
        quantised = quantise(block, shift.double(), -weights.exponents)
        screen = native.RunningScreen(len(block), k, survivors_limit(k, len(bias)))
        terms = row_terms(quantised)
        _absorb_all(screen, quantised.q, weights.rows.q, terms, latents, products)
        encoder = native.ScreenedEncoder(
            block, shift.double(), shift, weights.w, bias, scale, terms.size, latents.reach
        )
        _count(len(block), screen.finish(encoder, values[rows], indices[rows], relu))
    return values, indices


def pays(width: int, n_latents: int, k: int) -> bool:
    """Whether screening is faster than backend `cpu`.

    A rule on shapes alone, so that a row does not change its backend with the size of its batch. Measured at one
    thread, 2,048 rows, time over that of `cpu`: 0.49 at D 1536, M 24,576, k 64; 0.55 at 768, 12,288, 32; 0.82 at 512,
    8,192, 64; but 0.94 at 384, 4,096, 32, 1.0 at 1536, 24,576, 256 and 1.2 at 256, 4,096, 32: what a row costs for
    its survivors grows with k, what the product saves with D M.
    """
    return width >= 512 and n_latents >= 8192 and 128 * k <= n_latents


def _rows(x: Tensor, row_index: Tensor | None, rows: slice) -> Tensor:
    return (x[rows] if row_index is None else x[row_index[rows]]).float()


def _absorb_all(
    screen: native.RunningScreen, x: Tensor, w: Tensor, rows: RowTerms, latents: LatentTerms, buffer: Tensor
) -> None:
    """Multiply block by block into the buffer, and hand each block to the screen while it is in the cache."""
    for first in range(0, len(w), LATENTS):
        columns = slice(first, min(first + LATENTS, len(w)))
        width = columns.stop - first
        products = buffer[: len(x) * width].view(len(x), width)
        int8_product.multiply(x, w[columns], products)
        screen.absorb(products, LatentTerms(*(term[columns] for term in latents)), rows)


def row_terms(x: QuantisedRows) -> RowTerms:
    """Step, |dy| + SLACK |y| and |y|; the second never zero, so that an unbounded latent stays one."""
    spread = ((x.errors + SLACK * x.norms) * (1 + SLACK)).clamp(min=2.0**-100)
    size = torch.where(x.steps.isnan(), torch.inf, x.norms * (1 + SLACK))
    return RowTerms(x.steps, spread.float(), size.float())


def latent_terms(w: QuantisedRows, bias: Tensor, scale: Tensor | None) -> LatentTerms:
    """Terms of the bound; a latent outside of the range of float32 arithmetic gets an infinite one."""
    factor = torch.ones(len(bias), dtype=torch.float64) if scale is None else scale.double()
    size = factor.abs()
    offset = factor * bias.double()
    margin = BIAS_SLACK * offset.abs()
    fits = w.steps.isfinite() & ((size == 0) | ((size >= LEAST_SCALE) & (size <= MOST_SCALE)))
    # -inf is how dead latents are masked: it bounds itself
    fits &= (offset.abs() <= MOST_BIAS) | (offset == -torch.inf)
    low, high = offset - margin, offset + margin
    return LatentTerms(
        torch.where(fits, w.steps.double() * factor, 0).float(),
        torch.where(fits, (w.norms + w.errors) * size, torch.inf).float(),
        torch.where(fits, w.errors * size, 0).float(),
        torch.where(fits, torch.where(offset == -torch.inf, offset, low), 0).float(),
        torch.where(fits, torch.where(offset == -torch.inf, offset, high), 0).float(),
    )


def survivors_limit(k: int, n_latents: int) -> int:
    return max(4 * k, min(n_latents // 4, MOST_SURVIVORS))


@functools.cache
def _warn_of_whole_rows() -> None:
    logger.warning(
        "topk_encode: more than %d %% of the rows of a block could not be screened by int8 products and were scored "
        "whole: correct, but slower than backend='cpu'. The rows may lie far from b_dec, or hold few distinct scores",
        100 * MANY_WHOLE,
    )


def _count(rows: int, result: native.ScreenResult) -> None:
    global _counts
    if result.outside:
        raise BackendUnavailable(
            f"topk_encode: the int8 product of this torch is not exact: {result.outside} of "
            f"{result.sieved + result.scored} scores lie outside of their proved bounds. "
            f"Use backend='cpu', and report torch.__config__.show()"
        )
    if result.whole > MANY_WHOLE * rows:
        _warn_of_whole_rows()
    with _counts_lock:
        _counts = ScreeningCounts(
            _counts.rows + rows,
            _counts.whole_rows + result.whole,
            _counts.sieved + result.sieved,
            _counts.scored + result.scored,
            max(_counts.worst, result.worst),
        )

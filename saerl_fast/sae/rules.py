"""How each kind of SAE picks its features, by means of the two encode operations alone.

No rule here makes a dense [N, M] array: what is not one call of an operation works on what the operation kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from saerl_fast import ops
from saerl_fast.errors import InputError
from saerl_fast.ops import CsrRows, SpacedRows, TopKCodes

if TYPE_CHECKING:
    from saerl_fast.sae.autoencoder import SAE


def encode_rows(
    sae: SAE, x: Tensor, row_index: Tensor | None, entries_per_row: int | None = None
) -> TopKCodes | CsrRows | SpacedRows:
    """Features of the rows x [R, D]; row_index int64 [N] picks rows.

    entries_per_row: room for rows of any number of entries, so that nothing waits for the device; None waits.
    """
    bias = sae.b_dec if sae.apply_b_dec else None
    if sae.kind in ("topk", "abstopk"):
        if sae.k is None:  # pragma: no cover - refused at construction
            raise InputError(f"a {sae.kind} SAE needs k")
        if sae.kind == "abstopk":
            return _absolute_topk(sae, sae.k, x, bias, row_index)
        return ops.topk_encode(
            x, sae.w_enc, sae.b_enc, sae.k, b_dec=bias, scale=sae.latent_scale, row_index=row_index, norm=sae.input_norm
        )
    if sae.kind == "gated":
        return _gated(sae, x, bias, row_index, entries_per_row)
    theta: Tensor | float = sae.threshold if sae.threshold is not None else 0.0
    return _above(sae, x, theta, bias, sae.latent_scale, row_index, entries_per_row)


def encode_operation(sae: SAE) -> str:
    """The operation that `encode_rows` is made of."""
    return "topk_encode" if sae.kind in ("topk", "abstopk") else "threshold_encode"


def encode_rows_certified(sae: SAE, x: Tensor, row_index: Tensor | None) -> tuple[TopKCodes, Tensor]:
    """`encode_rows` of a TopK SAE by `ops.topk_encode_certified`."""
    if sae.kind != "topk" or sae.k is None:
        raise InputError(f"encode_certified: only a topk SAE keeps the k largest scores; this one is {sae.kind}")
    return ops.topk_encode_certified(
        x,
        sae.w_enc,
        sae.b_enc,
        sae.k,
        b_dec=sae.b_dec if sae.apply_b_dec else None,
        scale=sae.latent_scale,
        row_index=row_index,
        norm=sae.input_norm,
    )


def _above(
    sae: SAE,
    x: Tensor,
    theta: Tensor | float,
    bias: Tensor | None,
    scale: Tensor | None,
    row_index: Tensor | None,
    entries_per_row: int | None,
) -> CsrRows | SpacedRows:
    norm = sae.input_norm
    if entries_per_row is None:
        return ops.threshold_encode(
            x, sae.w_enc, sae.b_enc, theta, b_dec=bias, scale=scale, row_index=row_index, norm=norm
        )
    return ops.threshold_encode_spaced(
        x,
        sae.w_enc,
        sae.b_enc,
        theta,
        b_dec=bias,
        scale=scale,
        row_index=row_index,
        norm=norm,
        entries_per_row=entries_per_row,
    )


def _absolute_topk(sae: SAE, k: int, x: Tensor, bias: Tensor | None, row_index: Tensor | None) -> TopKCodes:
    """The k largest of |h|, with their signs: among the k largest of h and the k largest of -h.

    -h = ((-x) - (-b_dec)) w^T - b_enc, so that both sides read the same weights, bit for bit the same |h|.
    A row with fewer than k scores other than 0 fills its last slots with 0.
    """
    scale = sae.latent_scale
    above = ops.topk_encode(
        x, sae.w_enc, sae.b_enc, k, b_dec=bias, scale=scale, row_index=row_index, norm=sae.input_norm
    )
    below = ops.topk_encode(
        -x, sae.w_enc, -sae.b_enc, k, b_dec=None if bias is None else -bias, scale=scale, row_index=row_index,
        norm=sae.input_norm,
    )  # fmt: skip
    values = torch.cat([above.values, below.values], dim=1)
    indices = torch.cat([above.indices, below.indices], dim=1)
    signed = torch.cat([above.values, -below.values], dim=1)
    # by index, then stably by size: ties go to the lower index, as in topk_encode
    by_index = indices.argsort(dim=1, stable=True)
    by_size = values.gather(1, by_index).argsort(dim=1, descending=True, stable=True)
    order = by_index.gather(1, by_size)[:, :k]
    spoilt = above.values[:, :1].isnan()
    return TopKCodes(
        torch.where(spoilt, above.values, signed.gather(1, order)),
        torch.where(spoilt, above.indices, indices.gather(1, order)),
    )


def _gated(
    sae: SAE, x: Tensor, bias: Tensor | None, row_index: Tensor | None, entries_per_row: int | None
) -> CsrRows | SpacedRows:
    """Latents whose gate g = x' w^T + b_enc is positive, with max(exp(r_mag) (g - b_enc) + b_mag, 0) as value.

    g - b_enc is x' w^T but for one rounding of size 2^-24 max(|g|, |b_enc|), which is within the rounding of the
    product itself: the magnitudes need no second product. Where nothing is to be waited for, a latent without magnitude
    stays as an entry of 0.
    """
    if sae.r_mag is None or sae.b_mag is None:  # pragma: no cover - refused at construction
        raise InputError("a gated SAE needs r_mag and b_mag")
    gate = _above(sae, x, 0.0, bias, None, row_index, entries_per_row)
    # behind the entries of spaced rows the places hold anything
    latent = gate.indices.long().clamp(0, sae.d_sae - 1)
    product = gate.values - sae.b_enc.float()[latent]
    magnitude = sae.r_mag.float().exp()[latent] * product + sae.b_mag.float()[latent]
    # a NaN marks its row and stays
    kept = ~(magnitude <= 0)
    if isinstance(gate, SpacedRows):
        return gate._replace(values=torch.where(kept, magnitude, 0.0))
    before = functional.pad(kept.cumsum(0), (1, 0))
    return CsrRows(before[gate.indptr], gate.indices[kept], magnitude[kept])

"""What an SAE does to rows it was not trained on: figures that show a wrong layer, model or loader at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saerl_fast.errors import InputError
from saerl_fast.sae.autoencoder import SAE

OUTLIER_NORM = 10.0
"""A row longer than this many median rows is an outlier."""


@dataclass(frozen=True)
class SAESanity:
    """What an SAE does to rows it was not trained on."""

    explained_variance: float
    """1 - sum |x - x^|^2 / sum |x - mean|^2, over all rows and channels; NaN for a transcoder without its targets"""
    l0: float
    """mean number of active latents per row"""
    dead_share: float
    """share of latents that no row activates"""
    norm: float = float("nan")
    """mean length |x| of a row, as the encoder sees it before b_dec"""
    norm_ratio: float = float("nan")
    """mean |x^| over mean |x|"""
    outliers: int = 0
    """rows left out of all other figures: longer than OUTLIER_NORM median rows (the first token of many models)"""


def sanity(sae: SAE, rows: Tensor) -> SAESanity:
    """Explained variance, mean L0, dead share and norms on held-out rows [N, D].

    Rows longer than OUTLIER_NORM times the median are counted and left out: a first token with the massive
    activation of many models carries more variance than all other tokens, and an SAE is not made for it.
    """
    rows = sae.prepare(rows)
    if not len(rows):
        raise InputError("sanity needs at least one row of activations; got none")
    lengths = torch.linalg.vector_norm(rows.float(), dim=1)
    usual = lengths <= OUTLIER_NORM * lengths.nanmedian()
    if not bool(usual.any()):
        raise InputError("sanity needs rows of finite activations; all hold NaN or infinity")
    rows, lengths = rows[usual], lengths[usual]
    codes = sae.encode(rows)
    active = codes.indices[codes.values != 0].long()
    fired = torch.bincount(active, minlength=sae.d_sae).count_nonzero()
    explained = ratio = float("nan")
    if not sae.transcoder:
        decoded = sae.decode(codes)
        missed = (rows - decoded).double().square().sum()
        spread = (rows - rows.mean(dim=0)).double().square().sum()
        explained = float(1 - missed / spread)
        ratio = float(torch.linalg.vector_norm(decoded.float(), dim=1).mean() / lengths.mean())
    return SAESanity(
        explained_variance=explained,
        l0=active.numel() / len(rows),
        dead_share=1 - int(fired) / sae.d_sae,
        norm=float(lengths.mean()),
        norm_ratio=ratio,
        outliers=int((~usual).sum()),
    )

"""Does this SAE fit what is read? A sample of tokens of the first shard, figures, and a warning where they are off."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saerl_fast.durable import replace
from saerl_fast.errors import MismatchWarning
from saerl_fast.extract.job import seal
from saerl_fast.extract.reader import Reader, mismatches
from saerl_fast.extract.store import SANITY
from saerl_fast.features import SparseFeatures
from saerl_fast.sae import SAE, SAESanity, sanity

logger = logging.getLogger(__name__)

FEWEST_TOKENS = 64
"""Below this nothing is judged: the variance of so few tokens says little."""
LEAST_EXPLAINED = 0.3
"""Of the 78 SAEs of sae-lens 6.54's registry that state it, 65 explain 0.40 or more and 13 explain 0.27 or less."""
L0_FACTOR = 2.0
"""How far L0 may lie from what the SAE promises, as a factor."""
DENSEST = 0.1
"""An SAE that promises nothing and has more than this share of its latents active on a token is not sparse."""
SHORTEST, LONGEST = 0.5, 1.25
"""How long a reconstruction may be, as a multiple of what is reconstructed. The best one that explains a share v of the
variance has sqrt(v) of the length, 0.55 at LEAST_EXPLAINED, and the best is never longer than what it is made for."""
TIMES_EACH = 10.0
"""So often must latents have been active on average before those that were not say something. Where use falls as
1 / rank, 10 times leave an eighth to a fifth of 4,096 to 65,536 latents silent, once leaves nearly three quarters."""
MOST_SILENT = 0.9
"""Texts of one subject leave many latents of a general SAE silent, but not nine of ten."""


def report_sanity(rows: Tensor, reader: Reader, sae: SAE, folder: Path | None) -> dict[str, Any] | None:
    """Measure, log, warn (MismatchWarning), and keep ``sanity.json`` in the folder; None where nothing can be said.

    rows: activations [N, D] (or [N, heads, D / heads]) of a sample of tokens (sample.py).
    """
    finite = rows.isfinite().flatten(1).all(dim=1)
    if not bool(finite.any()):
        return None
    try:
        found = sanity(sae, rows[finite])
    except torch.OutOfMemoryError as error:
        logger.warning("sanity: not measured, the device had no room for a sample of tokens (%s)", error)
        return None
    measured = what_is_off(found, sae, int(finite.sum()))
    report = {name: value if math.isfinite(value) else None for name, value in asdict(found).items()}
    report |= {
        "rows": len(rows),
        "nonfinite": int((~finite).sum()),
        "k": sae.k,
        "d_sae": sae.d_sae,
        "promised_l0": promised_l0(sae),
        "model": reader.name,
        "sae_model": sae.model_name,
        "sae_hook": sae.hook_name,
        "warnings": [*mismatches(reader, sae), *measured],
    }
    if folder is not None:
        replace(folder / SANITY, seal(report))
    _say(report, measured)
    return report


def promised_l0(sae: SAE) -> float | None:
    """The number of active latents per token that the SAE was made for, where it says so."""
    stated = sae.metadata.get("l0")
    if isinstance(stated, (int, float)) and not isinstance(stated, bool) and stated > 0:
        return float(stated)
    return float(sae.k) if sae.k is not None else None


def what_is_off(found: SAESanity, sae: SAE, rows: int) -> list[str]:
    """Each figure that no fitting SAE shows, as a sentence; empty where all is well, or too little was seen."""
    if rows - found.outliers < FEWEST_TOKENS:
        return []
    doubts = []
    if found.explained_variance < LEAST_EXPLAINED:
        doubts.append(
            f"the SAE explains {found.explained_variance:.2f} of the variance of what is read; below "
            f"{LEAST_EXPLAINED} it was made for another model, layer or scale"
        )
    promised = promised_l0(sae)
    if promised is not None and not promised / L0_FACTOR <= found.l0 <= promised * L0_FACTOR:
        doubts.append(f"{found.l0:.1f} latents are active on a token; the SAE was made for {promised:g}")
    if found.norm_ratio < SHORTEST or found.norm_ratio > LONGEST:
        doubts.append(
            f"reconstructions are {found.norm_ratio:.2f} times as long as what is read, and "
            f"{SHORTEST:g} to {LONGEST:g} times is usual: the scale is another"
        )
    fired = round((1 - found.dead_share) * sae.d_sae)
    if fired < 2 * found.l0 < sae.d_sae / 2:
        doubts.append(f"the same {fired} of {sae.d_sae} latents are active on all tokens, {found.l0:.1f} on each")
    elif found.dead_share > MOST_SILENT and (rows - found.outliers) * found.l0 >= TIMES_EACH * sae.d_sae:
        doubts.append(_silent(found.dead_share, sae, rows - found.outliers))
    if promised is None and found.l0 > DENSEST * sae.d_sae:
        doubts.append(f"{found.l0:.1f} of {sae.d_sae} latents are active on a token: these features are not sparse")
    return doubts


def _silent(share: float, sae: SAE, tokens: int) -> str:
    return f"{share:.1%} of {sae.d_sae} latents are active on none of {tokens} tokens"


class Fired:
    """Which latents have been active on any token of a run, told by its pooled rows.

    The sample is too short for that where an SAE is wide; a run of many texts is not.
    """

    def __init__(self, sae: SAE, pool: str) -> None:
        self._sae, self._last = sae, pool == "last"
        self._seen = np.zeros(sae.d_sae, dtype=bool)
        self._tokens = 0

    def add(self, rows: SparseFeatures) -> None:
        self._seen[rows.indices] = True
        self._tokens += int((rows.n_tokens > 0).sum() if self._last else rows.n_tokens.sum(dtype=np.int64))

    def tell(self) -> None:
        """A line of log, and a MismatchWarning where the tokens suffice to know that most latents are silent.

        An SAE that promises no L0 is taken to have one latent active on a token, which is to its favour.
        """
        share = 1 - float(self._seen.mean())
        times = self._tokens * (promised_l0(self._sae) or 1.0) / self._sae.d_sae
        said = _silent(share, self._sae, self._tokens)
        logger.info("%s; each would have been on %.3g of them, were all used alike", said, times)
        if times >= TIMES_EACH and share > MOST_SILENT:
            warnings.warn(f"{said}: was the SAE made for this model and these texts?", MismatchWarning, stacklevel=4)


def _say(report: dict[str, Any], measured: Sequence[str]) -> None:
    explained = report["explained_variance"]
    promised = "" if report["promised_l0"] is None else f" (made for {report['promised_l0']:g})"
    logger.info(
        "SAE sanity, %d tokens: explained variance %s, %.1f of %d latents active%s, %.0f %% of them on none, "
        "norm %.3g, %d outliers",
        report["rows"],
        "not known (transcoder)" if explained is None else f"{explained:.2f}",
        report["l0"],
        report["d_sae"],
        promised,
        100 * report["dead_share"],
        report["norm"] or 0,
        report["outliers"],
    )
    for doubt in measured:
        warnings.warn(
            f"{doubt}. Model read: {report['model']}; the SAE names {report['sae_model']}, {report['sae_hook']}",
            MismatchWarning,
            stacklevel=5,
        )

"""Calibration: what was predicted for held-out rows beside what was observed, in bins of like predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 10
FEWEST = 5
"""A bin has this many rows at least, as far as ties allow."""


def calibration(predicted: NDArray[Any], observed: NDArray[Any], bins: int = BINS) -> dict[str, list[Any]]:
    """Bins of about equal size by predicted value, ascending; equal predictions share a bin.

    predicted, observed float [n], finite, in the same unit. -> lists with one entry per bin: "predicted" and
    "observed" (means), "standard_error" (of the mean observed; None for a bin of one row), "n" (rows).
    """
    wanted = max(1, min(bins, len(predicted) // FEWEST))
    edges = np.unique(np.quantile(predicted, np.arange(1, wanted) / wanted))
    place = np.searchsorted(edges, predicted, side="right")
    found: dict[str, list[Any]] = {"predicted": [], "observed": [], "standard_error": [], "n": []}
    for bin_number in np.unique(place):
        inside = place == bin_number
        true = np.asarray(observed, dtype=np.float64)[inside]
        error = float(true.std(ddof=1) / np.sqrt(len(true))) if len(true) > 1 else None
        found["predicted"].append(round(float(np.mean(predicted[inside])), 5))
        found["observed"].append(round(float(true.mean()), 5))
        found["standard_error"].append(None if error is None else round(error, 5))
        found["n"].append(len(true))
    return found

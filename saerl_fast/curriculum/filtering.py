"""Which rows take part in a plan, and why the others do not."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saerl_fast.curriculum.inputs import Inputs
from saerl_fast.errors import InputError

logger = logging.getLogger(__name__)

KEPT = "kept"
LOW_QUALITY = "low quality"
TOO_HARD = "too hard"


@dataclass(frozen=True, slots=True)
class Kept:
    """reasons [S] uint8, an index into names, 0 for a kept row; threshold: the lowest quality kept."""

    reasons: NDArray[np.uint8]
    names: tuple[str, ...]
    threshold: float | None


def filter_rows(inputs: Inputs, drop_lowest: float, max_difficulty: float | None) -> Kept:
    """Leaves out unread rows, then rows harder than ``max_difficulty``, then the lowest in quality.

    drop_lowest     fraction, 0 up to but not including 1, of the rows that are left; rounded down to
                    whole rows; of equal qualities the earlier row goes first
    max_difficulty  in the units of the difficulty column; a row exactly as hard stays
    """
    readable = inputs.readable
    statuses = sorted(set(inputs.status[~readable].tolist()))
    names = (KEPT, LOW_QUALITY, TOO_HARD, *(f"status: {status}" for status in statuses))
    if len(names) > 256:
        raise InputError(f"status: wanted at most 253 kinds of status, got {len(statuses)}")
    reasons = np.zeros(len(readable), dtype=np.uint8)
    for number, status in enumerate(statuses, start=3):
        reasons[inputs.status == status] = number
    _leave_out_hard(inputs, reasons, max_difficulty)
    threshold = _leave_out_low(inputs, reasons, drop_lowest)
    counts = np.bincount(reasons, minlength=len(names))
    left_out = ", ".join(f"{count} {name}" for name, count in zip(names[1:], counts[1:], strict=True) if count)
    if counts[0] == 0:
        raise InputError(f"make_plan: no row is left to plan: {left_out}")
    if left_out:
        logger.info("%d of %d rows planned; left out: %s", counts[0], len(reasons), left_out)
    return Kept(reasons=reasons, names=names, threshold=threshold)


def _leave_out_hard(inputs: Inputs, reasons: NDArray[np.uint8], max_difficulty: float | None) -> None:
    if max_difficulty is None:
        return
    if not isinstance(max_difficulty, (int, float)) or not math.isfinite(max_difficulty):
        raise InputError(f"max_difficulty: wanted a finite number, got {max_difficulty!r}")
    if inputs.difficulty is None:
        raise InputError("max_difficulty: wanted difficulty too, got none; pass difficulty=...")
    reasons[(reasons == 0) & (inputs.difficulty > max_difficulty)] = 2


def _leave_out_low(inputs: Inputs, reasons: NDArray[np.uint8], drop_lowest: float) -> float | None:
    if isinstance(drop_lowest, bool) or not isinstance(drop_lowest, (int, float)) or not 0 <= drop_lowest < 1:
        raise InputError(f"drop_lowest: wanted a fraction from 0 up to (not including) 1, got {drop_lowest!r}")
    if drop_lowest == 0:
        return None
    if inputs.quality is None:
        raise InputError("drop_lowest: wanted quality too, got none; pass quality=...")
    rows = np.flatnonzero(reasons == 0)
    count = math.floor(drop_lowest * len(rows))
    lowest_first = rows[np.argsort(inputs.quality[rows], kind="stable")]
    reasons[lowest_first[:count]] = 1
    return float(inputs.quality[lowest_first[count]]) if len(rows) else None

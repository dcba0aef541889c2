"""What screening has done in this process: added up as it happens, on the host or on a device.

A device is not waited for when its counts are added, only when they are asked for.
"""

from __future__ import annotations

import functools
import logging
import threading
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saerl_fast.errors import BackendUnavailable
from saerl_fast.kernels.native import ScreenResult
from saerl_fast.kernels.scores_cuda import queue_of

logger = logging.getLogger(__name__)

MANY_WHOLE = 0.25
"""Share of rows scored whole beyond which screening is slower than a backend that does not screen."""


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
    outside: int = 0
    """Scores outside of their bounds; the proof says none. On a CPU the first one raises BackendUnavailable, on a GPU
    its row is scored whole."""
    worst: float = 0.0
    """Largest error of an estimate in units of its bound; the proof says at most 1. Not taken on a GPU."""


class _OnDevice:
    """The counts of one queue of a device."""

    def __init__(self, op: str, device: torch.device) -> None:
        self.op, self.rows = op, 0
        # a tensor made inside of inference mode could not be added to outside of it
        with torch.inference_mode(False):
            self.found = torch.zeros(3, dtype=torch.int64, device=device)


_counts = ScreeningCounts()
_on_devices: dict[tuple[str, int, int], _OnDevice] = {}
_lock = threading.Lock()


def screening_counts() -> ScreeningCounts:
    """The totals since the process began: of int8 screening on the CPU, and of `triton_bf16` on GPUs.

    Waits for the GPUs that have screened.
    """
    with _lock:
        totals, queues = _counts, list(_on_devices.values())
    for queue in queues:
        if queue.found.is_cuda:
            torch.cuda.synchronize(queue.found.device)
        rows = queue.rows
        whole, scored, outside = queue.found.tolist()
        _look_at(queue.op, rows, whole, "cuda")
        if outside:
            _warn_of_broken_bounds(queue.op)
        totals = replace(
            totals,
            rows=totals.rows + rows,
            whole_rows=totals.whole_rows + whole,
            scored=totals.scored + scored,
            outside=totals.outside + outside,
        )
    return totals


def count(op: str, rows: int, result: ScreenResult) -> None:
    """Add what a CPU has done; raises BackendUnavailable where a score lies outside of its bound."""
    global _counts
    if result.outside:
        raise BackendUnavailable(
            f"{op}: the int8 product of this torch is not exact: {result.outside} of "
            f"{result.sieved + result.scored} scores lie outside of their proved bounds. "
            f"Use backend='cpu', and report torch.__config__.show()"
        )
    _look_at(op, rows, result.whole, "cpu")
    with _lock:
        _counts = replace(
            _counts,
            rows=_counts.rows + rows,
            whole_rows=_counts.whole_rows + result.whole,
            sieved=_counts.sieved + result.sieved,
            scored=_counts.scored + result.scored,
            worst=max(_counts.worst, result.worst),
        )


def count_on_device(op: str, rows: int, found: Tensor) -> None:
    """Add what a device is about to do. found [3] int64 there: rows scored whole, pairs scored, of these outside."""
    # one sum a stream: two of them may not add to one tensor
    place = (op, *(queue_of(found) if found.is_cuda else (-1, 0)))
    with _lock:
        if place not in _on_devices:
            _on_devices[place] = _OnDevice(op, found.device)
        queue = _on_devices[place]
        queue.rows += rows
        queue.found += found


def _look_at(op: str, rows: int, whole: int, plain: str) -> None:
    if whole > MANY_WHOLE * rows:
        _warn_of_whole_rows(op, plain)


@functools.cache
def _warn_of_whole_rows(op: str, plain: str) -> None:
    logger.warning(
        "%s: more than %d %% of the rows of a block could not be screened by their rounded products and were scored "
        "whole: correct, but slower than backend=%r. The rows may lie far from b_dec, or hold few distinct scores",
        op, 100 * MANY_WHOLE, plain,
    )  # fmt: skip


@functools.cache
def _warn_of_broken_bounds(op: str) -> None:
    logger.warning(
        "%s: scores lie above their proved bounds. Their rows were scored whole, in float64; but the matrix product of "
        "this device and version of Triton does less than was assumed. Please report both", op,
    )  # fmt: skip

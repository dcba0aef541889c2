"""Runs of a sorted list, cut into pieces that are alike in size, without waiting for the device.

How many pieces there are depends on the data; how many there can be does not: so many places are made, and those
left over point nowhere. The cuts depend on the runs and on the largest size alone, so sums by pieces have one order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Pieces(NamedTuple):
    """P pieces of R runs. A run of one piece goes straight to its place; the pieces of a longer one are parts that
    are added up afterwards."""

    begins: Tensor
    """[P] int64, first entry of each piece"""
    ends: Tensor
    """[P] int64"""
    targets: Tensor
    """[P] int64: the run, or -1 - the part; R for a place that was left over"""
    first_parts: Tensor
    """[R] int64"""
    counts: Tensor
    """[R] int64: pieces of each run, one at least"""
    n_runs: int
    most_parts: int
    """No part is as high as this."""


def cut(starts: Tensor, n_entries: int, most: int) -> Pieces:
    """Run r holds the entries starts[r] : starts[r + 1] of n_entries; no piece has more than `most`."""
    n_runs = starts.shape[0] - 1
    counts = ((starts.diff() + (most - 1)) // most).clamp(min=1)
    ends = counts.cumsum(0)
    # each run has one piece, and one more per `most` entries at the utmost
    place = torch.arange(n_runs + n_entries // most, device=starts.device)
    run = torch.searchsorted(ends, place, right=True)
    used = run < n_runs
    run = run.clamp(max=n_runs - 1)
    number = place - (ends - counts)[run]
    begins = torch.where(used, starts[run] + number * most, 0)
    stops = torch.where(used, torch.minimum(begins + most, starts[run + 1]), 0)
    parts = torch.where(counts > 1, counts, 0)
    first_parts = parts.cumsum(0) - parts
    targets = torch.where(counts[run] > 1, -1 - (first_parts[run] + number), run)
    targets = torch.where(used, targets, n_runs)
    return Pieces(begins, stops, targets, first_parts, counts, n_runs, 2 * (n_entries // most))


def grouped(keys: Tensor, n_groups: int) -> tuple[Tensor, Tensor]:
    """The places of the keys 0..n_groups-1 in the order of their keys, and where each group starts among them.

    keys [E] -> order [E] int64, in which equal keys keep their order; starts [n_groups + 1] int64. A key that is none
    of these falls into no group.
    """
    ordered, order = keys.sort(stable=True)
    return order, torch.searchsorted(ordered, torch.arange(n_groups + 1, device=keys.device, dtype=ordered.dtype))

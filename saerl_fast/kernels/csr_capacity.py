"""Sparse rows whose number of entries is known on the device only, with one wait for it in all, or with none.

Entries go to a place of a guessed capacity. The counts are true whether or not they fit; when all is queued they are
read, once, and where the guess was too small the work is done again with the right size. `spaced` leaves the reading
to the caller, and marks the rows that did not fit. Nothing is cut in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from saerl_fast.codes import OVERFLOWED, SpacedRows

ENTRIES_PER_ROW = 512
"""The guess: eight times what published SAEs keep; 4 kB a row."""


class Work(NamedTuple):
    """What makes sparse rows, once it is given a place for them.

    run(indptr [n_rows + 1], indices [capacity], values [capacity]) queues all of it: every bound of indptr, and the
    entries that lie below the capacity.
    """

    n_rows: int
    n_latents: int
    device: torch.device
    run: Callable[[Tensor, Tensor, Tensor], None]

    def into(self, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
        """indptr, indices, values, of which the first ``capacity`` entries are there. Waits for nothing."""
        indptr = torch.zeros(self.n_rows + 1, dtype=torch.int64, device=self.device)
        indices = torch.empty(capacity, dtype=torch.int32, device=self.device)
        values = torch.empty(capacity, dtype=torch.float32, device=self.device)
        self.run(indptr, indices, values)
        return indptr, indices, values


def indptr_of(counts: Tensor, indptr: Tensor, rows: slice) -> None:
    """Write the bounds of `rows`, whose entries are counted, behind those of the rows before: indptr [N + 1]."""
    ends = indptr[rows.start + 1 : rows.stop + 1]
    torch.cumsum(counts, dim=0, out=ends)
    ends += indptr[rows.start]


def collect(work: Work) -> tuple[Tensor, Tensor, Tensor]:
    """indptr, indices, values of exactly the entries kept."""
    capacity = work.n_rows * min(work.n_latents, ENTRIES_PER_ROW)
    while True:
        indptr, indices, values = work.into(capacity)
        entries = int(indptr[-1])
        if entries <= capacity:
            # a copy, so that the place can be used again
            return indptr, indices[:entries].clone(), values[:entries].clone()
        capacity = entries


def spaced(work: Work, entries_per_row: int) -> SpacedRows:
    """The rows where they were written, one behind the other; those behind the last place are marked."""
    capacity = work.n_rows * min(work.n_latents, entries_per_row)
    indptr, indices, values = work.into(capacity)
    counts = torch.where(indptr[1:] > capacity, OVERFLOWED, indptr.diff())
    return SpacedRows(indptr.clamp(max=capacity), counts, indices, values)

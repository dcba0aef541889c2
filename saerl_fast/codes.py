"""The forms a set of sparse rows takes: k per row, compressed rows (CSR), and rows with room between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from saerl_fast.errors import CapacityError, InputError

OUTSIDE = -1
"""In SpacedRows.counts: the row could not be made, because an index lay outside of the latents."""
OVERFLOWED = -2
"""In SpacedRows.counts: there was not room enough for the row, or for one that it was to be made from."""


class TopKCodes(NamedTuple):
    """Exactly k kept latents per row, values descending."""

    values: Tensor
    """[N, k] float32"""
    indices: Tensor
    """[N, k] int32, distinct within a row"""


class CsrRows(NamedTuple):
    """Any number of kept latents per row: row i holds the entries indptr[i] : indptr[i + 1]."""

    indptr: Tensor
    """[N + 1] int64, starts at 0, never falls"""
    indices: Tensor
    """[nnz] int32, ascending and distinct within a row"""
    values: Tensor
    """[nnz] float32"""


class SpacedRows(NamedTuple):
    """CSR rows before anyone has waited for their sizes: each row lies at the start of a place of the largest size it
    could have had, so that a device can write all of them without telling the host how long they became.

    Row i holds the entries starts[i] : starts[i] + counts[i]; what follows, up to starts[i + 1], means nothing.
    """

    starts: Tensor
    """[N + 1] int64, never falls; starts[N] is at most the number of places"""
    counts: Tensor
    """[N] int64; OUTSIDE where an index lay outside of the latents, OVERFLOWED where there was not room enough"""
    indices: Tensor
    """[places] int32, ascending and distinct within a row"""
    values: Tensor
    """[places] float32"""

    @staticmethod
    def of(csr: CsrRows) -> SpacedRows:
        """The same rows, with no room between them; shares the memory."""
        return SpacedRows(csr.indptr, csr.indptr.diff(), csr.indices, csr.values)

    @staticmethod
    def joined(parts: Sequence[SpacedRows]) -> SpacedRows:
        """The rows of all parts (one at least), one part after the other. Waits for nothing."""
        before, starts = 0, []
        for part in parts:
            starts.append(part.starts[:-1] + before)
            before += len(part.indices)
        starts.append(parts[0].starts.new_full((1,), before))
        counts, indices, values = (torch.cat([part[field] for part in parts]) for field in (1, 2, 3))
        return SpacedRows(torch.cat(starts), counts, indices, values)

    def worst_between(self, firsts: Tensor, lasts: Tensor) -> Tensor:
        """The mark of what is made of the rows firsts[s] : lasts[s]: OVERFLOWED, OUTSIDE or 0. Waits for nothing."""
        found = torch.zeros_like(firsts)
        for mark in (OUTSIDE, OVERFLOWED):
            before = functional.pad((self.counts == mark).cumsum(0), (1, 0))
            found.masked_fill_(before[lasts] > before[firsts], mark)
        return found

    def to_csr(self) -> CsrRows:
        """The rows without the room between them. Waits for the device, once.

        Raises InputError where an index lay outside of the latents, CapacityError where a row did not find room.
        """
        counts = self.counts.clamp(min=0)
        indptr = functional.pad(counts.cumsum(0), (1, 0))
        marked = [(self.counts == mark).sum() for mark in (OUTSIDE, OVERFLOWED)]
        entries, outside, overflowed = torch.stack([indptr[-1], *marked]).tolist()
        if outside:
            first = int((self.counts == OUTSIDE).nonzero()[0])
            raise InputError(
                f"SpacedRows: indices must lie among the latents; {outside} of {len(counts)} rows were to be made from "
                f"others (first: row {first})"
            )
        if overflowed:
            raise CapacityError(
                f"SpacedRows: {overflowed} of {len(counts)} rows did not find room; make them again with more "
                "(entries_per_row), or by the operation that waits for the number of entries"
            )
        if entries == len(self.indices):
            return CsrRows(indptr, self.indices, self.values)
        # with its size given, this does not wait again
        moved = (self.starts[:-1] - indptr[:-1]).repeat_interleave(counts, output_size=entries)
        places = moved.add_(torch.arange(entries, device=moved.device))
        return CsrRows(indptr, self.indices[places], self.values[places])

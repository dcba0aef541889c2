"""Sparse rows whose number of entries is known on the device only, with one wait for it in all.

Entries go to a place of a guessed capacity. The counts are true whether or not they fit; when all is queued they are
read, once, and where the guess was too small the work is done again with the right size. Nothing is cut in silence.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ENTRIES_PER_ROW = 512
"""The guess: eight times what published SAEs keep; 4 kB a row."""


def indptr_of(counts: Tensor, indptr: Tensor, rows: slice) -> None:
    """Write the bounds of `rows`, whose entries are counted, behind those of the rows before: indptr [N + 1]."""
    ends = indptr[rows.start + 1 : rows.stop + 1]
    torch.cumsum(counts, dim=0, out=ends)
    ends += indptr[rows.start]


def collect(
    n_rows: int, n_latents: int, device: torch.device, run: Callable[[Tensor, Tensor, Tensor], None]
) -> tuple[Tensor, Tensor, Tensor]:
    """indptr, indices, values of exactly the entries kept.

    run(indptr [n_rows + 1], indices [capacity], values [capacity]) queues all the work: every bound of indptr, and
    the entries that lie below the capacity.
    """
    capacity = n_rows * min(n_latents, ENTRIES_PER_ROW)
    while True:
        indptr = torch.zeros(n_rows + 1, dtype=torch.int64, device=device)
        indices = torch.empty(capacity, dtype=torch.int32, device=device)
        values = torch.empty(capacity, dtype=torch.float32, device=device)
        run(indptr, indices, values)
        entries = int(indptr[-1])
        if entries <= capacity:
            # a copy, so that the place can be used again
            return indptr, indices[:entries].clone(), values[:entries].clone()
        capacity = entries

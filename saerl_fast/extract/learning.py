"""What learns while the features are made: the rows of each shard, handed over where they lie.

The rows of a shard have just been waited for, so that their sizes and their order are known on the host; their entries
are still on the device, in the order in which they were pooled. They are put in the order of the shard there, and what
is learnt from them is queued behind the shard, before the next one. Rows that the host has changed since, and rows
read back from a folder, are uploaded.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saerl_fast.codes import CsrRows
from saerl_fast.errors import DeviceMemoryError
from saerl_fast.extract.batching import upload
from saerl_fast.features import SparseFeatures

Learn = Callable[[CsrRows], None]


@runtime_checkable
class Learner(Protocol):
    """Anything that learns from batches of rows on a device, such as ``StreamingKMeans``."""

    def learning(self, n_features: int) -> AbstractContextManager[Learn]:
        """Hands out what takes a batch of rows [S, n_features]; they are finite, of one device, with indices ascending.

        What was learnt is kept when the block ends, and only then.
        """


class OnDevice(NamedTuple):
    """The entries of the rows of a shard on the device, as they were pooled."""

    starts: NDArray[np.int64]
    """[S] on the host: where the entries of each row begin. Their number is that of the features beside this."""
    indices: Tensor
    """[nnz] int32"""
    values: Tensor
    """[nnz] float32"""


def feed(learn: Learn, features: SparseFeatures, entries: OnDevice | None, device: torch.device) -> None:
    """Have the usable rows of a shard learnt from, in their order; nothing where there is none. Waits for nothing.

    entries: where they still lie on the device; else they are uploaded. Raises DeviceMemoryError, and what learn does.
    """
    usable = np.flatnonzero(features.usable)
    if not len(usable):
        return
    try:
        learn(_uploaded(features[usable], device) if entries is None else _gathered(features, entries, usable))
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"what is learnt from {len(usable)} rows of {features.n_features} features takes more memory than the "
            "device has left. Lower shard_rows or the number of clusters, or learn from the rows on the host, with "
            f"each_shard. torch said: {error}"
        ) from error


def _gathered(features: SparseFeatures, entries: OnDevice, rows: NDArray[np.int64]) -> CsrRows:
    """Some rows out of those on the device."""
    device = entries.values.device
    lengths = np.diff(features.indptr)[rows]
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    # entry e of the result lies at e - (its row's start here) + (its row's start there)
    shift = upload(entries.starts[rows] - indptr[:-1], device)
    moved = shift.repeat_interleave(upload(lengths, device), output_size=int(indptr[-1]))
    places = moved.add_(torch.arange(len(moved), device=device))
    return CsrRows(upload(indptr, device), entries.indices[places], entries.values[places])


def _uploaded(rows: SparseFeatures, device: torch.device) -> CsrRows:
    return CsrRows(upload(rows.indptr, device), upload(rows.indices, device), upload(rows.values, device).float())

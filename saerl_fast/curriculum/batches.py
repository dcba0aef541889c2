"""One epoch of a plan: rows in their queues, dealt into batches, tails swapped, permuted inside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Epoch:
    """rows [B, P] int64 row numbers; padded [B, P] bool; dropped [d] int64, rows of a cut last batch."""

    rows: Rows
    padded: NDArray[np.bool_]
    dropped: Rows


def queue_up(
    rows: Rows,
    codes: NDArray[np.int32],
    difficulty: NDArray[np.float64] | None,
    order: str,
    rng: np.random.Generator,
) -> Rows:
    """``rows`` cluster after cluster, each cluster in its order; equal difficulties fall by ``rng``."""
    shuffled = rng.permutation(rows)
    if order == "random" or difficulty is None:
        return shuffled[np.argsort(codes[shuffled], kind="stable")]
    key = difficulty[shuffled] if order == "easy_to_hard" else -difficulty[shuffled]
    return shuffled[np.lexsort((key, codes[shuffled]))]


def deal(queue: Rows, places: NDArray[np.int64]) -> Rows:
    """The queue laid out by turns. places [n]: the places of cluster 0 in order, then of cluster 1, ..."""
    sequence = np.empty_like(queue)
    sequence[places] = queue
    return sequence


def fill_last(sequence: Rows, codes: NDArray[np.int32], size: int, partial: str) -> Epoch:
    """``sequence`` cut into batches of ``size``; a last partial batch is padded or cut off.

    "pad": filled with rows of the clusters it holds, those seen earliest in this epoch (longest ago, so
    the least like doing a step twice); where these do not suffice, with the earliest of any cluster.
    "drop": its rows are returned in ``dropped``.
    """
    whole = len(sequence) - len(sequence) % size
    rest = sequence[whole:]
    nothing = sequence[:0]
    if partial == "drop" or not len(rest):
        rows = sequence[:whole].reshape(-1, size)
        return Epoch(rows, np.zeros(rows.shape, dtype=np.bool_), rest)
    seen = sequence[:whole]
    alike = np.isin(codes[seen], codes[rest])
    pads = np.concatenate([seen[alike], seen[~alike]])[: size - len(rest)]
    rows = np.concatenate([sequence, pads]).reshape(-1, size)
    padded = np.zeros(rows.shape, dtype=np.bool_)
    padded[-1, len(rest) :] = True
    return Epoch(rows, padded, nothing)


def swap_tails(batches: NDArray[np.int64], count: int, first: int) -> None:
    """In place: the last ``count`` of batches first and first + 1 change places, of first + 2 and
    first + 3, and so on.

    Each batch takes part in one exchange at most, so no row moves by more than one batch. (Exchanging
    along the line instead, 0 with 1, 1 with 2, ..., would carry the tail of batch 0 to the end.)
    """
    if count == 0:
        return
    pairs = (len(batches) - first) // 2
    left = batches[first : first + 2 * pairs : 2, -count:]
    right = batches[first + 1 : first + 2 * pairs : 2, -count:]
    kept = left.copy()
    left[...] = right
    right[...] = kept


def mix(epoch: Epoch, swapped: int, first: int, rng: np.random.Generator) -> Epoch:
    """Tails swapped, then each batch permuted inside (else what was swapped in would fall to the last
    rank, since the trainer splits a batch over the ranks in contiguous parts)."""
    places = np.arange(epoch.rows.size).reshape(epoch.rows.shape)
    swap_tails(places, swapped, first)
    places = rng.permuted(places, axis=1)
    return Epoch(epoch.rows.ravel()[places], epoch.padded.ravel()[places], epoch.dropped)

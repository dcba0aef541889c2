"""Out of memory on the device: the rows that are left go on in smaller batches.

Only ``torch.OutOfMemoryError`` counts; every other error passes untouched. The batches as they were run are recorded
with the shard, because they change bits: whoever computes the shard again takes the same ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from saerl_fast.errors import CorruptStoreError, DeviceMemoryError

logger = logging.getLogger(__name__)

Rows = NDArray[np.int64]
Group = Callable[[Sequence[int], int], list[Rows]]
"""Lengths and a token budget to the row numbers of each batch."""


def run_halving(
    groups: list[Rows], lengths: Sequence[int], group: Group, run: Callable[[list[Rows]], None], done: Callable[[], int]
) -> bool:
    """Run every batch; where the device has no room for one, go on from it in batches of at most half its rows.

    run takes the batches that are left and works through them in order; done says how many are complete, over all
    calls. A batch of n rows is tried at most log2(n) times more. Returns whether any was split. Raises
    DeviceMemoryError where one text alone finds no room.
    """
    split = False
    while True:
        try:
            run(groups[done() :])
        except torch.OutOfMemoryError as error:
            failed = groups[done()]
            tokens = max(lengths[row] for row in failed.tolist())
            if len(failed) == 1:
                raise DeviceMemoryError(
                    f"the device has no room for a single text of {tokens} tokens. Cut texts shorter (max_length), "
                    f"load the model in a narrower dtype, or use another device. torch said: {error}"
                ) from error
        else:
            return split
        # outside of the handler: the error holds the frames, and with them the tensors, of the failed pass
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        first = done()
        smaller = _regroup(np.concatenate(groups[first:]), len(failed) // 2, len(failed) * tokens, lengths, group)
        logger.warning(
            "out of memory with %d texts of up to %d tokens: the rest of this shard goes on with %d at a time",
            len(failed),
            tokens,
            len(smaller[0]),
        )
        groups = groups[:first] + smaller
        split = True


def _regroup(rows: Rows, most: int, budget: int, lengths: Sequence[int], group: Group) -> list[Rows]:
    """The rows in batches of their usual kind, the first of at most ``most`` rows."""
    chosen = [lengths[row] for row in rows.tolist()]
    while True:
        budget = max(1, budget // 2)
        found = [rows[places] for places in group(chosen, budget)]
        if len(found[0]) <= most:
            return found


def cut_as_recorded(groups: list[Rows], recorded: Sequence[Sequence[int]]) -> list[Rows]:
    """The same rows in the same order, in the batches of an earlier run: (rows, padded length) of each."""
    order = np.concatenate(groups) if groups else np.zeros(0, np.int64)
    ends = np.cumsum([rows for rows, _ in recorded], dtype=np.int64)
    if len(order) != (ends[-1] if len(ends) else 0):
        raise CorruptStoreError(f"a split records {ends[-1:].tolist()} rows, the shard has {len(order)} to compute")
    return np.split(order, ends[:-1]) if len(ends) else []

"""Batches of similar length under a token budget: padding is forward time that buys nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saerl_fast.errors import InputError
from saerl_fast.extract.tokens import TokenizedText


@dataclass(frozen=True)
class Batch:
    """One padded batch on a device.

    input_ids, attention_mask, position_ids int64 [B, T]; kept int64 [N], positions in the flattened
    [B * T] that are pooled, text by text; offsets int64 [B + 1], where each text begins in kept.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    kept: Tensor
    offsets: Tensor
    left_padded: bool


def group_by_length(lengths: Sequence[int], token_budget: int) -> list[NDArray[np.int64]]:
    """Row numbers of each batch: longest texts first, padded size (rows x longest) within the budget.

    A text longer than the budget gets a batch of its own. Rows of length 0 are in no batch. The result
    depends on the lengths alone; ties keep their order.
    """
    if token_budget < 1:
        raise InputError(f"tokens_per_batch must be at least 1; got {token_budget}")
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] > 0]
    batches = []
    start = 0
    while start < len(order):
        rows = max(1, token_budget // int(sizes[order[start]]))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def collate(texts: Sequence[TokenizedText], pad_id: int, padding_side: str, device: torch.device) -> Batch:
    """Pad to the longest text. The mask comes from the lengths, never from token ids, so any pad id will do."""
    rows, width = len(texts), max(len(text) for text in texts)
    input_ids = np.full((rows, width), pad_id, dtype=np.int64)
    attention = np.zeros((rows, width), dtype=np.int64)
    pooled = np.zeros((rows, width), dtype=bool)
    for row, text in enumerate(texts):
        span = slice(width - len(text), width) if padding_side == "left" else slice(0, len(text))
        input_ids[row, span] = text.input_ids
        attention[row, span] = 1
        pooled[row, span] = text.pooled
    positions = np.maximum(np.cumsum(attention, axis=1) - 1, 0)
    offsets = np.concatenate([[0], np.cumsum(pooled.sum(axis=1))])

    def on_device(array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)

    return Batch(
        input_ids=on_device(input_ids),
        attention_mask=on_device(attention),
        position_ids=on_device(positions),
        kept=on_device(np.flatnonzero(pooled)),
        offsets=on_device(offsets),
        left_padded=bool((attention[:, 0] == 0).any()),
    )

"""Batches under a token budget: texts of like length padded to one, or texts laid end to end in one row.

A batch is put together in pinned memory and copied without waiting, so that the host makes the next one while the
device runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saerl_fast.errors import InputError
from saerl_fast.extract.attention import Packing
from saerl_fast.extract.padding import Padding
from saerl_fast.extract.tokens import TokenizedText


@dataclass(frozen=True)
class Batch:
    """One batch on a device: padded, or packed, in which case B is 1 and every token counts.

    input_ids, attention_mask, position_ids int64 [B, T]; kept int64 [N], positions in the flattened
    [B * T] that are pooled, text by text; offsets int64 [texts + 1] *on the CPU*, where each text begins in kept.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    kept: Tensor
    offsets: Tensor
    left_padded: bool
    packing: Packing | Padding | None = None
    """How attention is to see it; None leaves that to the model's own masks."""


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


def pack_by_budget(lengths: Sequence[int], token_budget: int) -> list[NDArray[np.int64]]:
    """Row numbers of each packed batch, in the order of the rows: at most the budget of tokens, of like size.

    A text longer than the budget gets a batch of its own. Rows of length 0 are in no batch. The result depends on
    the lengths alone.
    """
    if token_budget < 1:
        raise InputError(f"tokens_per_batch must be at least 1; got {token_budget}")
    sizes = np.asarray(lengths, dtype=np.int64)
    rows = np.flatnonzero(sizes)
    total = int(sizes.sum())
    # as many batches as are needed, all about as full: a small last one would leave the device half idle
    enough = total / max(1, -(-total // token_budget))
    batches: list[list[int]] = []
    held = token_budget + 1
    for row in rows.tolist():
        size = int(sizes[row])
        if held + size > token_budget or held >= enough:
            batches.append([])
            held = 0
        batches[-1].append(row)
        held += size
    return [np.asarray(batch, dtype=np.int64) for batch in batches]


def lay_end_to_end(texts: Sequence[TokenizedText], kernel: str, device: torch.device) -> Batch:
    """One row of all texts, each with positions from 0. kernel: what attends within them (packing.py)."""
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    pooled = np.concatenate([text.pooled for text in texts])
    tokens = np.arange(bounds[-1])
    text_of = np.repeat(np.arange(len(texts)), lengths)
    packing = Packing(
        kernel,
        bounds=upload(bounds.astype(np.int32), device),
        text_of=upload(text_of.astype(np.int32), device),
        lengths=tuple(lengths.tolist()),
    )
    return Batch(
        input_ids=upload(np.concatenate([text.input_ids for text in texts])[None], device),
        attention_mask=torch.ones(1, len(tokens), dtype=torch.int64, device=device),
        position_ids=upload((tokens - bounds[text_of])[None], device),
        kept=upload(np.flatnonzero(pooled), device),
        offsets=torch.from_numpy(np.concatenate([[0], np.cumsum(pooled)])[bounds]),
        left_padded=False,
        packing=packing,
    )


def collate(
    texts: Sequence[TokenizedText], pad_id: int, padding_side: str, device: torch.device, own_masks: bool = False
) -> Batch:
    """Pad to the longest text. The mask comes from the lengths, never from token ids, so any pad id will do.

    own_masks: attention by padding.py, which does not ask the device what is padded.
    """
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
    left = bool((attention[:, 0] == 0).any())
    real = upload(attention.astype(bool), device) if own_masks and not attention.all() else None
    return Batch(
        input_ids=upload(input_ids, device),
        attention_mask=upload(attention, device),
        position_ids=upload(positions, device),
        kept=upload(np.flatnonzero(pooled), device),
        offsets=torch.from_numpy(offsets),
        left_padded=left,
        packing=Padding(real, left) if own_masks else None,
    )


def one_ahead(made: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, each handed out when the copy of the next one to the device is under way."""
    waiting = next(made, None)
    while waiting is not None:
        ready, waiting = waiting, next(made, None)
        yield ready


def upload(array: NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """The array on the device; on CUDA the copy runs while the host goes on."""
    tensor = array if isinstance(array, Tensor) else torch.from_numpy(np.ascontiguousarray(array))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)

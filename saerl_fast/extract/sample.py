"""An even sample of the tokens of a shard, taken from its batches while they run: no token is read twice for it."""

from __future__ import annotations

import torch
from torch import Tensor

SAMPLE_TOKENS = 512


class Sample:
    """Every n-th of the pooled tokens of a shard, in the order of its batches: SAMPLE_TOKENS to twice as many.

    tokens: how many are pooled in all. Of fewer than SAMPLE_TOKENS all are taken.
    """

    def __init__(self, tokens: int) -> None:
        self._step = max(1, tokens // SAMPLE_TOKENS)
        self._first = 0
        self._taken: list[Tensor] = []

    def of(self, flat: Tensor, kept: Tensor) -> Tensor:
        """The rows to be taken of a batch: of activations [R, ...] those that count, kept int64 [N]. Takes none yet."""
        return flat.index_select(0, kept[self._first :: self._step])

    def take(self, rows: Tensor, tokens: int) -> None:
        """Take the rows of a batch that has so many tokens; it is done, and will not come again."""
        self._taken.append(rows)
        self._first += len(rows) * self._step - tokens

    def rows(self) -> Tensor | None:
        """What was taken, [N, D] (or [N, heads, D / heads]) in the model's dtype; None where there is no token."""
        return torch.cat(self._taken) if sum(map(len, self._taken)) else None

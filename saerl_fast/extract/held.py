"""Activations of several batches, held until they are encoded in one call.

A forward on a CPU wants few tokens (settings.py), the encoder many: behind a forward its weights have left the cache,
and one call reads them back for all of its rows. The batches of a device are large, and encoded where they lie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

HELD_TOKENS = 4096
HELD_NUMBERS = 2**22
"""So many numbers at most, 16 MB in float32: with wide activations fewer tokens are held."""

Encode = Callable[[Tensor, Tensor | None, Tensor], None]
"""What becomes of activations [R, ...], of the rows of them that count [N] (None: all), and of where each text begins
among these, offsets [texts + 1]."""


@dataclass
class Held:
    """Hands batches to ``encode``, in order: on a CPU several at once, elsewhere one by one.

    What is encoded together depends on the batches alone, so that the same batches give the same bits.
    """

    encode: Encode
    _rows: Tensor | None = None
    _offsets: list[Tensor] = field(default_factory=list)
    _count: int = 0

    def add(self, flat: Tensor, kept: Tensor, offsets: Tensor) -> None:
        """flat [R, ...] activations, kept int64 [N] those that count, offsets int64 [texts + 1] on the CPU.

        If this raises, nothing of this batch is held, and what was held before still is.
        """
        room = _room(flat)
        if self._count + len(kept) > room:
            self.flush()
        if len(kept) > room:
            self.encode(flat, kept, offsets)
            return
        if self._rows is None:
            self._rows = flat.new_empty(room, *flat.shape[1:])
        torch.index_select(flat, 0, kept, out=self._rows[self._count : self._count + len(kept)])
        self._offsets.append(offsets[1:] + self._count)
        self._count += len(kept)

    def flush(self) -> None:
        """Encode what is held."""
        if self._rows is not None and self._offsets:
            self.encode(self._rows[: self._count], None, functional.pad(torch.cat(self._offsets), (1, 0)))
            self._offsets, self._count = [], 0


def _room(flat: Tensor) -> int:
    """Tokens held at once."""
    return min(HELD_TOKENS, HELD_NUMBERS // max(1, flat[:1].numel())) if flat.device.type == "cpu" else 0

"""An endless, shuffled stream of single-token activations: what an SAE is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from saerl_fast.errors import InputError
from saerl_fast.extract.batching import collate, group_by_length
from saerl_fast.extract.capture import Capture
from saerl_fast.extract.reader import Reader
from saerl_fast.extract.tokens import Text, tokenize

TEXTS_PER_FILL = 512


class ActivationStream(Iterator[Tensor]):
    """Activations of the pooled tokens (no special ones, no padding) of the reader's block, in random order.

    Yields float32 [batch_rows, D] without end: texts are read in a new random order every pass, and rows
    are drawn from a buffer of about ``buffer_rows`` that is refilled when it is half empty, so that
    neighbouring tokens do not meet in one batch. The first ``skip_first`` tokens of a text are read by the model and
    left out here.

    ``state()`` between two batches holds all that the next ones depend on; ``restore`` makes a stream of the same
    arguments go on from there, with the same bits and without reading again what lies in the buffer.
    """

    def __init__(
        self,
        texts: Sequence[Text],
        reader: Reader,
        *,
        batch_rows: int,
        buffer_rows: int,
        max_length: int,
        tokens_per_batch: int = 4096,
        skip_first: int = 0,
        seed: int = 0,
    ) -> None:
        if buffer_rows < 2 * batch_rows:
            raise InputError(f"buffer_rows must be at least twice batch_rows = {batch_rows}; got {buffer_rows}")
        self._texts = texts
        self._reader = reader
        self._batch_rows, self._buffer_rows = batch_rows, buffer_rows
        self._limits = (max_length, tokens_per_batch, skip_first)
        self._generator = torch.Generator().manual_seed(seed)
        self._buffer = torch.empty(0)
        self._order = torch.empty(0, dtype=torch.int64)
        self._start, self._taken, self._rows_read = 0, 0, 0
        self._source = self._read_forever()

    def __next__(self) -> Tensor:
        if len(self._buffer) <= self._buffer_rows // 2:
            self._fill()
        batch, self._buffer = self._buffer[: self._batch_rows], self._buffer[self._batch_rows :]
        return batch

    def state(self) -> dict[str, Tensor]:
        """buffer float32 [rows, D]; order int64 [texts], the pass under way; place int64 [3] in it; generator uint8."""
        return {
            "buffer": self._buffer,
            "order": self._order,
            "place": torch.tensor([self._start, self._taken, self._rows_read]),
            "generator": self._generator.get_state(),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on where a stream of the same arguments was when it gave this state."""
        self._buffer = state["buffer"].to(self._reader.device)
        self._order = state["order"]
        self._start, self._taken, self._rows_read = state["place"].tolist()
        self._generator.set_state(state["generator"])
        self._source = self._read_forever()

    def _fill(self) -> None:
        fresh = [self._buffer] if len(self._buffer) else []
        held = len(self._buffer)
        while held < self._buffer_rows:
            fresh.append(next(self._source))
            held += len(fresh[-1])
        buffer = torch.cat(fresh)
        self._buffer = buffer[torch.randperm(len(buffer), generator=self._generator)]

    def _read_forever(self) -> Iterator[Tensor]:
        """Blocks of activation rows [n, D], pass after pass over the texts, from the place where the stream is."""
        while True:
            if self._start >= len(self._order):
                self._order = torch.randperm(len(self._texts), generator=self._generator)
                self._start = 0
            chosen = [self._texts[i] for i in self._order[self._start : self._start + TEXTS_PER_FILL].tolist()]
            for rows in read_rows(chosen, self._reader, *self._limits, first_block=self._taken):
                self._taken += 1
                self._rows_read += len(rows)
                yield rows
            self._start, self._taken = self._start + TEXTS_PER_FILL, 0
            if self._start >= len(self._order) and not self._rows_read:
                raise InputError(f"none of the {len(self._texts)} texts has a token to read")


def read_rows(
    texts: Sequence[Text],
    reader: Reader,
    max_length: int,
    tokens_per_batch: int,
    skip_first: int = 0,
    *,
    first_block: int = 0,
) -> Iterator[Tensor]:
    """The activations of the pooled tokens of some texts, one forward pass at a time: float32 [n, D] each.

    Blocks before ``first_block`` are not computed.
    """
    tokens = tokenize(texts, reader.tokenizer, max_length, include_special=False, skip_first=skip_first)
    for rows in group_by_length([len(text) for text in tokens], tokens_per_batch)[first_block:]:
        batch = collate([tokens[row] for row in rows], reader.pad_id, "right", reader.device)
        with Capture(reader.model, reader.hook) as capture:
            hidden = capture(batch)
        yield hidden.flatten(0, 1).index_select(0, batch.kept).float().clone()

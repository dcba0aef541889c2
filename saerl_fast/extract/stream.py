"""An endless, shuffled stream of single-token activations: what an SAE is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from saerl_fast.errors import InputError
from saerl_fast.extract.batching import collate, group_by_length
from saerl_fast.extract.capture import Capture
from saerl_fast.extract.reader import Reader
from saerl_fast.extract.tokens import Text, tokenize

TEXTS_PER_FILL = 512


def stream_activations(
    texts: Sequence[Text],
    reader: Reader,
    *,
    batch_rows: int,
    buffer_rows: int,
    max_length: int,
    tokens_per_batch: int = 4096,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Activations of the pooled tokens (no special ones, no padding) of the reader's block, in random order.

    Yields float32 [batch_rows, D] without end: texts are read in a new random order every pass, and rows
    are drawn from a buffer of about ``buffer_rows`` that is refilled when it is half empty, so that
    neighbouring tokens do not meet in one batch.
    """
    if buffer_rows < 2 * batch_rows:
        raise InputError(f"buffer_rows must be at least twice batch_rows = {batch_rows}; got {buffer_rows}")
    generator = torch.Generator().manual_seed(seed)
    source = _read_forever(texts, reader, max_length, tokens_per_batch, generator)
    buffer = torch.empty(0)
    while True:
        fresh = [buffer] if len(buffer) else []
        held = len(buffer)
        while held < buffer_rows:
            fresh.append(next(source))
            held += len(fresh[-1])
        buffer = torch.cat(fresh)
        buffer = buffer[torch.randperm(len(buffer), generator=generator)]
        while len(buffer) > buffer_rows // 2:
            yield buffer[:batch_rows]
            buffer = buffer[batch_rows:]


def _read_forever(
    texts: Sequence[Text], reader: Reader, max_length: int, tokens_per_batch: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Blocks of activation rows [n, D], pass after pass over the texts."""
    while True:
        order = torch.randperm(len(texts), generator=generator).tolist()
        found = 0
        for start in range(0, len(order), TEXTS_PER_FILL):
            chosen = [texts[i] for i in order[start : start + TEXTS_PER_FILL]]
            for rows in _read_texts(chosen, reader, max_length, tokens_per_batch):
                found += len(rows)
                yield rows
        if not found:
            raise InputError(f"none of the {len(texts)} texts has a token to read")


def _read_texts(texts: Sequence[Text], reader: Reader, max_length: int, tokens_per_batch: int) -> Iterator[Tensor]:
    tokens = tokenize(texts, reader.tokenizer, max_length, include_special=False)
    for rows in group_by_length([len(text) for text in tokens], tokens_per_batch):
        batch = collate([tokens[row] for row in rows], reader.pad_id, "right", reader.device)
        with Capture(reader.model, reader.hook) as capture:
            hidden = capture(batch)
        yield hidden.flatten(0, 1).index_select(0, batch.kept).float().clone()

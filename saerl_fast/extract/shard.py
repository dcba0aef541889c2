"""One shard from texts to sparse rows: tokens, batches of like length, forward up to the hook, encode, pool.

No dense [tokens, d_sae] array is made, activations never leave the device, and the device is waited for
once, when the pooled rows of the whole shard are fetched. Where an SAE keeps any number of features, each batch has
room for a usual number of them; one that needed more is known by then, and runs again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saerl_fast import ops
from saerl_fast.codes import OVERFLOWED, CsrRows
from saerl_fast.errors import CapacityError, DeviceMemoryError, NonFiniteError
from saerl_fast.extract.backoff import cut_as_recorded, run_halving
from saerl_fast.extract.batching import Batch, one_ahead, upload
from saerl_fast.extract.capture import Capture
from saerl_fast.extract.held import Held
from saerl_fast.extract.job import Job
from saerl_fast.extract.learning import OnDevice
from saerl_fast.extract.reader import Reader
from saerl_fast.extract.sample import Sample
from saerl_fast.extract.settings import Settings
from saerl_fast.extract.store import Batches
from saerl_fast.extract.tokens import Text, TokenizedText, tokenize
from saerl_fast.extract.windows import merge_windows, tokenize_windows
from saerl_fast.features import SparseFeatures
from saerl_fast.sae import SAE

logger = logging.getLogger(__name__)


@dataclass
class Room:
    """How many features a token is given room for, on the average of a batch; never less than any batch has needed."""

    entries_per_row: int = ops.ENTRIES_PER_ROW


class _Gathered:
    """What the batches of one shard left on the device."""

    def __init__(self, sae: SAE, settings: Settings, room: Room, sample: Sample | None) -> None:
        self._sae, self._pool, self._room = sae, settings.pool, room
        self.sample = sample
        self.rows: list[NDArray[np.int64]] = []
        self.pooled: list[ops.SpacedRows] = []
        """Of one batch or of several in a row."""
        self.hidden: list[Tensor] = []
        self.batches: list[tuple[int, int]] = []
        self.held = Held(self._encode)

    def _encode(self, flat: Tensor, kept: Tensor | None, offsets: Tensor) -> None:
        self.pooled.append(self.encoded(flat, kept, offsets))

    def encoded(self, flat: Tensor, kept: Tensor | None, offsets: Tensor) -> ops.SpacedRows:
        """Encode and pool."""
        codes = self._sae.encode_spaced(flat, kept, self._room.entries_per_row)
        return ops.segment_pool_spaced(codes, offsets, self._sae.d_sae, self._pool)


class Fetched(NamedTuple):
    """The pooled rows of all batches on the host, in the order in which they were run; and where they came from."""

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[np.float32]
    on_device: CsrRows | None


class ShardRows(NamedTuple):
    """The rows of a shard in the order of its texts, the batches that were run, and whether memory chose them."""

    features: SparseFeatures
    batches: list[tuple[int, int]]
    split: bool
    sample: Tensor | None = None
    """Activations of some of its tokens, where they were asked for and there are any."""
    entries: OnDevice | None = None
    """Where they still lie on the device, unless the host has changed the rows since."""


class Tokens(NamedTuple):
    """What goes through the model, and the text that each piece belongs to: texts, or the windows of long ones."""

    pieces: list[TokenizedText]
    owner: NDArray[np.int64]


def featurize_shard(
    read: Tokens,
    ids: Sequence[str | int],
    reader: Reader,
    sae: SAE,
    settings: Settings,
    job: Job,
    advance: Any,
    recorded: Batches | None = None,
    room: Room | None = None,
    sampled: bool = False,
) -> ShardRows:
    """One shard from the tokens of its texts to rows in their order; the device is waited for once, at the end.

    recorded: the batches of an earlier run that was split for want of memory, to be taken again. room: what the codes
    of a token may take; the shards of a run share it. sampled: hand out a sample of the activations too.
    """
    tokens, owner = read
    heads = np.diff(owner, prepend=-1)
    room = room or Room()
    sample = Sample(sum(int(text.pooled.sum()) for text in tokens)) if sampled else None
    gathered = _Gathered(sae, settings, room, sample)
    advance(sum(len(text) == 0 for text in tokens))
    lengths = [len(text) for text in tokens]
    groups = settings.layout.group(lengths, settings.tokens_per_batch)
    if recorded is not None:
        groups = cut_as_recorded(groups, recorded)
    with (
        Capture(reader.model, reader.hook) as capture,
        settings.layout.on(reader.model),
        settings.forward.on(reader),
        torch.inference_mode(),
    ):

        def collate(rows: NDArray[np.int64]) -> Batch:
            chosen = [tokens[row] for row in rows]
            return settings.layout.collate(chosen, reader.pad_id, settings.padding_side, reader.device)

        def run(left: list[NDArray[np.int64]]) -> None:
            for rows, batch in zip(left, one_ahead(map(collate, left)), strict=True):
                _featurize_batch(rows, batch, capture, sae, settings, gathered)
                advance(int(heads[rows].sum()))

        def again(rows: NDArray[np.int64]) -> ops.SpacedRows:
            return _with_room(collate(rows), capture, sae, room, gathered)

        split = run_halving(groups, lengths, settings.layout.group, run, lambda: len(gathered.batches))
        gathered.held.flush()
        pooled = _fetch(gathered, again)
    as_run, place = _as_run(tokens, [ids[row] for row in owner], gathered, pooled, sae, settings, job)
    found = as_run[place]
    features = merge_windows(found, owner, ids, settings.pool) if len(owner) > len(ids) else found
    features = _treat_nonfinite(features, settings)
    entries = None
    if features is found and pooled.on_device is not None:
        entries = OnDevice(as_run.indptr[place], pooled.on_device.indices, pooled.on_device.values)
    rows = None if sample is None else sample.rows()
    return ShardRows(features, gathered.batches, split or recorded is not None, rows, entries)


def read_tokens(texts: Sequence[Text], reader: Reader, settings: Settings) -> Tokens:
    """The tokens of some texts, as the settings want them read."""
    reading, limit = settings.reading, settings.limit
    if reading.long_texts == "window":
        windows = tokenize_windows(
            texts,
            reader.tokenizer,
            limit,
            reading.window_stride,
            include_special=reading.include_special,
            pool_over=reading.pool_over,
            skip_first=reading.skip_first,
        )
        return Tokens(*windows)
    whole = tokenize(
        texts,
        reader.tokenizer,
        limit,
        include_special=reading.include_special,
        pool_over=reading.pool_over,
        skip_first=reading.skip_first,
    )
    return Tokens(whole, np.arange(len(texts)))


def _featurize_batch(
    rows: NDArray[np.int64], batch: Batch, capture: Capture, sae: SAE, settings: Settings, gathered: _Gathered
) -> None:
    """Forward, encode, pool: device work only."""
    flat = _flat(capture(batch), sae)
    hidden = None
    if settings.keep_hidden:
        kept, lengths = flat.index_select(0, batch.kept).float(), upload(batch.offsets.diff(), flat.device)
        # unsafe: the lengths are not read back to be checked
        hidden = torch.segment_reduce(kept, "mean", lengths=lengths, axis=0, unsafe=True)
    sampled = None if gathered.sample is None else gathered.sample.of(flat, batch.kept)
    gathered.held.add(flat, batch.kept, batch.offsets)
    # nothing behind this line can run out of memory: a batch is gathered whole or not at all
    if gathered.sample is not None and sampled is not None:
        gathered.sample.take(sampled, len(batch.kept))
    if hidden is not None:
        gathered.hidden.append(hidden)
    gathered.rows.append(rows)
    gathered.batches.append((len(rows), batch.input_ids.shape[1]))


def _flat(hidden: Tensor, sae: SAE) -> Tensor:
    """One row per token."""
    return hidden.reshape(-1, hidden.shape[-1]) if not sae.flatten_heads else hidden.flatten(0, 1)


def _with_room(batch: Batch, capture: Capture, sae: SAE, room: Room, gathered: _Gathered) -> ops.SpacedRows:
    """The pooled rows of a batch whose codes found no room: the same pass again, with more room until it is enough."""
    try:
        flat = _flat(capture(batch), sae)
        while True:
            pooled = gathered.encoded(flat, batch.kept, batch.offsets)
            if not bool((pooled.counts == OVERFLOWED).any()):
                return pooled
            room.entries_per_row *= 2
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"the features of a batch of {len(batch.kept)} tokens take more memory than the device has. Lower "
            f"tokens_per_batch. torch said: {error}"
        ) from error


def _as_run(
    tokens: Sequence[TokenizedText],
    ids: Sequence[str | int],
    gathered: _Gathered,
    pooled: Fetched,
    sae: SAE,
    settings: Settings,
    job: Job,
) -> tuple[SparseFeatures, NDArray[np.int64]]:
    """Rows of all batches on the host in the order in which they were run, behind them the untouched, empty ones; and
    the place there of each in the order of the texts."""
    silent = np.array([row for row, text in enumerate(tokens) if len(text) == 0], dtype=np.int64)
    order = np.concatenate([*gathered.rows, silent]).astype(np.int64)
    indptr, indices, values, _ = pooled
    hidden = None
    if settings.keep_hidden:
        empty = np.zeros((len(silent), sae.d_in), np.float32)
        hidden = np.concatenate([torch.cat(gathered.hidden).cpu().numpy(), empty]) if gathered.hidden else empty
    as_run = SparseFeatures(
        indptr=np.concatenate([indptr, np.full(len(silent), indptr[-1])]),
        indices=indices,
        values=values,
        n_features=sae.d_sae,
        ids=tuple(ids[row] for row in order),
        status=tuple(tokens[row].status for row in order),
        n_tokens=np.array([int(tokens[row].pooled.sum()) for row in order], dtype=np.int32),
        hidden=hidden,
        provenance=job.fingerprint,
    )
    return as_run, np.argsort(order, kind="stable")


def _fetch(gathered: _Gathered, again: Callable[[NDArray[np.int64]], ops.SpacedRows]) -> Fetched:
    """The pooled rows of all batches on the host. Here the device is waited for.

    again: the rows of a batch whose codes found no room, made anew; nothing is cut.
    """
    if not gathered.pooled:
        return Fetched(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), None)
    try:
        rows = ops.SpacedRows.joined(gathered.pooled).to_csr()
    except CapacityError:
        if len(gathered.pooled) != len(gathered.rows):  # encoded together on a CPU, whose backends have room for all
            raise
        lacking = [n for n, pooled in enumerate(gathered.pooled) if bool((pooled.counts == OVERFLOWED).any())]
        for n in lacking:
            gathered.pooled[n] = again(gathered.rows[n])
        logger.warning("%d of %d batches kept more features than there was room for, and ran twice; the next shards "
                       "have more", len(lacking), len(gathered.pooled))  # fmt: skip
        rows = ops.SpacedRows.joined(gathered.pooled).to_csr()
    return Fetched(rows.indptr.cpu().numpy(), rows.indices.cpu().numpy(), rows.values.cpu().numpy(), rows)


def _treat_nonfinite(features: SparseFeatures, settings: Settings) -> SparseFeatures:
    bad_entries = np.flatnonzero(~np.isfinite(features.values))
    if not len(bad_entries):
        return features
    bad = np.unique(np.searchsorted(features.indptr, bad_entries, side="right") - 1)
    names = [features.ids[row] for row in bad]
    if settings.on_nonfinite == "raise":
        raise NonFiniteError(
            f"{len(bad)} rows have NaN or infinite activations (ids {names[:5]}{'...' if len(names) > 5 else ''}). "
            "Is the model in a dtype too narrow for it? on_nonfinite='mark' keeps the rows empty and marked."
        )
    logger.warning("%d rows have non-finite activations and are marked: ids %s", len(bad), names[:5])
    return _blank(features, set(bad.tolist()))


def _blank(features: SparseFeatures, rows: set[int]) -> SparseFeatures:
    """The same features with some rows emptied and marked nonfinite."""
    lengths = np.diff(features.indptr)
    stays = np.repeat([row not in rows for row in range(len(features))], lengths)
    lengths[sorted(rows)] = 0
    hidden = features.hidden
    if hidden is not None:
        hidden = hidden.copy()
        hidden[sorted(rows)] = 0
    return SparseFeatures(
        indptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        indices=features.indices[stays],
        values=features.values[stays],
        n_features=features.n_features,
        ids=features.ids,
        status=tuple("nonfinite" if row in rows else status for row, status in enumerate(features.status)),
        n_tokens=features.n_tokens,
        hidden=hidden,
        provenance=features.provenance,
    )

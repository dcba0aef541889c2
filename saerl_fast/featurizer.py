"""featurize: texts in, one sparse SAE row per text out.

The one loop that ties the rooms together: tokens, batches of like length, the forward up to the hook,
the sparse encode of the rows that count, the pool to one row per text. No dense [tokens, d_sae] array is
made, and activations never leave the device.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from saerl_fast import __version__, ops
from saerl_fast.errors import InputError, NonFiniteError
from saerl_fast.extract.batching import collate, group_by_length
from saerl_fast.extract.capture import Capture
from saerl_fast.extract.inputs import check_ids, dataset_ids, read_texts, to_json_lines
from saerl_fast.extract.reader import Reader, make_reader
from saerl_fast.extract.store import Job, StoreWriter, read_shard
from saerl_fast.extract.tokens import Text, TokenizedText, tokenize
from saerl_fast.features import SparseFeatures
from saerl_fast.formats import load_sae
from saerl_fast.sae import SAE

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

Pool = Literal["mean", "max", "sum", "last", "count"]
POOLS: tuple[Pool, ...] = ("mean", "max", "sum", "last", "count")
TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 32768}
SHARD_ROWS = 1024


@dataclass(frozen=True)
class _Settings:
    """What featurize was asked to do, checked."""

    pool: Pool
    limit: int
    include_special: bool
    keep_hidden: bool
    tokens_per_batch: int
    padding_side: str
    on_nonfinite: str


@dataclass
class _Gathered:
    """What the batches of one shard left on the device."""

    rows: list[NDArray[np.int64]] = field(default_factory=list)
    pooled: list[ops.CsrRows] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)
    batches: list[tuple[int, int]] = field(default_factory=list)


def featurize(
    texts: Sequence[Text] | datasets.Dataset,
    model: nn.Module | str | os.PathLike[str],
    sae: SAE | str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    layer: int | None = None,
    pool: Pool = "mean",
    max_length: int | None = None,
    text_field: str | None = None,
    out: str | os.PathLike[str] | None = None,
    keep_hidden: bool = False,
    include_special: bool = False,
    ids: Sequence[str | int] | None = None,
    columns: Sequence[dict[str, Any]] | None = None,
    source: dict[str, Any] | None = None,
    tokens_per_batch: int | None = None,
    shard_rows: int = SHARD_ROWS,
    padding_side: Literal["right", "left"] = "right",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    on_nonfinite: Literal["raise", "mark"] = "raise",
    progress: bool = True,
) -> SparseFeatures:
    """One sparse row of SAE features per text, read off a model's hidden states.

    texts: strings, conversations (lists of {"role", "content"}; the chat template is applied and only
        the contents are pooled), or a ``datasets.Dataset`` with ``text_field``. None and empty texts keep
        their row, marked in ``status``.
    model: a Hugging Face causal LM or encoder (then ``tokenizer`` is needed), a folder, or a hub id
        (then only the layers needed are loaded and the tokenizer comes with it).
    sae: an SAE, or the folder of one in sae-lens form.
    layer: the block whose output is read, counted from 0; default: the hook in the SAE's metadata.
    pool: mean | max | sum | last | count over the tokens of the text. BOS, EOS, CLS, SEP and padding are
        never pooled (unless include_special, which leaves out only padding); the mean divides by the
        tokens kept. Values are float32 and untransformed.
    max_length: texts are cut at min(model, SAE context size, max_length) tokens, marked and counted.
    out: a folder to write, shard by shard; a run that was killed continues there, a finished one is read.
    keep_hidden: also keep the mean hidden state over the same tokens, float32 [S, D].
    ids: one unique id per text; default the dataset's column ``id`` where it names every row once, else 0, 1, 2 ...
    columns, source: kept in the folder beside the rows; columns is one dict a text.
    tokens_per_batch: padded tokens of one forward pass; default 4,096 on a CPU, 32,768 on CUDA.
    shard_rows: rows per shard; texts are sorted by length inside a shard only.
    on_nonfinite: what to do with a row that holds NaN or infinity: raise, or mark it and leave it empty.

    Returns SparseFeatures with S = len(texts) rows in the order of the texts.

    Raises InputError, ModelMismatchError, UnsafeFileError, NonFiniteError, and the errors of the store.
    Warns (MismatchWarning) where the SAE was made for another model.
    """
    rows = read_texts(texts, text_field)
    row_ids = check_ids(dataset_ids(texts) if ids is None else ids, len(rows))
    if shard_rows < 1:
        raise InputError(f"shard_rows must be at least 1; got {shard_rows}")
    if columns is not None and len(columns) != len(rows):
        raise InputError(f"columns must have one entry per text: {len(rows)} texts, {len(columns)} columns")
    lines = None if columns is None else to_json_lines(columns)
    found = sae if isinstance(sae, SAE) else load_sae(sae)
    reader = make_reader(model, found, tokenizer=tokenizer, layer=layer, device=device, dtype=dtype)
    found = found.to(reader.device)
    settings = _settings(
        reader,
        found,
        pool,
        max_length,
        include_special,
        keep_hidden,
        tokens_per_batch,
        padding_side,
        on_nonfinite,
    )
    fingerprint = _fingerprint(reader, found, settings, rows, row_ids)
    if lines is not None:
        fingerprint["columns"] = hashlib.sha256(lines).hexdigest()
    job = Job(len(rows), shard_rows, fingerprint, source or {})
    return _run(job, rows, row_ids, lines, reader, found, settings, out, progress)


def _run(
    job: Job,
    texts: Sequence[Text],
    ids: Sequence[str | int],
    columns: bytes | None,
    reader: Reader,
    sae: SAE,
    settings: _Settings,
    out: str | os.PathLike[str] | None,
    progress: bool,
) -> SparseFeatures:
    """Every shard, computed or read back, one after the other."""
    from tqdm.auto import tqdm

    parts: list[SparseFeatures] = []
    with tqdm(total=job.rows, desc="featurize", unit="text", disable=not progress) as bar:

        def compute(shard: int) -> tuple[SparseFeatures, list[tuple[int, int]]]:
            span = job.span(shard)
            chosen = [texts[row] for row in span]
            return _featurize_shard(chosen, [ids[row] for row in span], reader, sae, settings, job, bar.update)

        if out is None:
            parts = [compute(shard)[0] for shard in range(job.shards)]
        else:
            with StoreWriter(out, job) as store:
                if columns is not None:
                    store.write_columns(columns)
                for shard in range(job.shards):
                    if store.has(shard):
                        parts.append(read_shard(store.folder, job, shard))
                        bar.update(len(job.span(shard)))
                        continue
                    features, batches = compute(shard)
                    store.write(shard, features, batches)
                    parts.append(features)
                store.finish()
    features = SparseFeatures.concatenate(parts)
    _report(features)
    return features


def _featurize_shard(
    texts: Sequence[Text],
    ids: Sequence[str | int],
    reader: Reader,
    sae: SAE,
    settings: _Settings,
    job: Job,
    advance: Any,
) -> tuple[SparseFeatures, list[tuple[int, int]]]:
    """One shard from texts to rows in their own order; the device is waited for once, at the end."""
    tokens = tokenize(texts, reader.tokenizer, settings.limit, include_special=settings.include_special)
    gathered = _Gathered()
    advance(sum(len(text) == 0 for text in tokens))
    with Capture(reader.model, reader.layer) as capture, torch.inference_mode():
        for rows in group_by_length([len(text) for text in tokens], settings.tokens_per_batch):
            _featurize_batch(rows, [tokens[row] for row in rows], capture, reader, sae, settings, gathered)
            advance(len(rows))
    features = _assemble(tokens, ids, gathered, sae, settings, job)
    return _treat_nonfinite(features, settings), gathered.batches


def _featurize_batch(
    rows: NDArray[np.int64],
    texts: Sequence[TokenizedText],
    capture: Capture,
    reader: Reader,
    sae: SAE,
    settings: _Settings,
    gathered: _Gathered,
) -> None:
    """Forward, encode, pool: device work only."""
    batch = collate(texts, reader.pad_id, settings.padding_side, reader.device)
    hidden = capture(batch)
    flat = hidden.reshape(-1, hidden.shape[-1]) if not sae.flatten_heads else hidden.flatten(0, 1)
    codes = sae.encode(flat, row_index=batch.kept)
    gathered.rows.append(rows)
    gathered.batches.append((len(texts), int(batch.input_ids.shape[1])))
    gathered.pooled.append(ops.segment_pool(codes, batch.offsets, sae.d_sae, settings.pool))
    if settings.keep_hidden:
        kept = flat.index_select(0, batch.kept).float()
        gathered.hidden.append(torch.segment_reduce(kept, "mean", offsets=batch.offsets, axis=0))


def _assemble(
    tokens: Sequence[TokenizedText],
    ids: Sequence[str | int],
    gathered: _Gathered,
    sae: SAE,
    settings: _Settings,
    job: Job,
) -> SparseFeatures:
    """Rows of all batches on the host, put back into the order of the texts; untouched rows are empty."""
    silent = np.array([row for row, text in enumerate(tokens) if len(text) == 0], dtype=np.int64)
    order = np.concatenate([*gathered.rows, silent]).astype(np.int64)
    lengths = [np.diff(part.indptr.cpu().numpy()) for part in gathered.pooled] + [np.zeros(len(silent), np.int64)]
    hidden = None
    if settings.keep_hidden:
        empty = np.zeros((len(silent), sae.d_in), np.float32)
        hidden = np.concatenate([*(part.cpu().numpy() for part in gathered.hidden), empty])
    as_run = SparseFeatures(
        indptr=np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64),
        indices=_join([part.indices.cpu().numpy() for part in gathered.pooled], np.int32),
        values=_join([part.values.cpu().numpy() for part in gathered.pooled], np.float32),
        n_features=sae.d_sae,
        ids=tuple(ids[row] for row in order),
        status=tuple(tokens[row].status for row in order),
        n_tokens=np.array([int(tokens[row].pooled.sum()) for row in order], dtype=np.int32),
        hidden=hidden,
        provenance=job.fingerprint,
    )
    return as_run[np.argsort(order, kind="stable")]


def _join(parts: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)


def _treat_nonfinite(features: SparseFeatures, settings: _Settings) -> SparseFeatures:
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


def _settings(
    reader: Reader,
    sae: SAE,
    pool: Pool,
    max_length: int | None,
    include_special: bool,
    keep_hidden: bool,
    tokens_per_batch: int | None,
    padding_side: str,
    on_nonfinite: str,
) -> _Settings:
    if pool not in POOLS:
        raise InputError(f"pool must be one of {POOLS}; got {pool!r}")
    if padding_side not in ("left", "right"):
        raise InputError(f"padding_side must be left or right; got {padding_side!r}")
    if on_nonfinite not in ("raise", "mark"):
        raise InputError(f"on_nonfinite must be raise or mark; got {on_nonfinite!r}")
    if max_length is not None and max_length < 1:
        raise InputError(f"max_length must be at least 1; got {max_length}")
    limits = [limit for limit in (reader.max_positions, sae.context_size, max_length) if limit]
    return _Settings(
        pool=pool,
        limit=min(limits, default=2**31 - 1),
        include_special=include_special,
        keep_hidden=keep_hidden,
        tokens_per_batch=tokens_per_batch
        or TOKENS_PER_BATCH[reader.device.type if reader.device.type == "cuda" else "cpu"],
        padding_side=padding_side,
        on_nonfinite=on_nonfinite,
    )


def _fingerprint(
    reader: Reader, sae: SAE, settings: _Settings, texts: Sequence[Text], ids: Sequence[str | int]
) -> dict[str, Any]:
    """Everything that changes a bit of the result."""
    return {
        **reader.fingerprint(),
        "layer": reader.layer,
        "sae": sae.weights_hash(),
        "sae_kind": sae.kind,
        "sae_k": sae.k,
        "sae_model": sae.model_name,
        "sae_hook": sae.hook_name,
        "pool": settings.pool,
        "max_tokens": settings.limit,
        "include_special": settings.include_special,
        "keep_hidden": settings.keep_hidden,
        "tokens_per_batch": settings.tokens_per_batch,
        "padding_side": settings.padding_side,
        "on_nonfinite": settings.on_nonfinite,
        "device": reader.device.type,
        "torch": torch.__version__,
        "saerl_fast": __version__,
        "texts": _hash_each(texts),
        "ids": _hash_each(ids),
    }


def _hash_each(items: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for item in _plain(items):
        digest.update(item)
        digest.update(b"\n")
    return digest.hexdigest()


def _plain(items: Sequence[Any]) -> Iterator[bytes]:
    for item in items:
        yield json.dumps(item, ensure_ascii=True, default=str).encode()


def _report(features: SparseFeatures) -> None:
    counts = features.status_counts()
    odd = {status: count for status, count in counts.items() if status != "ok"}
    if odd:
        logger.warning("featurize: of %d texts %s", len(features), ", ".join(f"{n} {s}" for s, n in odd.items()))

"""Long texts in windows: each window read by itself, all of a text's windows pooled together as one text.

A text of more than ``limit`` tokens is laid out as

    window j = first special token + body[j * stride : j * stride + capacity] + closing special token

with capacity = limit less those special tokens (BOS or CLS, EOS or SEP, where the text has them), until the body is
covered. A token of the body counts once, in the first window that holds it; what a later window holds again is its
context. The pooled row is that of the tokens that count, over all windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saerl_fast.errors import InputError
from saerl_fast.extract.conversation import Encoded, PoolOver
from saerl_fast.extract.tokens import Text, TokenizedText, encode, pooled_tokens, silent
from saerl_fast.features import SparseFeatures


def tokenize_windows(
    texts: Sequence[Text],
    tokenizer: Any,
    limit: int,
    stride: int | None = None,
    *,
    include_special: bool = False,
    pool_over: PoolOver = "all",
    skip_first: int = 0,
) -> tuple[list[TokenizedText], NDArray[np.int64]]:
    """The windows of every text, and the number of the text that each belongs to, int64 [windows], ascending.

    stride: body tokens from one window's beginning to the next; default, and at most, the capacity, so that windows
    touch. The first ``skip_first`` tokens of every window are read and not pooled. A window without a token to pool is
    left out; a text without one is there once, empty. For the rest see ``tokenize``.
    """
    first = {tokenizer.bos_token_id, tokenizer.cls_token_id}
    closing = {tokenizer.eos_token_id, tokenizer.sep_token_id}
    pieces: list[TokenizedText] = []
    owner: list[int] = []
    for row, found in enumerate(encode(texts, tokenizer, pool_over)):
        if isinstance(found, str):
            windows = [silent(found)]
        else:
            lead = int(found.special[0] and found.ids[0] in first)
            tail = int(found.special[-1] and found.ids[-1] in closing)
            windows = _cut(found, limit, stride, lead, tail, include_special, skip_first) or [silent("empty")]
        pieces += windows
        owner += [row] * len(windows)
    return pieces, np.asarray(owner, dtype=np.int64)


def _cut(
    found: Encoded, limit: int, stride: int | None, lead: int, tail: int, include_special: bool, skip_first: int
) -> list[TokenizedText]:
    pooled = pooled_tokens(found, include_special)
    length = len(found.ids)
    if length <= limit:
        pooled[:skip_first] = False
        return [TokenizedText(found.ids, pooled, "ok")] if pooled.any() else []
    capacity = limit - lead - tail
    if capacity < 1:
        raise InputError(f"windows of {limit} tokens have no room for text beside {lead + tail} special tokens")
    step = min(stride or capacity, capacity)
    end = length - tail
    windows = []
    counted = 0  # positions of the text before this one have counted
    for start in range(lead, max(end - capacity, lead) + step, step):
        stop = min(start + capacity, end)
        keep = np.concatenate([np.arange(lead), np.arange(start, stop), np.arange(end, length)])
        counts = pooled[keep] & (keep >= counted)
        counts[len(keep) - tail :] &= stop == end
        counts[:skip_first] = False
        counted = stop
        if counts.any():
            windows.append(TokenizedText(found.ids[keep], counts, "windowed"))
    return windows


def merge_windows(
    windows: SparseFeatures, owner: NDArray[np.int64], ids: Sequence[str | int], pool: str
) -> SparseFeatures:
    """The rows of the texts from those of their windows, each pooled by ``pool``.

    mean: weighted by the tokens pooled, as over all tokens at once; sums in float64, rounded to float32 once. last:
    the last window's. A text of one window keeps its bits.
    """
    rows = len(ids)
    tokens = windows.n_tokens.astype(np.int64)
    total = np.bincount(owner, weights=tokens, minlength=rows).astype(np.int64)
    share = tokens / np.maximum(total[owner], 1)
    window = np.repeat(np.arange(len(windows)), np.diff(windows.indptr))
    values, indices = windows.values.astype(np.float64), windows.indices
    if pool == "last":
        last = np.append(owner[1:] != owner[:-1], True)
        window, values, indices = (array[last[window]] for array in (window, values, indices))
    elif pool == "mean":
        values = values * share[window]
    key = owner[window] * windows.n_features + indices
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    merged = (np.maximum if pool == "max" else np.add).reduceat(values[order], starts) if len(starts) else values
    texts, columns = np.divmod(key[order][starts], windows.n_features)
    if pool == "max":  # a latent absent from some window is zero there
        everywhere = np.diff(starts, append=len(key)) == np.bincount(owner, minlength=rows)[texts]
        merged = np.where(everywhere, merged, np.maximum(merged, 0))
    merged = merged.astype(np.float32)
    texts, columns, merged = (array[merged != 0] for array in (texts, columns, merged))
    head = np.flatnonzero(np.diff(owner, prepend=-1))
    hidden = windows.hidden
    if hidden is not None:
        hidden = np.add.reduceat(hidden * share[:, None], head, axis=0).astype(np.float32)
    return SparseFeatures(
        indptr=np.searchsorted(texts, np.arange(rows + 1)).astype(np.int64),
        indices=columns.astype(np.int32),
        values=merged,
        n_features=windows.n_features,
        ids=tuple(ids),
        status=tuple(windows.status[row] for row in head),
        n_tokens=total.astype(np.int32),
        hidden=hidden,
        provenance=windows.provenance,
    )

"""Text to token ids, with a mark on each token that says whether it is pooled.

Special tokens (BOS, EOS, CLS, SEP) carry huge activations that say nothing about the text, so they
are read by the model but not pooled. Literals such as ``<|end|>`` inside a text are encoded as plain
text: data never becomes a control token.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saerl_fast.errors import DtypeError, InputError
from saerl_fast.extract.conversation import (
    Encoded,
    Message,
    PoolOver,
    choose_messages,
    encode_conversation,
    has_text,
    is_conversation,
    spoken,
)

logger = logging.getLogger(__name__)

Pair = Mapping[str, Any]
Text = str | Sequence[Message] | Pair | None

TEXTS_AT_ONCE = 1024
NOTHING = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class TokenizedText:
    """input_ids int64 [T]; pooled bool [T], the tokens that count; status as in SparseFeatures."""

    input_ids: NDArray[np.int64]
    pooled: NDArray[np.bool_]
    status: str

    def __len__(self) -> int:
        return len(self.input_ids)


def silent(status: str) -> TokenizedText:
    """A text of which no token is read."""
    return TokenizedText(NOTHING, NOTHING.astype(bool), status)


def tokenize(
    texts: Sequence[Text],
    tokenizer: Any,
    limit: int,
    *,
    include_special: bool = False,
    pool_over: PoolOver = "all",
    skip_first: int = 0,
) -> list[TokenizedText]:
    """Tokenize each text, cut to ``limit`` tokens with its closing special tokens kept.

    A text is a string, a conversation (a list of {"role", "content"}), a pair {"prompt", "completion"} of strings or
    of messages, or None. pool_over: the part of it that is pooled; the first ``skip_first`` tokens never are. Texts
    that cannot be encoded (a lone surrogate) come back with status "invalid", texts without a token to pool with
    status "empty"; both have no ids, so that they never reach the model.

    Raises DtypeError for anything else, InputError for a part that a plain string does not have.
    """
    encoded = encode(texts, tokenizer, pool_over)
    done = [
        silent(found) if isinstance(found, str) else _finish(found, limit, include_special, skip_first)
        for found in encoded
    ]
    lost = sum(not len(text) and not isinstance(found, str) for text, found in zip(done, encoded, strict=True))
    if lost:
        logger.warning(
            "%d of %d texts are left empty: all that would be pooled lies behind token %d or among the first %d",
            lost,
            len(texts),
            limit,
            skip_first,
        )
    return done


def refuse_long(
    texts: Sequence[Text], ids: Sequence[str | int], tokenizer: Any, limit: int, pool_over: PoolOver = "all"
) -> None:
    """Raise InputError, with how many and which, where texts have more than ``limit`` tokens."""
    long: list[tuple[str | int, int]] = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        span = slice(start, start + TEXTS_AT_ONCE)
        for name, found in zip(ids[span], encode(texts[span], tokenizer, pool_over), strict=True):
            if not isinstance(found, str) and len(found.ids) > limit:
                long.append((name, len(found.ids)))
    if long:
        named = ", ".join(f"{name} with {length}" for name, length in long[:5]) + (", ..." if long[5:] else "")
        raise InputError(
            f"{len(long)} of {len(texts)} texts have more than {limit} tokens (ids {named}). "
            "long_texts='truncate' cuts them, 'window' reads them in windows"
        )


def check_texts(texts: Sequence[Text], pool_over: PoolOver = "all") -> None:
    """Raise DtypeError for a text of another kind, InputError for one without the part to be pooled, with its row."""
    for row, text in enumerate(texts):
        if isinstance(text, str):
            if pool_over in ("completion", "last_user"):
                raise InputError(
                    f"text {row} is a plain string, which has no {pool_over}; hand in chat messages or "
                    "{'prompt': ..., 'completion': ...}"
                )
        elif isinstance(text, Mapping) and "prompt" in text:
            _check_pair(text, pool_over, row)
        elif not _is_missing(text):
            _check_messages(text, f"text {row}", "a string, a list of chat messages, a pair of prompt and completion")


def _check_pair(pair: Pair, pool_over: PoolOver, row: int) -> None:
    plain = True
    for side in ("prompt", "completion"):
        if not (_is_missing(pair.get(side)) or isinstance(pair[side], str)):
            _check_messages(pair[side], f"text {row}: its {side}", "a string, a list of messages")
            plain = False
    if plain and pool_over == "last_user":
        raise InputError(f"text {row} is a pair of plain strings, which has no last user turn; hand in messages")


def _check_messages(found: Any, named: str, wanted: str) -> None:
    if not is_conversation(found):
        raise DtypeError(f"{named} must be {wanted}, or None; got {type(found).__name__}")
    for message in found:
        if not has_text(message):
            raise DtypeError(
                f"{named}: the content of a message must be a string, or a list of parts such as "
                f"{{'type': 'text', 'text': '...'}}; got {message['content']!r:.80}"
            )


def encode(texts: Sequence[Text], tokenizer: Any, pool_over: PoolOver = "all") -> list[Encoded | str]:
    """Every text in its whole length, or the status of one that has nothing to read."""
    check_texts(texts, pool_over)
    done: list[Encoded | str] = ["empty"] * len(texts)
    plain: list[int] = []
    for row, text in enumerate(texts):
        if _is_missing(text):
            continue
        if isinstance(text, str):
            plain.append(row)
        elif isinstance(text, Mapping):
            done[row] = _encode_pair(text, tokenizer, pool_over)
        else:
            done[row] = _encode_messages(*choose_messages(text or (), pool_over), tokenizer)
    for row, found in zip(plain, _encode_strings([texts[row] for row in plain], tokenizer), strict=True):
        done[row] = found
    return [found if isinstance(found, str) or found.content.any() else "empty" for found in done]


def _is_missing(text: object) -> bool:
    nan = isinstance(text, float) and np.isnan(text)
    return text is None or nan or (isinstance(text, (list, tuple)) and not text)


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _encode_strings(texts: Sequence[Any], tokenizer: Any) -> list[Encoded | str]:
    sound = [row for row, text in enumerate(texts) if _is_encodable(text)]
    done: list[Encoded | str] = ["invalid"] * len(texts)
    if not sound:
        return done
    encoded = tokenizer(
        [texts[row] for row in sound],
        return_special_tokens_mask=True,
        return_attention_mask=False,
        split_special_tokens=True,
        truncation=False,
        verbose=False,
    )
    for row, ids, special in zip(sound, encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
        mask = np.asarray(special, dtype=bool)
        done[row] = Encoded(np.asarray(ids, dtype=np.int64), mask, ~mask)
    return done


def _encode_messages(messages: Sequence[Message], wanted: Any, tokenizer: Any) -> Encoded | str:
    if not messages or not wanted:
        return "empty"
    if not all(_is_encodable(text) for text in spoken(messages)):
        return "invalid"
    return encode_conversation(messages, wanted, tokenizer)


def _encode_pair(pair: Pair, tokenizer: Any, pool_over: PoolOver) -> Encoded | str:
    """A prompt and its completion: strings as one string, or messages as one conversation."""
    prompt, completion = (None if _is_missing(pair.get(side)) else pair.get(side) for side in ("prompt", "completion"))
    if isinstance(prompt, (str, type(None))) and isinstance(completion, (str, type(None))):
        return _encode_string_pair(prompt or "", completion or "", tokenizer, pool_over)
    before = _as_messages(prompt, "user")
    after = [] if pool_over == "prompt" else _as_messages(completion, "assistant")
    messages = [*before, *after]
    if pool_over == "last_user":
        return _encode_messages(*choose_messages(messages, pool_over), tokenizer)
    wanted = range(len(before), len(messages)) if pool_over == "completion" else range(len(messages))
    return _encode_messages(messages, wanted, tokenizer)


def _as_messages(side: Any, role: str) -> list[Message]:
    if side is None:
        return []
    return [{"role": role, "content": side}] if isinstance(side, str) else list(side)


def _encode_string_pair(prompt: str, completion: str, tokenizer: Any, pool_over: PoolOver) -> Encoded | str:
    """The ids of the one string prompt + completion; a token across the seam is the completion's."""
    whole = prompt if pool_over == "prompt" else prompt + completion
    (found,) = _encode_strings([whole], tokenizer)
    if isinstance(found, str) or pool_over != "completion":
        return found
    if not tokenizer.is_fast:
        raise InputError("pool_over='completion' needs a fast tokenizer, which says where in a string its tokens lie")
    offsets = tokenizer(whole, return_offsets_mapping=True, split_special_tokens=True, verbose=False)["offset_mapping"]
    ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)[:, 1]
    return found._replace(content=found.content & (ends > len(prompt)))


def _finish(found: Encoded, limit: int, include_special: bool, skip_first: int) -> TokenizedText:
    """Cut to the limit and decide what is pooled."""
    keep = _truncation(found.special, limit)
    pooled = pooled_tokens(found, include_special)[keep]
    pooled[:skip_first] = False
    if not pooled.any():
        return silent("empty")
    return TokenizedText(found.ids[keep], pooled, "truncated" if len(keep) < len(found.ids) else "ok")


def pooled_tokens(found: Encoded, include_special: bool) -> NDArray[np.bool_]:
    """The tokens that count before any are skipped or cut; a new array."""
    return found.content | found.special if include_special else found.content.copy()


def _truncation(special: NDArray[np.bool_], limit: int) -> NDArray[np.int64]:
    """Positions that stay: all, or the first ones with the closing special tokens moved up behind them."""
    length = len(special)
    if length <= limit:
        return np.arange(length)
    closing = 0
    while closing < length and special[length - 1 - closing]:
        closing += 1
    closing = min(closing, max(limit - 1, 0))
    return np.concatenate([np.arange(limit - closing), np.arange(length - closing, length)])

"""Text to token ids, with a mark on each token that says whether it is pooled.

Special tokens (BOS, EOS, CLS, SEP) carry huge activations that say nothing about the text, so they
are read by the model but not pooled. Literals such as ``<|end|>`` inside a text are encoded as plain
text: data never becomes a control token.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from saerl_fast.errors import DtypeError, InputError

logger = logging.getLogger(__name__)

Message = Mapping[str, Any]
Text = str | Sequence[Message] | None


@dataclass(frozen=True)
class TokenizedText:
    """input_ids int64 [T]; pooled bool [T], the tokens that count; status as in SparseFeatures."""

    input_ids: NDArray[np.int64]
    pooled: NDArray[np.bool_]
    status: str

    def __len__(self) -> int:
        return len(self.input_ids)


Encoded = tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]
"""ids, which are control tokens, which are content"""

Pieces = list[tuple[str, bool]]

NOTHING = np.zeros(0, dtype=np.int64)


def tokenize(texts: Sequence[Text], tokenizer: Any, limit: int, *, include_special: bool) -> list[TokenizedText]:
    """Tokenize each text, cut to ``limit`` tokens with its closing special tokens kept.

    A text is a string, a conversation (a list of {"role", "content"}), or None. Strings that cannot be
    encoded (a lone surrogate) come back with status "invalid", texts without a token to pool with
    status "empty"; both have no ids, so that they never reach the model. Raises DtypeError for others.
    """
    done: list[TokenizedText | None] = [None] * len(texts)
    plain: list[int] = []
    for row, text in enumerate(texts):
        if _is_missing(text):
            done[row] = TokenizedText(NOTHING, NOTHING.astype(bool), "empty")
        elif isinstance(text, str):
            if _is_encodable(text):
                plain.append(row)
            else:
                done[row] = TokenizedText(NOTHING, NOTHING.astype(bool), "invalid")
        elif _is_conversation(text):
            if all(_is_encodable(content) for content in _contents(text)):
                done[row] = _finish(*_encode_conversation(text, tokenizer), limit, include_special)
            else:
                done[row] = TokenizedText(NOTHING, NOTHING.astype(bool), "invalid")
        else:
            raise DtypeError(f"text {row} must be a string, a list of chat messages or None; got {type(text).__name__}")
    if plain:
        encoded = tokenizer(
            [texts[row] for row in plain],
            return_special_tokens_mask=True,
            return_attention_mask=False,
            split_special_tokens=True,
            truncation=False,
            verbose=False,
        )
        for row, ids, special in zip(plain, encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
            special_mask = np.asarray(special, dtype=bool)
            done[row] = _finish(np.asarray(ids, dtype=np.int64), special_mask, ~special_mask, limit, include_special)
    return [text for text in done if text is not None]


def _is_missing(text: object) -> bool:
    nan = isinstance(text, float) and np.isnan(text)
    return text is None or nan or (isinstance(text, (list, tuple)) and not text)


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_conversation(text: object) -> TypeGuard[Sequence[Message]]:
    return isinstance(text, Sequence) and all(
        isinstance(message, Mapping) and "role" in message and "content" in message for message in text
    )


def _finish(
    ids: NDArray[np.int64],
    special: NDArray[np.bool_],
    content: NDArray[np.bool_],
    limit: int,
    include_special: bool,
) -> TokenizedText:
    """Cut to the limit and decide what is pooled."""
    if not content.any():
        return TokenizedText(NOTHING, NOTHING.astype(bool), "empty")
    keep = _truncation(special, limit)
    pooled = (content | special) if include_special else content
    status = "truncated" if len(keep) < len(ids) else "ok"
    if not pooled[keep].any():
        return TokenizedText(NOTHING, NOTHING.astype(bool), "empty")
    return TokenizedText(ids[keep], pooled[keep], status)


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


def _encode_conversation(messages: Sequence[Message], tokenizer: Any) -> Encoded:
    """Token ids of a conversation under the chat template; content is what the messages themselves say.

    Role names, markers and an injected system prompt are read by the model and not pooled.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError("chat messages need a tokenizer with a chat template; this one has none. Hand in strings")
    rendered = tokenizer.apply_chat_template(list(messages), tokenize=False)
    pieces = _cut_at_contents(rendered, messages, tokenizer)
    if pieces is None:
        logger.warning("the chat template rewrites the content of a message; all but its control tokens is pooled")
        ids = np.asarray(tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)
        special = np.isin(ids, list(tokenizer.all_special_ids))
        return ids, special, ~special
    if tokenizer.is_fast and not _names_control_token(pieces, tokenizer):
        return _encode_whole(rendered, pieces, tokenizer)
    return _encode_pieces(pieces, tokenizer)


def _encode_whole(rendered: str, pieces: Sequence[tuple[str, bool]], tokenizer: Any) -> Encoded:
    """The usual way: one encoding, exactly the ids the model is trained on; content found by offsets."""
    encoded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = np.asarray(encoded["input_ids"], dtype=np.int64)
    offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    is_content = np.repeat([kind for _, kind in pieces], [len(text) for text, _ in pieces])
    covered = np.concatenate([[0], np.cumsum(is_content)])
    content = covered[offsets[:, 1]] > covered[offsets[:, 0]]
    # literals were ruled out, so a control token inside the content is one the template wrote
    special = np.isin(ids, list(tokenizer.all_special_ids))
    return ids, special, content & ~special


def _encode_pieces(pieces: Sequence[tuple[str, bool]], tokenizer: Any) -> Encoded:
    """Where a content spells a control token: contents are encoded apart from the template, as plain text."""
    ids: list[int] = []
    content: list[bool] = []
    for text, is_content in pieces:
        encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=is_content, verbose=False)
        ids.extend(encoded["input_ids"])
        content.extend([is_content] * len(encoded["input_ids"]))
    token_ids = np.asarray(ids, dtype=np.int64)
    content_mask = np.asarray(content, dtype=bool)
    special = np.isin(token_ids, list(tokenizer.all_special_ids))
    return token_ids, special & ~content_mask, content_mask


def _names_control_token(pieces: Sequence[tuple[str, bool]], tokenizer: Any) -> bool:
    literals = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    return any(literal in text for text, is_content in pieces if is_content for literal in literals)


def _cut_at_contents(rendered: str, messages: Sequence[Message], tokenizer: Any) -> Pieces | None:
    """(piece, is it content) in order.

    The places are found by rendering once more with a marker for each content: a search for the content
    itself would find "help" inside the template's own "helpful". None where the template rewrites contents
    (beyond trimming them), so that they cannot be told from the rest.
    """
    contents = _contents(messages)
    markers = [f"\ue000{number}\ue001" for number in range(len(contents))]
    marked = tokenizer.apply_chat_template(_with_contents(messages, markers), tokenize=False)
    between = _split_at(marked, markers)
    for spell in (str.strip, str):
        spelled = [spell(content) for content in contents]
        if between is not None and _weave(between, spelled) == rendered:
            woven = [(between[0], False)]
            for content, template in zip(spelled, between[1:], strict=True):
                woven += [(content, True), (template, False)]
            return [(text, is_content) for text, is_content in woven if text]
    return None


def _split_at(text: str, markers: Sequence[str]) -> list[str] | None:
    """The stretches around the markers, each of which must occur once, in order."""
    pieces: list[str] = []
    for marker in markers:
        before, found, text = text.partition(marker)
        if not found:
            return None
        pieces.append(before)
    return [*pieces, text]


def _weave(between: Sequence[str], contents: Sequence[str]) -> str:
    return between[0] + "".join(content + rest for content, rest in zip(contents, between[1:], strict=True))


def _contents(messages: Sequence[Message]) -> list[str]:
    """The texts of the messages, in order: strings, or the text parts of multi-part contents; blank ones left out."""
    found: list[str] = []
    for message in messages:
        content = message["content"]
        parts = [content] if isinstance(content, str) else [part.get("text", "") for part in content or []]
        found.extend(part for part in parts if part.strip())
    return found


def _with_contents(messages: Sequence[Message], texts: Sequence[str]) -> list[dict[str, Any]]:
    """The same messages with the texts of ``_contents`` replaced, in order."""
    rest = iter(texts)

    def put(content: Any) -> Any:
        if isinstance(content, str):
            return next(rest) if content.strip() else content
        return [{**part, "text": next(rest)} if part.get("text", "").strip() else part for part in content or []]

    return [{**message, "content": put(message["content"])} for message in messages]

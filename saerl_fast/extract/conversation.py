"""A conversation to token ids: the chat template around it, and which of its tokens the wanted messages say.

The template writes its own BOS and markers, so nothing is added to what it renders. Role names, markers and an
injected system prompt are read by the model and never pooled.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

from saerl_fast.errors import InputError

logger = logging.getLogger(__name__)

Message = Mapping[str, Any]
PoolOver = Literal["all", "prompt", "completion", "last_user"]

TEMPLATE = -1
"""In place of a message's number: what the template says itself."""

Pieces = list[tuple[str, int]]
"""(text, number of the message that says it, or TEMPLATE), in order"""


class Encoded(NamedTuple):
    """ids int64 [T]; special bool [T], control tokens; content bool [T], what is wanted of the text."""

    ids: NDArray[np.int64]
    special: NDArray[np.bool_]
    content: NDArray[np.bool_]


def is_conversation(text: object) -> TypeGuard[Sequence[Message]]:
    """Whether this is a list of messages."""
    return (
        isinstance(text, Sequence)
        and not isinstance(text, (str, bytes))
        and all(isinstance(message, Mapping) and "role" in message and "content" in message for message in text)
    )


def has_text(message: Message) -> bool:
    """Whether its content is a string, nothing, or a list of parts of which those with a text have a string."""
    content = message["content"]
    if content is None or isinstance(content, str):
        return True
    return isinstance(content, Sequence) and all(
        isinstance(part, Mapping) and isinstance(part.get("text", ""), str) for part in content
    )


def choose_messages(messages: Sequence[Message], pool_over: PoolOver) -> tuple[Sequence[Message], Collection[int]]:
    """The messages that are read, and the numbers of those that are pooled.

    The completion is the last message, where it is the assistant's; the prompt is what stands before it, and
    ``prompt`` reads no further. ``last_user`` pools the last message of the user, and reads all.
    """
    completed = bool(messages) and messages[-1]["role"] == "assistant"
    if pool_over == "prompt":
        messages = messages[:-1] if completed else messages
        return messages, range(len(messages))
    if pool_over == "completion":
        return messages, [len(messages) - 1] if completed else []
    if pool_over == "last_user":
        turns = [number for number, message in enumerate(messages) if message["role"] == "user"]
        return messages, turns[-1:]
    return messages, range(len(messages))


def encode_conversation(messages: Sequence[Message], wanted: Collection[int], tokenizer: Any) -> Encoded:
    """Token ids of a conversation under the chat template; content is what the wanted messages themselves say.

    Raises InputError without a template, and where some messages only are wanted of a conversation whose template
    rewrites what they say, so that their tokens cannot be told apart.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError("chat messages need a tokenizer with a chat template; this one has none. Hand in strings")
    rendered = _render(messages, tokenizer)
    pieces = _cut_at_contents(rendered, messages, tokenizer)
    if pieces is None:
        return _encode_rewritten(rendered, len(wanted) == len(messages), tokenizer)
    if tokenizer.is_fast and not _names_control_token(pieces, tokenizer):
        return _encode_whole(rendered, pieces, wanted, tokenizer)
    return _encode_pieces(pieces, wanted, tokenizer)


def _render(messages: Sequence[Message], tokenizer: Any) -> str:
    """The conversation as the template writes it; InputError, with its words, where it refuses to."""
    from jinja2 import TemplateError

    try:
        rendered: str = tokenizer.apply_chat_template(list(messages), tokenize=False)
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(str(message["role"]) for message in messages[:8])
        begins = next(iter(spoken(messages)), "")
        raise InputError(
            f"the chat template does not take a conversation of {roles} that begins {begins!r:.60}: {error}"
        ) from error
    return rendered


def _encode_rewritten(rendered: str, all_wanted: bool, tokenizer: Any) -> Encoded:
    if not all_wanted:
        raise InputError(
            "the chat template rewrites the content of a message, so that one message's tokens cannot be told from "
            "the rest; pass pool_over='all', or hand in prompt and completion as strings"
        )
    logger.warning("the chat template rewrites the content of a message; all but its control tokens is pooled")
    ids = np.asarray(tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)
    special = np.isin(ids, list(tokenizer.all_special_ids))
    return Encoded(ids, special, ~special)


def _encode_whole(rendered: str, pieces: Pieces, wanted: Collection[int], tokenizer: Any) -> Encoded:
    """The usual way: one encoding, exactly the ids the model is trained on; content found by offsets."""
    encoded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = np.asarray(encoded["input_ids"], dtype=np.int64)
    offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    is_content = np.repeat([number in wanted for _, number in pieces], [len(text) for text, _ in pieces])
    covered = np.concatenate([[0], np.cumsum(is_content)])
    content = covered[offsets[:, 1]] > covered[offsets[:, 0]]
    # literals were ruled out, so a control token inside the content is one the template wrote
    special = np.isin(ids, list(tokenizer.all_special_ids))
    return Encoded(ids, special, content & ~special)


def _encode_pieces(pieces: Pieces, wanted: Collection[int], tokenizer: Any) -> Encoded:
    """Where a content spells a control token: contents are encoded apart from the template, as plain text."""
    ids: list[int] = []
    numbers: list[int] = []
    for text, number in pieces:
        plain = number != TEMPLATE
        encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=plain, verbose=False)
        ids.extend(encoded["input_ids"])
        numbers.extend([number] * len(encoded["input_ids"]))
    token_ids = np.asarray(ids, dtype=np.int64)
    content = np.asarray([number in wanted for number in numbers], dtype=bool)
    by_template = np.asarray([number == TEMPLATE for number in numbers], dtype=bool)
    special = np.isin(token_ids, list(tokenizer.all_special_ids))
    return Encoded(token_ids, special & by_template, content)


def _names_control_token(pieces: Pieces, tokenizer: Any) -> bool:
    literals = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    return any(literal in text for text, number in pieces if number != TEMPLATE for literal in literals)


def _cut_at_contents(rendered: str, messages: Sequence[Message], tokenizer: Any) -> Pieces | None:
    """(piece, whose it is) in order.

    The places are found by rendering once more with a marker for each content: a search for the content
    itself would find "help" inside the template's own "helpful". None where the template rewrites contents
    (beyond trimming them), so that they cannot be told from the rest.
    """
    contents = _contents(messages)
    markers = [f"\ue000{number}\ue001" for number in range(len(contents))]
    marked = _render(_with_contents(messages, markers), tokenizer)
    between = _split_at(marked, markers)
    for spell in (str.strip, str):
        spelled = [(spell(content), number) for content, number in contents]
        if between is not None and _weave(between, [text for text, _ in spelled]) == rendered:
            woven = [(between[0], TEMPLATE)]
            for content, template in zip(spelled, between[1:], strict=True):
                woven += [content, (template, TEMPLATE)]
            return [(text, number) for text, number in woven if text]
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


def spoken(messages: Sequence[Message]) -> list[str]:
    """The texts of the messages, in order; blank ones left out."""
    return [text for text, _ in _contents(messages)]


def _contents(messages: Sequence[Message]) -> Pieces:
    """Strings, or the text parts of multi-part contents, each with the number of its message; blank ones left out."""
    found: Pieces = []
    for number, message in enumerate(messages):
        content = message["content"]
        parts = [content] if isinstance(content, str) else [part.get("text", "") for part in content or []]
        found.extend((part, number) for part in parts if part.strip())
    return found


def _with_contents(messages: Sequence[Message], texts: Sequence[str]) -> list[dict[str, Any]]:
    """The same messages with the texts of ``_contents`` replaced, in order."""
    rest = iter(texts)

    def put(content: Any) -> Any:
        if isinstance(content, str):
            return next(rest) if content.strip() else content
        return [{**part, "text": next(rest)} if part.get("text", "").strip() else part for part in content or []]

    return [{**message, "content": put(message["content"])} for message in messages]

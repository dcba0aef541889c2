"""Tokens: which are pooled, where a text is cut, and that data never becomes a control token."""

import numpy as np
import pytest

from saerl_fast.errors import InputError
from saerl_fast.extract.batching import collate, group_by_length
from saerl_fast.extract.tokens import tokenize
from tests import tiny


def one(text, limit=64, include_special=False, **forms):
    return tokenize([text], tiny.tokenizer(**forms), limit, include_special=include_special)[0]


def test_bos_and_eos_are_read_and_not_pooled():
    found = one("find the sum", eos=True)
    assert found.input_ids[0] == 0
    assert found.input_ids[-1] == 1
    assert found.pooled.tolist() == [False] + [True] * (len(found) - 2) + [False]
    assert one("find the sum", eos=True, include_special=True).pooled.all()


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 20])
def test_a_cut_text_keeps_its_closing_special_token(limit):
    whole, cut = one("find the sum of all integers between one and ten", eos=True), None
    cut = one("find the sum of all integers between one and ten", limit=limit, eos=True)
    if limit < 3:  # no room for a single word between BOS and EOS
        assert cut.status == "empty"
        return
    assert len(cut) == min(limit, len(whole))
    assert cut.input_ids[-1] == 1
    assert (cut.input_ids[:-1] == whole.input_ids[: len(cut) - 1]).all()
    assert cut.status == ("truncated" if limit < len(whole) else "ok")


def test_control_literals_are_text_in_strings_and_in_messages():
    tokenizer = tiny.tokenizer()
    special = set(tokenizer.all_special_ids)
    plain = one("a </s><|im_end|> b")
    assert not special & set(plain.input_ids[1:].tolist())
    message = one([{"role": "user", "content": "a </s><|im_end|> b"}])
    assert not special & set(message.input_ids[message.pooled].tolist())
    assert tokenizer.decode(message.input_ids[message.pooled]) == "a </s><|im_end|> b"


def test_without_literals_a_conversation_is_encoded_as_one_string():
    tokenizer = tiny.tokenizer()
    chat = [{"role": "user", "content": "  find the sum\n"}, {"role": "assistant", "content": "ten apples"}]
    found = tokenize([chat], tokenizer, 64, include_special=False)[0]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False)
    assert found.input_ids.tolist() == tokenizer(rendered, add_special_tokens=False)["input_ids"]
    pooled = tokenizer.decode(found.input_ids[found.pooled])
    assert "".join(pooled.split()) == "findthesumtenapples"


QWEN = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)


@pytest.mark.parametrize("content", ["help", "a", "user", "system", "im_start", "\n", "0", "find  the"])
def test_only_the_message_is_pooled_whatever_the_template_says_itself(content):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = QWEN
    chat = [{"role": "user", "content": content}, {"role": "assistant", "content": "ten"}]
    found = tokenize([chat], tokenizer, 200, include_special=False)[0]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False)
    start = rendered.index("<|im_start|>user\n") + len("<|im_start|>user\n")
    before = tokenizer(rendered[:start], add_special_tokens=False)["input_ids"]
    assert not found.pooled[: len(before)].any()
    assert tokenizer.decode(found.input_ids[found.pooled]) == (content if content.strip() else "") + "ten"


def test_conversations_without_a_template_or_without_messages():
    tokenizer = tiny.tokenizer()
    assert tokenize([[]], tokenizer, 64, include_special=False)[0].status == "empty"
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="needs? a tokenizer with a chat template"):
        tokenize([[{"role": "user", "content": "x"}]], tokenizer, 64, include_special=False)


def test_multi_part_contents_and_rewritten_ones(caplog):
    parts = [{"role": "user", "content": [{"type": "text", "text": "find"}, {"type": "image"}]}]
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'][0]['text'] }}{% endfor %}"
    assert tokenizer.decode(tokenize([parts], tokenizer, 64, include_special=False)[0].input_ids) == "find"
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m['content'] | upper }}<|im_end|>{% endfor %}"
    found = tokenize([[{"role": "user", "content": "find"}]], tokenizer, 64, include_special=False)[0]
    assert tokenizer.decode(found.input_ids[found.pooled]) == "FIND"
    assert "rewrites the content" in caplog.text


def test_batches_are_sorted_within_the_budget_and_complete():
    generator = np.random.default_rng(0)
    lengths = generator.integers(0, 300, 500)
    batches = group_by_length(lengths.tolist(), 1000)
    order = np.concatenate(batches)
    assert sorted(order.tolist()) == np.flatnonzero(lengths).tolist()
    assert all(len(rows) * lengths[rows].max() <= 1000 for rows in batches)
    assert (np.diff(lengths[order]) <= 0).all()
    assert [rows.tolist() for rows in group_by_length([5000, 3], 1000)] == [[0], [1]]
    with pytest.raises(InputError, match="at least 1"):
        group_by_length([1], 0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_collate_marks_what_is_pooled_whatever_the_pad_id(side):
    import torch

    tokenizer = tiny.tokenizer()
    tokens = tokenize(["find the sum", "ten"], tokenizer, 64, include_special=False)
    batch = collate(tokens, tokens[0].input_ids[1], side, torch.device("cpu"))  # pad with an id that occurs
    flat = batch.input_ids.flatten()[batch.kept].tolist()
    assert flat == [i for text in tokens for i in text.input_ids[text.pooled]]
    assert batch.offsets.tolist() == [0, int(tokens[0].pooled.sum()), len(flat)]
    assert batch.attention_mask.sum(1).tolist() == [len(text) for text in tokens]
    assert batch.left_padded == (side == "left")
    first = batch.position_ids[1][batch.attention_mask[1].bool()]
    assert first.tolist() == list(range(len(tokens[1])))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% if messages[0]['role'] != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}",
            "a conversation of assistant, user that begins 'a train': roles must alternate",
        ),
        ("{{ messages[0]['name']['first'] }}", "has no attribute"),
        ("{{ messages[0]['content'] + 3 }}", "can only concatenate str"),
        ("{% for m in messages %", "unexpected 'end of template'"),
    ],
)
def test_a_template_that_refuses_is_named_with_its_words(template, message):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    chat = [{"role": "assistant", "content": "a train"}, {"role": "user", "content": "b"}]
    with pytest.raises(InputError, match=message):
        tokenize([chat], tokenizer, 64)

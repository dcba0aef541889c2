"""Which part of a text is pooled: prompt, completion, last user turn, all but the first tokens."""

import numpy as np
import pytest

import saerl_fast
from saerl_fast.errors import DtypeError, InputError
from saerl_fast.extract.tokens import tokenize
from tests import tiny

CHAT = [
    {"role": "system", "content": "a train"},
    {"role": "user", "content": "find the sum"},
    {"role": "assistant", "content": "ten apples"},
    {"role": "user", "content": "solve for x"},
    {"role": "assistant", "content": "three"},
]


def one(text, limit=200, tokenizer=None, **settings):
    return tokenize([text], tokenizer or tiny.tokenizer(), limit, **settings)[0]


def said(text, **settings):
    found = one(text, **settings)
    return "".join(tiny.tokenizer().decode(found.input_ids[found.pooled]).split())


def test_parts_of_a_conversation():
    assert said(CHAT) == "atrainfindthesumtenapplessolveforxthree"
    assert said(CHAT, pool_over="prompt") == "atrainfindthesumtenapplessolveforx"
    assert said(CHAT, pool_over="completion") == "three"
    assert said(CHAT, pool_over="last_user") == "solveforx"
    assert said(CHAT[:2], pool_over="last_user") == "findthesum"


def test_a_prompt_is_read_without_its_completion_and_a_completion_behind_its_prompt():
    assert one(CHAT, pool_over="prompt").input_ids.tolist() == one(CHAT[:-1]).input_ids.tolist()
    assert one(CHAT, pool_over="completion").input_ids.tolist() == one(CHAT).input_ids.tolist()
    assert one(CHAT, pool_over="last_user").input_ids.tolist() == one(CHAT).input_ids.tolist()


@pytest.mark.parametrize(
    ("prompt", "completion", "pooled"),
    [
        ("find the sum", " ten", " ten"),
        ("find the ", "sum ten", " sum ten"),  # one token holds the blank and the word
        ("fi", "nd the", "ind the"),  # f, ind
        ("", "ten", "ten"),
        ("ten", "", None),
    ],
)
@pytest.mark.parametrize("eos", [False, True])
def test_a_pair_of_strings_is_the_one_string_with_a_seam(prompt, completion, pooled, eos):
    tokenizer = tiny.tokenizer(eos=eos)
    pair = {"prompt": prompt, "completion": completion}
    both = one(pair, tokenizer=tokenizer)
    joined = one(prompt + completion, tokenizer=tokenizer)
    assert both.input_ids.tolist() == joined.input_ids.tolist()
    assert both.pooled.tolist() == joined.pooled.tolist()
    alone = one(pair, tokenizer=tokenizer, pool_over="prompt")
    assert alone.input_ids.tolist() == one(prompt, tokenizer=tokenizer).input_ids.tolist()
    end = one(pair, tokenizer=tokenizer, pool_over="completion")
    if pooled is None:
        assert end.status == "empty"
        return
    assert tokenizer.decode(end.input_ids[end.pooled]) == pooled
    assert end.input_ids.tolist() == joined.input_ids.tolist()


def test_pairs_of_messages_and_mixed_ones():
    pair = {"prompt": CHAT[:4], "completion": CHAT[4:]}
    assert said(pair) == said(CHAT)
    assert said(pair, pool_over="completion") == "three"
    assert said({**pair, "completion": "three"}, pool_over="completion") == "three"
    assert one({**pair, "completion": "three"}).input_ids.tolist() == one(CHAT).input_ids.tolist()
    assert said(pair, pool_over="last_user") == "solveforx"
    mixed = {"prompt": "find the sum", "completion": [{"role": "assistant", "content": "ten"}]}
    assert said(mixed, pool_over="prompt") == "findthesum"
    two = {"prompt": CHAT[:2], "completion": CHAT[2:]}  # a completion of several messages
    assert said(two, pool_over="completion") == "tenapplessolveforxthree"


@pytest.mark.parametrize("missing", [None, float("nan"), []])
def test_pairs_with_a_side_missing(missing):
    assert one({"prompt": missing, "completion": missing}).status == "empty"
    assert one({"prompt": "ten", "completion": missing}).status == "ok"
    assert one({"prompt": "ten", "completion": missing}, pool_over="completion").status == "empty"
    assert one({"prompt": missing, "completion": "ten"}, pool_over="prompt").status == "empty"
    assert said({"prompt": missing, "completion": "ten"}, pool_over="completion") == "ten"
    assert one({"prompt": "ten"}).status == "ok"
    assert one({"prompt": "a \ud800", "completion": "ten"}).status == "invalid"
    assert one([{"role": "user", "content": "a \ud800"}]).status == "invalid"


def test_conversations_without_the_part():
    assert one(CHAT[:2], pool_over="completion").status == "empty"
    assert one(CHAT[2:3], pool_over="prompt").status == "empty"
    assert one(CHAT[2:3], pool_over="last_user").status == "empty"


def test_a_plain_string_has_no_completion():
    for part in ("completion", "last_user"):
        with pytest.raises(InputError, match=f"text 0 is a plain string, which has no {part}"):
            one("ten", pool_over=part)
    with pytest.raises(InputError, match="no last user turn"):
        one({"prompt": "ten", "completion": "x"}, pool_over="last_user")
    with pytest.raises(
        DtypeError, match="text 0: its completion must be a string, a list of messages, or None; got int"
    ):
        one({"prompt": "ten", "completion": 3})
    assert said("ten", pool_over="prompt") == "ten"


def test_literals_of_control_tokens_stay_text_in_pairs_and_parts():
    tokenizer = tiny.tokenizer()
    special = set(tokenizer.all_special_ids)
    pair = one({"prompt": "a </s> ", "completion": "<|im_end|> b"}, pool_over="completion")
    assert not special & set(pair.input_ids[1:].tolist())
    assert tokenizer.decode(pair.input_ids[pair.pooled]) == "<|im_end|> b"
    chat = [{"role": "user", "content": "ten"}, {"role": "assistant", "content": "a <|im_end|> b"}]
    found = one(chat, pool_over="completion")
    assert tokenizer.decode(found.input_ids[found.pooled]) == "a <|im_end|> b"
    assert said(chat, pool_over="last_user") == "ten"


def test_parts_cannot_be_told_apart_where_the_template_rewrites_them():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m['content'] | upper }}<|im_end|>{% endfor %}"
    with pytest.raises(InputError, match="rewrites the content"):
        one(CHAT, tokenizer=tokenizer, pool_over="last_user")
    assert one(CHAT, tokenizer=tokenizer).status == "ok"


def test_the_first_tokens_are_read_and_not_pooled():
    found = one("find the sum of all integers", skip_first=3)
    plain = one("find the sum of all integers")
    assert found.input_ids.tolist() == plain.input_ids.tolist()
    assert found.pooled.tolist() == [False] * 3 + plain.pooled.tolist()[3:]
    assert not one("find the sum", include_special=True, skip_first=1).pooled[0]
    assert one("ten", skip_first=10).status == "empty"


def test_what_is_lost_behind_the_cut_is_said(caplog):
    pair = {"prompt": " ".join(tiny.WORDS), "completion": " ten"}
    assert one(pair, limit=10, pool_over="completion").status == "empty"
    assert "1 of 1 texts are left empty: all that would be pooled lies behind token 10" in caplog.text


@pytest.mark.parametrize("side", ["right", "left"])
def test_features_of_a_part_are_those_of_its_tokens(side):
    """Against hidden states of one conversation, its tokens picked by hand."""
    import torch

    model, tokenizer, sae = tiny.causal_lm("llama"), tiny.tokenizer(), tiny.sae()
    rendered = tokenizer.apply_chat_template(CHAT, tokenize=False)
    encoded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    with torch.no_grad():
        states = model(input_ids=torch.tensor([encoded["input_ids"]]), output_hidden_states=True).hidden_states[2][0]
    texts = [CHAT, CHAT[:2], {"prompt": CHAT[:4], "completion": "three"}]
    for part, said_in in (("completion", "three"), ("last_user", "solve for x")):
        start = rendered.rindex(said_in)
        inside = [start <= a and b <= start + len(said_in) and b > a for a, b in encoded["offset_mapping"]]
        wanted = states[torch.tensor(inside)].mean(0).numpy()
        found = saerl_fast.featurize(
            texts,
            model,
            sae,
            tokenizer=tokenizer,
            pool_over=part,
            padding_side=side,
            keep_hidden=True,
            progress=False,
        )
        np.testing.assert_allclose(found.hidden[0], wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.hidden[2], wanted, rtol=1e-4, atol=1e-5)
        assert found.n_tokens[0] == sum(inside)
    assert found.status == ("ok", "ok", "ok")


def test_a_dataset_of_prompts_and_completions():
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"q": ["find", "ten"], "a": [" the sum", None]})
    call = {"tokenizer": tiny.tokenizer(), "progress": False}
    found = saerl_fast.featurize(
        data, tiny.causal_lm(), tiny.sae(), text_field="q", completion_field="a", pool_over="completion", **call
    )
    assert found.status == ("ok", "empty")
    both = saerl_fast.featurize(data, tiny.causal_lm(), tiny.sae(), text_field="q", completion_field="a", **call)
    joined = saerl_fast.featurize(["find the sum", "ten"], tiny.causal_lm(), tiny.sae(), **call)
    np.testing.assert_array_equal(both.values, joined.values)
    with pytest.raises(InputError, match="completion_field must be one of"):
        saerl_fast.featurize(data, tiny.causal_lm(), tiny.sae(), text_field="q", completion_field="b", **call)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool_over": "answer"}, "pool_over must be one of"),
        ({"long_texts": "cut"}, "long_texts must be one of"),
        ({"skip_first": -1}, "skip_first must be a whole number from 0 up; got -1"),
        ({"window_stride": 4}, "goes with long_texts='window'"),
        ({"window_stride": 65, "long_texts": "window"}, "window_stride must be 1 to 64"),
        ({"layer": 1, "hook": "hook_embed"}, "both say what to read"),
        ({"hook": ""}, "hook '' is neither a sae-lens name"),
        ({"tokens_per_batch": 0}, "tokens_per_batch must be a whole number from 1 up, or None; got 0"),
        ({"tokens_per_batch": -4096}, "tokens_per_batch must be a whole number from 1 up, or None; got -4096"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(InputError, match=message):
        saerl_fast.featurize(["a"], tiny.causal_lm(), tiny.sae(), tokenizer=tiny.tokenizer(), **settings)

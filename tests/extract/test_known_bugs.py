"""Padding, BOS and template mistakes that other featurizers were caught in, each as a test of this one."""

import logging

import numpy as np
import pytest
import torch

import saerl_fast
from saerl_fast.extract.batching import collate
from saerl_fast.extract.tokens import tokenize
from tests import families, tiny

BOS_TEMPLATE = "{{ bos_token }}" + tiny.CHAT_TEMPLATE
CHAT = [{"role": "user", "content": "find the sum"}]


def test_a_template_that_writes_bos_is_not_given_a_second_one():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = BOS_TEMPLATE
    found = tokenize([CHAT], tokenizer, 64)[0]
    assert found.input_ids.tolist().count(tokenizer.bos_token_id) == 1
    assert found.input_ids[0] == tokenizer.bos_token_id
    assert not found.pooled[0]
    # a literal in the message takes the other way through the tokenizer
    literal = tokenize([[{"role": "user", "content": "find <s> ten"}]], tokenizer, 64)[0]
    assert literal.input_ids.tolist().count(tokenizer.bos_token_id) == 1


def test_a_template_without_bos_is_not_given_one():
    tokenizer = tiny.tokenizer()  # puts BOS before plain strings
    found = tokenize([CHAT], tokenizer, 64)[0]
    assert tokenizer.bos_token_id not in found.input_ids


def test_a_rendered_template_as_a_string_is_text():
    """A string that spells control tokens, BOS among them: one BOS, the tokenizer's, and the rest is plain text."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = BOS_TEMPLATE
    rendered = tokenizer.apply_chat_template(CHAT, tokenize=False)
    found = tokenize([rendered], tokenizer, 200)[0]
    assert found.input_ids.tolist().count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(found.input_ids[found.pooled]) == rendered


def test_a_model_without_bos_gets_none_whatever_the_sae_says():
    """Qwen's tokenizer puts no BOS, though published SAEs say prepend_bos."""
    tokenizer = tiny.tokenizer(bos=False)
    said = {"hook_name": "blocks.1.hook_resid_post", "prepend_bos": True}
    call = {"texts": ["find the sum"], "model": families.model("qwen2"), "tokenizer": tokenizer, "progress": False}
    found = saerl_fast.featurize(sae=tiny.sae(metadata=said), **call)
    plain = saerl_fast.featurize(sae=tiny.sae(), **call)
    assert found.n_tokens[0] == len(tokenizer("find the sum", add_special_tokens=False)["input_ids"])
    np.testing.assert_array_equal(found.values, plain.values)


@pytest.mark.parametrize("side", ["right", "left"])
def test_bos_is_left_out_under_either_padding(side):
    tokenizer = tiny.tokenizer(eos=True)
    texts = tokenize(["ten", "find the sum of all integers"], tokenizer, 64)
    batch = collate(texts, tokenizer.bos_token_id, side, torch.device("cpu"))  # padding that looks like BOS
    kept = batch.input_ids.flatten()[batch.kept].tolist()
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(kept)
    assert batch.attention_mask.sum(1).tolist() == [len(text) for text in texts]


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_tokenizer_without_padding_pads_by_eos_and_keeps_each_texts_own_eos(side):
    """Lengths counted by eos ids would lose the text's own."""
    model, sae = families.model("gpt2"), tiny.sae()
    tokenizer = tiny.tokenizer(eos=True)
    assert tokenizer.pad_token_id is None
    texts = ["ten", "find the sum of all integers between one and ten", "a train"]
    call = {"tokenizer": tokenizer, "include_special": True, "keep_hidden": True, "progress": False}
    together = saerl_fast.featurize(texts, model, sae, padding_side=side, **call)
    alone = [saerl_fast.featurize([text], model, sae, **call) for text in texts]
    np.testing.assert_allclose(together.hidden, [one.hidden[0] for one in alone], rtol=1e-4, atol=1e-5)
    assert together.n_tokens.tolist() == [one.n_tokens[0] for one in alone]


def test_the_tokenizers_own_padding_side_and_length_change_nothing():
    model, sae = families.model("gpt2"), tiny.sae()
    plain, odd = tiny.tokenizer(pad=True), tiny.tokenizer(pad=True)
    odd.padding_side, odd.truncation_side, odd.model_max_length = "left", "left", 4
    texts = tiny.texts(5)
    one = saerl_fast.featurize(texts, model, sae, tokenizer=plain, progress=False)
    two = saerl_fast.featurize(texts, model, sae, tokenizer=odd, progress=False)
    np.testing.assert_array_equal(one.values, two.values)


def test_the_context_of_the_sae_cuts_and_is_counted(caplog):
    sae = tiny.sae(metadata={"hook_name": "blocks.1.hook_resid_post", "context_size": 12})
    texts = ["ten", " ".join(tiny.WORDS)]
    with caplog.at_level(logging.WARNING, "saerl_fast"):
        found = saerl_fast.featurize(texts, families.model("llama"), sae, tokenizer=tiny.tokenizer(), progress=False)
    assert found.status == ("ok", "truncated")
    assert found.n_tokens[1] == 11
    assert "of 2 texts 1 truncated" in caplog.text


def test_narrow_and_wide_floats_agree_to_narrow_rounding():
    """bfloat16 activations of the same model lie near the float32 ones, at the same tokens."""
    wide, narrow = families.model("llama"), families.build("llama").to(torch.bfloat16)
    call = {"tokenizer": tiny.tokenizer(), "keep_hidden": True, "padding_side": "left", "progress": False}
    texts = tiny.texts(6)
    one = saerl_fast.featurize(texts, wide, tiny.sae(), **call)
    two = saerl_fast.featurize(texts, narrow, tiny.sae(), **call)
    assert np.abs(one.hidden - two.hidden).max() < 2**-5 * np.abs(one.hidden).max()
    np.testing.assert_array_equal(one.n_tokens, two.n_tokens)

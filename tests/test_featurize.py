"""featurize against the slow and obvious way: one text at a time, all hidden states, dense codes."""

import warnings

import numpy as np
import pytest
import torch

import saerl_fast
from saerl_fast.errors import (
    DtypeError,
    InputError,
    MismatchWarning,
    ModelMismatchError,
    NonFiniteError,
)
from tests import tiny
from tests.test_sae import dense


def slow_features(texts, model, tokenizer, sae, layer, pool="mean", keep=lambda ids, special: ~special):
    """One text at a time, no padding, output_hidden_states, dense codes, pooled in float64."""
    rows = []
    for text in texts:
        encoded = tokenizer(text, return_special_tokens_mask=True)
        ids = torch.tensor([encoded["input_ids"]])
        with torch.no_grad():
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[layer + 1][0]
        kept = torch.tensor(keep(np.array(encoded["input_ids"]), np.array(encoded["special_tokens_mask"], bool)))
        codes = dense(sae.encode(hidden[kept]), sae.d_sae).double()
        pooled = {
            "mean": lambda c: c.mean(0),
            "sum": lambda c: c.sum(0),
            "max": lambda c: c.max(0).values,
            "last": lambda c: c[-1],
            "count": lambda c: (c > 0).double().sum(0),
        }[pool](codes)
        rows.append(pooled.numpy())
    return np.array(rows)


FAMILIES = ["qwen2", "llama", "gpt2", "gpt_neox"]
TEXTS = tiny.texts(23)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_batched_equals_one_by_one_on_causal_models(family, side):
    model, tokenizer, sae = tiny.causal_lm(family), tiny.tokenizer(), tiny.sae()
    found = saerl_fast.featurize(
        TEXTS, model, sae, tokenizer=tokenizer, layer=1, padding_side=side, tokens_per_batch=90, progress=False
    )
    wanted = slow_features(TEXTS, model, tokenizer, sae, layer=1)
    np.testing.assert_allclose(found.to_scipy().toarray(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_batched_equals_one_by_one_on_encoders(family, side):
    model, tokenizer, sae = tiny.encoder(family), tiny.tokenizer(eos=True), tiny.sae()
    found = saerl_fast.featurize(
        TEXTS, model, sae, tokenizer=tokenizer, layer=2, padding_side=side, tokens_per_batch=90, progress=False
    )
    wanted = slow_features(TEXTS, model, tokenizer, sae, layer=2)
    np.testing.assert_allclose(found.to_scipy().toarray(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "standard"])
@pytest.mark.parametrize("pool", ["mean", "max", "sum", "last", "count"])
def test_every_pooling_of_every_kind(pool, kind):
    model, tokenizer, sae = tiny.causal_lm(), tiny.tokenizer(), tiny.sae(kind)
    found = saerl_fast.featurize(TEXTS, model, sae, tokenizer=tokenizer, pool=pool, tokens_per_batch=64, progress=False)
    wanted = slow_features(TEXTS, model, tokenizer, sae, layer=1, pool=pool)
    np.testing.assert_allclose(found.to_scipy().toarray(), wanted, rtol=1e-4, atol=1e-5)
    assert found.values.dtype == np.float32
    assert found.to_scipy().has_sorted_indices


def test_special_tokens_are_pooled_only_when_asked():
    model, tokenizer, sae = tiny.causal_lm(), tiny.tokenizer(eos=True), tiny.sae()
    call = {"tokenizer": tokenizer, "layer": 0, "progress": False}
    without = saerl_fast.featurize(TEXTS, model, sae, **call)
    with_special = saerl_fast.featurize(TEXTS, model, sae, include_special=True, **call)
    assert ((with_special.n_tokens - without.n_tokens) == 2).all()
    wanted = slow_features(TEXTS, model, tokenizer, sae, 0, keep=lambda ids, special: np.ones_like(special))
    np.testing.assert_allclose(with_special.to_scipy().toarray(), wanted, rtol=1e-4, atol=1e-5)


def test_special_tokens_stay_out_whatever_the_sae_says():
    sae = tiny.sae(metadata={"hook_name": "blocks.1.hook_resid_post", "exclude_special_tokens": False})
    plain = tiny.sae()
    model, tokenizer = tiny.causal_lm(), tiny.tokenizer()
    one = saerl_fast.featurize(TEXTS, model, sae, tokenizer=tokenizer, progress=False)
    two = saerl_fast.featurize(TEXTS, model, plain, tokenizer=tokenizer, progress=False)
    np.testing.assert_array_equal(one.values, two.values)


def test_the_forward_ends_at_the_hook_and_the_model_is_left_alone():
    model, tokenizer, sae = tiny.causal_lm(), tiny.tokenizer(), tiny.sae()
    ran = []
    handles = [block.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, block in enumerate(model.model.layers)]
    model.train()
    model.model.layers[3].eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    saerl_fast.featurize(TEXTS, model, sae, tokenizer=tokenizer, layer=1, progress=False)
    assert set(ran) == {0, 1}
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    for handle in handles:
        handle.remove()
    assert all(not block._forward_hooks for block in model.model.layers)


def test_hidden_states_are_the_mean_over_the_same_tokens():
    model, tokenizer, sae = tiny.causal_lm(), tiny.tokenizer(), tiny.sae()
    found = saerl_fast.featurize(
        TEXTS, model, sae, tokenizer=tokenizer, layer=2, keep_hidden=True, tokens_per_batch=70, progress=False
    )
    for row, text in enumerate(TEXTS):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[3][0, 1:]
        np.testing.assert_allclose(found.hidden[row], hidden.mean(0).numpy(), rtol=1e-4, atol=1e-5)


def test_a_model_from_a_path_loads_only_the_layers_it_needs(tmp_path):
    model, tokenizer, sae = tiny.causal_lm("llama"), tiny.tokenizer(), tiny.sae()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    from saerl_fast.extract.reader import make_reader

    reader = make_reader(str(tmp_path), sae, layer=1)
    assert len(reader.model.layers) == 2
    assert not hasattr(reader.model, "lm_head")
    by_path = saerl_fast.featurize(TEXTS, tmp_path, sae, layer=1, progress=False)
    by_object = saerl_fast.featurize(TEXTS, model, sae, tokenizer=tokenizer, layer=1, progress=False)
    np.testing.assert_array_equal(by_path.indices, by_object.indices)
    np.testing.assert_array_equal(by_path.values, by_object.values)


def test_odd_texts_keep_their_rows_and_are_marked():
    model, tokenizer, sae = tiny.causal_lm(), tiny.tokenizer(), tiny.sae()
    texts = ["find the sum", "", None, "a \ud800 b", float("nan"), " ".join(tiny.WORDS * 4), "find the sum"]
    found = saerl_fast.featurize(texts, model, sae, tokenizer=tokenizer, keep_hidden=True, progress=False)
    assert found.status == ("ok", "empty", "empty", "invalid", "empty", "truncated", "ok")
    assert np.diff(found.indptr)[[1, 2, 3, 4]].tolist() == [0, 0, 0, 0]
    assert found.n_tokens[5] == 63  # 64 positions, one of them BOS
    assert found.status_counts() == {"ok": 2, "empty": 3, "truncated": 1, "invalid": 1}
    dense_rows = found.to_scipy().toarray()
    np.testing.assert_allclose(dense_rows[0], dense_rows[6], rtol=1e-4, atol=1e-6)
    assert dense_rows[0].any()


def test_only_odd_texts_is_still_a_result():
    found = saerl_fast.featurize(
        ["", None], tiny.causal_lm(), tiny.sae(), tokenizer=tiny.tokenizer(), keep_hidden=True, progress=False
    )
    assert found.shape == (2, 96)
    assert found.nnz == 0


def test_texts_are_cut_at_the_smallest_limit():
    long = " ".join(tiny.WORDS * 4)
    model, tokenizer = tiny.causal_lm(), tiny.tokenizer()
    sae = tiny.sae(metadata={"hook_name": "blocks.1.hook_resid_post", "context_size": 20})
    assert saerl_fast.featurize([long], model, sae, tokenizer=tokenizer, progress=False).n_tokens[0] == 19
    shorter = saerl_fast.featurize([long], model, sae, tokenizer=tokenizer, max_length=9, progress=False)
    assert shorter.n_tokens[0] == 8
    assert shorter.status == ("truncated",)


def test_literals_of_special_tokens_are_text():
    model, tokenizer, sae = tiny.causal_lm(), tiny.tokenizer(), tiny.sae()
    found = saerl_fast.featurize(["a </s> b", "a b"], model, sae, tokenizer=tokenizer, progress=False)
    # as a control token it would be left out of the pool: same count as without it
    assert found.n_tokens[0] > found.n_tokens[1] + 1


def test_chat_messages_go_through_the_template_and_only_contents_are_pooled():
    model, tokenizer, sae = tiny.causal_lm(), tiny.tokenizer(), tiny.sae()
    chat = [{"role": "user", "content": "find the sum"}, {"role": "assistant", "content": "ten"}]
    found = saerl_fast.featurize([chat], model, sae, tokenizer=tokenizer, layer=1, progress=False)
    rendered = tokenizer.apply_chat_template(chat, tokenize=False)
    encoded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    spans = [(rendered.index(m["content"]), rendered.index(m["content"]) + len(m["content"])) for m in chat]
    kept = [any(a < stop and b > start for start, stop in spans) for a, b in encoded["offset_mapping"]]
    with torch.no_grad():
        ids = torch.tensor([encoded["input_ids"]])
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[2][0][torch.tensor(kept)]
    wanted = dense(sae.encode(hidden), sae.d_sae).mean(0).numpy()
    np.testing.assert_allclose(found.to_scipy().toarray()[0], wanted, rtol=1e-4, atol=1e-5)


def test_control_tokens_spelled_inside_a_message_are_text():
    model, tokenizer, sae = tiny.causal_lm(), tiny.tokenizer(), tiny.sae()
    evil = [{"role": "user", "content": "sum<|im_end|>ten"}]
    found = saerl_fast.featurize([evil], model, sae, tokenizer=tokenizer, progress=False)
    as_text = tokenizer("sum<|im_end|>ten", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert found.n_tokens[0] == len(as_text)


def test_a_dataset_with_a_text_field():
    datasets = pytest.importorskip("datasets")
    model, tokenizer, sae = tiny.causal_lm(), tiny.tokenizer(), tiny.sae()
    data = datasets.Dataset.from_dict({"question": TEXTS[:5], "level": list(range(5))})
    found = saerl_fast.featurize(data, model, sae, tokenizer=tokenizer, text_field="question", progress=False)
    by_list = saerl_fast.featurize(TEXTS[:5], model, sae, tokenizer=tokenizer, progress=False)
    np.testing.assert_array_equal(found.values, by_list.values)
    with pytest.raises(InputError, match="text_field, one of .'question', 'level'."):
        saerl_fast.featurize(data, model, sae, tokenizer=tokenizer)


def test_same_call_same_bits():
    call = {"tokenizer": tiny.tokenizer(), "tokens_per_batch": 100, "progress": False}
    one = saerl_fast.featurize(TEXTS, tiny.causal_lm(), tiny.sae(), **call)
    two = saerl_fast.featurize(TEXTS, tiny.causal_lm(), tiny.sae(), **call)
    np.testing.assert_array_equal(one.values, two.values)
    np.testing.assert_array_equal(one.indices, two.indices)


def test_nonfinite_activations_raise_or_are_marked():
    model, tokenizer, sae = tiny.causal_lm(), tiny.tokenizer(), tiny.sae()
    poisoned = tokenizer("apples", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        model.model.embed_tokens.weight[poisoned] = float("nan")
    texts = ["find ten", "apples", "solve for"]
    with pytest.raises(NonFiniteError, match=r"1 rows .*\(ids \[1\]\)"):
        saerl_fast.featurize(texts, model, sae, tokenizer=tokenizer, progress=False)
    found = saerl_fast.featurize(
        texts, model, sae, tokenizer=tokenizer, on_nonfinite="mark", keep_hidden=True, progress=False
    )
    assert found.status == ("ok", "nonfinite", "ok")
    assert np.diff(found.indptr)[1] == 0
    assert np.isfinite(found.hidden).all()
    assert np.isfinite(found.values).all()


def test_hooks_are_gone_after_a_failure_inside_the_forward():
    model, tokenizer, sae = tiny.causal_lm(), tiny.tokenizer(), tiny.sae()

    def fail(*_):
        raise RuntimeError("injected")

    handle = model.model.layers[0].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="injected"):
        saerl_fast.featurize(TEXTS, model, sae, tokenizer=tokenizer, layer=1, progress=False)
    handle.remove()
    assert all(not block._forward_hooks for block in model.model.layers)


def test_bad_input_is_named():
    model, tokenizer, sae = tiny.causal_lm(), tiny.tokenizer(), tiny.sae()
    call = {"tokenizer": tokenizer, "progress": False}
    with pytest.raises(InputError, match="texts is empty"):
        saerl_fast.featurize([], model, sae, **call)
    with pytest.raises(InputError, match="single string"):
        saerl_fast.featurize("text", model, sae, **call)
    with pytest.raises(InputError, match="single message"):
        saerl_fast.featurize([{"role": "user", "content": "hi"}], model, sae, **call)
    with pytest.raises(DtypeError, match="text 1 must be a string"):
        saerl_fast.featurize(["a", 3], model, sae, **call)
    with pytest.raises(InputError, match="needs tokenizer"):
        saerl_fast.featurize(["a"], model, sae)
    with pytest.raises(ModelMismatchError, match="layer 4 is out of range: .* blocks 0 to 3"):
        saerl_fast.featurize(["a"], model, sae, layer=4, **call)
    with pytest.raises(ModelMismatchError, match="layer -1"):
        saerl_fast.featurize(["a"], model, sae, layer=-1, **call)
    with pytest.raises(ModelMismatchError, match="width 16, blocks.1.hook_resid_post of .* has width 32"):
        saerl_fast.featurize(["a"], model, tiny.sae(d_in=16), **call)
    with pytest.raises(InputError, match="names no hook; pass layer=L"):
        saerl_fast.featurize(["a"], model, tiny.sae(metadata={}), **call)
    with pytest.raises(InputError, match="is not supported: TransformerLens means"):
        saerl_fast.featurize(["a"], model, tiny.sae(metadata={"hook_name": "blocks.1.hook_mlp_in"}), **call)
    with pytest.raises(InputError, match="pool must be one of"):
        saerl_fast.featurize(["a"], model, sae, pool="median", **call)
    with pytest.raises(InputError, match="ids must have one entry per text: 1 texts, 2 ids"):
        saerl_fast.featurize(["a"], model, sae, ids=[1, 2], **call)
    with pytest.raises(InputError, match="'x' appears more than once"):
        saerl_fast.featurize(["a", "b"], model, sae, ids=["x", "x"], **call)


def test_another_model_than_the_saes_is_a_warning_with_both_names():
    model, tokenizer = tiny.causal_lm(), tiny.tokenizer()
    sae = tiny.sae(metadata={"hook_name": "blocks.1.hook_resid_post", "model_name": "Qwen/Qwen2.5-1.5B"})
    model.config._name_or_path = "Qwen/Qwen2.5-1.5B-Instruct"
    with pytest.warns(MismatchWarning, match="Qwen/Qwen2.5-1.5B, the model read is Qwen/Qwen2.5-1.5B-Instruct"):
        saerl_fast.featurize(["a"], model, sae, tokenizer=tokenizer, progress=False)
    for same in ("Qwen/Qwen2.5-1.5B", "/models/qwen2.5-1.5b", "/hub/models--Qwen--Qwen2.5-1.5B/snapshots/abc"):
        model.config._name_or_path = same
        with warnings.catch_warnings():
            warnings.simplefilter("error", MismatchWarning)
            saerl_fast.featurize(["a"], model, sae, tokenizer=tokenizer, progress=False)


def test_another_layer_than_the_saes_is_a_warning():
    with pytest.warns(MismatchWarning, match="blocks.1.hook_resid_post, blocks.2.hook_resid_post is read"):
        saerl_fast.featurize(["a"], tiny.causal_lm(), tiny.sae(), tokenizer=tiny.tokenizer(), layer=2, progress=False)


def test_a_given_layer_serves_an_sae_of_another_kind_of_hook_with_a_warning():
    sae = tiny.sae(metadata={"hook_name": "blocks.2.hook_mlp_out"})
    with pytest.warns(MismatchWarning, match=r"hook_mlp_out, blocks.1.hook_resid_post is read"):
        found = saerl_fast.featurize(
            TEXTS[:3], tiny.causal_lm(), sae, tokenizer=tiny.tokenizer(), layer=1, progress=False
        )
    assert found.nnz > 0

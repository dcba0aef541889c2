"""Packed texts: the same activations as alone, a self-check that refuses what would not give them, and the choice."""

import logging

import numpy as np
import pytest
import torch

import saerl_fast
from saerl_fast.errors import InputError, JobMismatchError
from saerl_fast.extract import attention, packing
from saerl_fast.extract.batching import collate, lay_end_to_end, pack_by_budget
from saerl_fast.extract.capture import Capture
from saerl_fast.extract.packing import Layout, choose
from saerl_fast.extract.reader import make_reader
from saerl_fast.extract.tokens import TokenizedText
from tests import families, tiny

SIZES = {
    "vocab_size": 400,
    "hidden_size": tiny.WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 2,
}
WINDOWED = {"mistral", "gemma2", "gemma3_text", "phi3"}
CAUSAL = ["qwen2", "qwen3", "llama", "olmo2", "gpt2", "gpt_neox", *sorted(WINDOWED)]
ENCODERS = ["bert", "roberta", "distilbert", "modernbert"]
CPU = torch.device("cpu")


def made(family):
    """A tiny random model; those with windows get one that texts are longer than."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    if family == "modernbert":  # windows of 4 to either side
        return families.build(family)
    if family in ENCODERS:
        return tiny.encoder(family)
    if family not in WINDOWED:
        return tiny.causal_lm(family)
    torch.manual_seed(0)
    extra = {"head_dim": 8} if family.startswith("gemma") else {}
    config = CONFIG_MAPPING[family](**SIZES, **extra, sliding_window=6)
    return AutoModelForCausalLM.from_config(config).eval()


def reader_of(model, layer=2):
    return make_reader(model, tiny.sae(metadata={}), tokenizer=tiny.tokenizer(), layer=layer)


def random_texts(lengths, seed=5):
    rng = np.random.default_rng(seed)
    return [TokenizedText(rng.integers(3, 400, size=n), np.ones(n, dtype=bool), "ok") for n in lengths]


def activations(reader, texts, kernel=None):
    """[tokens, D] of each text: packed by a kernel, or padded."""
    layout = Layout(kernel, "")
    with Capture(reader.model, reader.hook) as capture, layout.on(reader.model):
        hidden = capture(layout.collate(texts, reader.pad_id, "right", CPU))
    if kernel is None:
        return [row[: len(text)] for row, text in zip(hidden, texts, strict=True)]
    return torch.split(hidden[0], [len(text) for text in texts])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kernel", ["text_by_text", "flex"])
@pytest.mark.parametrize("family", [*CAUSAL, *ENCODERS, "qwen3_moe"])
def test_packed_equals_alone_as_well_as_padding_does(family, kernel):
    """The 2x rule: against the text alone in float64, at most twice the error of the padded batch."""
    reader, texts = reader_of(made(family)), random_texts([7, 1, 20, 3, 13])
    packed, padded = activations(reader, texts, kernel), activations(reader, texts)
    reader.model.double()
    if family == "qwen3_moe":
        reader.model.set_experts_implementation("eager")  # the grouped product of torch has no float64
    alone = [activations(reader, [text])[0] for text in texts]
    errors = [
        max(float((row - true).abs().max()) for row, true in zip(rows, alone, strict=True)) for rows in (packed, padded)
    ]
    assert 0 < errors[0] <= 2 * errors[1]


@pytest.mark.parametrize("family", [*CAUSAL, *ENCODERS, "qwen3_moe"])
def test_the_self_check_lets_the_families_through(family):
    assert packing._refusal(reader_of(made(family)), "text_by_text", limit=64) is None


def attend_to_all(query, key, value, packed, rule):
    """What happens where the texts of a row are taken for one."""
    whole = attention.Packing("", packed.bounds, packed.text_of, (sum(packed.lengths),))
    return attention.text_by_text(query, key, value, whole, rule)


def attend_without_window(query, key, value, packed, rule):
    from dataclasses import replace

    return attention.text_by_text(query, key, value, packed, replace(rule, window=None))


def with_kernel(monkeypatch, run):
    monkeypatch.setattr(attention, "KERNELS", {"broken": attention.Kernel(run, lambda *_: None)})
    return "broken"


def test_a_text_that_sees_its_neighbours_is_found(monkeypatch):
    for family in ("qwen2", "bert"):
        refusal = packing._refusal(reader_of(made(family)), with_kernel(monkeypatch, attend_to_all), limit=64)
        assert refusal == "a text sees its neighbours"


def test_a_leak_through_experts_is_found_although_their_rounding_is_allowed_for(monkeypatch):
    reader = reader_of(made("qwen3_moe"))
    assert packing._refusal(reader, with_kernel(monkeypatch, attend_to_all), limit=64) == "a text sees its neighbours"


@pytest.mark.parametrize("family", ["gemma2", "mistral"])
def test_a_window_that_is_not_kept_is_found(monkeypatch, family):
    refusal = packing._refusal(reader_of(made(family)), with_kernel(monkeypatch, attend_without_window), limit=64)
    assert "differs from itself alone" in refusal


def test_a_long_window_that_is_not_handed_on_is_found():
    model = made("gemma2")
    model.config.sliding_window = 100
    for layer in model.model.layers:
        layer.self_attn.sliding_window = 100 if layer.self_attn.sliding_window else None
    assert packing._refusal(reader_of(model), "text_by_text", limit=500) is None
    model.model.layers[0].self_attn.sliding_window = None
    refusal = packing._refusal(reader_of(model), "text_by_text", limit=501)
    assert "layers attend within [100, None, 100] tokens, and hand on [None, None, 100]" in refusal
    assert packing._refusal(reader_of(model), "text_by_text", limit=99) is None


def test_a_window_to_both_sides_that_is_one_too_narrow_is_found():
    model = made("modernbert")
    assert packing._refusal(reader_of(model), "text_by_text", limit=64) is None
    for layer in model.layers:
        if layer.attn.sliding_window is not None:
            assert layer.attn.sliding_window == model.config.sliding_window + 1
            layer.attn.sliding_window -= 1
    assert "differs from itself alone" in packing._refusal(reader_of(model), "text_by_text", limit=63)


def test_absolute_positions_that_do_not_begin_anew_are_found():
    model = made("gpt2")
    model.transformer.register_forward_pre_hook(
        lambda module, inputs, named: (inputs, named | {"position_ids": None}), with_kwargs=True
    )
    assert "differs from itself alone" in packing._refusal(reader_of(model), "text_by_text", limit=64)


def test_a_model_that_keeps_the_keyword_to_itself_is_found():
    model = made("qwen2")
    model.model.layers[0].register_forward_pre_hook(
        lambda module, inputs, named: (inputs, {k: v for k, v in named.items() if k != "packing"}), with_kwargs=True
    )
    refusal = packing._refusal(reader_of(model), "text_by_text", limit=64)
    assert "does not hand keyword arguments on" in refusal


def test_other_kinds_of_layers_and_own_attention_are_refused_unrun(monkeypatch):
    model = made("qwen2")
    model.config.layer_types = ["linear_attention", *model.config.layer_types[1:]]
    assert "layers of type linear_attention" in packing._refusal(reader_of(model), "text_by_text", limit=64)

    model = made("llama")
    monkeypatch.setattr(type(model), "_can_set_attn_implementation", classmethod(lambda cls: False))
    assert "does not attend through" in packing._refusal(reader_of(model), "text_by_text", limit=64)


def test_activations_that_are_not_finite_are_no_proof():
    model = made("qwen2")
    with torch.no_grad():
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight[::2] = float("nan")
    assert packing._refusal(reader_of(model), "text_by_text", limit=64) == "activations are not finite"


def test_the_model_is_left_as_it_was_also_after_a_failure():
    model = made("qwen2")
    before = model.config._attn_implementation

    def fail(*_):
        assert model.config._attn_implementation == attention.NAME
        raise RuntimeError("injected")

    reader = reader_of(model)
    assert packing._refusal(reader, "text_by_text", limit=64) is None
    assert model.config._attn_implementation == before
    model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="injected"):
        activations(reader, random_texts([3]), "text_by_text")
    assert model.config._attn_implementation == before


def test_the_choice_is_pure_and_gives_reasons():
    kernels = {"flash_attn": "is not installed", "torch_varlen": None, "flex": None, "text_by_text": None}
    asked = []

    def check(kernel):
        asked.append(kernel)
        return "a text sees its neighbours" if kernel == "torch_varlen" else None

    assert choose("off", "cuda", kernels, check) == (None, "packing='off'")
    assert choose("auto", "cpu", kernels, check)[0] is None
    assert asked == []
    kernel, reason = choose("auto", "cuda", kernels, check)
    assert (kernel, asked) == ("flex", ["torch_varlen", "flex"])
    assert "flash_attn: is not installed; torch_varlen: a text sees its neighbours; flex runs" in reason
    only_slow = kernels | {"torch_varlen": "no", "flex": "no"}
    assert choose("auto", "cuda", only_slow, check)[0] is None
    assert choose("on", "cuda", only_slow, check)[0] == "text_by_text"
    with pytest.raises(InputError, match="packing='on', but .* text_by_text: never"):
        choose("on", "cpu", {"text_by_text": None}, lambda _: "never")


def test_featurize_packs_when_asked_and_says_so(tmp_path, caplog):
    texts = [*tiny.texts(23), "", None]
    call = {"tokenizer": tiny.tokenizer(), "tokens_per_batch": 90, "keep_hidden": True, "progress": False}
    padded = saerl_fast.featurize(texts, tiny.causal_lm(), tiny.sae(), **call)
    with caplog.at_level(logging.INFO, logger="saerl_fast"):
        packed = saerl_fast.featurize(texts, tiny.causal_lm(), tiny.sae(), packing="on", out=tmp_path, **call)
    assert "batches are packed, text_by_text (flash_attn: runs on CUDA" in caplog.text
    assert padded.provenance["layout"] == "padded"
    assert packed.provenance["layout"] == "packed, text_by_text"
    np.testing.assert_allclose(packed.to_scipy().toarray(), padded.to_scipy().toarray(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(packed.hidden, padded.hidden, rtol=1e-4, atol=1e-5)
    assert packed.status == padded.status
    with pytest.raises(JobMismatchError, match="layout"):
        saerl_fast.featurize(texts, tiny.causal_lm(), tiny.sae(), out=tmp_path, **call)
    with pytest.raises(InputError, match="packing must be one of"):
        saerl_fast.featurize(texts, tiny.causal_lm(), tiny.sae(), packing="yes", **call)


def test_batches_of_a_packed_run_hold_every_text_once_within_the_budget():
    rng = np.random.default_rng(0)
    for budget in (1, 7, 100, 5000):
        lengths = rng.integers(0, 60, size=200)
        batches = pack_by_budget(lengths, budget)
        assert np.concatenate(batches).tolist() == np.flatnonzero(lengths).tolist()
        tokens = [int(lengths[batch].sum()) for batch in batches]
        assert all(n <= budget or len(batch) == 1 for n, batch in zip(tokens, batches, strict=True))
    # even, not full batches and a rest
    assert [len(batch) for batch in pack_by_budget([10] * 12, 100)] == [6, 6]
    assert pack_by_budget([0, 0], 10) == []
    with pytest.raises(InputError, match="at least 1"):
        pack_by_budget([1], 0)


def test_a_packed_batch_says_where_its_texts_lie():
    texts = random_texts([3, 2])
    texts[0].pooled[0] = False
    batch = lay_end_to_end(texts, "text_by_text", CPU)
    assert batch.input_ids.tolist() == [[*texts[0].input_ids, *texts[1].input_ids]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.kept.tolist() == [1, 2, 3, 4]
    assert batch.offsets.tolist() == [0, 2, 4]
    assert batch.packing.bounds.tolist() == [0, 3, 5]
    assert batch.packing.text_of.tolist() == [0, 0, 0, 1, 1]
    padded = collate(texts, 0, "right", CPU)
    assert padded.offsets.tolist() == [0, 2, 4]
    assert padded.packing is None


def test_each_shard_is_handed_on_in_order_also_when_read_back(tmp_path):
    texts = tiny.texts(10)
    call = {"tokenizer": tiny.tokenizer(), "shard_rows": 4, "out": tmp_path, "progress": False}
    seen = []
    whole = saerl_fast.featurize(texts, tiny.causal_lm(), tiny.sae(), each_shard=seen.append, **call)
    assert [part.ids for part in seen] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
    again = []
    saerl_fast.featurize(texts, tiny.causal_lm(), tiny.sae(), each_shard=again.append, **call)
    for parts in (seen, again):
        np.testing.assert_array_equal(np.concatenate([part.values for part in parts]), whole.values)


def test_clusters_are_learnt_while_the_features_are_made():
    kmeans = saerl_fast.StreamingKMeans(3, random_state=0)
    features = saerl_fast.featurize(
        [*tiny.texts(40), ""], tiny.causal_lm(), tiny.sae(), tokenizer=tiny.tokenizer(), shard_rows=20, progress=False,
        each_shard=lambda rows: kmeans.partial_fit(rows.to_scipy()[rows.usable]) if rows.usable.any() else None,
    )  # fmt: skip
    assert kmeans.n_batches_ == 2
    assert kmeans.counts_.sum() == features.usable.sum()

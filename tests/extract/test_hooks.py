"""Hook points: names, the module each means in each family, and the sums that the stream is made of."""

import warnings

import pytest
import torch

from saerl_fast.errors import InputError, MismatchWarning, ModelMismatchError
from saerl_fast.extract.batching import collate
from saerl_fast.extract.capture import Capture
from saerl_fast.extract.hooks import Hook, block_output, find_module, hook_width, name_place, parse_hook
from saerl_fast.extract.reader import make_reader
from tests import families, tiny
from tests.extract.cells import LAYER, Watch
from tests.extract.cells import some_texts as tokens


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("blocks.14.hook_resid_post", Hook("resid_post", 14)),
        ("blocks.14.hook_resid_pre", Hook("resid_post", 13)),
        ("blocks.0.hook_resid_pre", Hook("resid_pre", 0)),
        ("blocks.3.hook_resid_mid", Hook("resid_mid", 3)),
        ("blocks.3.hook_mlp_out", Hook("mlp_out", 3)),
        ("blocks.3.mlp.hook_in", Hook("mlp_in", 3)),
        ("blocks.3.ln2.hook_normalized", Hook("mlp_normed", 3)),
        ("blocks.3.hook_attn_out", Hook("attn_out", 3)),
        ("blocks.3.attn.hook_z", Hook("attn_z", 3)),
        ("hook_embed", Hook("embed", 0)),
        ("model.layers.7", Hook("resid_post", 7)),
        ("model.language_model.layers.7", Hook("resid_post", 7)),
        ("model.layers.7.output", Hook("resid_post", 7)),
        ("model.layers.7.input", Hook("resid_post", 6)),
        ("encoder.layer.3", Hook("resid_post", 3)),
        ("encoder.layer.3.output", Hook("resid_post", 3)),
        ("transformer.h.0", Hook("resid_post", 0)),
        ("h.0.input", Hook("resid_pre", 0)),
        ("gpt_neox.layers.11.output", Hook("resid_post", 11)),
        ("model.layers.3.mlp", Hook("module", 3, "mlp", "output")),
        ("model.layers.3.self_attn.o_proj.input", Hook("module", 3, "self_attn.o_proj", "input")),
        ("model.layers.3.pre_feedforward_layernorm.output", Hook("module", 3, "pre_feedforward_layernorm", "output")),
        ("encoder.layer.3.output.dense", Hook("module", 3, "output.dense", "output")),
        ("model.embed_tokens", Hook("embed", 0)),
        ("transformer.wte.output", Hook("embed", 0)),
    ],
)
def test_names(name, hook):
    assert parse_hook(name) == hook
    assert parse_hook(str(hook)) == hook


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("blocks.3.hook_mlp_in", "the stream before the norm, some releases the one behind"),
        ("blocks.3.attn.hook_result", "one vector per head"),
        ("blocks.3.attn.hook_q", r"of a block, \['hook_resid_pre'"),
        ("hook_pos_embed", "neither a sae-lens name"),
        ("model.norm", "neither a sae-lens name"),
        ("blocks.3.hook_embed", r"of a block, \['hook_resid_pre'"),
        ("model.layers.3\n", "neither a sae-lens name"),
        ("vision_tower.vision_model.encoder.layers.3", "lies outside the text model"),
        ("model.visual.blocks.3.mlp", "lies outside the text model"),
        ("blocks.x.hook_resid_post", "neither a sae-lens name"),
        ("", "neither a sae-lens name"),
    ],
)
def test_names_that_are_refused(name, reason):
    with pytest.raises(InputError, match=reason):
        parse_hook(name)


def hooks_of(model):
    """transformers keeps hooks of its own for output_hidden_states."""
    return [(*module._forward_hooks, *module._forward_pre_hooks) for module in model.modules()]


def read(model, hook, texts, side="right"):
    batch = collate(texts, 2, side, torch.device("cpu"))
    before = hooks_of(model)
    with Capture(model, hook) as capture:
        assert hooks_of(model) != before
        hidden = capture(batch)
    assert hooks_of(model) == before
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.kept)


@pytest.fixture(scope="module", params=families.FAMILIES)
def full(request):
    """(family, one text, what the full forward held at every place, its hidden states)"""
    text = tokens(23)
    with Watch(request.param) as watch:
        places, states = watch.run(text[0])
    return request.param, text, places, states


@pytest.mark.parametrize("point", [*families.SAE_LENS, "embed"])
def test_early_exit_holds_the_bits_of_the_full_forward(full, point):
    family, text, places, _ = full
    model = families.model(family)
    name = "hook_embed" if point == "embed" else f"blocks.{LAYER}.{families.SAE_LENS[point]}"
    if point not in places:
        with pytest.raises(ModelMismatchError, match="side by side"):
            read(model, parse_hook(name), text)
        return
    found = read(model, parse_hook(name), text)
    assert torch.equal(found, places[point])
    assert hook_width(model, parse_hook(name)) == found.shape[1]


@pytest.mark.parametrize("point", [*families.SAE_LENS])
def test_the_module_path_reads_the_same(full, point):
    family, text, places, _ = full
    if point not in places:
        pytest.skip("this family has no such place")
    path, side = families.PLACES[family][point]
    name = ".".join(part for part in (families.blocks_path(family), str(LAYER), path, side) if part)
    assert torch.equal(read(families.model(family), parse_hook(name), text), places[point])


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_module_path_and_the_sae_lens_name_of_a_place_are_one_place(family):
    """The reader says the same of both, so that an SAE that names one does not warn of the other."""
    model = families.model(family)
    for point, inside in families.SAE_LENS.items():
        if families.PLACES[family][point] is None:
            continue
        module, side = find_module(model, parse_hook(f"blocks.{LAYER}.{inside}"))
        path = next(name for name, other in model.named_modules() if other is module)
        found = name_place(model, parse_hook(f"{path}.{side}"))
        assert find_module(model, found) == (module, side)
        assert found.point != "module"
        metadata = {"hook_name": f"blocks.{LAYER}.{inside}"}
        width = hook_width(model, found)
        with warnings.catch_warnings():
            warnings.simplefilter("error", MismatchWarning)
            make_reader(
                model, tiny.sae(d_in=width, metadata=metadata), tokenizer=tiny.tokenizer(), hook=f"{path}.{side}"
            )


def test_places_that_are_no_point_keep_their_path():
    for family, path in (
        ("gemma2", "model.layers.2.mlp"),
        ("gemma2", "model.layers.2.self_attn"),
        ("llama", "layers.2.mlp.up_proj"),
    ):
        hook = parse_hook(path)
        assert name_place(families.model(family), hook) == hook


def test_the_stream_is_what_transformers_calls_hidden_states(full):
    family, text, places, states = full
    model = families.model(family)
    assert torch.equal(places["resid_pre"], states[LAYER])
    for layer in range(tiny.LAYERS - 1):
        assert torch.equal(read(model, block_output(layer), text), states[layer + 1])
        assert torch.equal(read(model, parse_hook(f"blocks.{layer + 1}.hook_resid_pre"), text), states[layer + 1])
    assert torch.equal(read(model, parse_hook("blocks.0.hook_resid_pre"), text), states[0])


def test_the_last_block_is_read_before_the_final_norm(full):
    family, text, _, states = full
    model = families.model(family)
    last = read(model, block_output(tiny.LAYERS - 1), text)
    norms = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm", "modernbert": "final_norm"}
    if family in ("bert", "roberta", "distilbert"):  # no norm behind the blocks
        assert torch.equal(last, states[-1])
        return
    norm = model.get_submodule(norms.get(family, "model.norm"))
    assert not torch.allclose(last, states[-1], atol=1e-2)
    with torch.inference_mode():
        assert torch.equal(norm(last), states[-1])


def test_attention_and_mlp_out_are_what_is_added_to_the_stream(full):
    family, _, places, _ = full
    close = {"rtol": 1e-5, "atol": 1e-5}
    if family in ("bert", "roberta", "distilbert"):  # the sum goes through a norm before it is the stream again
        block = families.model(family).get_submodule(f"{families.blocks_path(family)}.{LAYER}")
        norms = ("attention.output.LayerNorm", "output.LayerNorm")
        first, second = map(
            block.get_submodule, ("sa_layer_norm", "output_layer_norm") if family == "distilbert" else norms
        )
        with torch.inference_mode():
            mid = first(places["attn_out"] + places["resid_pre"])
            post = second(places["mlp_out"] + places["resid_mid"])
        torch.testing.assert_close(mid, places["resid_mid"], **close)
        torch.testing.assert_close(post, places["resid_post"], **close)
        return
    added = places["resid_pre"] + places["attn_out"]
    if "resid_mid" in places:
        torch.testing.assert_close(added, places["resid_mid"], **close)
    torch.testing.assert_close(added + places["mlp_out"], places["resid_post"], **close)


def test_attention_z_times_the_output_projection_is_what_attention_returns(full):
    family, _, places, _ = full
    block = families.model(family).get_submodule(f"{families.blocks_path(family)}.{LAYER}")
    projection = block.get_submodule(families.PLACES[family]["attn_z"][0])
    with torch.inference_mode():
        out = projection(places["attn_z"])
        if (norm := getattr(block, "post_attention_layernorm", None)) and hasattr(block, "post_feedforward_layernorm"):
            out = norm(out)
    torch.testing.assert_close(out, places["attn_out"], rtol=1e-5, atol=1e-5)


def test_layers_and_places_that_are_not_there_are_named():
    model = families.model("llama")
    with pytest.raises(ModelMismatchError, match="layer 4 is out of range: LlamaForCausalLM has blocks 0 to 3"):
        find_module(model, block_output(4))
    with pytest.raises(ModelMismatchError, match=r"looked for \['mlp.gate'\] in a block of Llama.*'mlp.down_proj'"):
        find_module(model, parse_hook("model.layers.1.mlp.gate"))


def test_an_encoder_with_a_decoder_is_refused_and_not_read_in_the_wrong_one():
    from transformers import BartConfig, BartModel

    sizes = {"vocab_size": 400, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 64}
    sizes |= {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in
              (("attention_heads", 4), ("ffn_dim", 64))}  # fmt: skip
    model = BartModel(BartConfig(**sizes)).eval()
    for name in ("encoder.layers.1", "decoder.layers.1", "hook_embed"):
        with pytest.raises(ModelMismatchError, match="BartModel has an encoder and a decoder"):
            find_module(model, parse_hook(name))


def test_a_block_of_unknown_structure_is_shown():
    model = families.build("llama")
    for block in model.model.layers:
        block.feed = block.mlp
        del block.mlp
    with pytest.raises(ModelMismatchError, match=r"blocks.1.hook_mlp_out: looked for .* has .*'feed.down_proj'"):
        find_module(model, parse_hook("blocks.1.hook_mlp_out"))


def test_what_is_not_one_row_per_token_is_refused():
    model = families.build("llama")
    model.model.layers[1].mlp.register_forward_hook(lambda m, i, o: o[:, :5])
    with pytest.raises(ModelMismatchError, match=r"not one row per token: .*\[1, 5, 32\] for \[1, 23\] tokens"):
        read(model, parse_hook("model.layers.1.mlp"), tokens(23))


def test_hooks_are_gone_and_modes_restored_when_the_forward_fails():
    model = families.build("llama").train()
    model.model.layers[0].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        read(model, parse_hook("blocks.1.attn.hook_z"), tokens(3))
    assert not model.model.layers[1].self_attn.o_proj._forward_pre_hooks
    assert model.training
    assert model.model.layers[1].training

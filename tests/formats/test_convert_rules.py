"""What convert is told beside the tensors: where a dictionary was trained, how many latents it promises, Goodfire's names."""

import json

import pytest
import torch

from saerl_fast.errors import FormatError
from saerl_fast.extract.sanity import promised_l0
from saerl_fast.formats import load_sae
from saerl_fast.formats.convert import convert
from tests.formats.test_golden import (
    LATENTS,
    WIDTH,
    assert_same,
    dictionary_folder,
    features,
    normal,
    rows,
)


def converted(folder, name="AutoEncoder", metadata=None, **trainer):
    """A dictionary of that class, with those settings of its trainer, converted and read again."""
    dictionary_folder(folder / "trainer_0", name)
    config = folder / "trainer_0" / "config.json"
    known = json.loads(config.read_text())
    known["trainer"] |= trainer
    config.write_text(json.dumps(known))
    convert(folder / "trainer_0", folder / "out", metadata=metadata)
    return load_sae(folder / "out")


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("resid_post_layer_8", "blocks.8.hook_resid_post"),
        ("mlp_out_layer_8", "blocks.8.hook_mlp_out"),
        ("mlp_out_layer8", "blocks.8.hook_mlp_out"),
        ("attention_out_layer_8", "blocks.8.hook_attn_out"),
        ("attn_out_layer_8", "blocks.8.hook_attn_out"),
        ("resid_post_layer_8_extra", None),
        ("mlp_in_layer_8", None),
        ("embed", None),
        (["mlp_out_layer_8"], None),
        (None, None),
    ],
)
def test_a_dictionary_is_read_where_its_submodule_was_and_nowhere_by_guess(name, hook, tmp_path):
    assert converted(tmp_path, submodule_name=name).hook_name == hook


def test_what_the_user_says_of_the_place_wins(tmp_path):
    said = {"hook_name": "blocks.2.hook_mlp_out"}
    assert converted(tmp_path, metadata=said, submodule_name="odd").hook_name == "blocks.2.hook_mlp_out"


@pytest.mark.parametrize("model", ["google/gemma-2-2b", "google/gemma-3-4b-it", "allenai/OLMo-2-1124-7B"])
def test_behind_a_module_with_a_norm_of_its_own_the_place_is_another(model, tmp_path):
    # their hook_mlp_out lies behind that norm, the submodule's output in front of it
    (tmp_path / "mlp").mkdir()
    assert converted(tmp_path / "mlp", lm_name=model, submodule_name="mlp_out_layer_8").hook_name is None
    assert converted(tmp_path, lm_name=model, submodule_name="resid_post_layer_8").hook_name is not None


def test_two_layers_that_contradict_are_named(tmp_path):
    with pytest.raises(FormatError, match="submodule_name 'mlp_out_layer_3' and layer 8 contradict"):
        converted(tmp_path, submodule_name="mlp_out_layer_3")


@pytest.mark.parametrize(
    ("name", "trainer", "promised"),
    [
        ("JumpReluAutoEncoder", {"k": None, "target_l0": 37.5}, 37.5),
        ("JumpReluAutoEncoder", {"target_l0": 40}, 40),
        ("BatchTopKSAE", {}, 9),
        ("AutoEncoderTopK", {"target_l0": 3}, 9),
        ("AutoEncoder", {"k": None}, None),
    ],
)
def test_the_l0_that_a_dictionary_was_trained_for_is_its_promise(name, trainer, promised, tmp_path):
    assert promised_l0(converted(tmp_path, name, **trainer)) == promised


@pytest.mark.parametrize("odd", [0, -1, True, "40", [40], pytest.param(10**400, id="huge"), 1e9])
def test_an_l0_that_is_none_is_named(odd, tmp_path):
    with pytest.raises(FormatError, match="target_l0 must be a positive number"):
        converted(tmp_path, "JumpReluAutoEncoder", target_l0=odd)


@pytest.mark.parametrize(
    ("file", "repository"),
    [
        ("Llama-3.1-8B-Instruct-SAE-l19.pth", "Goodfire/Llama-3.1-8B-Instruct-SAE-l19"),
        ("Llama-3.3-70B-Instruct-SAE-l50.pt", "Goodfire/Llama-3.3-70B-Instruct-SAE-l50"),
    ],
)
def test_goodfire_is_what_sae_lens_makes_of_its_file(file, repository, tmp_path, monkeypatch):
    sae_lens = pytest.importorskip("sae_lens")
    from sae_lens.loading import pretrained_sae_loaders as loaders

    state = {
        "encoder_linear.weight": normal(LATENTS, WIDTH), "encoder_linear.bias": normal(LATENTS, seed=1),
        "decoder_linear.weight": normal(WIDTH, LATENTS, seed=2), "decoder_linear.bias": normal(WIDTH, seed=3),
    }  # fmt: skip
    torch.save(state, tmp_path / file)
    monkeypatch.setattr(loaders, "hf_hub_download", lambda **_: str(tmp_path / file))
    config, tensors, _ = loaders.get_goodfire_huggingface_loader(repository, file)
    theirs = sae_lens.StandardSAE(
        sae_lens.StandardSAEConfig(WIDTH, LATENTS, apply_b_dec_to_input=config["apply_b_dec_to_input"])
    )
    theirs.load_state_dict(tensors)
    convert(tmp_path / file, tmp_path / "out")
    ours = load_sae(tmp_path / "out")
    with torch.no_grad():
        assert_same(features(ours, rows()), theirs.encode(rows()))
        torch.testing.assert_close(ours.decode(ours.encode(rows())), theirs(rows()), rtol=1e-4, atol=1e-4)
    assert (ours.kind, ours.model_name, ours.hook_name) == ("standard", config["model_name"], config["hook_name"])

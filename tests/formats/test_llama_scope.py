"""Llama Scope: its scales and thresholds, against the formula of its makers and against the loader of sae-lens."""

import pytest
import torch

from saerl_fast.errors import FormatError
from saerl_fast.extract.sanity import promised_l0
from saerl_fast.formats import load_sae, save_sae
from tests.formats.test_golden import WIDTH, assert_same, features, llama_folder, rows

TRANSCODER = {
    "hook_point_in": "blocks.15.ln2.hook_normalized",
    "hook_point_out": "blocks.15.hook_mlp_out",
    "dataset_average_activation_norm": {"in": 9.0, "out": 3.0},
}


def formula(tensors, x, *, theta=0.9, averages=(9.0, 9.0), counts=True):
    """Features in float64: h, active where its size in the unscaled output (or input) is above the threshold."""
    inner, outer = (WIDTH**0.5 / average for average in averages)
    h = x.double() * inner @ tensors["encoder.weight"].t() + tensors["encoder.bias"]
    score = h * tensors["decoder.weight"].norm(dim=0) / outer if counts else h / inner
    return torch.where((score > theta) & (h > 0), h, 0)


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("part", ["sae", "transcoder"])
def test_scales_and_thresholds_are_folded(tmp_path, part, counts):
    changes = TRANSCODER if part == "transcoder" else {}
    tensors = llama_folder(tmp_path / "sae", sparsity_include_decoder_norm=counts, **changes)
    averages = (9.0, 3.0) if part == "transcoder" else (9.0, 9.0)
    wanted = formula(tensors, rows(), averages=averages, counts=counts)
    ours = load_sae(tmp_path / "sae")
    assert_same(features(ours, rows()), wanted)
    # the decoder gives back unscaled activations
    decoded = (wanted @ tensors["decoder.weight"].t() + tensors["decoder.bias"]) * averages[1] / WIDTH**0.5
    torch.testing.assert_close(ours.decode(ours.encode(rows())).double(), decoded, rtol=1e-4, atol=1e-4)
    assert ours.transcoder == (part == "transcoder")
    assert ours.hook_name == changes.get("hook_point_in", "blocks.15.hook_resid_post")
    assert ours.metadata.get("hook_name_out") == changes.get("hook_point_out")


def test_the_k_it_was_trained_with_is_the_l0_it_promises(tmp_path):
    llama_folder(tmp_path / "sae")
    save_sae(load_sae(tmp_path / "sae"), tmp_path / "out")
    assert promised_l0(load_sae(tmp_path / "sae")) == promised_l0(load_sae(tmp_path / "out")) == 50
    llama_folder(tmp_path / "silent", top_k=None)
    assert promised_l0(load_sae(tmp_path / "silent")) is None


def test_the_two_rules_differ_where_decoders_are_not_of_norm_one(tmp_path):
    tensors = llama_folder(tmp_path / "sae")
    assert not torch.equal(formula(tensors, rows()) > 0, formula(tensors, rows(), counts=False) > 0)


def test_absent_means_false_and_relu_has_no_threshold(tmp_path):
    tensors = llama_folder(tmp_path / "sae", sparsity_include_decoder_norm=False, act_fn="ReLU")
    assert_same(features(load_sae(tmp_path / "sae"), rows()), formula(tensors, rows(), theta=0.0, counts=False))
    config = tmp_path / "sae" / "hyperparams.json"
    config.write_text(config.read_text().replace('"sparsity_include_decoder_norm"', '"other"'))
    config.write_text(config.read_text().replace("ReLU", "JumpReLU"))
    assert_same(features(load_sae(tmp_path / "sae"), rows()), formula(tensors, rows(), counts=False))


def test_a_latent_without_a_decoder_is_never_active_and_can_be_saved(tmp_path):
    from safetensors.torch import load_file, save_file

    llama_folder(tmp_path / "sae")
    weights = tmp_path / "sae" / "checkpoints" / "final.safetensors"
    tensors = load_file(weights)
    tensors["decoder.weight"][:, 5] = 0
    tensors["decoder.weight"][:, 6] = 1e-38
    save_file(tensors, weights)
    for theta in (0.9, 0):
        config = tmp_path / "sae" / "hyperparams.json"
        config.write_text(config.read_text().replace('"jump_relu_threshold": 0.9', f'"jump_relu_threshold": {theta}'))
        ours = load_sae(tmp_path / "sae")
        assert not features(ours, 100 * rows())[:, 5].any()
        save_sae(ours, tmp_path / "out")
        assert load_sae(tmp_path / "out").weights_hash() == ours.weights_hash()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataset_average_activation_norm": None},
            r"activation_norm\['in'\] must be a positive number, below a million; got None",
        ),
        ({"dataset_average_activation_norm": {"in": 0}}, "must be a positive number, below a million; got 0"),
        ({"dataset_average_activation_norm": {"in": 1e-320}}, "must be a positive number, below a million; got 1e-320"),
        ({**TRANSCODER, "dataset_average_activation_norm": {"in": 9}}, r"\['out'\] must be a positive number"),
        ({"jump_relu_threshold": "x"}, "jump_relu_threshold must be a positive number"),
        ({"jump_relu_threshold": False}, "jump_relu_threshold must be a positive number, below a million; got False"),
        ({"top_k": 50.5}, "top_k must be a whole number from 1 to d_sae = 96; got 50.5"),
        ({"top_k": 0}, "top_k must be a whole number from 1 to d_sae = 96; got 0"),
        ({"top_k": True}, "top_k must be a whole number from 1 to d_sae = 96; got True"),
        ({"top_k": "50"}, "top_k must be a whole number from 1 to d_sae = 96; got '50'"),
        ({"d_sae": 95}, r"\[d_sae, d_model\] = \[95, 32\]"),
        ({"use_glu_encoder": True}, "use_glu_encoder True is not supported; supported is False"),
        ({"act_fn": "topk"}, "act_fn 'topk' is not supported; supported is 'jumprelu'"),
        ({"norm_activation": "token-wise"}, "norm_activation 'token-wise' is not supported"),
        ({"norm_activation": ["x"]}, r"norm_activation \['x'\] is not supported"),
        ({"apply_decoder_bias_to_pre_encoder": True}, "apply_decoder_bias_to_pre_encoder True is not supported"),
        ({"sparsity_include_decoder_norm": "yes"}, "sparsity_include_decoder_norm must be true or false; got 'yes'"),
    ],
)
def test_settings_that_cannot_be_served_are_named(tmp_path, changes, message):
    llama_folder(tmp_path / "sae", **changes)
    with pytest.raises(FormatError, match=message):
        load_sae(tmp_path / "sae")


@pytest.mark.parametrize("shape", [(WIDTH * 96,), (1, WIDTH, 96), ()])
def test_a_decoder_of_another_shape_is_named(tmp_path, shape):
    from safetensors.torch import load_file, save_file

    llama_folder(tmp_path / "sae")
    weights = tmp_path / "sae" / "checkpoints" / "final.safetensors"
    save_file(load_file(weights) | {"decoder.weight": torch.ones(shape)}, weights)
    with pytest.raises(FormatError, match=r"decoder.weight must be \[d_out, d_sae\]"):
        load_sae(tmp_path / "sae")


def by_sae_lens(monkeypatch, folder, averages=9.0):
    """The SAE through the front door of sae-lens, which finds our files where it would fetch the published ones."""
    pytest.importorskip("sae_lens")
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    def fetched(repo_id, filename, subfolder="", **_):
        return str(folder / ("hyperparams.json" if "hyperparams" in filename else f"checkpoints/{filename}"))

    monkeypatch.setattr(loaders, "hf_hub_download", fetched)
    known = get_pretrained_saes_directory()["llama_scope_lxr_8x"]
    monkeypatch.setitem(known.norm_scaling_factor, "l15r_8x", WIDTH**0.5 / averages)
    return SAE.from_pretrained("llama_scope_lxr_8x", "l15r_8x")


def test_without_decoder_norms_it_is_what_sae_lens_loads(tmp_path, monkeypatch):
    llama_folder(tmp_path / "sae", sparsity_include_decoder_norm=False)
    theirs = by_sae_lens(monkeypatch, tmp_path / "sae")
    ours = load_sae(tmp_path / "sae")
    with torch.no_grad():
        assert_same(features(ours, rows()), theirs.encode(rows()))
        torch.testing.assert_close(ours.decode(ours.encode(rows())), theirs(rows()), rtol=1e-4, atol=1e-4)
    assert ours.hook_name == theirs.cfg.metadata.hook_name


def test_with_decoders_of_norm_one_it_is_what_sae_lens_loads_and_else_it_is_not(tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    llama_folder(tmp_path / "sae", torch.float32)
    theirs, ours = by_sae_lens(monkeypatch, tmp_path / "sae"), load_sae(tmp_path / "sae")
    with torch.no_grad():
        found, wanted = features(ours, rows()), theirs.encode(rows()).double()
    both = (found > 0) & (wanted > 0)
    torch.testing.assert_close(found[both], wanted[both], rtol=1e-5, atol=1e-5)
    # decoders are longer than 1 here, so that less is wanted of h
    assert theirs.W_dec.norm(dim=1).min() * WIDTH**0.5 / 9 > 1
    assert ((found > 0) & (wanted == 0)).sum() > 100
    assert not ((found == 0) & (wanted > 0)).any()
    weights = tmp_path / "sae" / "checkpoints" / "final.safetensors"
    tensors = load_file(weights)
    tensors["decoder.weight"] /= tensors["decoder.weight"].norm(dim=0)
    save_file(tensors, weights)
    theirs, ours = by_sae_lens(monkeypatch, tmp_path / "sae"), load_sae(tmp_path / "sae")
    with torch.no_grad():
        assert_same(features(ours, rows()), theirs.encode(rows()))

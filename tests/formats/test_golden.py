"""Each format on small files made here, by its formula in float64; ``owners.py`` has the libraries that own them."""

import json
import re
import resource
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saerl_fast.errors import DiskFullError, FormatError, MissingDependency, UnsafeFileError
from saerl_fast.formats import load_sae, registry, save_sae
from saerl_fast.formats.convert import convert
from tests import tiny
from tests.test_sae import dense

WIDTH, LATENTS = 32, 96


def normal(*shape, seed=0, scale=0.3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def rows(seed=5):
    return normal(64, WIDTH, seed=seed, scale=2)


def features(sae, x):
    return dense(sae.encode(x), sae.d_sae).double()


def assert_same(got, wanted):
    assert torch.equal(got != 0, wanted != 0)
    assert 0 < (wanted != 0).double().mean() < 1
    torch.testing.assert_close(got, wanted.double(), rtol=1e-5, atol=1e-5)


# ---- sae-lens before 6.0 ----

OLD = {
    "standard": {"hook_point": "blocks.1.hook_resid_pre", "normalize_activations": False},
    "norm-as-boolean": {"hook_point": "blocks.1.hook_resid_pre", "normalize_activations": True},
    "layer-norm": {"hook_name": "blocks.1.hook_resid_pre", "normalize_activations": "layer_norm"},
    "no-b_dec": {"hook_name": "blocks.1.hook_resid_pre", "apply_b_dec_to_input": False},
    "topk-as-activation": {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 7}, "hook_point": "x"},
    "topk-new-name": {"activation_fn": "topk", "activation_fn_kwargs": {"k": 7}, "normalize_activations": None},
    "hook_z": {"hook_point": "blocks.1.attn.hook_z", "sae_lens_version": "5.10.0"},
    "jumprelu": {"architecture": "jumprelu", "hook_name": "blocks.1.hook_resid_post"},
    "gated": {"architecture": "gated", "hook_name": "blocks.1.hook_resid_post"},
    "metadata-with-old-version": {"hook_name": "h", "metadata": {"sae_lens_version": "5.3.0", "model_name": "m"}},
}


def old_folder(folder, settings):
    tensors = {
        "W_enc": normal(WIDTH, LATENTS),
        "b_enc": normal(LATENTS, seed=1),
        "W_dec": normal(LATENTS, WIDTH, seed=2),
    }
    tensors["b_dec"] = normal(WIDTH, seed=3)
    if settings.get("architecture") == "jumprelu":
        tensors["threshold"] = normal(LATENTS, seed=4).abs()
    if settings.get("architecture") == "gated":
        tensors |= {name: normal(LATENTS, seed=6 + i) for i, name in enumerate(("b_gate", "r_mag", "b_mag"))}
        del tensors["b_enc"]
    # sae-lens wrote this tensor for a while, of ones
    tensors["scaling_factor"] = torch.ones(LATENTS)
    folder.mkdir()
    save_file(tensors, folder / "sae_weights.safetensors")
    config = {"d_in": WIDTH, "d_sae": LATENTS, "dtype": "float32", "device": "cpu", "context_size": 128} | settings
    (folder / "cfg.json").write_text(json.dumps(config))


@pytest.mark.parametrize("case", OLD)
def test_configurations_before_6_are_read_as_sae_lens_reads_them(case, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    old_folder(tmp_path / "sae", OLD[case])
    ours, theirs = load_sae(tmp_path / "sae"), sae_lens.SAE.load_from_disk(str(tmp_path / "sae"), device="cpu")
    x = rows().view(64, 4, 8) if case == "hook_z" else rows()
    with torch.no_grad():
        assert_same(features(ours, x), theirs.encode(x))
    assert ours.hook_name == theirs.cfg.metadata.hook_name
    assert ours.context_size == (None if "metadata" in OLD[case] else 128) or ours.context_size == 128


def test_what_sae_lens_before_6_could_say_and_we_cannot_serve_is_refused(tmp_path):
    old_folder(tmp_path / "tanh", {"activation_fn_str": "tanh-relu"})
    with pytest.raises(FormatError, match="'tanh-relu' is not supported"):
        load_sae(tmp_path / "tanh")
    old_folder(tmp_path / "topk", {"activation_fn_str": "topk"})
    with pytest.raises(FormatError, match="topk without k"):
        load_sae(tmp_path / "topk")
    old_folder(tmp_path / "scaled", {})
    tensors = {name: normal(WIDTH, LATENTS) for name in ("W_enc",)} | {"b_enc": normal(LATENTS), "b_dec": normal(WIDTH)}
    tensors |= {"W_dec": normal(LATENTS, WIDTH), "scaling_factor": torch.full((LATENTS,), 2.0)}
    save_file(tensors, tmp_path / "scaled" / "sae_weights.safetensors")
    with pytest.raises(FormatError, match="scaling_factor"):
        load_sae(tmp_path / "scaled")


# ---- EleutherAI sparsify ----


def sparsify_folder(folder, **changes):
    config = {
        "activation": "topk", "expansion_factor": 3, "normalize_decoder": True, "num_latents": 0, "k": 6,
        "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": WIDTH,
    } | changes  # fmt: skip
    tensors = {
        "encoder.weight": normal(LATENTS, WIDTH),
        "encoder.bias": normal(LATENTS, seed=1),
        "W_dec": normal(LATENTS, WIDTH, seed=2),
        "b_dec": normal(WIDTH, seed=3),
    }
    if config["skip_connection"]:
        tensors["W_skip"] = normal(WIDTH, WIDTH, seed=4)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    return tensors


def sparsify_formula(tensors, x, k, subtract=True):
    """sparsify 1.3: ReLU of the product, then the k largest."""
    x = x.double() - (tensors["b_dec"].double() if subtract else 0)
    h = torch.relu(x @ tensors["encoder.weight"].double().t() + tensors["encoder.bias"].double())
    top = h.topk(k, dim=1)
    return torch.zeros_like(h).scatter_(1, top.indices, top.values)


@pytest.mark.parametrize("k", [6, 90])
@pytest.mark.parametrize("transcode", [False, True])
def test_sparsify_files_as_they_are(tmp_path, transcode, k):
    folder = tmp_path / "layers.12"
    tensors = sparsify_folder(folder, transcode=transcode, skip_connection=transcode, k=k)
    (tmp_path / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-160m", "ctx_len": 2048}))
    ours = load_sae(folder)
    assert_same(features(ours, rows()), sparsify_formula(tensors, rows(), k, subtract=not transcode))
    assert (ours.hook_name, ours.model_name, ours.context_size) == ("model.layers.12", "EleutherAI/pythia-160m", 2048)
    assert (ours.w_skip is not None) == transcode


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "groupmax"}, "'groupmax' is not supported; supported is topk"),
        ({"signed": True}, "'signed' is not supported"),
        ({"k": 0}, "k must be a whole number from 1 to 96; got 0"),
        ({"k": 97}, "got 97"),
        ({"d_in": 31}, r"\[num_latents, d_in\] = \[93, 31\]"),
        ({"num_latents": 95}, r"\[95, 32\]"),
        ({"expansion_factor": "3"}, r"\[0, 32\]"),
        ({"skip_connection": True}, "W_skip goes with transcode: true"),
    ],
)
def test_sparsify_settings_that_cannot_be_served_are_named(tmp_path, changes, message):
    sparsify_folder(tmp_path / "layers.0", **changes)
    with pytest.raises(FormatError, match=message):
        load_sae(tmp_path / "layers.0")


# ---- Gemma Scope ----


def gemma_folder(folder, width_out=WIDTH, save=np.savez):
    folder.mkdir(parents=True)
    arrays = {
        "w_enc": normal(WIDTH, LATENTS), "w_dec": normal(LATENTS, width_out, seed=2), "b_enc": normal(LATENTS, seed=1),
        "b_dec": normal(width_out, seed=3), "threshold": normal(LATENTS, seed=4).abs() + 0.5,
    }  # fmt: skip
    save(folder / "params.npz", **{name: tensor.numpy() for name, tensor in arrays.items()})
    return {name: tensor.double() for name, tensor in arrays.items()}


def jumprelu_formula(x, w_enc, b_enc, theta):
    h = x.double() @ w_enc + b_enc
    return torch.where((h > theta) & (h > 0), h, 0)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("part", ["res", "mlp", "att", "transcoders"])
def test_gemma_scope(tmp_path, part, save):
    home = tmp_path / f"models--google--gemma-scope-2b-pt-{part}" / "snapshots" / "0123"
    folder = home / "layer_20" / "width_16k" / "average_l0_71"
    arrays = gemma_folder(folder, tiny.WIDTH_OUT if part == "transcoders" else WIDTH, save)
    ours = load_sae(folder)
    assert_same(features(ours, rows()), jumprelu_formula(rows(), arrays["w_enc"], arrays["b_enc"], arrays["threshold"]))
    hooks = {
        "res": "hook_resid_post",
        "mlp": "hook_mlp_out",
        "att": "attn.hook_z",
        "transcoders": "ln2.hook_normalized",
    }
    assert ours.hook_name == f"blocks.20.{hooks[part]}"
    assert (ours.model_name, ours.metadata["l0"]) == ("google/gemma-2-2b", 71)
    assert ours.transcoder == (part == "transcoders")
    assert ours.flatten_heads == (part == "att")


def test_gemma_scope_of_embeddings_is_scaled_and_what_no_name_says_stays_unknown(tmp_path):
    folder = tmp_path / "gemma-scope-9b-it-res" / "embedding" / "width_4k" / "average_l0_6"
    arrays = gemma_folder(folder)
    ours = load_sae(folder)
    wanted = jumprelu_formula(rows(), arrays["w_enc"] / WIDTH**0.5, arrays["b_enc"], arrays["threshold"])
    torch.testing.assert_close(features(ours, rows()), wanted, rtol=1e-5, atol=1e-5)
    assert (ours.hook_name, ours.model_name) == ("hook_embed", "google/gemma-2-9b-it")
    gemma_folder(tmp_path / "plain")
    unknown = load_sae(tmp_path / "plain", metadata={"hook_name": "blocks.2.hook_mlp_out"})
    assert (unknown.hook_name, unknown.model_name) == ("blocks.2.hook_mlp_out", None)


# ---- Llama Scope ----


def llama_folder(folder, dtype=torch.bfloat16, **changes):
    (folder / "checkpoints").mkdir(parents=True)
    tensors = {
        "encoder.weight": normal(LATENTS, WIDTH), "encoder.bias": normal(LATENTS, seed=1),
        "decoder.weight": normal(WIDTH, LATENTS, seed=2), "decoder.bias": normal(WIDTH, seed=3),
    }  # fmt: skip
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_file(tensors, folder / "checkpoints" / "final.safetensors")
    config = {
        "d_model": WIDTH, "d_sae": LATENTS, "jump_relu_threshold": 0.9, "hook_point_in": "blocks.15.hook_resid_post",
        "hook_point_out": "blocks.15.hook_resid_post", "dataset_average_activation_norm": {"in": 9.0, "out": 9.0},
        "act_fn": "jumprelu", "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True,
        "use_glu_encoder": False, "apply_decoder_bias_to_pre_encoder": False, "use_decoder_bias": True, "top_k": 50,
    } | changes  # fmt: skip
    (folder / "hyperparams.json").write_text(json.dumps(config))
    return {name: tensor.double() for name, tensor in tensors.items()}


# ---- .pt files, by way of convert ----


def test_qwen_scope(tmp_path):
    folder = tmp_path / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_50" / "snapshots"
    folder.mkdir(parents=True)
    state = {
        "W_enc": normal(LATENTS, WIDTH), "W_dec": normal(WIDTH, LATENTS, seed=2),
        "b_enc": normal(LATENTS, seed=1), "b_dec": normal(WIDTH, seed=3),
    }  # fmt: skip
    torch.save(state, folder / "layer7.sae.pt")
    convert(folder / "layer7.sae.pt", tmp_path / "out")
    ours = load_sae(tmp_path / "out")
    h = rows().double() @ state["W_enc"].double().t() + state["b_enc"].double()
    top = h.topk(50, dim=1)
    assert_same(features(ours, rows()), torch.zeros_like(h).scatter_(1, top.indices, top.values.relu()))
    torch.testing.assert_close(ours.w_dec, state["W_dec"].t())
    assert (ours.k, ours.model_name, ours.hook_name) == (50, "Qwen/Qwen3-1.7B-Base", "model.layers.7")
    # elsewhere nothing says k
    (folder / "layer7.sae.pt").rename(tmp_path / "layer7.sae.pt")
    with pytest.raises(ValueError, match="topk SAE needs 1 <= k"):
        convert(tmp_path / "layer7.sae.pt", tmp_path / "none")
    assert convert(tmp_path / "layer7.sae.pt", tmp_path / "asked", k=100 // 2).k == 50


def dictionary(name):
    """A module with the parameters of the class of dictionary_learning 0.1, and its encode, written by hand."""
    module = torch.nn.Module()
    plain = name in ("MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder")
    if plain:
        module.W_enc, module.W_dec = (
            torch.nn.Parameter(normal(WIDTH, LATENTS)),
            torch.nn.Parameter(normal(LATENTS, WIDTH)),
        )
        module.b_enc, module.b_dec = (
            torch.nn.Parameter(normal(LATENTS, seed=1)),
            torch.nn.Parameter(normal(WIDTH, seed=3)),
        )
    else:
        module.encoder = torch.nn.Linear(WIDTH, LATENTS, bias=name != "GatedAutoEncoder")
        module.decoder = torch.nn.Linear(LATENTS, WIDTH, bias=name == "AutoEncoderNew")
        torch.nn.init.normal_(module.encoder.weight, generator=torch.Generator().manual_seed(0))
        bias = {"AutoEncoder": "bias", "GatedAutoEncoder": "decoder_bias"}.get(name, "b_dec")
        if name != "AutoEncoderNew":
            setattr(module, bias, torch.nn.Parameter(normal(WIDTH, seed=3)))
    if name == "GatedAutoEncoder":
        for i, part in enumerate(("r_mag", "gate_bias", "mag_bias")):
            setattr(module, part, torch.nn.Parameter(normal(LATENTS, seed=10 + i)))
    if "TopK" in name:
        module.register_buffer("k", torch.tensor(9, dtype=torch.int))
        module.register_buffer("threshold", torch.tensor(0.7))
    if name == "MatryoshkaBatchTopKSAE":
        module.register_buffer("group_sizes", torch.tensor([32, 64]))
    if name == "JumpReluAutoEncoder":
        module.threshold = torch.nn.Parameter(normal(LATENTS, seed=4).abs())
    return module


def dictionary_formula(name, module, x):
    p = {key: tensor.double() for key, tensor in module.state_dict().items()}
    w = p["W_enc"] if "W_enc" in p else p["encoder.weight"].t()
    bias = next((p[key] for key in ("bias", "decoder_bias", "b_dec") if key in p), torch.zeros(WIDTH))
    x = x.double() - (0 if name in ("JumpReluAutoEncoder", "AutoEncoderNew") else bias)
    if name == "GatedAutoEncoder":
        product = x @ w
        magnitude = torch.relu(p["r_mag"].exp() * product + p["mag_bias"])
        return (product + p["gate_bias"] > 0) * magnitude
    h = torch.relu(x @ w + (p["b_enc"] if "b_enc" in p else p["encoder.bias"]))
    if name == "AutoEncoderTopK":
        top = h.topk(9, dim=1)
        return torch.zeros_like(h).scatter_(1, top.indices, top.values)
    return h * (h > p["threshold"]) if "threshold" in p else h


DICTIONARIES = [
    "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
]  # fmt: skip


def dictionary_folder(folder, name, module=None):
    folder.mkdir()
    module = dictionary(name) if module is None else module
    torch.save(module.state_dict(), folder / "ae.pt")
    trainer = {"dict_class": name, "layer": 8, "lm_name": "EleutherAI/pythia-160m-deduped", "k": 9}
    trainer["submodule_name"] = "resid_post_layer_8"
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 1024}}))
    return module


@pytest.mark.parametrize("name", DICTIONARIES)
def test_dictionary_learning(name, tmp_path):
    module = dictionary_folder(tmp_path / "trainer_0", name)
    convert(tmp_path / "trainer_0", tmp_path / "out")
    ours = load_sae(tmp_path / "out")
    assert_same(features(ours, rows()), dictionary_formula(name, module, rows()))
    assert ours.hook_name == "blocks.8.hook_resid_post"
    assert (ours.model_name, ours.context_size) == ("EleutherAI/pythia-160m-deduped", 1024)


# ---- the registry of sae-lens ----


def test_a_name_that_is_no_folder_goes_to_the_registry_of_sae_lens(monkeypatch, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    save_sae(tiny.sae("jumprelu"), tmp_path / "sae")
    asked = []

    def from_pretrained(release, sae_id, device):
        asked.append((release, sae_id))
        return sae_lens.SAE.load_from_disk(str(tmp_path / "sae"), device=device)

    monkeypatch.setattr(sae_lens.SAE, "from_pretrained", from_pretrained)
    ours = load_sae("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71")
    assert asked == [("gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71")]
    assert ours.weights_hash() == tiny.sae("jumprelu").weights_hash()
    assert ours.metadata["l0"] == 71
    with pytest.raises(FormatError, match=r"has no SAE 'layer_99'; it has \d+, such as"):
        load_sae("gemma-scope-2b-pt-res/layer_99")
    with pytest.raises(UnsafeFileError, match=r"published as a pickle.*saerl convert"):
        load_sae(f"{qwen_release()}/{qwen_id()}")
    with pytest.raises(FormatError, match="is no release of the installed sae-lens"):
        load_sae("no-such-release/layer_0")
    with pytest.raises(FormatError, match="no such folder"):
        load_sae("/absent/folder")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match="pip install"):
        load_sae("gemma-scope-2b-pt-res/layer_20")


def qwen_release():
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory()
    return next(name for name, entry in known.items() if entry.conversion_func == "qwen_scope")


def qwen_id():
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    return next(iter(get_pretrained_saes_directory()[qwen_release()].saes_map))


def test_of_the_loaders_of_sae_lens_those_that_unpickle_are_kept_away_and_no_others():
    loaders = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders")
    import inspect

    unpickles = {
        name
        for name, loader in loaders.NAMED_PRETRAINED_SAE_LOADERS.items()
        if re.search(r"torch\.load\(|pickle|allow_pickle", inspect.getsource(loader))
    }
    served = registry._READS_NO_PICKLE | set(registry._READ_HERE)
    assert served == set(loaders.NAMED_PRETRAINED_SAE_LOADERS) - unpickles
    assert not registry._READS_NO_PICKLE & set(registry._READ_HERE)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A repository of the hub in a folder, and a release of sae-lens's registry that points there."""
    directory = pytest.importorskip("sae_lens.loading.pretrained_saes_directory")
    from huggingface_hub.errors import EntryNotFoundError

    asked = []

    def download(repository, path):
        asked.append((repository, path))
        if not (tmp_path / path).exists():
            raise EntryNotFoundError(path)
        return str(tmp_path / path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    known = directory.get_pretrained_saes_directory()

    def release(loader, folder):
        entry = replace(
            known["llama_scope_lxr_8x"], conversion_func=loader, saes_map={"x": folder}, expected_l0={"x": 31.0}
        )
        monkeypatch.setitem(known, "llama_scope_lxr_8x", entry)

    return tmp_path, release, asked


@pytest.mark.parametrize("beside", [True, False])
def test_a_release_in_the_form_of_sparsify_is_read_here(hub, beside, caplog):
    # sae-lens's own loader cannot read what is published, and is no reader of pickles either
    home, release, asked = hub
    sparsify_folder(home / "run" / "layers.4")
    if beside:
        (home / "run" / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-160m", "ctx_len": 99}))
    release("sparsify", "run/layers.4")
    ours = load_sae("llama_scope_lxr_8x/x")
    assert ours.weights_hash() == load_sae(home / "run" / "layers.4").weights_hash()
    assert (ours.hook_name, ours.metadata["l0"]) == ("model.layers.4", 31)
    assert (ours.model_name, ours.context_size) == (("EleutherAI/pythia-160m", 99) if beside else (None, None))
    assert ("has no config.json in 'run'" in caplog.text) != beside
    assert {path for _, path in asked} == {"run/layers.4/cfg.json", "run/layers.4/sae.safetensors", "run/config.json"}


def test_a_release_of_llama_scope_is_what_its_folder_is(hub):
    home, release, asked = hub
    llama_folder(home / "L15R")
    release("llama_scope", "L15R")
    assert load_sae("llama_scope_lxr_8x/x").weights_hash() == load_sae(home / "L15R").weights_hash()
    assert [path for _, path in asked] == ["L15R/hyperparams.json", "L15R/checkpoints/final.safetensors"]
    assert {repository for repository, _ in asked} == {"fnlp/Llama3_1-8B-Base-LXR-8x"}


def test_no_room_for_an_sae_is_a_full_disk(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    try:
        with pytest.raises(DiskFullError, match="make room"):
            save_sae(tiny.sae(), tmp_path / "sae")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "sae").iterdir())

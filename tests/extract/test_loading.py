"""Models by path: the layers that are read and no others, from the files that hold them; placed where asked."""

import json
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

import saerl_fast
from saerl_fast.errors import FormatError, InputError, JobMismatchError, MissingDependency, ModelMismatchError
from saerl_fast.extract import loading
from saerl_fast.extract.capture import Capture
from saerl_fast.extract.hooks import block_output, find_blocks, parse_hook
from saerl_fast.extract.loading import is_read, load_blocks
from saerl_fast.extract.reader import Reader
from tests import families, tiny
from tests.extract.test_batched import read, texts

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """family -> its model in a folder of files of a few tensors each."""
    made = {}

    def save(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            families.model(family).save_pretrained(made[family], max_shard_size="20KB")
        return made[family]

    return save


class Tensors:
    """safe_open, with a note of every tensor whose bytes are asked for."""

    read: ClassVar[list[str]] = []
    opened: ClassVar[list[str]] = []

    def __init__(self, file, *settings, **named):
        from safetensors import safe_open

        Tensors.opened.append(Path(file).name)
        self._file = safe_open(file, *settings, **named)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *reason):
        return self._file.__exit__(*reason)

    def get_slice(self, name):
        return Slice(self._file.get_slice(name), name)


class Slice:
    def __init__(self, found, name):
        self._found, self._name = found, name

    def __getattr__(self, name):
        return getattr(self._found, name)

    def __getitem__(self, span):
        Tensors.read.append(self._name)
        return self._found[span]


@pytest.fixture
def tensors(monkeypatch):
    import transformers.modeling_utils

    Tensors.read, Tensors.opened = [], []
    monkeypatch.setattr(transformers.modeling_utils, "safe_open", Tensors)
    return Tensors


def number_of_block(key):
    return next((int(part) for part in key.split(".") if part.isdigit()), None)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_by_path_gives_the_bits_of_the_whole_model_and_reads_nothing_above_the_block(family, sharded, tensors):
    loaded = load_blocks(str(sharded(family)), 1)
    assert torch.equal(read(loaded, block_output(1), texts()), read(families.model(family), block_output(1), texts()))
    assert len(find_blocks(loaded)) == 2
    assert tensors.read  # else the counter saw nothing
    assert max(number for key in tensors.read if (number := number_of_block(key)) is not None) == 1
    assert not any("lm_head" in key or "embed_out" in key for key in tensors.read)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_files_that_hold_only_what_is_left_out_are_not_needed(family, sharded, tmp_path, tensors):
    folder = tmp_path / "partial"
    shutil.copytree(sharded(family), folder)
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    needed = {
        file
        for key, file in weight_map.items()
        if (
            (number_of_block(key) or 0) < 2
            and not any(part in key for part in ("lm_head", "norm.weight", "ln_f", "pooler"))
        )
        or ".0." in key
        or ".1." in key
    }
    for file in set(weight_map.values()) - needed:
        (folder / file).unlink()
    assert len(needed) < len(set(weight_map.values()))
    loaded = load_blocks(str(folder), 1)
    assert set(tensors.opened) <= needed
    assert torch.equal(read(loaded, block_output(1), texts()), read(families.model(family), block_output(1), texts()))


def test_from_the_hub_cache_the_files_above_are_not_asked_for(sharded, tmp_path, monkeypatch):
    """A hub id: a cache that holds config, index and the lower files, and no network."""
    snapshot = tmp_path / "hub" / "models--org--toy" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    refs = tmp_path / "hub" / "models--org--toy" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    source = sharded("llama")
    weight_map = json.loads((source / INDEX).read_text())["weight_map"]
    lower = {file for key, file in weight_map.items() if "embed" in key or ".layers.0." in key or ".layers.1." in key}
    for file in {"config.json", INDEX} | lower:
        shutil.copy(source / file, snapshot / file)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    loaded = load_blocks("org/toy", 1)
    assert torch.equal(read(loaded, block_output(1), texts()), read(families.model("llama"), block_output(1), texts()))


def test_a_checkpoint_that_lacks_weights_is_refused_not_filled_with_random_numbers(sharded, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "holes"
    families.model("llama").save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FormatError, match=r"lacks 1 weights .* such as layers.1.mlp.up_proj.weight"):
        load_blocks(str(folder), 1)
    assert len(find_blocks(load_blocks(str(folder), 0))) == 1


BESIDE_THE_BLOCKS = [
    ("gpt2", "transformer.wpe.weight"),
    ("bert", "embeddings.position_embeddings.weight"),
    ("bert", "embeddings.LayerNorm.weight"),
    ("modernbert", "embeddings.norm.weight"),
]


@pytest.mark.parametrize(("family", "weight"), BESIDE_THE_BLOCKS)
def test_what_lies_between_the_tokens_and_the_first_block_is_read_too(family, weight, tmp_path):
    from safetensors.torch import load_file, save_file

    families.model(family).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert is_read(weight, 0)
    del weights[weight]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FormatError, match="lacks 1 weights"):
        load_blocks(str(tmp_path), 1)


def test_an_index_that_points_outside_the_folder_is_refused(sharded, tmp_path):
    folder = tmp_path / "outside"
    shutil.copytree(sharded("llama"), folder)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.embed_tokens.weight"] = "../elsewhere.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(FormatError, match="names files outside the folder"):
        load_blocks(str(folder), 1)


def test_layers_and_folders_that_are_not_there(sharded, tmp_path):
    with pytest.raises(ModelMismatchError, match="layer 4 is out of range"):
        load_blocks(str(sharded("llama")), 4)
    with pytest.raises(InputError, match="no such folder; the folder of a model is wanted"):
        load_blocks(str(tmp_path / "none"), 1)


def test_the_embedding_needs_one_block_and_a_stream_before_a_block_not_that_block(sharded):
    model = load_blocks(str(sharded("llama")), parse_hook("hook_embed").layer)
    assert len(find_blocks(model)) == 1
    assert parse_hook("blocks.2.hook_resid_pre").layer == 1


@pytest.mark.parametrize(
    "device_map",
    [
        {"": "cpu"},
        "auto",
        {"embed_tokens": "cpu", "layers": "cpu", "norm": "cpu", "rotary_emb": "cpu"},
        {"embed_tokens": "cpu", "layers.0": "cpu", "layers.1": "cpu", "norm": "cpu", "rotary_emb": "cpu"},
    ],
    ids=["one", "auto", "by_part", "by_block"],
)
def test_a_device_map_gives_the_same_bits(device_map, sharded):
    loaded = load_blocks(str(sharded("llama")), 1, device_map=device_map)
    assert torch.equal(read(loaded, block_output(1), texts()), read(families.model("llama"), block_output(1), texts()))


def test_a_device_map_of_the_model_with_its_head_will_do(sharded):
    """As a causal LM names its parts, head and blocks above the hook included."""
    parts = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    parts |= {f"model.layers.{number}": "cpu" for number in range(tiny.LAYERS)}
    loaded = load_blocks(str(sharded("llama")), 1, device_map=parts)
    assert torch.equal(read(loaded, block_output(1), texts()), read(families.model("llama"), block_output(1), texts()))


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ({"": "cuda:99"}, "puts 'the model' on 'cuda:99'; torch sees"),
        ({"layers.0": 99, "": "cpu"}, "puts 'layers.0' on 99; torch sees"),
        ({"": "cpux"}, "on 'cpux', which is no device"),
        ({"": None}, "on None, which is no device"),
        ({}, "gives no device for 'the model'"),
        ({"": "disk"}, "weights are not in memory"),
        ("everywhere", "transformers cannot load the model"),
    ],
)
def test_a_device_map_that_cannot_be(device_map, message, sharded):
    with pytest.raises(InputError, match=message):
        load_blocks(str(sharded("llama")), 1, device_map=device_map)


@pytest.mark.parametrize("point", ["hook_resid_pre", "hook_resid_post", "attn.hook_z", "hook_mlp_out"])
def test_early_exit_inside_a_model_dispatched_by_accelerate(point):
    """On several devices accelerate wraps every part's forward to move its inputs; here two parts, both on the CPU."""
    accelerate = pytest.importorskip("accelerate")
    plain = families.model("llama")
    parts = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    parts |= {f"model.layers.{number}": "cpu" for number in range(tiny.LAYERS)}
    spread = accelerate.dispatch_model(families.build("llama"), parts, main_device="cpu", force_hooks=True)
    assert hasattr(spread.model.layers[1], "_hf_hook")
    hook = parse_hook(f"blocks.2.{point}")
    assert torch.equal(read(spread, hook, texts()), read(plain, hook, texts()))
    found = spread.model.layers[1]
    assert hasattr(found, "_hf_hook")
    assert not found._forward_hooks


def test_weights_left_on_disk_are_refused(sharded, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    spread = {"embed_tokens": "cpu", "layers.0": "cpu", "layers.1": "disk", "norm": "cpu", "rotary_emb": "cpu"}
    with pytest.raises(InputError, match="weights are not in memory, such as layers.1|cannot load the model"):
        load_blocks(str(sharded("llama")), 1, device_map=spread)
    parts = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    parts |= {f"model.layers.{number}": "disk" if number == 1 else "cpu" for number in range(tiny.LAYERS)}
    spread = accelerate.dispatch_model(families.build("llama"), parts, main_device="cpu", offload_dir=str(tmp_path))
    for model in (spread, families.build("llama").to("meta")):
        with pytest.raises(
            InputError, match="weights are not in memory, such as .* left them on disk, or they were never"
        ):
            saerl_fast.featurize(tiny.texts(2), model, tiny.sae(), tokenizer=tiny.tokenizer(), progress=False)


def test_where_a_model_goes_is_said_once(sharded, monkeypatch):
    with pytest.raises(InputError, match="both say where the model goes"):
        load_blocks(str(sharded("llama")), 1, device="cpu", device_map={"": "cpu"})
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="device_map needs accelerate"):
        load_blocks(str(sharded("llama")), 1, device_map={"": "cpu"})


def test_a_text_model_beside_a_vision_tower(tmp_path):
    """Gemma 3 as published: the vision tower has as many blocks as the text model, and lists them first."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    torch.manual_seed(0)
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": tiny.LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=families.CAUSAL["gemma3_text"], vision_config=vision, mm_tokens_per_image=4)
    model = Gemma3ForConditionalGeneration(config).eval()
    assert type(find_blocks(model)[0]).__name__ == "Gemma3DecoderLayer"
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    loaded = load_blocks(str(tmp_path), 1)
    for name in ("blocks.1.hook_resid_post", "blocks.1.hook_mlp_out", "model.language_model.layers.1.mlp.input"):
        assert torch.equal(read(loaded, parse_hook(name), texts()), read(model, parse_hook(name), texts()))
    with torch.inference_mode():
        ids = torch.from_numpy(texts()[0].input_ids)[None]
        states = model.model.language_model(input_ids=ids, output_hidden_states=True).hidden_states[2][0]
    torch.testing.assert_close(read(model, block_output(1), texts()[:1]), states, rtol=1e-5, atol=1e-5)
    tokenizer = tiny.tokenizer()
    tokenizer.save_pretrained(tmp_path)
    by_path = saerl_fast.featurize(tiny.texts(5), tmp_path, tiny.sae(), progress=False)
    by_object = saerl_fast.featurize(tiny.texts(5), model, tiny.sae(), tokenizer=tokenizer, progress=False)
    np.testing.assert_array_equal(by_path.values, by_object.values)


def change(model, how):
    with torch.no_grad():
        if how == "a position":
            model.transformer.wpe.weight[3] += 1
        elif how == "a block":
            model.transformer.h[1].mlp.c_fc.weight[0] += 1
        elif how == "a setting":
            model.config.layer_norm_epsilon = 1e-3
        elif how == "the attention":
            model.set_attn_implementation("eager")
        else:
            model.transformer.h[2].mlp.c_fc.weight[0] += 1
            model.transformer.ln_f.weight[0] += 1


@pytest.mark.parametrize("how", ["a position", "a block", "a setting", "the attention", "above the hook"])
def test_a_folder_knows_another_model_by_what_is_read_of_it(how, tmp_path):
    call = {"texts": tiny.texts(3), "sae": tiny.sae(), "tokenizer": tiny.tokenizer(), "progress": False}
    saerl_fast.featurize(model=families.build("gpt2"), out=tmp_path / "f", **call)
    other = families.build("gpt2")
    change(other, how)
    if how == "above the hook":
        assert len(saerl_fast.featurize(model=other, out=tmp_path / "f", **call)) == 3
        return
    with pytest.raises(
        JobMismatchError, match="model_config" if how[0] == "t" or "setting" in how else "model_weights"
    ):
        saerl_fast.featurize(model=other, out=tmp_path / "f", **call)


def test_by_path_and_by_object_are_one_job(sharded):
    """The same weights, whole or up to the block: one fingerprint."""
    hook, tokenizer = block_output(1), tiny.tokenizer()
    for family in families.FAMILIES:
        whole = Reader(families.model(family), tokenizer, hook, "m").fingerprint()
        cut = Reader(load_blocks(str(sharded(family)), 1), tokenizer, hook, "m").fingerprint()
        assert whole["model_weights"] == cut["model_weights"], family
        assert whole["device"] == cut["device"] == "cpu"


def test_capture_without_a_block_says_so():
    with pytest.raises(InputError, match="inside its `with` block"):
        Capture(families.model("llama"), block_output(1))(None)

"""What no other test of the readers runs into: each refusal by its words."""

import json
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save

from saerl_fast.errors import FormatError, SaerlError, UnsafeFileError
from saerl_fast.formats import load_sae, save_sae
from saerl_fast.formats.convert import convert
from saerl_fast.formats.npz_file import read_npz
from saerl_fast.formats.safetensors_file import as_arrays, read_tensors
from saerl_fast.formats.torch_file import MAX_PICKLE, read_torch_file
from saerl_fast.formats.zip_file import ZipMembers
from tests import tiny
from tests.formats.hostile_torch import archive, good, in_dict, tensor, torch_file
from tests.formats.test_golden import gemma_folder, llama_folder, sparsify_folder

# ---- safetensors


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 16, 32]}, "has data_offsets"),
        ({"dtype": "F32", "shape": [4], "data_offsets": "0-16"}, "has data_offsets"),
        ({"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}, "has data_offsets"),
    ],
)
def test_offsets_that_are_none(tmp_path, entry, message):
    raw = json.dumps({"a": entry}).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(raw)) + raw + b"\0" * 16)
    with pytest.raises(UnsafeFileError, match=message):
        read_tensors(tmp_path / "x")


@pytest.mark.parametrize("metadata", [[], "x", {"a": 1}, None])
def test_metadata_that_maps_no_names_to_words(tmp_path, metadata):
    raw = json.dumps({"__metadata__": metadata}).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(raw)) + raw)
    with pytest.raises(UnsafeFileError, match="__metadata__ must map names to strings"):
        read_tensors(tmp_path / "x")


def test_bfloat16_is_no_numpy_array():
    with pytest.raises(FormatError, match=r"here: \['w'\] are bfloat16"):
        as_arrays({"w": torch.zeros(1, dtype=torch.bfloat16), "b": torch.zeros(1)}, "here")


# ---- folders of SAEs


def changed_tensors(path, **changes):
    tensors = {name: value for name, value in {**read_tensors(path), **changes}.items() if value is not None}
    path.write_bytes(save(tensors))


def test_a_folder_without_an_sae_says_what_was_wanted(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FormatError, match=r"no SAE of a known format. Wanted sae-lens: cfg.json and .*notes.txt"):
        load_sae(tmp_path)


def test_sae_lens_folders_that_lack_a_tensor_or_were_scaled(tmp_path):
    weights = tmp_path / "sae_weights.safetensors"
    save_sae(tiny.sae(d_sae=24), tmp_path)
    changed_tensors(weights, scaling_factor=torch.ones(24, dtype=torch.bool))
    load_sae(tmp_path)
    changed_tensors(weights, scaling_factor=torch.arange(24) > 3)
    with pytest.raises(FormatError, match="scaling_factor"):
        load_sae(tmp_path)
    changed_tensors(weights, scaling_factor=None, W_dec=None)
    with pytest.raises(FormatError, match=r"a topk SAE needs the tensors \['W_dec'\], which are missing"):
        load_sae(tmp_path)


def test_a_transcoder_that_sae_lens_has_no_name_for_is_not_written(tmp_path):
    with pytest.raises(FormatError, match="no architecture for a topk transcoder"):
        save_sae(tiny.sae(transcoder=True, apply_b_dec=False), tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("make", "weight"), [(sparsify_folder, "encoder.bias"), (llama_folder, "decoder.bias")])
def test_sparsify_and_llama_scope_without_a_tensor_or_with_nan(tmp_path, make, weight):
    folder = tmp_path / "layers.0"
    make(folder)
    (weights,) = folder.rglob("*.safetensors")
    changed_tensors(weights, **{weight: read_tensors(weights)[weight] * float("nan")})
    with pytest.raises(FormatError, match=f"{weight} holds NaN"):
        load_sae(folder)
    changed_tensors(weights, **{weight: None})
    with pytest.raises(FormatError, match=rf"needs the tensors \['{weight}'\], which are missing"):
        load_sae(folder)


def test_sparsify_on_embeddings(tmp_path):
    sparsify_folder(tmp_path / "embed_tokens")
    assert load_sae(tmp_path / "embed_tokens").hook_name == "hook_embed"
    sparsify_folder(tmp_path / "elsewhere")
    assert load_sae(tmp_path / "elsewhere").hook_name is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": np.zeros(3, np.float32)}, r"unexpected arrays \['extra'\]"),
        ({"W_ENC": np.zeros((32, 96), np.float32)}, "an array comes twice, in capitals and without"),
        ({"b_dec": None}, r"needs the arrays \['b_dec'\], which are missing"),
        ({"b_dec": np.full(32, np.inf, np.float32)}, "b_dec holds NaN or infinity"),
        ({"scaling_factor": np.full(96, 2, np.float32)}, "scaling_factor is not one everywhere"),
        (
            {"w_enc": np.zeros((32, 95), np.float32)},
            r"w_enc must be \[d_in, d_sae\], d_sae that of b_enc; got \[32, 95\]",
        ),
        ({"w_enc": np.zeros(96, np.float32)}, r"w_enc must be \[d_in, d_sae\]"),
    ],
)
def test_gemma_scope_arrays_that_make_no_sae(tmp_path, changes, message):
    gemma_folder(tmp_path / "sae")
    with np.load(tmp_path / "sae" / "params.npz") as found:
        arrays = {name: array for name, array in {**found, **changes}.items() if array is not None}
    np.savez(tmp_path / "sae" / "params.npz", **arrays)
    with pytest.raises(FormatError, match=message):
        load_sae(tmp_path / "sae")


# ---- archives and pickles


def zip_of(members, path):
    with zipfile.ZipFile(path, "w") as made:
        for name, content in members.items():
            made.writestr(name, content)
    return bytearray(path.read_bytes())


def test_a_directory_that_holds_more_than_it_says(tmp_path):
    path = tmp_path / "x.zip"
    raw = zip_of({f"m{n}": b"" for n in range(5)}, path)
    at = raw.rfind(b"PK\x05\x06")
    raw[at + 8 : at + 12] = struct.pack("<HH", 1, 1)
    path.write_bytes(raw)
    with pytest.raises(UnsafeFileError, match="5 members, more than the cap of 4"):
        ZipMembers(path, most=4, compressed=False)


def test_a_directory_beyond_the_end_or_beyond_its_cap(tmp_path):
    path = tmp_path / "x.zip"
    raw = zip_of({"m": b"x" * 100}, path)
    at = raw.rfind(b"PK\x05\x06")
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, 2**40, 1)
    path.write_bytes(raw[:at] + locator + raw[at:])
    with pytest.raises(UnsafeFileError, match=f"the zip64 directory lies at byte {2**40}"):
        ZipMembers(path, most=4, compressed=False)
    raw[at + 12 : at + 16] = struct.pack("<I", 5 << 20)
    path.write_bytes(raw)
    with pytest.raises(UnsafeFileError, match="a zip directory of 5242880 bytes"):
        ZipMembers(path, most=4, compressed=False)


def zip64_sizes(path, size):
    """The member's two sizes in its directory, as zip64 has them."""
    raw = zip_of({"m": b"x"}, path)
    at, end = raw.rfind(b"PK\x01\x02"), raw.rfind(b"PK\x05\x06")
    extra = struct.pack("<HHQQ", 1, 16, size, size)
    raw[at + 20 : at + 28] = b"\xff" * 8
    raw[at + 30 : at + 32] = struct.pack("<H", len(extra))
    raw[end + 12 : end + 16] = struct.pack("<I", end - at + len(extra))
    path.write_bytes(raw[:end] + extra + raw[end:])


def test_a_member_beyond_the_cap(tmp_path):
    zip64_sizes(tmp_path / "x.zip", 1 << 40)
    with pytest.raises(UnsafeFileError, match="m has 1099511627776 bytes, more than the cap"):
        ZipMembers(tmp_path / "x.zip", most=4, compressed=False)


def test_a_member_that_holds_less_or_more_than_is_wanted_of_it(tmp_path):
    zip_of({"m": b"x" * 100}, tmp_path / "x.zip")
    with ZipMembers(tmp_path / "x.zip", most=4, compressed=False) as members:
        for size, held in [(101, 100), (99, 99)]:
            with (
                pytest.raises(UnsafeFileError, match=f"{size} bytes is wanted; it holds {held}, or more"),
                members.open(members.members["m"]) as file,
            ):
                members.read(file, size)


CALL = tensor().removesuffix(b"R")
TENSORS = {
    "pickle-beyond-its-cap": (b"}" + b"N" * MAX_PICKLE, "more than the cap of 4194304"),
    "no-storage": (
        in_dict(tensor().replace(b"X\x07\0\0\0storage", b"X\x07\0\0\0Storage")),
        "refers to tuple, which is no storage",
    ),
    "named-twice": (
        b"}(X\x01\0\0\0a" + tensor() + b"X\x01\0\0\0b" + tensor().replace(b"FloatStorage", b"IntStorage") + b"u",
        "named twice, with two types or sizes",
    ),
    "parameter-of-nothing": (in_dict(b"ctorch._utils\n_rebuild_parameter\n)R"), "'w' is a parameter of no tensor"),
    "parameter-of-a-number": (in_dict(b"ctorch._utils\n_rebuild_parameter\nK\x01\x85R"), "a parameter of no tensor"),
    "made-of-something": (in_dict(b"ccollections\nOrderedDict\nK\x01\x85R"), "made from something, not an empty one"),
    "rebuilt-with-less": (
        in_dict(b"ctorch._utils\n_rebuild_tensor_v2\nK\x01\x85R"),
        "rebuilt in a way that is not known",
    ),
    "a-name": (in_dict(b"ccollections\nOrderedDict\n"), "collections.OrderedDict, neither a tensor nor"),
    "a-storage-that-is-a-call": (
        in_dict(b"ctorch._utils\n_rebuild_tensor_v2\n(ccollections\nOrderedDict\n)RQ" + b"K\x00)))N)tR"),
        "no storage",
    ),
    "name-without-end": (b"c" + b"a" * 5000, "has a name without an end"),
    "item-of-a-number": (b"K\x01K\x02K\x03s", "fills something that is no container"),
    "other-protocol": (b"\x80\x04}", "is of protocol 4, and torch.save writes 2"),
    "key-without-value": (b"}(K\x01u", "has a key without a value"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_a_torch_file_that_means_no_tensors(case, tmp_path):
    opcodes, message = TENSORS[case]
    (tmp_path / "x.pt").write_bytes(torch_file(opcodes))
    with pytest.raises(UnsafeFileError, match=message):
        read_torch_file(tmp_path / "x.pt")


def test_a_torch_file_of_another_byte_order(tmp_path):
    (tmp_path / "x.pt").write_bytes(torch_file(in_dict(tensor()), **{"a/byteorder": b"lattle"}))
    with pytest.raises(UnsafeFileError, match="only little-endian files are read"):
        read_torch_file(tmp_path / "x.pt")


# ---- convert


def state(**changes):
    made = {"encoder.weight": torch.randn(6, 4), "encoder.bias": torch.zeros(6), "decoder.weight": torch.randn(4, 6)}
    return {name: value for name, value in {**made, "bias": torch.zeros(4), **changes}.items() if value is not None}


def test_a_folder_that_can_be_loaded_is_written_in_the_form_of_sae_lens(tmp_path):
    gemma_folder(tmp_path / "sae")
    made = convert(tmp_path / "sae", tmp_path / "out", metadata={"model_name": "m"})
    again = load_sae(tmp_path / "out")
    assert (again.weights_hash(), again.model_name) == (made.weights_hash(), "m")


def test_the_kind_is_told_by_the_tensors_where_they_tell_it(tmp_path):
    for kind, more in [
        ("jumprelu", {"threshold": torch.ones(6)}),
        ("gated", {"r_mag": torch.zeros(6), "b_mag": torch.zeros(6)}),
    ]:
        torch.save(state(**more), tmp_path / "x.pt")
        assert convert(tmp_path / "x.pt", tmp_path / kind, apply_b_dec=True).kind == kind


def test_states_and_settings_that_lack_something_are_named(tmp_path):
    torch.save(state(bias=None), tmp_path / "x.pt")
    with pytest.raises(FormatError, match=r"an SAE needs \['b_dec'\] beside what is there"):
        convert(tmp_path / "x.pt", tmp_path / "out")
    with pytest.raises(FormatError, match="absent: no such file or folder"):
        convert(tmp_path / "absent", tmp_path / "out")
    with pytest.raises(SaerlError, match="absent: no such folder"):  # it might be a name of sae-lens's registry
        convert("absent", tmp_path / "out")


def test_dictionary_learning_beyond_what_is_known(tmp_path):
    torch.save(state(), tmp_path / "ae.pt")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"trainer": {"dict_class": "CrossCoder"}}))
    with pytest.raises(FormatError, match="dict_class 'CrossCoder' is not supported; supported are"):
        convert(tmp_path / "ae.pt", tmp_path / "out")
    config.write_text(json.dumps({"trainer": {"dict_class": "AutoEncoder"}}))  # neither layer nor buffer
    made = convert(tmp_path / "ae.pt", tmp_path / "out")
    assert (made.kind, made.hook_name, made.context_size) == ("standard", None, None)


def test_the_makers_make_good_files_too(tmp_path):
    (tmp_path / "x.pt").write_bytes(good())
    assert list(read_torch_file(tmp_path / "x.pt")) == ["w"]
    (tmp_path / "y.pt").write_bytes(archive({"a/data.pkl": b"\x80\x02}."}))
    assert read_torch_file(tmp_path / "y.pt") == {}
    np.savez(tmp_path / "x.npz", a=np.ones(3, np.float32))
    assert list(read_npz(tmp_path / "x.npz")) == ["a"]

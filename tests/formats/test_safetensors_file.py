"""Hostile files: each is made here, refused with a named error, and never reaches an unpickler."""

import hashlib
import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save

from saerl_fast.errors import FormatError, UnsafeFileError
from saerl_fast.formats import load_sae, read_tensors, safetensors_file, save_sae
from saerl_fast.formats.safetensors_file import (
    MAX_FILE_BYTES,
    MAX_HEADER_BYTES,
    parse_json,
    read_file,
    read_header,
    read_json,
)
from tests import tiny
from tests.formats.limits import at_once

GOOD = save({"a": torch.arange(4.0)})


class Sentinel:
    """Unpickling it makes a file."""

    def __reduce__(self):
        return (os.mkdir, ("sentinel_was_made",))


def with_header(header, data=b"\0" * 16, length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(**changes):
    return {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changes}


def torch_zip():
    file = io.BytesIO()
    torch.save({"a": torch.zeros(4)}, file)
    return file.getvalue()


def npz():
    file = io.BytesIO()
    np.savez(file, a=np.zeros(4))
    return file.getvalue()


def polyglot():
    file = io.BytesIO(GOOD)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("data.pkl", pickle.dumps(Sentinel()))
    return file.getvalue()


HOSTILE = {
    "pickle": pickle.dumps(Sentinel()),
    "pickle-protocol-2": pickle.dumps(Sentinel(), protocol=2),
    "torch-zip": torch_zip(),
    "npz": npz(),
    "npy": b"\x93NUMPY\x01\x00" + b"\0" * 64,
    "gzip": b"\x1f\x8b" + b"\0" * 64,
    "pickle-appended": GOOD + pickle.dumps(Sentinel()),
    "zip-polyglot": polyglot(),
    "empty": b"",
    "seven-bytes": b"\0" * 7,
    "length-0": with_header(b"", length=0),
    "length-1": with_header({"a": entry()}, length=1),
    "length-2^31": with_header({"a": entry()}, length=2**31),
    "length-2^63": with_header({"a": entry()}, length=2**63),
    "length-2^64-1": with_header({"a": entry()}, length=2**64 - 1),
    "length-beyond-end": with_header({"a": entry()}, length=10_000),
    "header-over-cap": with_header({"a": entry(), "__metadata__": {"x": "y" * MAX_HEADER_BYTES}}),
    "not-utf-8": with_header(b'{"\xff": 1}'),
    "bom": with_header("\ufeff{}".encode()),
    "deep": with_header(b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "nested-9": with_header(b'{"a":' + b"[" * 9 + b"]" * 9 + b"}"),
    "million-digits": with_header(b'{"a":{"dtype":"F32","shape":[' + b"9" * 10**6 + b'],"data_offsets":[0,16]}}'),
    "5000-digits": with_header(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,16]}}'),
    "nan-constant": with_header(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}'),
    "1e999": with_header(b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,16]}}'),
    "list": with_header(b"[]"),
    "true-dimension": with_header({"a": entry(shape=[4, True])}),
    "float-dimension": with_header({"a": entry(shape=[4.0])}),
    "negative-dimension": with_header({"a": entry(shape=[-4])}),
    "dimension-2^31": with_header({"a": entry(shape=[2**31, 0])}),
    "product-overflow": with_header({"a": entry(shape=[2**31 - 1] * 8)}),
    "shape-against-span": with_header({"a": entry(shape=[5])}),
    "dtype-unknown": with_header({"a": entry(dtype="F8")}),
    "dtype-list": with_header({"a": entry(dtype=["F32"])}),
    "extra-key": with_header({"a": entry(__class__="os.system")}),
    "missing-key": with_header({"a": {"dtype": "F32", "shape": [4]}}),
    "duplicate-key": with_header(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2)),
    "overlap": with_header({"a": entry(), "b": entry()}),
    "hole": with_header({"a": entry(), "b": entry(data_offsets=[20, 36])}, data=b"\0" * 36),
    "trailing-byte": GOOD + b"\0",
    "missing-byte": GOOD[:-1],
    "name-slash": with_header({"../../etc/passwd": entry()}),
    "name-nul": with_header({"a\0b": entry()}),
    "name-empty": with_header({"": entry()}),
    "100-empty-tensors": with_header({f"t{i}": entry(shape=[0], data_offsets=[0, 0]) for i in range(100)}, data=b""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_at_once(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(HOSTILE[name])
    with at_once(), pytest.raises(UnsafeFileError, match=r"weights\.safetensors"):
        read_tensors(path)
    assert not (tmp_path / "sentinel_was_made").exists()


def test_the_good_file_is_read(tmp_path):
    (tmp_path / "good").write_bytes(GOOD)
    assert torch.equal(read_tensors(tmp_path / "good")["a"], torch.arange(4.0))
    assert list(read_header(tmp_path / "good")) == ["a"]
    with pytest.raises(FormatError, match=r"unexpected tensors \['a'\]"):
        read_tensors(tmp_path / "good", names={"b"})


def test_what_is_not_a_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, "/dev/zero"):
        with pytest.raises(UnsafeFileError, match="regular file"):
            read_tensors(path)
    with pytest.raises(FormatError, match="no such file"):
        read_tensors(tmp_path / "absent")


@pytest.mark.parametrize("raw", [b'{"a": Infinity}', b'{"a": 1, "a": 2}', b"{", b"\xff", b'"text"', b"9" * 5000])
def test_json_is_strict(raw):
    with pytest.raises(UnsafeFileError):
        parse_json(raw, "here")


@pytest.fixture
def folder(tmp_path):
    save_sae(tiny.sae(), tmp_path / "sae")
    return tmp_path / "sae"


def change(folder, **changes):
    config = json.loads((folder / "cfg.json").read_text())
    for key, value in changes.items():
        if value is None:
            del config[key]
        else:
            config[key] = value
    (folder / "cfg.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 97}, r"k must be a whole number from 1 to d_sae = 96; got 97"),
        ({"k": 0}, "got 0"),
        ({"k": True}, "got True"),
        ({"d_in": 31}, r"W_enc must be \[d_in, d_sae\] = \[31, 96\] as the configuration says; got \[32, 96\]"),
        ({"architecture": "temporal"}, "'temporal' is not supported: it attends over the whole sequence"),
        ({"normalize_activations": "covariance_whitening"}, "covariance_whitening"),
        ({"reshape_activations": "hook_q"}, "hook_q"),
        ({"architecture": "matching_pursuit"}, "'matching_pursuit' is not supported: it is iterative"),
        ({"architecture": "batchtopk"}, "save_inference_model"),
        ({"architecture": ["topk"]}, "is not supported; supported are"),
        ({"architecture": "gated"}, r"unexpected tensors \['b_enc'\]"),
        ({"metadata": {"sae_lens_version": "6.1.0", "hook_name": 5}}, "hook_name must be a string; got 5"),
        ({"sae_lens_version": "6.1.0", "metadata": [1]}, "no object 'metadata'"),
        ({"metadata": {"context_size": "abc"}}, "context_size must be a positive whole number; got 'abc'"),
    ],
)
def test_configs_that_cannot_be_served_are_named(folder, changes, message):
    change(folder, **changes)
    with pytest.raises(FormatError, match=message):
        load_sae(folder)


def test_pickled_weights_are_refused_where_safetensors_are_expected(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "sae_weights.safetensors").write_bytes(pickle.dumps(Sentinel()))
    with pytest.raises(UnsafeFileError, match="pickle"):
        load_sae(folder)
    (folder / "sae_weights.safetensors").rename(folder / "sae.pt")
    with pytest.raises(UnsafeFileError, match=r"found \['sae.pt'\]"):
        load_sae(folder)
    (folder / "cfg.json").rename(folder / "elsewhere.json")
    with pytest.raises(UnsafeFileError, match=r"found \['sae.pt'\]"):
        load_sae(folder)
    with pytest.raises(UnsafeFileError, match="never loaded"):
        load_sae(folder / "sae.pt")
    with pytest.raises(FormatError, match="no such folder"):
        load_sae(tmp_path / "absent")
    assert not (tmp_path / "sentinel_was_made").exists()


def test_truncated_weights_are_refused(folder):
    content = (folder / "sae_weights.safetensors").read_bytes()
    for length in (0, 5, 100, len(content) // 2, len(content) - 1):
        (folder / "sae_weights.safetensors").write_bytes(content[:length])
        with pytest.raises(UnsafeFileError):
            load_sae(folder)


def test_nan_weights_are_refused(folder):
    sae = tiny.sae()
    sae.w_enc[3, 3] = float("nan")
    save_sae(sae, folder)
    with pytest.raises(FormatError, match="W_enc holds NaN"):
        load_sae(folder)


@pytest.mark.parametrize("length", [0, 8, 100, 50_000, 400_000])
def test_a_file_that_shrinks_behind_its_header_is_refused(length, tmp_path, monkeypatch):
    """The header was checked against the size; then the file is cut. Nothing is mapped, so nothing ends the process."""
    path = tmp_path / "weights.safetensors"
    good = save({"a": torch.zeros(100_000)})  # more than Python reads ahead
    real = safetensors_file._check_layout

    def cut(*arguments):
        real(*arguments)
        os.truncate(path, length)

    monkeypatch.setattr(safetensors_file, "_check_layout", cut)
    path.write_bytes(good)
    with pytest.raises(UnsafeFileError, match="ends before its 400000 bytes of data"):
        read_tensors(path)


def test_a_pipe_that_takes_the_place_of_a_file_does_not_block(tmp_path, monkeypatch):
    """Between the look at the name and the opening."""
    path = tmp_path / "weights.safetensors"
    path.write_bytes(GOOD)
    real = safetensors_file._refuse_irregular

    def exchange(name, found):
        real(name, found)
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        monkeypatch.setattr(safetensors_file, "_refuse_irregular", real)

    monkeypatch.setattr(safetensors_file, "_refuse_irregular", exchange)
    with pytest.raises(UnsafeFileError, match="regular file is wanted; got p"):
        read_tensors(path)


def test_a_hash_is_fed_every_byte(tmp_path):
    (tmp_path / "good").write_bytes(GOOD)
    read_file(tmp_path / "good", digest=(found := hashlib.sha256()))
    assert found.digest() == hashlib.sha256(GOOD).digest()


def test_files_and_json_beyond_their_caps_are_refused_unread(tmp_path):
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # a hole: it takes no room
    with at_once(), pytest.raises(UnsafeFileError, match="more than the cap"):
        read_tensors(tmp_path / "huge")
    (tmp_path / "long.json").write_bytes(b'{"a": "' + b"x" * (2 << 20) + b'"}')
    with at_once(), pytest.raises(UnsafeFileError, match="more JSON than the cap"):
        read_json(tmp_path / "long.json")

"""Arrays of npz files: numpy's own come back bit for bit, objects and bombs and lies are refused."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from saerl_fast.errors import FormatError, SaerlError, UnsafeFileError
from saerl_fast.formats.npz_file import read_npz
from saerl_fast.formats.safetensors_file import MAX_FILE_BYTES
from saerl_fast.formats.zip_file import ZipMembers
from tests.formats.limits import at_once


class Runs:
    def __reduce__(self):
        return (os.mkdir, ("sentinel_was_made",))


def npz(compression=zipfile.ZIP_STORED, **members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def npy(header, data=b"\0" * 16, version=b"\x01\x00"):
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + size + header + data


def header(descr="<f4", order="False", shape="(4,)"):
    return f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()


def saved(*arrays, **named):
    file = io.BytesIO()
    np.savez(file, *arrays, **named)
    return file.getvalue()


def lying_bomb():
    """An archive that unpacks to 64 MB and says that it unpacks to the 144 bytes of a good array."""
    good = npy(header())
    raw = bytearray(npz(zipfile.ZIP_DEFLATED, a=good + b"\0" * (64 << 20)))
    at = raw.rfind(b"PK\x01\x02")
    raw[at + 24 : at + 28] = struct.pack("<I", len(good))
    return bytes(raw)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_numpy_saved_comes_back_bit_for_bit(save, dtype, tmp_path):
    arrays = {"a": np.random.default_rng(0).normal(size=(7, 5)).astype(dtype), "scalar": np.array(2.5, dtype=dtype)}
    arrays |= {"fortran": np.asfortranarray(arrays["a"]), "row": arrays["a"][0], "none": np.zeros((0, 3), dtype)}
    arrays["three"] = np.arange(24).reshape(2, 3, 4).astype(dtype)
    save(tmp_path / "x.npz", **arrays)
    found = read_npz(tmp_path / "x.npz")
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert torch.equal(found[name], torch.from_numpy(array)), name
    with pytest.raises(FormatError, match=r"unexpected arrays \['fortran'"):
        read_npz(tmp_path / "x.npz", names=["a", "scalar", "row"])


HOSTILE = {
    "object-array": saved(a=np.array([Runs()], dtype=object)),
    "pickle-as-array": npz(a=pickle.dumps(Runs())),
    "object-header": npz(a=npy(header("|O"))),
    "integers": saved(a=np.arange(4)),
    "big-endian": saved(a=np.arange(4.0, dtype=">f4")),
    "header-that-calls": npz(a=npy(b"__import__('os').mkdir('sentinel_was_made')\n")),
    "header-with-more-keys": npz(a=npy(header()[:-3] + b"'x': 1, }\n")),
    "negative-shape": npz(a=npy(header(shape="(-4,)"))),
    "shape-beyond-its-member": npz(a=npy(header(shape="(5,)"))),
    "shape-short-of-its-member": npz(a=npy(header(shape="(3,)"))),
    "shape-overflows": npz(a=npy(header(shape="(4294967296, 4294967296)"))),
    "deep-digits": npz(a=npy(header(shape=f"({'9' * 4000},)"))),
    "header-length-beyond": npz(a=b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"x" * 50),
    "version-9": npz(a=npy(header(), version=b"\x09\x00")),
    "short-member": npz(a=b"\x93NUM"),
    "bomb": npz(zipfile.ZIP_DEFLATED, a=npy(header(shape=f"({40 << 20},)"), b"\0" * (160 << 20))),
    "bomb-that-lies": lying_bomb(),
    "many-arrays": saved(*[np.zeros(1)] * 17),
    "path": npz(**{"../a": npy(header())}),
    "bare-npy": npy(header()),
    "bzip2": npz(zipfile.ZIP_BZIP2, a=npy(header())),
    "truncated": saved(a=np.zeros(4))[:-40],
    "empty": b"",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_refused_at_once_and_run_nothing(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.npz").write_bytes(HOSTILE[case])
    with at_once(), pytest.raises(UnsafeFileError, match=r"params\.npz"):
        read_npz(tmp_path / "params.npz")
    assert not (tmp_path / "sentinel_was_made").exists()


def test_damage_is_refused_by_name(tmp_path):
    good = bytearray(saved(a=np.ones((2, 2), np.float32)))
    for at in range(len(good)):
        good[at] ^= 1 << at % 8
        (tmp_path / "x.npz").write_bytes(good)
        good[at] ^= 1 << at % 8
        try:
            read_npz(tmp_path / "x.npz")
        except SaerlError:
            continue


def test_an_archive_that_shrinks_behind_its_directory_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    whole = saved(a=np.ones((400, 400), np.float32))  # more than Python reads ahead
    for length in (0, 3, 40, 100, 50_000, whole.index(b"PK\x01\x02") - 1):
        path.write_bytes(whole)
        with ZipMembers(path, most=4, compressed=True) as archive:
            (info,) = archive.members.values()
            os.truncate(path, length)
            with pytest.raises(UnsafeFileError, match="damaged"), archive.open(info) as file:
                archive.read(file, info.file_size)


def test_archives_beyond_their_caps_are_refused_unread(tmp_path):
    with open(tmp_path / "huge.npz", "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with at_once(), pytest.raises(UnsafeFileError, match="more than the cap"):
        read_npz(tmp_path / "huge.npz")

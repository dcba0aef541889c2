"""Makers of hostile torch files: each writes a file that must be refused before anything in it runs or is allocated."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib

import torch

SENTINEL = "sentinel_was_made"
TENSOR_FLOAT32 = (
    # _rebuild_tensor_v2((storage FloatStorage '0' cpu N), offset, size, stride, False, OrderedDict())
    b"ctorch._utils\n_rebuild_tensor_v2\n(("
    b"X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu%(count)stQ"
    b"%(offset)s%(size)s%(stride)s\x89ccollections\nOrderedDict\n)RtR"
)


class Runs:
    """Unpickling it makes a folder."""

    def __reduce__(self):
        return (os.mkdir, (SENTINEL,))


def archive(members, compression=zipfile.ZIP_STORED):
    """A zip in the layout of torch.save."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return file.getvalue()


def torch_file(opcodes, storage=b"\0" * 16, **members):
    return archive({"a/data.pkl": b"\x80\x02" + opcodes + b".", "a/data/0": storage, **members})


def integer(value):
    return b"J" + struct.pack("<i", value) if -(2**31) <= value < 2**31 else b"\x8a\x08" + struct.pack("<q", value)


def numbers(*values):
    return b"(" + b"".join(integer(value) for value in values) + b"t"


def tensor(count=4, offset=0, size=(4,), stride=(1,)):
    parts = {b"count": integer(count), b"offset": integer(offset), b"size": numbers(*size), b"stride": numbers(*stride)}
    return TENSOR_FLOAT32 % parts


def in_dict(value):
    return b"}X\x01\0\0\0w" + value + b"s"


def good():
    return torch_file(in_dict(tensor()))


def saved(value, **settings):
    file = io.BytesIO()
    torch.save(value, file, **settings)
    return file.getvalue()


def overlapping_members():
    """Two directory entries over the same bytes."""
    raw = bytearray(archive({"a/data.pkl": b"\x80\x02}.", "a/data/0": b"\0" * 64, "a/data/1": b"\0" * 64}))
    places = [at for at in range(len(raw)) if raw.startswith(b"PK\x01\x02", at)]
    raw[places[2] + 42 : places[2] + 46] = raw[places[1] + 42 : places[1] + 46]
    return bytes(raw)


def lying_size():
    """A member whose directory promises 2^31 bytes that are not there."""
    raw = bytearray(torch_file(in_dict(tensor(count=2**29, size=(2**29,)))))
    at = raw.rfind(b"PK\x01\x02")
    raw[at + 20 : at + 28] = struct.pack("<II", 2**31, 2**31)
    return bytes(raw)


def bomb():
    return archive({"a/data.pkl": b"\x80\x02}.", "a/data/0": b"\0" * (64 << 20)}, zipfile.ZIP_DEFLATED)


def laughs():
    """A list of a list of a list ..., each ten times the one below: 10^40 values from a few hundred bytes."""
    body = b"]q\x00"
    for level in range(1, 40):
        body += b"](" + b"h" + bytes([level - 1]) + (b"h" + bytes([level - 1])) * 9 + b"eq" + bytes([level])
    # a tuple of all of them: nothing is left on the stack
    return torch_file(b"(" + body + b"t")


def name_that_is_no_utf8():
    """A local header that says its name is UTF-8, which it is not; the directory's name is as it should be."""
    raw = bytearray(good())
    at = raw.index(b"PK\x03\x04", 4)
    raw[at + 7] |= 0x08
    raw[at + 30] = 0xFF
    return bytes(raw)


def wrong_checksum():
    raw = bytearray(good())
    at = raw.index(b"PK\x03\x04", 4)
    raw[at + 30 + len("a/data/0")] ^= 1
    return bytes(raw)


HOSTILE = {
    # what would run
    "reduce-os-mkdir": saved(Runs()),
    "reduce-deep-in-a-state-dict": saved({"w": torch.zeros(4), "extra": [Runs()]}),
    "global-os-system": torch_file(b"cposix\nsystem\n(X\x04\0\0\0truetR"),
    "global-builtins-eval": torch_file(b"c__builtin__\neval\n(X\x011\0\0\x001tR"),
    "stack-global-eval": torch_file(b"X\x08\0\0\0builtinsX\x04\0\0\0eval\x93"),
    "inst": torch_file(b"(X\x04\0\0\0trueiposix\nsystem\n"),
    "obj": torch_file(b"(cposix\nsystem\nX\x04\0\0\0trueo"),
    "newobj": torch_file(b"ccollections\nOrderedDict\n)\x81"),
    "extension": torch_file(b"\x82\x01"),
    "text-persistent-id": torch_file(b"Pstorage\n"),
    "allowed-name-in-another-module": torch_file(b"cevil\n_rebuild_tensor_v2\n)R"),
    "dotted-name": torch_file(b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n)R"),
    "torch-load": torch_file(b"ctorch\nload\n(X\x01\0\0\0atR"),
    "numpy-scalar": torch_file(b"cnumpy.core.multiarray\nscalar\n)R"),
    "storage-called": torch_file(b"ctorch\nFloatStorage\n(K\x04tR"),
    "call-of-a-call": torch_file(b"ccollections\nOrderedDict\n)R)R"),
    "protocol-4-frame": torch_file(b"\x95\x04\0\0\0\0\0\0\0}"),
    # memo and stack
    "memo-never-filled": torch_file(b"h\x07"),
    "memo-of-a-mark": torch_file(b"(q\x00t"),
    "list-in-itself": torch_file(b"]q\x00h\x00a"),
    "billion-laughs": laughs(),
    "no-mark": torch_file(b"K\x01t"),
    "empty-stack": torch_file(b"R"),
    "two-values": torch_file(b"}}"),
    "no-stop": archive({"a/data.pkl": b"\x80\x02}"}),
    "after-stop": archive({"a/data.pkl": b"\x80\x02}.}."}),
    "too-many-opcodes": torch_file(b"}" + b"q\x00" * 300_000),
    "key-is-a-list": torch_file(b"}]K\x01s"),
    "long-of-255-bytes": torch_file(b"\x8a\xff" + b"\x7f" * 255),
    "long4": torch_file(b"\x8b\xff\xff\xff\x7f"),
    "word-of-2^31": torch_file(b"X\xff\xff\xff\x7fabc"),
    "word-not-utf8": torch_file(b"X\x02\0\0\0\xff\xfe"),
    # storages and views
    "persistent-nonsense": torch_file(in_dict(b"X\x05\0\0\0helloQ")),
    "persistent-of-another-module": torch_file(
        in_dict(tensor().replace(b"ctorch\nFloatStorage", b"ccollections\nOrderedDict"))
    ),
    "storage-missing": archive({"a/data.pkl": b"\x80\x02" + in_dict(tensor()) + b"."}),
    "storage-key-is-a-path": torch_file(in_dict(tensor().replace(b"X\x01\0\0\x000", b"X\x06\0\0\0../../"))),
    "storage-larger-than-its-member": torch_file(in_dict(tensor(count=5))),
    "storage-of-2^62": torch_file(in_dict(tensor(count=2**62, size=(2**62,)))),
    "storage-negative": torch_file(in_dict(tensor(count=-4))),
    "view-beyond-the-storage": torch_file(in_dict(tensor(offset=1))),
    "stride-beyond-the-storage": torch_file(in_dict(tensor(size=(2, 2), stride=(3, 1)))),
    "stride-negative": torch_file(in_dict(tensor(offset=3, stride=(-1,)))),
    "offset-negative": torch_file(in_dict(tensor(offset=-1))),
    "size-negative": torch_file(in_dict(tensor(size=(-4,)))),
    "size-overflows": torch_file(in_dict(tensor(size=(2**33, 2**33), stride=(0, 0)))),
    "stride-0-to-10^9": torch_file(in_dict(tensor(size=(10**9,), stride=(0,)))),
    "rank-without-strides": torch_file(in_dict(tensor(size=(2, 2), stride=(1,)))),
    "tensor-of-words": torch_file(in_dict(tensor().replace(numbers(4), b"(X\x01\0\0\x004t", 1))),
    "negated-by-its-metadata": saved({"w": torch._neg_view(torch.ones(4))}),
    "metadata-of-another-type": torch_file(in_dict(tensor().replace(b")RtR", b")R]K\x01atR"))),
    # archives
    "compressed": archive({"a/data.pkl": b"\x80\x02}."}, zipfile.ZIP_DEFLATED),
    "bomb": bomb(),
    "nested-zip": archive({"a/data.pkl": good()}),
    "two-pickles": archive({"a/data.pkl": b"\x80\x02}.", "b/data.pkl": b"\x80\x02}."}),
    "no-pickle": archive({"a/data/0": b"\0" * 16}),
    "pickle-at-the-root": archive({"data.pkl": b"\x80\x02}."}),
    "member-with-a-path": torch_file(b"}", **{"a/../../etc/passwd": b"x"}),
    "member-absolute": torch_file(b"}", **{"/etc/passwd": b"x"}),
    "many-members": archive({"a/data.pkl": b"\x80\x02}.", **{f"a/data/{i}": b"" for i in range(300)}}),
    "overlapping-members": overlapping_members(),
    "size-that-is-not-there": lying_size(),
    "wrong-checksum": wrong_checksum(),
    "name-that-is-no-utf8": name_that_is_no_utf8(),
    "truncated": good()[:-30],
    "big-endian": torch_file(b"}", **{"a/byteorder": b"big"}),
    # other forms
    "before-1.6": saved({"w": torch.zeros(4)}, _use_new_zipfile_serialization=False),
    "bare-pickle": pickle.dumps(Runs(), protocol=2),
    "pickle-protocol-0": pickle.dumps(Runs(), protocol=0),
    "gzip": zlib.compress(b"x" * 100),
    "empty": b"",
    "text": b"hello world, this is no torch file at all",
    "torchscript": archive({"a/data.pkl": b"\x80\x02c__torch__\nModel\n)\x81.", "a/code/x.py": b"import os"}),
    "whole-module": saved(torch.nn.Linear(2, 2)),
    "device-object": saved({"d": torch.device("cpu")}),
    "float8": saved({"w": torch.zeros(4).to(torch.float8_e5m2)}),
    "sparse": saved({"w": torch.eye(3).to_sparse()}),
}

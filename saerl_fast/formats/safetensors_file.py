"""A strict door in front of safetensors: the header is checked, whole, before a byte of data is read.

The safetensors library refuses overlaps, holes and overflows. It accepts duplicate keys, any tensor
name and any number of tensors; those are refused here too. After these checks a tensor is a slice of the
file, so the data is read here as well, from the same opening of the file. Pickles and zip archives (``.pt``) are
refused by their first bytes whatever the file is called, and are never handed to an unpickler.
"""

from __future__ import annotations

import json
import os
import stat
import struct
from collections.abc import Collection, Mapping
from io import BufferedReader
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saerl_fast.errors import FormatError, UnsafeFileError

MAX_HEADER_BYTES = 1 << 20
MAX_TENSORS = 32
MAX_DIM = 2**31 - 1
MAX_FILE_BYTES = 64 << 30
MAX_JSON_DEPTH = 8
MAX_JSON_BYTES = 1 << 20

_DTYPES = {
    "F64": (8, torch.float64), "F32": (4, torch.float32), "F16": (2, torch.float16), "BF16": (2, torch.bfloat16),
    "I64": (8, torch.int64), "I32": (4, torch.int32), "I16": (2, torch.int16), "I8": (1, torch.int8),
    "U8": (1, torch.uint8), "BOOL": (1, torch.bool),
}  # fmt: skip
"""Bytes of an item, and what it is in torch."""
_PICKLE_STARTS = (
    b"\x80\x02",
    b"\x80\x03",
    b"\x80\x04",
    b"\x80\x05",
    b"PK\x03\x04",
    b"\x93NUMPY",
    b"\x1f\x8b",
)


class Digest(Protocol):
    """What the objects of hashlib have in common."""

    def update(self, content: Any, /) -> None: ...


def read_tensors(path: str | os.PathLike[str], names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, on the CPU, after the header has passed every check.

    names: the only tensor names allowed. Raises UnsafeFileError for anything that is not a plain,
    well-formed safetensors file, FormatError for unexpected names.
    """
    return read_file(path, names)[1]


def read_file(
    path: str | os.PathLike[str], names: Collection[str] | None = None, digest: Digest | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors, from one opening of the file: nothing can be put in its place between check and use.

    The bytes are read, not mapped: a file that shrinks under a map would end the process. digest: a hash, such as
    ``hashlib.sha256()``, that is fed every byte of the file as it was read.
    """
    with open_regular(path) as file:
        header, data_bytes = _checked_header(path, file, digest)
        found = [name for name in header if name != "__metadata__"]
        if names is not None and (unexpected := sorted(set(found) - set(names))):
            raise FormatError(f"{path}: unexpected tensors {unexpected}; allowed are {sorted(names)}")
        data = np.empty(data_bytes, dtype=np.uint8)
        if file.readinto(data.data) != data_bytes:
            raise UnsafeFileError(f"{path}: it ends before its {data_bytes} bytes of data; is it being written?")
    if digest is not None:
        digest.update(data.data)
    return header, {name: _tensor(data, header[name]) for name in found}


def as_arrays(tensors: Mapping[str, Tensor], origin: str) -> dict[str, NDArray[Any]]:
    """The same as NumPy arrays; FormatError for a dtype that NumPy lacks."""
    if strange := sorted(name for name, tensor in tensors.items() if tensor.dtype == torch.bfloat16):
        raise FormatError(f"{origin}: {strange} are bfloat16, which does not belong here")
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The checked header of a safetensors file: tensor name -> dtype, shape, data_offsets."""
    with open_regular(path) as file:
        return _checked_header(path, file)[0]


def _tensor(data: NDArray[np.uint8], entry: dict[str, Any]) -> Tensor:
    """A view of the data, or a copy where it does not lie on a multiple of its item size."""
    begin, end = entry["data_offsets"]
    dtype = _DTYPES[entry["dtype"]][1]
    if begin == end:
        return torch.empty(entry["shape"], dtype=dtype)
    piece = data[begin:end]
    aligned = (piece.ctypes.data % _DTYPES[entry["dtype"]][0]) == 0
    return torch.from_numpy(piece if aligned else piece.copy()).view(dtype).reshape(entry["shape"])


def _checked_header(
    path: str | os.PathLike[str], file: BufferedReader, digest: Digest | None = None
) -> tuple[dict[str, Any], int]:
    """The header, and the number of bytes behind it."""
    size = os.fstat(file.fileno()).st_size
    if size > MAX_FILE_BYTES:
        raise UnsafeFileError(f"{path}: {size} bytes, more than the cap of {MAX_FILE_BYTES}")
    start = file.read(8)
    _refuse_other_formats(path, start)
    if len(start) < 8:
        raise UnsafeFileError(f"{path}: {size} bytes are too few for a safetensors file; is it truncated?")
    (length,) = struct.unpack("<Q", start)
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise UnsafeFileError(
            f"{path}: header of {length} bytes in a file of {size} (cap {MAX_HEADER_BYTES}); "
            "the file is truncated or is not safetensors"
        )
    raw = file.read(length)
    if digest is not None:
        digest.update(start + raw)
    header = parse_json(raw, str(path))
    _check_layout(path, header, size - 8 - length)
    return header, size - 8 - length


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON object from a file, under the same caps as a header."""
    with open_regular(path) as file:
        raw = file.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise UnsafeFileError(f"{path}: more JSON than the cap of {MAX_JSON_BYTES} bytes")
    return parse_json(raw, str(path))


def parse_json(raw: bytes, origin: str) -> dict[str, Any]:
    """A JSON object: UTF-8, no duplicate keys, no NaN or infinity, nesting and integers bounded."""
    try:
        text = raw.decode("utf-8")
        found = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UnsafeFileError(f"{origin}: not acceptable JSON: {_short(error)}") from error
    if not isinstance(found, dict):
        raise UnsafeFileError(f"{origin}: a JSON object is wanted; got {type(found).__name__}")
    if _depth(found) > MAX_JSON_DEPTH:
        raise UnsafeFileError(f"{origin}: JSON nested deeper than {MAX_JSON_DEPTH}")
    return found


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """A regular file, open. A pipe or device is refused before it is opened, and again after: it could block."""
    if not os.path.exists(path):
        raise FormatError(f"{path}: no such file")
    _refuse_irregular(path, os.stat(path))
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    try:
        _refuse_irregular(path, os.fstat(file.fileno()))
    except UnsafeFileError:
        file.close()
        raise
    return file


def regular_file_size(path: str | os.PathLike[str]) -> int:
    """Bytes of a regular file; UnsafeFileError for a folder, a pipe or a device."""
    with open_regular(path) as file:
        return os.fstat(file.fileno()).st_size


def _refuse_irregular(path: str | os.PathLike[str], found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise UnsafeFileError(f"{path}: a regular file is wanted; got {stat.filemode(found.st_mode)}")


def _refuse_other_formats(path: str | os.PathLike[str], start: bytes) -> None:
    if start.startswith(_PICKLE_STARTS):
        raise UnsafeFileError(
            f"{path}: this is a pickle, zip, gzip or npy file, not safetensors. It can run code when loaded, "
            "so it is refused. Convert it to safetensors with the tool that made it."
        )


def _check_layout(path: str | os.PathLike[str], header: dict[str, Any], data_bytes: int) -> None:
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if len(entries) > MAX_TENSORS:
        raise UnsafeFileError(f"{path}: {len(entries)} tensors, more than the cap of {MAX_TENSORS}")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UnsafeFileError(f"{path}: __metadata__ must map names to strings; got {_short(metadata)}")
    spans = sorted(_span(path, name, entry) for name, entry in entries.items())
    position = 0
    for begin, end in spans:
        if begin != position:
            raise UnsafeFileError(f"{path}: tensors overlap or leave a hole at byte {min(begin, position)}")
        position = end
    if position != data_bytes:
        raise UnsafeFileError(
            f"{path}: header describes {position} bytes of data, the file holds {data_bytes}; "
            "it is truncated or has something appended"
        )


def _span(path: str | os.PathLike[str], name: str, entry: Any) -> tuple[int, int]:
    if not name or any(c in name for c in "/\\\0") or ".." in name:
        raise UnsafeFileError(f"{path}: tensor name {name!r} is not acceptable")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise UnsafeFileError(f"{path}: tensor {name!r} needs dtype, shape and data_offsets, nothing else")
    known = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if known is None:
        raise UnsafeFileError(
            f"{path}: tensor {name!r:.80} has dtype {entry['dtype']!r:.80}, not one of {sorted(_DTYPES)}"
        )
    item = known[0]
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _whole_numbers(shape) or len(shape) > MAX_JSON_DEPTH or any(n > MAX_DIM for n in shape):
        raise UnsafeFileError(f"{path}: tensor {name!r} has shape {_short(shape)}")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise UnsafeFileError(f"{path}: tensor {name!r} has data_offsets {_short(offsets)}")
    begin, end = offsets
    if end - begin != prod(shape) * item:
        raise UnsafeFileError(
            f"{path}: tensor {name!r} of shape {shape} needs {prod(shape) * item} bytes; its span has {end - begin}"
        )
    return begin, end


def _whole_numbers(found: Any) -> bool:
    return isinstance(found, list) and all(type(n) is int and n >= 0 for n in found)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _depth(found: Any) -> int:
    children = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    return 1 + max((_depth(child) for child in children), default=0) if isinstance(found, (dict, list)) else 0


def _short(found: object) -> str:
    text = str(found)
    return text if len(text) <= 200 else text[:200] + "..."

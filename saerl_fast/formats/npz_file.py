"""Arrays of an ``.npz`` file, without numpy's loader: headers are matched word for word, then raw bytes are copied.

An ``.npy`` header is Python source that numpy evaluates, and an object array in it is a pickle. Here a header is one
pattern, and everything else is refused.
"""

from __future__ import annotations

import os
import re
import struct
import zipfile
from collections.abc import Collection
from math import prod

import numpy as np
import torch
from torch import Tensor

from saerl_fast.errors import FormatError, UnsafeFileError
from saerl_fast.formats.safetensors_file import MAX_DIM
from saerl_fast.formats.zip_file import ZipMembers

_DTYPES = {"<f2": np.float16, "<f4": np.float32, "<f8": np.float64}
_HEADER = re.compile(
    rb"\{'descr': '(<f[248])', 'fortran_order': (False|True), 'shape': \(((?:\d{1,10}, ?)*(?:\d{1,10})?),?\), \} *\n"
)
MAX_ARRAYS = 16
"""Published archives hold five."""
_MAX_HEADER = 4096
_MAX_RATIO = 20
_SMALL = 64 << 20


def read_npz(path: str | os.PathLike[str], names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Every array of an npz file as a tensor: float16, float32, float64, in C or Fortran order.

    names: the only array names allowed. Raises UnsafeFileError for what is not a plain archive of plain arrays,
    before memory is taken for them; FormatError for unexpected names.
    """
    with ZipMembers(path, most=MAX_ARRAYS, compressed=True) as archive:
        found = {name.removesuffix(".npy"): info for name, info in archive.members.items()}
        if names is not None and (unexpected := sorted(set(found) - set(names))):
            raise FormatError(f"{path}: unexpected arrays {unexpected}; allowed are {sorted(names)}")
        for name, info in found.items():
            # weights hardly shrink; what shrinks a hundredfold was made to fill a memory
            if info.file_size > max(_SMALL, _MAX_RATIO * info.compress_size):
                raise UnsafeFileError(
                    f"{path}: {name} grows from {info.compress_size} to {info.file_size} bytes; "
                    f"more than {_MAX_RATIO} times is refused as a zip bomb"
                )
        return {name: _read_array(path, name, archive, info) for name, info in found.items()}


def _read_array(path: str | os.PathLike[str], name: str, archive: ZipMembers, info: zipfile.ZipInfo) -> Tensor:
    with archive.open(info) as file:
        start = file.read(10)
        if len(start) < 10 or start[:6] != b"\x93NUMPY" or start[6:8] not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
            raise UnsafeFileError(f"{path}: {name} is not an npy array")
        size = start[8:10] + (file.read(2) if start[6] > 1 else b"\0\0")
        (length,) = struct.unpack("<I", size)
        if length > _MAX_HEADER:
            raise UnsafeFileError(f"{path}: {name} has a header of {length} bytes, more than the cap of {_MAX_HEADER}")
        matched = _HEADER.fullmatch(file.read(length))
        if matched is None:
            raise UnsafeFileError(f"{path}: {name} is no array of {sorted(_DTYPES)}; objects are pickles and refused")
        dtype = _DTYPES[matched[1].decode()]
        shape = tuple(int(n) for n in matched[3].split(b",") if n.strip())
        wanted = prod(shape) * np.dtype(dtype).itemsize
        held = info.file_size - len(start) - (2 if start[6] > 1 else 0) - length
        if any(n > MAX_DIM for n in shape) or wanted != held:
            raise UnsafeFileError(f"{path}: {name} of shape {shape} needs {wanted} bytes; its member holds {held}")
        raw = archive.read(file, wanted)
    array = np.frombuffer(raw, dtype=dtype).reshape(shape, order="F" if matched[2] == b"True" else "C")
    return torch.from_numpy(np.asarray(array, order="C"))

"""Tensors of a file that ``torch.save`` wrote, without an unpickler: for ``saerl convert`` alone.

The file is a zip: data.pkl says how tensors lie in storages, data/0, data/1 ... are the storages, raw. The pickle is
read as data (formats/opcodes.py), the storages are copied, and a tensor is a checked view of one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor

from saerl_fast.errors import UnsafeFileError
from saerl_fast.formats.opcodes import STORAGES, Call, Name, Persistent, described, read_opcodes
from saerl_fast.formats.safetensors_file import MAX_DIM, regular_file_size
from saerl_fast.formats.zip_file import ZipMembers

MAX_MEMBERS = 256
MAX_PICKLE = 4 << 20
MAX_NESTING = 8
MAX_VALUES = 10_000
MAX_RANK = 8
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def read_torch_file(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Every tensor of a torch file by its dotted name, on the CPU; what is no tensor is left out.

    Tensors in dicts, OrderedDicts, lists and tuples, nested up to 8 deep; parameters as their tensors. Raises
    UnsafeFileError for anything else, by name, before memory is taken for it.
    """
    _refuse_legacy(path)
    with ZipMembers(path, most=MAX_MEMBERS, compressed=False) as archive:
        pickles = [name for name in archive.members if name.split("/")[-1] == "data.pkl"]
        if len(pickles) != 1 or pickles[0].count("/") != 1:
            raise UnsafeFileError(f"{path}: one NAME/data.pkl is wanted, as torch.save writes it; found {pickles}")
        home = pickles[0].removesuffix("data.pkl")
        info = archive.members[pickles[0]]
        if info.file_size > MAX_PICKLE:
            raise UnsafeFileError(f"{path}: data.pkl has {info.file_size} bytes, more than the cap of {MAX_PICKLE}")
        order = archive.members.get(f"{home}byteorder")
        if order is not None and bytes(_member(archive, order, 6, "byteorder")) != b"little":
            raise UnsafeFileError(f"{path}: only little-endian files are read")
        with archive.open(info) as file:
            found = read_opcodes(bytes(archive.read(file, info.file_size)), str(path))
        storages = _Storages(path, archive, home)
        return dict(_Finder(str(path), storages).tensors(found))


class _Storages:
    """Raw storages of an archive, each read once."""

    def __init__(self, path: str | os.PathLike[str], archive: ZipMembers, home: str) -> None:
        self._path, self._archive, self._home = path, archive, home
        self._read: dict[str, Tensor] = {}

    def find(self, reference: object) -> Tensor:
        """The storage, flat, that a reference ("storage", class, key, device, elements) names."""
        value = reference.value if isinstance(reference, Persistent) else None
        if not isinstance(value, tuple) or len(value) != 5 or value[0] != "storage":
            raise UnsafeFileError(f"{self._path}: a tensor refers to {described(value)}, which is no storage")
        _, kind, key, _, count = value
        if not isinstance(kind, Name) or kind.module != "torch" or not isinstance(key, str):
            raise UnsafeFileError(f"{self._path}: a storage of {described(kind)} under {described(key)} is not known")
        if type(count) is not int or count < 0:
            raise UnsafeFileError(f"{self._path}: storage {key!r} is said to hold {described(count)} elements")
        dtype: torch.dtype = getattr(torch, STORAGES[kind.name])
        if key not in self._read:
            info = self._archive.members.get(f"{self._home}data/{key}")
            if info is None:
                raise UnsafeFileError(f"{self._path}: storage {key[:200]!r} is missing from the archive")
            if info.file_size != count * dtype.itemsize:
                raise UnsafeFileError(
                    f"{self._path}: storage {key!r} of {count} {dtype} needs {count * dtype.itemsize} bytes; "
                    f"its member holds {info.file_size}"
                )
            raw = _member(self._archive, info, info.file_size, key)
            self._read[key] = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        held = self._read[key]
        if held.dtype != dtype or len(held) != count:
            raise UnsafeFileError(f"{self._path}: storage {key!r} is named twice, with two types or sizes")
        return held


class _Finder:
    """The tensors below a value, each named by the way to it."""

    def __init__(self, path: str, storages: _Storages) -> None:
        self._path, self._storages = path, storages
        self._visited = 0

    def tensors(self, found: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
        self._visited += 1
        if depth > MAX_NESTING or self._visited > MAX_VALUES:
            raise UnsafeFileError(
                f"{self._path}: containers nested deeper than {MAX_NESTING}, or more than {MAX_VALUES} values in them"
            )
        if isinstance(found, Call) and found.function.name == "_rebuild_parameter":
            found = found.arguments[0] if found.arguments else None
            if not isinstance(found, Call) or found.function.name != "_rebuild_tensor_v2":
                raise UnsafeFileError(f"{self._path}: {name!r} is a parameter of no tensor")
        if isinstance(found, Call) and found.function.name == "_rebuild_tensor_v2":
            yield name, _rebuild(self._path, name, found, self._storages)
            return
        for key, child in self._children(found, name):
            yield from self.tensors(child, f"{name}.{key}" if name else str(key), depth + 1)

    def _children(self, found: Any, name: str) -> Iterable[tuple[Any, Any]]:
        if isinstance(found, Call) and found.function.name == "OrderedDict":
            if found.arguments not in ((), ([],)):
                raise UnsafeFileError(f"{self._path}: {name!r} is an OrderedDict made from something, not an empty one")
            return found.items.items()
        if isinstance(found, dict):
            return found.items()
        if isinstance(found, (list, tuple)):
            return enumerate(found)
        if isinstance(found, (str, int, float, type(None))):
            return ()
        raise UnsafeFileError(
            f"{self._path}: {name!r} is a {described(found)}, neither a tensor nor a container of them"
        )


def _rebuild(path: str, name: str, call: Call, storages: _Storages) -> Tensor:
    """The view that a call of _rebuild_tensor_v2(storage, offset, size, stride, ...) stands for."""
    if not 6 <= len(call.arguments) <= 7 or call.items or call.state is not None:
        raise UnsafeFileError(f"{path}: tensor {name!r} is rebuilt in a way that is not known")
    if any(call.arguments[6:]):
        raise UnsafeFileError(
            f"{path}: tensor {name!r} has metadata (neg, conj or the like), by which its values are not those of its "
            "storage; a plain tensor is wanted"
        )
    reference, offset, size, stride = call.arguments[:4]
    numbers = [size, stride]
    if type(offset) is not int or not all(isinstance(n, tuple) and all(type(i) is int for i in n) for n in numbers):
        raise UnsafeFileError(f"{path}: tensor {name!r}: offset, size and stride must be whole numbers")
    if len(size) != len(stride) or len(size) > MAX_RANK or min((offset, *size, *stride)) < 0:
        raise UnsafeFileError(
            f"{path}: tensor {name!r} has {len(size)} sizes and {len(stride)} strides, or one below 0"
        )
    if any(n > MAX_DIM for n in size):
        raise UnsafeFileError(f"{path}: tensor {name!r} has size {size}, beyond {MAX_DIM}")
    storage = storages.find(reference)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    count = prod(size)
    if count and last >= len(storage):
        raise UnsafeFileError(
            f"{path}: tensor {name!r} of size {size}, stride {stride}, offset {offset} reaches element {last}; "
            f"its storage has {len(storage)}"
        )
    if count > len(storage):
        raise UnsafeFileError(f"{path}: tensor {name!r} repeats the elements of its storage; a plain tensor is wanted")
    # a view, not a copy: however many tensors name one storage, it is in memory once
    return storage.as_strided(size, stride, offset) if count else torch.empty(size, dtype=storage.dtype)


def _member(archive: ZipMembers, info: Any, size: int, what: str) -> bytearray:
    if info.file_size != size:
        raise UnsafeFileError(f"{archive.path}: {what} must have {size} bytes; got {info.file_size}")
    with archive.open(info) as file:
        return archive.read(file, size)


def _refuse_legacy(path: str | os.PathLike[str]) -> None:
    regular_file_size(path)
    with open(path, "rb") as file:
        start = file.read(len(_LEGACY))
    if start == _LEGACY:
        raise UnsafeFileError(
            f"{path}: written in the form of torch before 1.6, one pickle after another; it is refused. "
            "Save it again with a torch of today, where you trust it"
        )
    if start[:1] == b"\x80":
        raise UnsafeFileError(f"{path}: a bare pickle, not a file of torch.save; it is refused")
    if start[:2] != b"PK":
        came = f"it begins with {start[:8]!r}" if start else "it is empty"
        raise UnsafeFileError(f"{path}: a file that torch.save wrote is wanted (a zip archive); {came}")

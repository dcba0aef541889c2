"""A zip archive whose directory was checked, whole, before a byte of a member is read."""

from __future__ import annotations

import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import IO

from saerl_fast.errors import FormatError, UnsafeFileError
from saerl_fast.formats.safetensors_file import MAX_FILE_BYTES, open_regular

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,200}(/[A-Za-z0-9_.\-]{1,200}){0,4}")
_LOCAL = struct.Struct("<4s5H3I2H")
_END = struct.Struct("<4s4H2IH")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_MAX_DIRECTORY = 4 << 20
_CHUNK = 16 << 20


class ZipMembers:
    """The members of an archive by name: plain relative names, no encryption, no two sharing a byte.

    most: how many members are allowed. compressed: whether deflated members are. Raises UnsafeFileError for
    anything else, and where a checksum is wrong.
    """

    def __init__(self, path: str | os.PathLike[str], *, most: int, compressed: bool) -> None:
        self.path = path
        self._file = open_regular(path)  # closed by __exit__, or below
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            if self.size > MAX_FILE_BYTES:
                raise UnsafeFileError(f"{path}: {self.size} bytes, more than the cap of {MAX_FILE_BYTES}")
            _check_directory(path, self._file, self.size, most)
            self._archive = zipfile.ZipFile(self._file)
            self.members = self._check(most, compressed)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
            self._file.close()
            if isinstance(error, FormatError):
                raise
            raise UnsafeFileError(f"{path}: not an acceptable zip archive: {error}") from error

    def __enter__(self) -> ZipMembers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._archive.close()
        self._file.close()

    @contextmanager
    def open(self, info: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
        """The bytes of one member, as a file. What zipfile says of damage becomes an UnsafeFileError."""
        try:
            with self._archive.open(info) as file:
                yield file
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError) as error:
            raise UnsafeFileError(f"{self.path}: {info.filename} is damaged: {error}") from error

    def read(self, file: IO[bytes], size: int) -> bytearray:
        """Exactly the last ``size`` bytes of an open member, whose checksum is checked at its end."""
        held = bytearray(size)
        view = memoryview(held)
        position = 0
        while position < size:
            chunk = file.read(min(_CHUNK, size - position))
            if not chunk:
                break
            view[position : position + len(chunk)] = chunk
            position += len(chunk)
        if position < size or file.read(1):
            raise UnsafeFileError(f"{self.path}: a member of {size} bytes is wanted; it holds {position}, or more")
        return held

    def offset(self, info: zipfile.ZipInfo) -> int:
        """Where the bytes of a stored member begin in the file."""
        if not 0 <= info.header_offset <= self.size - _LOCAL.size:
            raise UnsafeFileError(f"{self.path}: {info.filename} is said to lie at byte {info.header_offset}")
        self._file.seek(info.header_offset)
        header = _LOCAL.unpack(self._file.read(_LOCAL.size))
        if header[0] != b"PK\x03\x04":
            raise UnsafeFileError(f"{self.path}: {info.filename} has no local header at {info.header_offset}")
        return info.header_offset + _LOCAL.size + int(header[-2]) + int(header[-1])

    def _check(self, most: int, compressed: bool) -> dict[str, zipfile.ZipInfo]:
        infos = self._archive.infolist()
        if len(infos) > most:
            raise UnsafeFileError(f"{self.path}: {len(infos)} members, more than the cap of {most}")
        found: dict[str, zipfile.ZipInfo] = {}
        spans = []
        for info in infos:
            name = info.filename
            if not _NAME.fullmatch(name) or ".." in name.split("/") or name in found:
                raise UnsafeFileError(f"{self.path}: member name {name[:200]!r} is not acceptable, or comes twice")
            stored = info.compress_type == zipfile.ZIP_STORED
            if info.flag_bits & 0x1 or not (stored or (compressed and info.compress_type == zipfile.ZIP_DEFLATED)):
                raise UnsafeFileError(f"{self.path}: {name} is encrypted or compressed; plain members are wanted")
            if stored and info.file_size != info.compress_size:
                raise UnsafeFileError(f"{self.path}: {name} has two sizes, {info.file_size} and {info.compress_size}")
            if info.file_size > MAX_FILE_BYTES:
                raise UnsafeFileError(f"{self.path}: {name} has {info.file_size} bytes, more than the cap")
            begin = info.header_offset
            spans.append((begin, self.offset(info) + info.compress_size, name))
            found[name] = info
        spans.sort()
        for (_, end, name), (begin, _, other) in zip(spans, [*spans[1:], (self.size, 0, "the end")], strict=True):
            if end > begin:
                raise UnsafeFileError(f"{self.path}: {name} runs into {other}: members overlap or are cut short")
        return found


def _check_directory(path: str | os.PathLike[str], file: IO[bytes], size: int, most: int) -> None:
    """Bounds on the directory before zipfile reads it whole into memory."""
    if file.read(4) != b"PK\x03\x04":
        raise UnsafeFileError(f"{path}: a zip archive is wanted, and this is not one")
    file.seek(max(0, size - _END.size - 0xFFFF))
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise UnsafeFileError(f"{path}: the zip directory is missing; is the file truncated?")
    _, _, _, _, count, length, _, _ = _END.unpack_from(tail, at)
    if at >= _LOCATOR.size and tail[at - _LOCATOR.size : at - _LOCATOR.size + 4] == b"PK\x06\x07":
        place = _LOCATOR.unpack_from(tail, at - _LOCATOR.size)[2]
        if place > size - _END_64.size:
            raise UnsafeFileError(f"{path}: the zip64 directory lies at byte {place} of {size}")
        file.seek(place)
        *_, count, length, _ = _END_64.unpack(file.read(_END_64.size))
    if count > most:
        raise UnsafeFileError(f"{path}: {count} members, more than the cap of {most}")
    if length > _MAX_DIRECTORY:
        raise UnsafeFileError(f"{path}: a zip directory of {length} bytes, more than the cap of {_MAX_DIRECTORY}")
    file.seek(0)

"""Files that are there whole or not at all, and a folder that one process writes at a time.

Every change of the disk is a call of ``os`` made here: a test that stands in for ``os`` sees all of them, and can stop
or refuse any one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from saerl_fast.errors import (
    CorruptStoreError,
    DiskFullError,
    FormatError,
    InputError,
    JobMismatchError,
    PlaceError,
    SaerlError,
    StoreBusyError,
)

logger = logging.getLogger(__name__)

LOCK = "LOCK"
_NEARLY_NOTHING = 2**16
"""Bytes free below which a failed write is put down to the full disk."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CANNOT = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems answer that have no links (some FUSE, FAT) or no locks."""
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
"""What is answered where nothing may be written."""


def write_once(path: Path, content: bytes) -> None:
    """Commit a file under its final name, synced; an existing file is never replaced (FileExistsError)."""
    _write(path, content, _name_once)


def replace(path: Path, content: bytes) -> None:
    """Commit a file under its final name, synced; readers see the old content or the new, nothing between.

    Raises InputError where something other than a file (a folder, a device) has that name.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: wanted the name of a file; a folder or a device is there, and is left alone")
    _write(path, content, os.replace)


def share(source: Path, path: Path) -> None:
    """Give a committed file a second name, or a copy where no link can be made; FileExistsError as in write_once."""
    with _naming(path, source.stat().st_size):
        try:
            os.link(source, path)
        except OSError as error:
            if error.errno not in (*_CANNOT, errno.EXDEV, errno.EMLINK):
                raise
            write_once(path, source.read_bytes())
            return
        sync_folder(path.parent)


def set_aside(path: Path, folder: Path) -> Path:
    """Move a file into a folder, under a name that nothing there has; both folders synced. Returns where it is now."""
    make_folder(folder)
    number = 0
    while (target := folder / f"{path.name}.{number}").exists():
        number += 1
    with _naming(target):
        os.rename(path, target)
        sync_folder(folder)
        sync_folder(path.parent)
    return target


def make_folder(folder: Path) -> None:
    """A folder and those above it, each entered in its parent for good. PlaceError where that cannot be."""
    if folder.is_dir():
        return
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():  # asked again: another may just have made it
        raise PlaceError(errno.ENOTDIR, f"{folder} is a file; a folder is wanted. Choose another name")
    make_folder(folder.parent)
    with _naming(folder), suppress(FileExistsError):  # another process may make the same
        os.mkdir(folder)
    sync_folder(folder.parent)


def check_place(folder: Path) -> None:
    """PlaceError where ``make_folder`` and writing into the folder would fail, as far as can be told without doing it.

    For what takes long before it first writes. A full disk is not foreseen.
    """
    place = folder
    while not (place.exists() or place.is_symlink()):
        place = place.parent
    if not place.is_dir():
        raise PlaceError(errno.ENOTDIR, f"{place} is a file; a folder is wanted. Choose another name")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PlaceError(errno.EACCES, _closed(place, "nothing may be written there"))


def commit_file(temporary: Path, path: Path) -> None:
    """Give a complete file its final name, synced; FileExistsError as in write_once. It stays under its old one too."""
    _sync(temporary)
    with _naming(path):
        _name_once(temporary, path)
        sync_folder(path.parent)


def commit_folder(folder: Path, path: Path) -> None:
    """Give a complete folder its final name, all of it synced. PlaceError where something has that name."""
    for place, _, files in os.walk(folder):
        for name in files:
            _sync(Path(place, name))
        sync_folder(Path(place))
    with _naming(path):
        try:
            os.rename(folder, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise PlaceError(error.errno, f"{path} is there already; choose another name, or delete it") from error
        sync_folder(path.parent)


def _write(path: Path, content: bytes, commit: Callable[[Path, Path], None]) -> None:
    if not path.parent.is_dir():
        raise PlaceError(errno.ENOENT, f"{path.parent} is no folder; make it first, or choose another place")
    # process numbers repeat from machine to machine, and some file systems have no locks
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with _naming(path, len(content)):
            _write_synced(temporary, content)
            commit(temporary, path)
            _discard(temporary)
            sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):  # where nothing can be written nothing can be taken away; the first error is told
            _discard(temporary)
        raise


def _write_synced(path: Path, content: bytes) -> None:
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(file, rest) :]
        os.fsync(file)
    finally:
        os.close(file)


def _name_once(temporary: Path, path: Path) -> None:
    """The final name for a complete file; FileExistsError where it is taken."""
    try:
        os.link(temporary, path)
    except FileNotFoundError:
        raise _gone(temporary) from None
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        _claim_and_rename(temporary, path)


def _claim_and_rename(temporary: Path, path: Path) -> None:
    """The same without links: a rename would replace a file, so the right to do it is claimed first."""
    claim = path.with_name(f"{path.name}.claim.tmp")
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        raise StoreBusyError(
            f"{claim} is there: another process is giving {path.name} its name, or was killed while it did. "
            "Where no other is running, delete that file and run again"
        ) from None
    try:
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        os.rename(temporary, path)
    except FileNotFoundError:
        raise _gone(temporary) from None
    finally:
        _discard(claim)


def _gone(temporary: Path) -> StoreBusyError:
    return StoreBusyError(
        f"{temporary.parent}: {temporary.name} is gone: another process is writing this folder, or cleaned it up"
    )


def _discard(path: Path) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def remove(path: Path) -> None:
    """Take a file away for good; nothing happens where there is none."""
    if path.exists():
        _discard(path)
        sync_folder(path.parent)


def disk_full(error: OSError, path: Path, size: int | None = None) -> OSError:
    """DiskFullError where the error is of a full disk, a quota or a limit on file sizes, else the error itself."""
    if error.errno not in _FULL:
        return error
    needs = "more room" if size is None else f"{size} bytes"
    cause = "the limit on file sizes is reached" if error.errno == errno.EFBIG else "the disk is full"
    return DiskFullError(
        error.errno,
        f"{cause}: {path} needs {needs}. What was committed is intact; make room and run the same command again.",
    )


@contextmanager
def naming_full_disk(folder: Path) -> Iterator[None]:
    """Errors of other people's writers on a full disk, of whatever type, as DiskFullError."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        full = isinstance(error, OSError) and error.errno in _FULL
        if isinstance(error, SaerlError) or not (full or shutil.disk_usage(folder).free < _NEARLY_NOTHING):
            raise
        raise disk_full(OSError(errno.ENOSPC, str(error)), folder) from error


def sync_folder(folder: Path) -> None:
    _sync(folder)


def _sync(path: Path) -> None:
    with _naming(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; StoreBusyError where another process holds it. Left-over temporary files go.

    On a file system without locks a warning is logged and the work goes on: names are still given once only. What
    another may be writing cannot be told from what a dead one left there, so nothing is taken away.
    """
    with _naming(folder):
        make_folder(folder)
        descriptor, locked = _lock(folder)
    try:
        with _naming(folder):
            os.ftruncate(descriptor, 0)
            since = datetime.now(UTC).isoformat(timespec="seconds")
            os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()} since {since}".encode(), 0)
            if locked:
                _remove_left_overs(folder)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _naming(path: Path, size: int | None = None) -> Iterator[None]:
    """Our own calls of ``os``: DiskFullError on a full disk, PlaceError where nothing may be written."""
    try:
        yield
    except OSError as error:
        if isinstance(error, SaerlError):
            raise
        found = disk_full(error, path, size)
        if error.errno in _CLOSED:
            found = PlaceError(error.errno, _closed(path, os.strerror(error.errno or 0)))
        elif error.errno == errno.ENOTDIR:
            found = PlaceError(error.errno, f"{path.parent} is no folder; choose another name")
        if found is error:
            raise
        raise found from error


def _closed(path: Path, cause: str) -> str:
    return f"{path} cannot be written: {cause}. Choose another place, or have this one opened for writing"


def _lock(folder: Path) -> tuple[int, bool]:
    """LOCK, open, and whether it could be locked; not truncated, so that its holder's note survives our asking."""
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise StoreBusyError(f"{folder}: another process is writing this folder ({note or 'no note'})") from None
        except OSError as error:
            if error.errno not in (*_CANNOT, errno.ENOLCK):
                os.close(descriptor)
                raise
            logger.warning("%s: no locks on this file system (%s); start one writer only", folder, error.strerror)
            return descriptor, False
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor, True
        os.close(descriptor)  # deleted between opening and locking: what we hold locks nobody out


def _remove_left_overs(folder: Path) -> None:
    """Temporary files of a writer that died; folders with a lock of their own are another's."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not Path(place, name, LOCK).exists()]
        for name in files:
            if name.endswith(".tmp"):
                _discard(Path(place, name))


def enter_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a new folder; JobMismatchError where the folder's fingerprint is another.

    Only the key "fingerprint" decides; everything that changes a bit of the result belongs in it.
    """
    if not path.exists():
        write_once(path, (json.dumps(manifest, indent=1, sort_keys=True, default=str) + "\n").encode())
        return
    found = read_object(path).get("fingerprint")
    if not isinstance(found, dict):
        raise FormatError(f"{path}: wanted an object 'fingerprint', got {found!r:.80}")
    wanted = json.loads(json.dumps(manifest["fingerprint"], default=str))
    refuse_another_job(path.parent, found, wanted)


def refuse_another_job(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """JobMismatchError with the keys in which the fingerprint of a folder and that of this run differ."""
    if lines := differences(found, wanted):
        raise JobMismatchError(
            f"{folder} belongs to another job. Choose another folder, or delete this one.\n"
            + "\n".join(f"  {line}" for line in lines)
        )


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between the fingerprint of a folder and that of this run, a line a key; hashes come last."""
    keys = [key for key in dict.fromkeys([*wanted, *found]) if found.get(key) != wanted.get(key)]
    hashed = [key for key in keys if _is_hash(found.get(key)) and _is_hash(wanted.get(key))]
    plain = [
        f"{key}: folder {found.get(key)!r:.200}, this run {wanted.get(key)!r:.200}" for key in keys if key not in hashed
    ]
    return plain + [
        f"{key}: folder has other content (SHA-256 {found[key][:9]}..., this run {wanted[key][:9]}...)"
        for key in hashed
    ]


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file of ours."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptStoreError(f"{path}: not JSON ({error}); delete the file and run again") from error
    if not isinstance(found, dict):
        raise CorruptStoreError(f"{path}: wanted a JSON object, got {type(found).__name__}")
    return found


def digest(value: Any) -> str:
    """SHA-256 of a value as JSON, keys sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()

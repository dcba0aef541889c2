"""Files that are there whole or not at all, and a folder that one process writes at a time."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saerl_fast.errors import (
    CorruptStoreError,
    DiskFullError,
    FormatError,
    InputError,
    JobMismatchError,
    SaerlError,
    StoreBusyError,
)

LOCK = "LOCK"
_NEARLY_NOTHING = 2**16
"""Bytes free below which a failed write is put down to the full disk."""


def write_once(path: Path, content: bytes) -> None:
    """Commit a file under its final name, synced; an existing file is never replaced (FileExistsError)."""
    _write(path, content, os.link)


def replace(path: Path, content: bytes) -> None:
    """Commit a file under its final name, synced; readers see the old content or the new, nothing between.

    Raises InputError where something other than a file (a folder, a device) has that name.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: wanted the name of a file; a folder or a device is there, and is left alone")
    _write(path, content, os.replace)


def _write(path: Path, content: bytes, commit: Any) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        commit(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise disk_full(error, path, len(content)) from error
    finally:
        temporary.unlink(missing_ok=True)


def disk_full(error: OSError, path: Path, size: int | None = None) -> OSError:
    """DiskFullError where the error is of a full disk or quota, else the error itself."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    needs = "more room" if size is None else f"{size} bytes"
    return DiskFullError(
        error.errno,
        f"the disk is full: {path} needs {needs}. What was committed is intact; make room and run the same "
        "command again.",
    )


@contextmanager
def naming_full_disk(folder: Path) -> Iterator[None]:
    """Errors of other people's writers on a full disk, of whatever type, as DiskFullError."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if isinstance(error, SaerlError) or not (full or shutil.disk_usage(folder).free < _NEARLY_NOTHING):
            raise
        raise disk_full(OSError(errno.ENOSPC, str(error)), folder) from error


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; StoreBusyError where another process holds it. Left-over temporary files go."""
    folder.mkdir(parents=True, exist_ok=True)
    # not truncated on opening: the holder's note must survive our asking
    with open(folder / LOCK, "a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise StoreBusyError(f"{folder}: another process is writing this folder ({lock.read().strip()})") from None
        lock.truncate(0)
        lock.write(f"pid {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        for stale in folder.rglob("*.tmp"):
            if stale.is_file():
                stale.unlink()
        yield


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
    differing = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
    if differing:
        lines = [f"  {key}: folder {found.get(key)!r:.200}, this run {wanted.get(key)!r:.200}" for key in differing]
        raise JobMismatchError(
            f"{path.parent} belongs to another job. Choose another folder, or delete this one.\n" + "\n".join(lines)
        )


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

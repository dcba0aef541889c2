"""Shares of a job, computed by several workers, joined into one folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from saerl_fast.durable import make_folder, share
from saerl_fast.errors import CorruptStoreError, IncompleteStoreError, InputError
from saerl_fast.extract.job import Job, part_folders
from saerl_fast.extract.store import (
    COLUMNS,
    SANITY,
    SPLITS,
    StoreWriter,
    missing_shards,
    read_part,
    read_shard,
    shard_path,
    split_path,
)

logger = logging.getLogger(__name__)


def merge_parts(out: str | os.PathLike[str], parts: Sequence[str | os.PathLike[str]] | None = None) -> Job:
    """Join the shares of a job into ``out``, byte for byte the folder that one worker would have written.

    parts: the folders of the shares; default those inside ``out``. Shards are checked, then linked (copied to another
    disk); the shares stay as they are. What was joined before stays, so that more shares can come later.

    Raises IncompleteStoreError that names missing shards and the share each belongs to, JobMismatchError where a
    share is of another job, InputError where there is none.
    """
    root = Path(out)
    folders = part_folders(root) if parts is None else [Path(part) for part in parts]
    if not folders:
        there = "no share (part-i-of-n) is inside" if root.is_dir() else "there is no such folder"
        raise InputError(f"{root}: {there}; name the folder that was --out of the workers, or after it each share")
    job = Job.load(folders[0])
    for folder in folders:
        job.refuse_another(folder, Job.load(folder))
    with StoreWriter(root, job) as store:
        for folder in folders:
            _take(folder, store)
        if missing := missing_shards(root, job):
            raise IncompleteStoreError(
                f"{root}: {len(missing)} of {job.shards} shards are missing: {job.name_shards(missing)}. "
                f"They belong to {_owners(missing, folders)}; finish these and merge again."
            )
        store.finish()
    return job


def _take(folder: Path, store: StoreWriter) -> None:
    """Every shard of one share that the whole does not have yet."""
    job = store.job
    for name in (COLUMNS, SANITY):
        if (folder / name).exists() and not (store.folder / name).exists():
            share(folder / name, store.folder / name)
    for shard in range(job.shards):
        path = shard_path(folder, shard)
        if not path.exists():
            continue
        read_shard(folder, job, shard)
        if store.has(shard):
            if path.read_bytes() != shard_path(store.folder, shard).read_bytes():
                raise CorruptStoreError(
                    f"{path} and {shard_path(store.folder, shard)} are the same shard with other bytes; "
                    "one of them was computed in other batches. Remove the one that is not wanted."
                )
            continue
        if split_path(folder, shard).exists() and not split_path(store.folder, shard).exists():
            make_folder(store.folder / SPLITS)
            share(split_path(folder, shard), split_path(store.folder, shard))
        share(path, shard_path(store.folder, shard))


def _owners(missing: Sequence[int], folders: Sequence[Path]) -> str:
    """The shares that the missing shards belong to, in words."""
    count = read_part(folders[0]).of
    indices = sorted({shard % count for shard in missing})
    return ", ".join(f"share {index}/{count}" for index in indices[:10]) + (", ..." if len(indices) > 10 else "")

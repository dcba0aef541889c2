"""Is a feature folder whole? What is bad is named, and can be put aside so that it is computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from saerl_fast.durable import set_aside, sole_writer
from saerl_fast.errors import FormatError, IncompleteStoreError, SaerlError, VersionError
from saerl_fast.extract.job import MANIFEST, Job, Part, unseal
from saerl_fast.extract.store import (
    COLUMNS,
    DONE,
    PART,
    QUARANTINE,
    SANITY,
    SHARDS,
    check_done,
    iterate_columns,
    read_part,
    read_shard,
    read_split,
    shard_path,
    split_path,
)


@dataclass(frozen=True)
class Finding:
    """Something wrong: the file, what is wrong with it, and whether it is there at all. shard: its number."""

    path: Path
    problem: str
    missing: bool = False
    shard: int | None = None


def verify_store(folder: Path) -> Iterator[Finding]:
    """Read every byte of a feature folder; whatever is missing or changed, one by one. Nothing is none.

    Raises FormatError where the folder is no feature folder at all, VersionError where another release wrote it:
    neither is damage, and nothing is to be put aside.
    """
    job, part = None, None
    if not (folder / MANIFEST).exists():
        Job.load(folder)
    try:
        job = Job.load(folder)
        part = read_part(folder)
    except VersionError:
        raise
    except SaerlError as error:
        yield Finding(folder / (MANIFEST if job is None else PART), str(error))
    if job is None or part is None:
        return
    yield from _verify_columns(folder, job)
    if (folder / SANITY).exists():  # none where no text had a token
        yield from _checked(folder / SANITY, lambda: unseal(folder / SANITY))
    bad = False
    for finding in _verify_shards(folder, job, part):
        bad = True
        yield finding
    if not bad:  # the mark is over all shards: it can only be judged where they are as they were
        yield from _checked(folder / DONE, lambda: check_done(folder, job, part.shards(job)))


def _verify_columns(folder: Path, job: Job) -> Iterator[Finding]:
    path = folder / COLUMNS
    if "columns" not in job.fingerprint:
        if path.exists():
            yield Finding(path, f"{path}: the job has no columns")
        return

    def count() -> None:
        if (rows := sum(1 for _ in iterate_columns(folder))) != job.rows:
            raise FormatError(f"{path}: {rows} lines for {job.rows} rows")

    yield from _checked(path, count)


def _verify_shards(folder: Path, job: Job, part: Part) -> Iterator[Finding]:
    wanted = {shard_path(folder, shard).name: shard for shard in part.shards(job)}
    for name, shard in wanted.items():
        path = folder / SHARDS / name
        if not path.exists():
            yield Finding(path, f"{path}: shard {job.name_shards([shard])} is missing", missing=True, shard=shard)
            continue
        yield from _checked(split_path(folder, shard), lambda shard=shard: read_split(folder, job, shard), shard)  # type: ignore[misc]
        yield from _checked(path, lambda shard=shard: read_shard(folder, job, shard), shard)  # type: ignore[misc]
    for path in sorted((folder / SHARDS).glob("*")):
        if path.name not in wanted and not path.name.endswith(".tmp"):
            yield Finding(path, f"{path}: no shard of this folder has this name")


def _checked(path: Path, check: Callable[[], object], shard: int | None = None) -> Iterator[Finding]:
    try:
        check()
    except IncompleteStoreError as error:
        yield Finding(path, str(error), missing=True, shard=shard)
    except SaerlError as error:
        yield Finding(path, str(error), missing=not path.exists(), shard=shard)


def quarantine(folder: Path) -> list[tuple[Finding, Path | None]]:
    """Move every bad file into quarantine/, so that the job computes it again; and where each one is now.

    Nothing is deleted. Missing files are in the list too, with no place.
    """
    if not (folder / MANIFEST).exists():
        Job.load(folder)
    with sole_writer(folder):
        found = list(verify_store(folder))
        bad = {finding.path for finding in found}
        if folder / SANITY in bad:
            # measured on a shard as it is computed: the first one goes too, and comes back with the figures
            firsts = sorted((folder / SHARDS).glob("*.safetensors"))[:1]
            found += [Finding(path, "computed again for its figures") for path in firsts if path not in bad]
        return [
            (finding, set_aside(finding.path, folder / QUARANTINE) if finding.path.exists() else None)
            for finding in found
        ]


def recorded_splits(folder: Path, job: Job) -> list[int]:
    """The shards whose batches were made smaller because the device ran out of memory."""
    return [shard for shard in range(job.shards) if split_path(folder, shard).exists()]

"""The folder a run is kept in: shards that are there whole or not at all.

::

    DIR/  LOCK  manifest.json  columns.jsonl  shards/00000.safetensors ...  DONE

The manifest comes first and names the job by a fingerprint of everything that changes bits. A shard is
written under a temporary name, synced, linked to its final name (a link never replaces a file), and
the folder is synced. Its header carries its number, its rows, the job and the SHA-256 of its content. DONE
comes last, with the hash over all shards. What stands under a final name is complete; what is missing
is computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from saerl_fast.durable import sole_writer, write_once
from saerl_fast.errors import (
    CorruptStoreError,
    FormatError,
    IncompleteStoreError,
    JobMismatchError,
)
from saerl_fast.features import SparseFeatures
from saerl_fast.formats.safetensors_file import parse_json, read_header, read_json, read_tensors

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 1
MANIFEST, COLUMNS, DONE = "manifest.json", "columns.jsonl", "DONE"


@dataclass(frozen=True)
class Job:
    """What is to be computed: rows, how they are cut into shards, and what the result depends on.

    fingerprint: everything that changes a bit of the result, as a flat mapping of JSON values.
    source: where the rows came from (a path and its hash); a note, not part of the fingerprint.
    """

    rows: int
    shard_rows: int
    fingerprint: Mapping[str, Any]
    source: Mapping[str, Any]

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_rows)

    @property
    def digest(self) -> str:
        return _sha256(json.dumps([self.rows, self.shard_rows, dict(self.fingerprint)], sort_keys=True).encode())

    def span(self, shard: int) -> range:
        """The rows of one shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows))

    def to_json(self) -> str:
        return json.dumps(
            {
                "format_version": FORMAT_VERSION,
                "rows": self.rows,
                "shard_rows": self.shard_rows,
                "shards": self.shards,
                "fingerprint": dict(self.fingerprint),
                "source": dict(self.source),
            },
            indent=1,
            sort_keys=True,
        )

    @staticmethod
    def load(folder: Path) -> Job:
        """The job of a folder. Raises FormatError where there is none."""
        if not (folder / MANIFEST).exists():
            raise FormatError(f"{folder}: not a feature folder: {MANIFEST} is missing")
        found = read_json(folder / MANIFEST)
        if found.get("format_version") != FORMAT_VERSION:
            raise FormatError(
                f"{folder}: format version {found.get('format_version')!r}; this release reads {FORMAT_VERSION}"
            )
        rows, shard_rows = found.get("rows"), found.get("shard_rows")
        if type(rows) is not int or type(shard_rows) is not int or rows < 1 or shard_rows < 1:
            raise FormatError(f"{folder}: {MANIFEST} must give rows and shard_rows as positive whole numbers")
        fingerprint, source = found.get("fingerprint"), found.get("source")
        if not isinstance(fingerprint, dict) or not isinstance(source, dict):
            raise FormatError(f"{folder}: {MANIFEST} must hold fingerprint and source as objects")
        return Job(rows, shard_rows, fingerprint, source)


class StoreWriter:
    """The one writer of a folder; a context manager that holds its lock.

    Opening a folder of the same job continues it. Raises JobMismatchError for a folder of another job,
    StoreBusyError while another process writes it.
    """

    def __init__(self, folder: str | os.PathLike[str], job: Job) -> None:
        self.folder = Path(folder)
        self.job = job
        self._held = ExitStack()

    def __enter__(self) -> StoreWriter:
        with ExitStack() as opening:
            opening.enter_context(sole_writer(self.folder))
            (self.folder / "shards").mkdir(exist_ok=True)
            self._enter_manifest()
            self._held = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    @property
    def finished(self) -> bool:
        return (self.folder / DONE).exists()

    def has(self, shard: int) -> bool:
        return _shard_path(self.folder, shard).exists()

    def write_columns(self, lines: bytes) -> None:
        """Keep the columns that came with the texts: one JSON object a row. Their hash is the job's ``columns``."""
        if not (self.folder / COLUMNS).exists():
            write_once(self.folder / COLUMNS, lines)

    def write(self, shard: int, features: SparseFeatures, batches: Sequence[Sequence[int]]) -> None:
        """Commit one shard. batches: (rows, padded length) of each forward pass, as they were run."""
        from safetensors.torch import save

        tensors = features.to_tensors()
        span = self.job.span(shard)
        note = {
            "shard": shard,
            "rows": [span.start, span.stop],
            "job": self.job.digest,
            "batches": [list(batch) for batch in batches],
        }
        note["features"] = features.describe()
        note["sha256"] = _hash_shard(tensors, note)
        # one key only: safetensors writes several in an order that differs from run to run
        content = save(tensors, metadata={"saerl_fast": json.dumps(note)})
        write_once(_shard_path(self.folder, shard), content)

    def finish(self) -> None:
        """Mark the folder complete. Every shard is read back and checked first."""
        if not self.finished:
            write_once(self.folder / DONE, (_hash_all(self.folder, self.job) + "\n").encode())

    def _enter_manifest(self) -> None:
        if not (self.folder / MANIFEST).exists():
            write_once(self.folder / MANIFEST, self.job.to_json().encode())
            return
        found = Job.load(self.folder)
        if found.digest == self.job.digest:
            return
        mine = {"rows": self.job.rows, "shard_rows": self.job.shard_rows, **self.job.fingerprint}
        theirs = {"rows": found.rows, "shard_rows": found.shard_rows, **found.fingerprint}
        lines = [
            f"  {key}: folder {theirs.get(key)!r}, this run {mine.get(key)!r}"
            for key in sorted({*mine, *theirs})
            if mine.get(key) != theirs.get(key)
        ]
        raise JobMismatchError(
            f"{self.folder} belongs to another job. Choose another folder, or delete this one.\n" + "\n".join(lines)
        )


def read_shards(folder: str | os.PathLike[str], *, allow_partial: bool = False) -> Iterator[SparseFeatures]:
    """The shards of a folder in order, each checked against its hash before its first row is handed out.

    Raises IncompleteStoreError where shards are missing (with allow_partial they are skipped),
    CorruptStoreError where bytes changed.
    """
    root = Path(folder)
    job = Job.load(root)
    missing = [shard for shard in range(job.shards) if not _shard_path(root, shard).exists()]
    if missing and not allow_partial:
        spans = ", ".join(f"{job.span(s).start}-{job.span(s).stop - 1}" for s in missing[:5])
        raise IncompleteStoreError(
            f"{root}: {len(missing)} of {job.shards} shards are missing (rows {spans}"
            f"{', ...' if len(missing) > 5 else ''}). Run the same command again to finish it."
        )
    for shard in range(job.shards):
        if shard not in missing:
            yield read_shard(root, job, shard)


def read_shard(folder: Path, job: Job, shard: int) -> SparseFeatures:
    """One shard, checked."""
    path = _shard_path(folder, shard)
    note = _read_note(path)
    span = job.span(shard)
    if note.get("shard") != shard or note.get("rows") != [span.start, span.stop] or note.get("job") != job.digest:
        raise CorruptStoreError(f"{path}: not shard {shard} of this job; its header says {note.get('shard')!r}")
    tensors = read_tensors(path)
    if _hash_shard(tensors, note) != note.get("sha256"):
        raise CorruptStoreError(f"{path}: content does not match its SHA-256; delete the file and run again")
    description = parse_json(str(note.get("features")).encode(), str(path))
    features = SparseFeatures.from_tensors(tensors, description, origin=str(path))
    if len(features) != len(span):
        raise CorruptStoreError(f"{path}: {len(features)} rows where {len(span)} belong")
    return features


def load_features(folder: str | os.PathLike[str], *, allow_partial: bool = False) -> SparseFeatures:
    """All rows of a feature folder as one SparseFeatures. See ``read_shards`` for errors and for streaming."""
    parts = list(read_shards(folder, allow_partial=allow_partial))
    if not parts:
        raise IncompleteStoreError(f"{folder}: no shard is there yet")
    return SparseFeatures.concatenate(parts)


def read_columns(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The columns kept beside the features, one dict a row, checked against the hash in the manifest."""
    path = Path(folder) / COLUMNS
    if not path.exists():
        raise FormatError(f"{folder}: no {COLUMNS}; the folder was written without columns")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != Job.load(Path(folder)).fingerprint.get("columns"):
        raise CorruptStoreError(f"{path}: content does not match its SHA-256; delete the folder and run again")
    return [json.loads(line) for line in content.splitlines()]


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / "shards" / f"{shard:05d}.safetensors"


def _read_note(path: Path) -> dict[str, Any]:
    metadata = read_header(path).get("__metadata__")
    note = metadata.get("saerl_fast") if isinstance(metadata, dict) else None
    return parse_json(str(note).encode(), str(path))


def _hash_shard(tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> str:
    """Over everything a shard says: its arrays and its note."""
    stated = {key: value for key, value in note.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(stated, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name].contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _hash_all(folder: Path, job: Job) -> str:
    digest = hashlib.sha256(job.digest.encode())
    for shard in range(job.shards):
        read_shard(folder, job, shard)
        digest.update(str(_read_note(_shard_path(folder, shard))["sha256"]).encode())
    return digest.hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

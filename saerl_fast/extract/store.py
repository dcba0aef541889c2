"""The folder a run is kept in: shards that are there whole or not at all.

::

    DIR/  LOCK  manifest.json  columns.jsonl  shards/00000.safetensors ...  splits/  quarantine/  DONE

The manifest comes first and names the job by a fingerprint of everything that changes bits. A shard is
written under a temporary name, synced, linked to its final name (a link never replaces a file), and
the folder is synced. Its header carries its number, its rows, the batches it was computed in, the job and the
SHA-256 of its content. DONE comes last, with the hash over all shards. What stands under a final name is complete;
what is missing is computed again.

splits/ holds the batches of a shard for which the device ran out of memory, written before the shard: whoever
computes it again takes the same batches, for the same bytes. A share of a job (part.json) is such a folder too, with
the shards of one residue class.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from saerl_fast.durable import differences, make_folder, remove, sole_writer, sync_folder, write_once
from saerl_fast.errors import (
    CorruptStoreError,
    FormatError,
    IncompleteStoreError,
    JobMismatchError,
    StoreBusyError,
)
from saerl_fast.extract.job import MANIFEST, WHOLE, Job, Part, seal, unseal
from saerl_fast.features import SparseFeatures
from saerl_fast.formats.safetensors_file import parse_json, read_file, read_header

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

COLUMNS, DONE, PART, SANITY = "columns.jsonl", "DONE", "part.json", "sanity.json"
SHARDS, SPLITS, QUARANTINE = "shards", "splits", "quarantine"
NOTE = "saerl_fast"
"""The one key of a shard's metadata: safetensors writes several in an order that differs from run to run."""

Batches = Sequence[Sequence[int]]
"""(rows, padded length) of each forward pass, as they were run"""


class StoreWriter:
    """The one writer of a folder; a context manager that holds its lock.

    Opening a folder of the same job continues it, and one into which no shard was ever written is taken over, whatever
    job it was meant for. part: the share of the job whose shards belong here. Raises JobMismatchError for a folder of
    another job or share, StoreBusyError while another process writes it, PlaceError where nothing can be written.
    """

    def __init__(self, folder: str | os.PathLike[str], job: Job, part: Part = WHOLE) -> None:
        self.folder = Path(folder)
        self.job = job
        self.part = part
        self._held = ExitStack()

    def __enter__(self) -> StoreWriter:
        with ExitStack() as opening:
            opening.enter_context(sole_writer(self.folder))
            make_folder(self.folder / SHARDS)
            self._enter_manifest()
            self._held = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    @property
    def shards(self) -> range:
        """The shards that belong into this folder."""
        return self.part.shards(self.job)

    @property
    def finished(self) -> bool:
        return (self.folder / DONE).exists()

    def has(self, shard: int) -> bool:
        return shard_path(self.folder, shard).exists()

    def write_columns(self, lines: bytes) -> None:
        """Keep the columns that came with the texts: one JSON object a row. Their hash is the job's ``columns``."""
        path = self.folder / COLUMNS
        if not path.exists():
            _commit(path, lines)
        elif _hash_file(path) != self.job.fingerprint.get("columns"):
            raise CorruptStoreError(f"{path}: content does not match its SHA-256; see `saerl repair`")

    def write_split(self, shard: int, batches: Batches) -> None:
        """Keep the batches that the device had room for, before the shard that they lead to."""
        make_folder(self.folder / SPLITS)
        if self.split(shard) is None:
            note = {"shard": shard, "job": self.job.digest, "batches": _plain(batches)}
            _commit(split_path(self.folder, shard), seal(note))

    def split(self, shard: int) -> list[list[int]] | None:
        """The batches of a shard that was split for want of memory; None where there was room."""
        return read_split(self.folder, self.job, shard)

    def write(self, shard: int, features: SparseFeatures, batches: Batches) -> None:
        """Commit one shard. Raises StoreBusyError where another process has: what it wrote stays."""
        from safetensors.torch import save

        tensors = features.to_tensors()
        span = self.job.span(shard)
        note = {
            "shard": shard,
            "rows": [span.start, span.stop],
            "job": self.job.digest,
            "batches": _plain(batches),
            "features": features.describe(),
        }
        note["sha256"] = _hash_shard(tensors, note)
        _commit(shard_path(self.folder, shard), save(tensors, metadata={NOTE: json.dumps(note)}))

    def finish(self) -> None:
        """Mark the folder complete. Every shard is read back and checked first, and so is a mark that is there."""
        for shard in self.shards:
            read_shard(self.folder, self.job, shard)
        if self.finished:
            check_done(self.folder, self.job, self.shards)
        else:
            sync_folder(self.folder / SHARDS)
            _commit(self.folder / DONE, _done(self.folder, self.job, self.shards))

    def _enter_manifest(self) -> None:
        """From here on the folder is of this job: taken over where no shard was ever written, else it must be so."""
        there = (self.folder / MANIFEST).exists()
        if there and not _held_shards(self.folder):
            found = Job.load(self.folder)
            if found.digest != self.job.digest or read_part(self.folder) != self.part:
                _say_taken_over(self.folder, found, self.job)
                _clear(self.folder)
                there = False
        if there:
            self.job.refuse_another(self.folder, Job.load(self.folder))
        if not (self.folder / PART).exists() and (not there or self.folder.name == self.part.folder):
            self._enter_part()
        if (part := read_part(self.folder)) != self.part:
            wanted = f"{self.part.index}/{self.part.of}"
            raise JobMismatchError(f"{self.folder} is for share {part.index}/{part.of} of the job, not {wanted}")
        if not there:
            _commit(self.folder / MANIFEST, self.job.seal())

    def _enter_part(self) -> None:
        if self.part != WHOLE:
            _commit(self.folder / PART, seal({"index": self.part.index, "of": self.part.of}))


def _held_shards(folder: Path) -> bool:
    """Whether a shard was ever written here; those put aside count."""
    return any((folder / SHARDS).glob("*.safetensors")) or (folder / QUARANTINE).exists()


def _clear(folder: Path) -> None:
    """What a run without a shard left. The manifest goes last: until then the rest is known to be of its job."""
    splits = sorted((folder / SPLITS).glob("*.json"))
    for path in [*(folder / name for name in (DONE, SANITY, COLUMNS)), *splits, folder / PART, folder / MANIFEST]:
        remove(path)


def _say_taken_over(folder: Path, found: Job, job: Job) -> None:
    differing = "; ".join(differences(found.stated(), job.stated())) or "it was a share of it"
    logger.warning(
        "%s was meant for another job, which ended before its first shard; this one takes its place (%s)",
        folder,
        differing,
    )


def _commit(path: Path, content: bytes) -> None:
    """A file under its final name; StoreBusyError where another process, which no lock kept out, was faster."""
    try:
        write_once(path, content)
    except FileExistsError as error:
        raise StoreBusyError(
            f"{path} was written by another process meanwhile, and stays. When no other is running, run this again"
        ) from error


def read_shards(folder: str | os.PathLike[str], *, allow_partial: bool = False) -> Iterator[SparseFeatures]:
    """The shards of a folder in order, each checked against its hash before its first row is handed out.

    One shard is in memory at a time. Raises IncompleteStoreError where shards or the mark DONE are missing (with
    allow_partial they are passed over), CorruptStoreError where bytes changed.
    """
    root = Path(folder)
    job, part = Job.load(root), read_part(root)
    missing = missing_shards(root, job)
    if not allow_partial:
        if part != WHOLE:
            raise IncompleteStoreError(f"{root} is share {part.index}/{part.of} of a job; join all with `saerl merge`")
        if missing:
            raise IncompleteStoreError(
                f"{root}: {len(missing)} of {job.shards} shards are missing: {job.name_shards(missing)}. "
                "Run the same command again to finish it."
            )
        check_done(root, job, range(job.shards))
    for shard in range(job.shards):
        if shard not in missing:
            yield read_shard(root, job, shard)


def missing_shards(folder: Path, job: Job) -> list[int]:
    """Numbers of the shards of the whole job that are not in the folder."""
    present = {path.name for path in (folder / SHARDS).glob("*.safetensors")}
    return [shard for shard in range(job.shards) if _shard_name(shard) not in present]


def read_shard(folder: Path, job: Job, shard: int) -> SparseFeatures:
    """One shard, checked."""
    path = shard_path(folder, shard)
    header, tensors = read_file(path)
    note = _note(header, path, job, shard)
    if _hash_shard(tensors, note) != note.get("sha256"):
        raise CorruptStoreError(f"{path}: content does not match its SHA-256; see `saerl repair`")
    description = parse_json(str(note.get("features")).encode(errors="surrogatepass"), str(path))
    features = SparseFeatures.from_tensors(tensors, description, origin=str(path))
    if len(features) != len(job.span(shard)):
        raise CorruptStoreError(f"{path}: {len(features)} rows where {len(job.span(shard))} belong")
    return features


def load_features(folder: str | os.PathLike[str], *, allow_partial: bool = False) -> SparseFeatures:
    """All rows of a feature folder as one SparseFeatures. See ``read_shards`` for errors and for streaming."""
    parts = list(read_shards(folder, allow_partial=allow_partial))
    if not parts:
        raise IncompleteStoreError(f"{folder}: no shard is there yet")
    return SparseFeatures.concatenate(parts)


def iterate_columns(folder: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The columns kept beside the features, row by row; the whole file is checked before the first."""
    path = Path(folder) / COLUMNS
    if not path.exists():
        raise FormatError(f"{folder}: no {COLUMNS}; the folder was written without columns")
    with open(path, "rb") as file:
        stated = Job.load(Path(folder)).fingerprint.get("columns")
        if hashlib.file_digest(file, "sha256").hexdigest() != stated:
            raise CorruptStoreError(f"{path}: content does not match its SHA-256; see `saerl repair`")
        file.seek(0)
        again = hashlib.sha256()
        for number, line in enumerate(file, 1):
            again.update(line)
            yield _parse_row(line, f"{path}, line {number}")
    if again.hexdigest() != stated:
        raise CorruptStoreError(f"{path}: it was changed while it was read; see `saerl repair`")


def read_columns(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The columns kept beside the features, one dict a row, checked against the hash in the manifest."""
    return list(iterate_columns(folder))


def read_part(folder: Path) -> Part:
    """The share of the job that a folder is for; WHOLE where it is for all of it."""
    path = folder / PART
    if not path.exists():
        return WHOLE
    found = unseal(path)
    index, of = found.get("index"), found.get("of")
    if type(index) is not int or type(of) is not int:
        raise FormatError(f"{path}: index and of must be whole numbers; got {found!r:.80}")
    return Part(index, of)


def read_split(folder: Path, job: Job, shard: int) -> list[list[int]] | None:
    """The batches recorded for a shard for which memory ran out; None where there was no need."""
    path = split_path(folder, shard)
    if not path.exists():
        return None
    found = unseal(path)
    batches = found.get("batches")
    pairs = isinstance(batches, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and 0 < n < 2**31 for n in pair)
        for pair in batches
    )
    if found.get("shard") != shard or found.get("job") != job.digest or not pairs:
        raise CorruptStoreError(f"{path}: not the batches of shard {shard} of this job; see `saerl repair`")
    return batches


def check_done(folder: Path, job: Job, shards: Iterable[int]) -> None:
    """Compare the mark DONE with the hashes that the shards state. IncompleteStoreError where it is missing."""
    path = folder / DONE
    if not path.exists():
        raise IncompleteStoreError(
            f"{folder}: all shards are there, the mark {DONE} is missing. Run the same command again to finish it."
        )
    if path.read_bytes() != _done(folder, job, shards):
        raise CorruptStoreError(f"{path}: it was written for other shards than those in the folder; see `saerl repair`")


def shard_path(folder: Path, shard: int) -> Path:
    return folder / SHARDS / _shard_name(shard)


def _shard_name(shard: int) -> str:
    return f"{shard:05d}.safetensors"


def split_path(folder: Path, shard: int) -> Path:
    return folder / SPLITS / f"{shard:05d}.json"


def _note(header: Mapping[str, Any], path: Path, job: Job, shard: int) -> dict[str, Any]:
    """What a shard says of itself, which must be what is looked for."""
    note = parse_json(str(header.get("__metadata__", {}).get(NOTE)).encode(errors="surrogatepass"), str(path))
    span = job.span(shard)
    if note.get("shard") != shard or note.get("rows") != [span.start, span.stop] or note.get("job") != job.digest:
        raise CorruptStoreError(f"{path}: not shard {shard} of this job; its header says {note.get('shard')!r:.80}")
    return note


def _hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse_row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise FormatError(f"{where}: a JSON object is wanted; got {type(row).__name__}")
    return row


def _plain(batches: Batches) -> list[list[int]]:
    return [[int(number) for number in batch] for batch in batches]


def _hash_shard(tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> str:
    """Over everything a shard says: its arrays and its note."""
    stated = {key: value for key, value in note.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(stated, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    import torch

    # numpy may hand over an empty array with a stride of 0, which torch does not view as bytes
    return tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


def _done(folder: Path, job: Job, shards: Iterable[int]) -> bytes:
    digest = hashlib.sha256(job.digest.encode())
    for shard in shards:
        path = shard_path(folder, shard)
        digest.update(str(_note(read_header(path), path, job, shard).get("sha256")).encode())
    return (digest.hexdigest() + "\n").encode()

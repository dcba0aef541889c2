"""Every shard of a job, computed or read back; the rows of one shard are in memory at a time."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor
from tqdm.auto import tqdm

from saerl_fast.durable import check_place
from saerl_fast.errors import IncompleteStoreError, JobMismatchError
from saerl_fast.extract.ahead import Ahead
from saerl_fast.extract.job import MANIFEST, WHOLE, Job, Part
from saerl_fast.extract.learning import OnDevice
from saerl_fast.extract.reader import Reader
from saerl_fast.extract.sanity import Fired, report_sanity
from saerl_fast.extract.settings import Settings, hash_each
from saerl_fast.extract.shard import Room, ShardRows, Tokens, featurize_shard, read_tokens
from saerl_fast.extract.store import DONE, SANITY, Batches, StoreWriter, missing_shards, read_part, read_shard
from saerl_fast.extract.tokens import Text
from saerl_fast.features import USABLE, SparseFeatures
from saerl_fast.sae import SAE

logger = logging.getLogger(__name__)

EachShard = Callable[[SparseFeatures], object]
Teach = Callable[[SparseFeatures, OnDevice | None], None]
"""Takes the rows of a shard, and their entries where they still lie on the device."""


@dataclass(frozen=True)
class Task:
    """A job with all that is needed to compute it. columns: one JSON line a text, or None."""

    job: Job
    texts: Sequence[Text]
    ids: Sequence[str | int]
    columns: bytes | None
    reader: Reader
    sae: SAE
    settings: Settings
    room: Room = field(default_factory=Room)

    def read(self, shards: Sequence[int]) -> Ahead[Tokens]:
        """The tokens of these shards, one after the other; where a device does the rest, one shard ahead of it."""

        def tokens(shard: int) -> Tokens:
            return read_tokens([self.texts[row] for row in self.job.span(shard)], self.reader, self.settings)

        return Ahead(tokens, shards, thread=self.reader.device.type == "cuda")

    def compute(
        self,
        shard: int,
        read: Ahead[Tokens],
        advance: Callable[[int], Any],
        recorded: Batches | None = None,
        sampled: bool = False,
    ) -> ShardRows:
        """The rows of one shard. recorded: batches of an earlier run that ran out of memory. sampled: with a sample of
        the activations, for ``report_sanity``."""
        ids = [self.ids[row] for row in self.job.span(shard)]
        tokens = read.take(shard)
        rows = featurize_shard(
            tokens, ids, self.reader, self.sae, self.settings, self.job, advance, recorded, self.room, sampled
        )
        read.rest()
        return rows

    @property
    def n_features(self) -> int:
        return self.sae.d_sae

    def report_sanity(self, rows: Tensor | None, folder: Path | None) -> bool:
        """Whether the SAE fits, by a sample of activations; kept in a folder. False where they do not tell."""
        return rows is not None and report_sanity(rows, self.reader, self.sae, folder) is not None

    def fired(self) -> Fired:
        """To be shown every row of the run."""
        return Fired(self.sae, self.settings.pool)


@dataclass(frozen=True)
class Finished:
    """A job whose rows are all in its folder: it is read without a model."""

    job: Job
    columns: bytes | None
    n_features: int

    def read(self, shards: Sequence[int]) -> Ahead[Tokens]:
        """Nothing is left to be read."""
        return Ahead(self._refuse, shards, thread=False)

    def compute(
        self,
        shard: int,
        read: Ahead[Tokens],
        advance: Callable[[int], Any],
        recorded: Batches | None = None,
        sampled: bool = False,
    ) -> ShardRows:
        self._refuse(shard)

    def _refuse(self, shard: int) -> NoReturn:
        raise IncompleteStoreError(f"shard {self.job.name_shards([shard])} has just vanished; run the same again")

    def report_sanity(self, rows: Tensor | None, folder: Path | None) -> bool:
        """It was reported when the rows were made."""
        return True

    def fired(self) -> None:
        """It was told when the rows were made."""


def find_finished(
    out: str | os.PathLike[str], part: Part, asked: str | None, columns: bytes | None, n_features: int
) -> Finished | None:
    """The job of a folder that was asked for in these words (``asked.py``) and is finished; None for any other.

    columns, n_features: what a run of these words keeps beside the rows, and how wide they are.
    """
    folder = folder_of(out, part)
    if asked is None or not (folder / DONE).exists():
        return None
    job = Job.load(folder)
    lacking = set(missing_shards(folder, job)) & set(part.shards(job))
    if job.asked != asked or lacking:
        return None
    logger.info("%s is finished and was asked for in the same words: it is read, and no model loaded", folder)
    return Finished(job, columns, n_features)


def folder_of(out: str | os.PathLike[str], part: Part) -> Path:
    """Where the rows of a share go: a folder of its own inside ``out``, for ``merge_parts``."""
    return Path(out) if part == WHOLE else Path(out) / part.folder


@dataclass
class Written:
    """What stands in a folder after a run: how many rows of which status, how many entries, what was new."""

    folder: Path
    rows: int = 0
    entries: int = 0
    status: Counter[str] = field(default_factory=Counter)
    computed: int = 0

    def add(self, features: SparseFeatures) -> None:
        self.rows += len(features)
        self.entries += features.nnz
        self.status.update(features.status_counts())


def check_out(out: str | os.PathLike[str]) -> None:
    """Raise PlaceError where ``write_features`` could not write there; a finished folder is only read."""
    if not (Path(out) / DONE).exists():
        check_place(Path(out))


def write_features(
    task: Task | Finished,
    out: str | os.PathLike[str],
    *,
    part: Part = WHOLE,
    teach: Teach | None = None,
    each_shard: EachShard | None = None,
    progress: bool = True,
) -> Written:
    """Compute what the folder lacks, shard by shard, and mark it complete. A finished folder is only read.

    part: a share of the job, which goes into its ``folder_of``.
    teach, each_shard: called with the rows of each shard in order, computed or read back, once they are in the folder.
    """
    folder = folder_of(out, part)
    written, fired = Written(folder), task.fired()
    rows = sum(len(task.job.span(shard)) for shard in part.shards(task.job))
    with (
        tqdm(total=rows, desc="featurize", unit="text", disable=not progress) as bar,
        _writer(folder, task, part) as store,
        ExitStack() as held,
    ):
        if task.columns is not None:
            store.write_columns(task.columns)
        judged = (folder / SANITY).exists()
        read = held.enter_context(task.read([shard for shard in store.shards if not store.has(shard)]))
        for shard in store.shards:
            if store.has(shard):
                features, entries = read_shard(folder, task.job, shard), None
                bar.update(len(features))
            else:
                found = task.compute(shard, read, bar.update, store.split(shard), not judged)
                # before the shard: a run that goes on behind it has the file
                judged = judged or task.report_sanity(found.sample, folder)
                _commit(store, shard, found)
                features, entries = found.features, found.entries
                del found
                written.computed += 1
            written.add(features)
            if teach is not None:
                teach(features, entries)
            del entries  # which would keep memory of the device while the next shard is computed
            if fired is not None:
                fired.add(features)
            if each_shard is not None:
                each_shard(features)
        store.finish()
    report(written.status)
    if fired is not None:
        fired.tell()
    return written


def _commit(store: StoreWriter, shard: int, found: ShardRows) -> None:
    """A shard into the folder, and before it the batches that memory chose."""
    if found.split:
        store.write_split(shard, found.batches)
    store.write(shard, found.features, found.batches)


@contextmanager
def _writer(folder: Path, task: Task | Finished, part: Part) -> Iterator[StoreWriter]:
    """The writer of the folder; where the folder is of another job, with what can be said about its texts."""
    if isinstance(task, Finished) or _holds_all(folder, task.job, part):
        # not entered, so without a lock: it only reads, and may do so where nothing can be written
        yield StoreWriter(folder, task.job, part)
        return
    with ExitStack() as held:
        try:
            store = held.enter_context(StoreWriter(folder, task.job, part))
        except JobMismatchError as error:
            raise JobMismatchError(f"{error}{_rows_added(folder, task)}") from error
        yield store


def _holds_all(folder: Path, job: Job, part: Part) -> bool:
    """Whether the folder is marked complete and has every shard of this very job and share."""
    if not (folder / DONE).exists() or not (folder / MANIFEST).exists():
        return False
    same = Job.load(folder).digest == job.digest and read_part(folder) == part
    return same and not set(missing_shards(folder, job)) & set(part.shards(job))


def _rows_added(folder: Path, task: Task) -> str:
    """Whether the texts of a folder are the first of these; nothing where they are not."""
    found = Job.load(folder)
    added = task.job.rows - found.rows
    if added <= 0 or hash_each(task.texts[: found.rows]) != found.fingerprint.get("texts"):
        return ""
    return (
        f"\nThe texts of the folder are the first {found.rows} of these: {added} were added at the end. "
        "Compute those in a folder of their own, or all of them in another folder."
    )


def compute_features(
    task: Task, *, teach: Teach | None = None, each_shard: EachShard | None = None, progress: bool = True
) -> SparseFeatures:
    """All rows in memory, nothing on the disk."""
    parts, fired, judged = [], task.fired(), False
    shards = range(task.job.shards)
    with (
        tqdm(total=task.job.rows, desc="featurize", unit="text", disable=not progress) as bar,
        task.read(shards) as read,
    ):
        for shard in shards:
            found = task.compute(shard, read, bar.update, sampled=not judged)
            judged = judged or task.report_sanity(found.sample, None)
            parts.append(found.features)
            if teach is not None:
                teach(found.features, found.entries)
            del found
            fired.add(parts[-1])
            if each_shard is not None:
                each_shard(parts[-1])
    features = SparseFeatures.concatenate(parts)
    report(Counter(features.status_counts()))
    fired.tell()
    return features


def report(status: Counter[str]) -> None:
    """One line of log where rows are not as they should be."""
    odd = [f"{count} {name}" for name, count in status.items() if name != "ok" and count]
    if odd and not any(status[name] for name in USABLE):
        logger.warning(
            "featurize: none of %d texts has features (%s): is this the right column, and are the limits wide enough?",
            status.total(),
            ", ".join(odd),
        )
    elif odd:
        logger.warning("featurize: of %d texts %s", status.total(), ", ".join(odd))

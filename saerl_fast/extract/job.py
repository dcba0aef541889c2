"""The job of a feature folder: what is to be computed, how it is cut, and what its result depends on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saerl_fast.durable import digest, refuse_another_job
from saerl_fast.errors import CorruptStoreError, FormatError, InputError, VersionError
from saerl_fast.formats.safetensors_file import read_json

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
MAX_SHARDS = 1_000_000
"""A thousand million rows in shards of 1,024; what lists them takes less than a second."""


@dataclass(frozen=True)
class Job:
    """What is to be computed: rows, how they are cut into shards, and what the result depends on.

    fingerprint: everything that changes a bit of the result, as a flat mapping of JSON values. With the rows it
    fixes every batch of every shard: these are a function of a shard's own texts and ``tokens_per_batch``.
    source: where the rows came from (a path and its hash); a note, not part of the fingerprint.
    asked: what was asked for, as ``asked.py`` tells it; a note too.
    """

    rows: int
    shard_rows: int
    fingerprint: Mapping[str, Any]
    source: Mapping[str, Any]
    asked: str | None = None

    def __post_init__(self) -> None:
        if self.shards > MAX_SHARDS:
            raise InputError(
                f"{self.rows} rows in shards of {self.shard_rows} make {self.shards} shards, more than {MAX_SHARDS}; "
                "choose larger shards (shard_rows)"
            )

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_rows)

    @property
    def digest(self) -> str:
        return digest([self.rows, self.shard_rows, dict(self.fingerprint)])

    def span(self, shard: int) -> range:
        """The rows of one shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows))

    def name_shards(self, shards: Sequence[int]) -> str:
        """Shards and their rows, for people; the first five of many."""
        named = [f"{n} (rows {self.span(n).start}-{self.span(n).stop - 1})" for n in shards[:5]]
        return ", ".join(named) + (", ..." if len(shards) > 5 else "")

    def seal(self) -> bytes:
        """The manifest."""
        content = {
            "format_version": FORMAT_VERSION,
            "rows": self.rows,
            "shard_rows": self.shard_rows,
            "shards": self.shards,
            "fingerprint": dict(self.fingerprint),
            "source": dict(self.source),
        }
        return seal(content if self.asked is None else content | {"asked": self.asked})

    def refuse_another(self, folder: Path, found: Job) -> None:
        """JobMismatchError with the keys that differ, where the job found in a folder is not this one."""
        if found.digest != self.digest:
            refuse_another_job(folder, found.stated(), self.stated())

    def stated(self) -> dict[str, Any]:
        """Everything that tells this job from another, as it stands in a manifest."""
        named = {"rows": self.rows, "shard_rows": self.shard_rows, **self.fingerprint}
        return dict(json.loads(json.dumps(named)))

    @staticmethod
    def load(folder: Path) -> Job:
        """The job of a folder.

        Raises FormatError where there is none, VersionError where another release wrote it, CorruptStoreError where
        it was changed.
        """
        if not (folder / MANIFEST).exists():
            raise FormatError(f"{folder}: not a feature folder: {_what_is_there(folder)}")
        found = unseal(folder / MANIFEST, FORMAT_VERSION)
        rows, shard_rows = found.get("rows"), found.get("shard_rows")
        if type(rows) is not int or type(shard_rows) is not int or rows < 1 or shard_rows < 1:
            raise FormatError(f"{folder}: {MANIFEST} must give rows and shard_rows as positive whole numbers")
        fingerprint, source = found.get("fingerprint"), found.get("source")
        if not isinstance(fingerprint, dict) or not isinstance(source, dict):
            raise FormatError(f"{folder}: {MANIFEST} must hold fingerprint and source as objects")
        asked = found.get("asked")
        try:
            return Job(rows, shard_rows, fingerprint, source, asked if isinstance(asked, str) else None)
        except InputError as error:
            raise FormatError(f"{folder}: {MANIFEST}: {error}") from error


@dataclass(frozen=True)
class Part:
    """One of ``of`` equal shares of a job: the shards index, index + of, index + 2 of ..."""

    index: int
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.of:
            raise InputError(f"a share i/n needs 0 <= i < n; got {self.index}/{self.of}. They are counted from 0")

    @staticmethod
    def parse(text: str) -> Part:
        """From the form i/n."""
        match = re.fullmatch(r"(-?\d{1,9})/(-?\d{1,9})", text)
        if match is None:
            raise InputError(f"a share is written i/n, such as 0/4 for the first of four; got {text!r:.40}")
        return Part(int(match[1]), int(match[2]))

    @property
    def folder(self) -> str:
        """Its folder inside the folder of the job."""
        return f"part-{self.index}-of-{self.of}"

    def shards(self, job: Job) -> range:
        return range(self.index, job.shards, self.of)


WHOLE = Part(0, 1)


def part_folders(folder: Path) -> list[Path]:
    """The folders of shares inside a folder, in order."""
    found = {path: re.fullmatch(r"part-(\d+)-of-(\d+)", path.name) for path in folder.glob("part-*-of-*")}
    named = {path: (int(match[2]), int(match[1])) for path, match in found.items() if match and path.is_dir()}
    return sorted(named, key=named.__getitem__)


def _what_is_there(folder: Path) -> str:
    if not folder.exists():
        return "there is no such folder"
    if not folder.is_dir():
        return "it is a file"
    shares = f"; it holds shares: join them with `saerl merge {folder}`" if part_folders(folder) else ""
    return f"{MANIFEST} is missing{shares}"


def seal(content: Mapping[str, Any]) -> bytes:
    """A JSON object with the SHA-256 of what it says, in a form in which every byte counts."""
    return _print({**content, "sha256": digest(content)})


def unseal(path: Path, version: int | None = None) -> dict[str, Any]:
    """What ``seal`` wrote. Raises CorruptStoreError where a byte was changed, VersionError for another version."""
    found = read_json(path)
    stated = {key: value for key, value in found.items() if key != "sha256"}
    whole = found.get("sha256") == digest(stated) and path.read_bytes() == _print(found)
    if version is not None and found.get("format_version") != version and (whole or "sha256" not in found):
        raise VersionError(_other_version(path, found.get("format_version"), version))
    if not whole:
        raise CorruptStoreError(f"{path}: content does not match its SHA-256; see `saerl repair`")
    return stated


def _other_version(path: Path, found: Any, version: int) -> str:
    later = type(found) is int and found > version
    what = "update saerl_fast" if later else f"run the command that wrote {path.parent} again, into another folder"
    return (
        f"{path}: format version {found!r:.80}, of {'a later' if later else 'an earlier'} release; this one reads "
        f"{version}. To use it, {what}. It was left as it is"
    )


def _print(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()

"""The table that a feature folder was made from: its texts, read again, and the columns kept beside the features."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saerl_fast.errors import InputError, JobMismatchError
from saerl_fast.extract.inputs import Row, column_names, has_column, hash_file, read_table, texts_of
from saerl_fast.extract.job import Job
from saerl_fast.extract.store import iterate_columns


def column(rows: Sequence[Row], name: str) -> list[Any]:
    """One column of the table kept in a feature folder. Raises InputError where there is none."""
    if not has_column(rows, name):
        raise InputError(f"no column {name!r}; there are {column_names(rows)}")
    return [row.get(name) for row in rows]


def kept_columns(folder: str | os.PathLike[str], names: Sequence[str]) -> list[list[Any]]:
    """Columns of the table kept in a feature folder, read without keeping the others; InputError as ``column``."""
    found: list[list[Any]] = [[] for _ in names]
    seen: dict[str, None] = {}
    for row in iterate_columns(folder) if names else ():
        seen.update(dict.fromkeys(row))
        for values, name in zip(found, names, strict=True):
            values.append(row.get(name))
    if missing := [name for name in names if name not in seen]:
        raise InputError(f"no column {missing[0]!r}; there are {list(seen)}")
    return found


def read_texts_again(folder: str | os.PathLike[str], data: str | None, rows: int) -> list[Any]:
    """The text column of the table that featurize read, which must not have changed.

    data: where the table is now; None is where it was. Raises JobMismatchError for another table,
    FormatError for one that cannot be read.
    """
    source = Job.load(Path(folder)).source
    path = data or str(source.get("data"))
    if source.get("sha256") and Path(path).is_file() and hash_file(path) != source["sha256"]:
        raise JobMismatchError(f"{path} is not the file that {folder} was made from: its SHA-256 differs")
    table = read_table(path)
    if len(table) != rows:
        raise JobMismatchError(f"{path} has {len(table)} rows, {folder} has {rows}; is it the same table?")
    return texts_of(table, str(source["text_field"]), source.get("completion_field"))


def as_text(found: Any) -> str:
    """A text for people and word counts: a string as it is, the contents of messages, nothing for a missing one."""
    if isinstance(found, dict):
        return "\n".join(filter(None, (as_text(found.get(side)) for side in ("prompt", "completion"))))
    if isinstance(found, list):
        return "\n".join(str(message.get("content", "")) for message in found)
    return found if isinstance(found, str) else ""

"""What users hand in, as plain lists: texts, ids, and tables of rows from files."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saerl_fast.errors import FormatError, InputError, MissingDependency
from saerl_fast.extract.tokens import Text

Row = dict[str, Any]


def read_texts(texts: Any, text_field: str | None) -> Sequence[Text]:
    """A sequence of texts out of whatever was handed in."""
    if isinstance(texts, (str, bytes)):
        raise InputError("texts must be a list of strings; got a single string. Wrap it: [text]")
    columns = getattr(texts, "column_names", None)
    if columns is not None:
        if text_field is None or text_field not in columns:
            raise InputError(f"a dataset needs text_field, one of {list(columns)}; got {text_field!r}")
        found: Sequence[Text] = list(texts[text_field])
    else:
        if text_field is not None:
            raise InputError("text_field goes with a datasets.Dataset; a list holds the texts themselves")
        found = texts if isinstance(texts, (list, tuple)) else list(texts)
    if not found:
        raise InputError("texts is empty: at least one text is needed")
    if isinstance(found[0], dict):
        raise InputError("a text is a string or a list of chat messages; got a single message. Wrap it: [[message]]")
    return found


def check_ids(ids: Sequence[str | int] | None, rows: int) -> list[str | int]:
    if ids is None:
        return list(range(rows))
    if len(ids) != rows:
        raise InputError(f"ids must have one entry per text: {rows} texts, {len(ids)} ids")
    plain = [int(i) if isinstance(i, (int, np.integer)) else i for i in ids]
    if len(set(plain)) != rows:
        seen: set[Any] = set()
        double = next(i for i in plain if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise InputError(f"ids must be unique; {double!r} appears more than once")
    return plain


def read_table(data: str) -> list[Row]:
    """Rows of a table: .jsonl, .jsonl.gz, .csv, .parquet, or the id of a hub dataset (its train split).

    Raises FormatError, with the line, for a row that cannot be read.
    """
    path = Path(data)
    if not path.exists():
        if path.suffix in {".jsonl", ".gz", ".csv", ".parquet", ".json"}:
            raise FormatError(f"{data}: no such file")
        return _read_hub(data)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        rows = list(_read_jsonl(path))
    elif path.suffix == ".csv":
        with open(path, encoding="utf-8", newline="") as file:
            rows = [dict(row) for row in csv.DictReader(file)]
    elif path.suffix == ".parquet":
        rows = _read_parquet(path)
    else:
        raise FormatError(f"{data}: .jsonl, .jsonl.gz, .csv or .parquet is wanted; got {path.suffix or 'no suffix'}")
    if not rows:
        raise InputError(f"{data}: the table has no rows")
    return rows


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_jsonl(path: Path) -> Iterator[Row]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise FormatError(f"{path}, line {number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise FormatError(f"{path}, line {number}: a JSON object is wanted; got {type(row).__name__}")
            yield row


def _read_parquet(path: Path) -> list[Row]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependency("reading parquet needs pyarrow: pip install 'saerl-fast[rl]'") from error
    rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


def _read_hub(name: str) -> list[Row]:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependency("a hub dataset needs datasets: pip install 'saerl-fast[rl]'") from error
    return [dict(row) for row in datasets.load_dataset(name, split="train")]

"""What users hand in, as plain lists: texts, ids, and tables of rows from files."""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saerl_fast.errors import DtypeError, FormatError, InputError, MissingDependency, SaerlError
from saerl_fast.extract.tokens import Text

logger = logging.getLogger(__name__)

Row = dict[str, Any]


def read_texts(texts: Any, text_field: str | None, completion_field: str | None = None) -> Sequence[Text]:
    """A sequence of texts out of whatever was handed in; of a dataset with a completion_field, pairs."""
    if isinstance(texts, (str, bytes)):
        raise InputError("texts must be a list of strings; got a single string. Wrap it: [text]")
    if isinstance(texts, (Mapping, set, frozenset)) or hasattr(texts, "columns") or not hasattr(texts, "__iter__"):
        raise DtypeError(
            f"texts must be a list of texts or a datasets.Dataset; got {type(texts).__name__}. "
            "Of a table, pass its column; of a dict of splits, the split"
        )
    columns = getattr(texts, "column_names", None)
    if hasattr(texts, "column_names") and not hasattr(texts, "__len__"):
        raise DtypeError(
            "texts must have a length; got a dataset that streams. datasets.Dataset.from_list(list(texts))"
        )
    if columns is not None:
        found = _read_dataset(texts, columns, text_field, completion_field)
    elif text_field is not None or completion_field is not None:
        raise InputError(
            "text_field and completion_field go with a datasets.Dataset; a list holds the texts themselves"
        )
    else:
        found = texts if isinstance(texts, (list, tuple)) else list(texts)
    if not found:
        raise InputError("texts is empty: at least one text is needed")
    if isinstance(found[0], dict) and "role" in found[0]:
        raise InputError("a text is a string or a list of chat messages; got a single message. Wrap it: [[message]]")
    return found


def _read_dataset(
    texts: Any, columns: Sequence[str], text_field: str | None, completion_field: str | None
) -> Sequence[Text]:
    """The texts of a dataset."""
    if text_field is None or text_field not in columns:
        raise InputError(f"a dataset needs text_field, one of {list(columns)}; got {text_field!r}")
    if completion_field is not None and completion_field not in columns:
        raise InputError(f"completion_field must be one of {list(columns)}; got {completion_field!r}")
    if completion_field is None:
        return list(texts[text_field])
    return [_pair(*sides) for sides in zip(texts[text_field], texts[completion_field], strict=True)]


def texts_of(rows: Sequence[Row], text_field: str, completion_field: str | None = None) -> list[Text]:
    """The texts of a table: a column, or prompts and completions in pairs."""
    if completion_field is None:
        return [row.get(text_field) for row in rows]
    return [_pair(row.get(text_field), row.get(completion_field)) for row in rows]


def _pair(prompt: Any, completion: Any) -> Text:
    return {"prompt": prompt, "completion": completion}


def dataset_ids(texts: Any) -> list[str | int] | None:
    """The column ``id`` of a dataset, where it names every row once; None for anything else."""
    if "id" not in (getattr(texts, "column_names", None) or ()):
        return None
    return choose_ids([{"id": found} for found in texts["id"]])[0]


def choose_ids(rows: Sequence[Row]) -> tuple[list[str | int], str | None]:
    """The column ``id`` where it names every row once, else row numbers; and which it was."""
    found = [row.get("id") for row in rows]
    if all(isinstance(i, str) or type(i) is int for i in found) and len(set(found)) == len(found):
        return [i for i in found if i is not None], "id"
    if any(i is not None for i in found):
        logger.warning("column id does not name every row once; rows are numbered from 0 instead")
    return list(range(len(rows))), None


def check_ids(ids: Sequence[str | int] | None, rows: int) -> list[str | int]:
    """The ids as str and int, or row numbers; InputError where there are not as many, or one is not unique."""
    if ids is None:
        return list(range(rows))
    if len(ids) != rows:
        raise InputError(f"ids must have one entry per text: {rows} texts, {len(ids)} ids")
    plain: list[str | int] = []
    for found in ids:
        if not isinstance(found, (str, int, np.integer)) or isinstance(found, bool):
            raise DtypeError(f"an id must be a string or a whole number; got {found!r:.80} ({type(found).__name__})")
        plain.append(str(found) if isinstance(found, str) else int(found))
    if len(set(plain)) != rows:
        double = next(name for name, count in Counter(plain).items() if count > 1)
        raise InputError(f"ids must be unique; {double!r} appears more than once")
    return plain


def columns_of(columns: Sequence[Row] | None, rows: int) -> bytes | None:
    """The columns as JSON lines; InputError where there is not one entry per text."""
    if columns is None:
        return None
    if len(columns) != rows:
        raise InputError(f"columns must have one entry per text: {rows} texts, {len(columns)} columns")
    return to_json_lines(columns)


def read_table(data: str) -> list[Row]:
    """Rows of a table: .jsonl, .jsonl.gz, .csv, .parquet, or a hub dataset as ID[:CONFIG][@SPLIT].

    Raises FormatError, with the line, for a row that cannot be read.
    """
    path = Path(data)
    if not path.exists():
        if path.suffix in {".jsonl", ".gz", ".csv", ".parquet", ".json"}:
            raise FormatError(f"{data}: no such file")
        return _read_hub(data)
    try:
        rows = _read_file(path)
    except SaerlError:
        raise
    except (OSError, EOFError, ValueError, csv.Error) as error:  # truncated gzip, not UTF-8, not parquet, huge cell
        raise FormatError(f"{path}: cannot be read as {''.join(path.suffixes)}: {error}") from error
    if not rows:
        raise InputError(f"{data}: the table has no rows")
    return rows


def has_column(rows: Sequence[Row], name: str) -> bool:
    """Whether any row has the field; rows without it count as missing values."""
    return any(name in row for row in rows)


def column_names(rows: Sequence[Row]) -> list[str]:
    """The fields that occur, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def to_json_lines(rows: Sequence[Row]) -> bytes:
    """One JSON object a row. Dates become ISO text, bytes base64; anything else that JSON lacks is refused by name."""
    return "".join(_to_json(row, number) + "\n" for number, row in enumerate(rows)).encode()


def _to_json(row: Row, number: int) -> str:
    def convert(value: Any) -> Any:
        if hasattr(value, "isoformat"):
            return value.isoformat()
        if isinstance(value, bytes):
            return base64.b64encode(value).decode()
        if hasattr(value, "item"):
            return value.item()
        name = next((name for name, found in row.items() if found is value), "a nested field")
        raise DtypeError(f"row {number}, column {name!r}: {type(value).__name__} cannot be kept beside the features")

    return json.dumps(row, ensure_ascii=True, default=convert)


def _read_file(path: Path) -> list[Row]:
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return list(_read_jsonl(path))
    if path.suffix == ".csv":
        with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets put a byte order mark in front
            return [dict(row) for row in csv.DictReader(file)]
    if path.suffix == ".parquet":
        return _read_parquet(path)
    raise FormatError(f"{path}: .jsonl, .jsonl.gz, .csv or .parquet is wanted; got {path.suffix or 'no suffix'}")


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
    """ID, ID:CONFIG, ID@SPLIT or ID:CONFIG@SPLIT; the split is train unless given."""
    try:
        import datasets
    except ImportError as error:
        raise MissingDependency("a hub dataset needs datasets: pip install 'saerl-fast[rl]'") from error
    identity, _, split = name.partition("@")
    identity, _, config = identity.partition(":")
    try:
        found = datasets.load_dataset(identity, config or None, split=split or "train")
    except (OSError, ValueError) as error:
        raise FormatError(f"{name}: neither a file nor a dataset that can be loaded: {error}") from error
    return [dict(row) for row in found]

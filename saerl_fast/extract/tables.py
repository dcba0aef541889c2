"""A feature folder as one table, and back: parquet, and ``datasets`` on disk; a shard in memory at a time.

Columns: id, saerl_idx (list of int32), saerl_val (list of float32 or float16), saerl_status, saerl_n_tokens,
saerl_hidden where it was kept, then the columns that came with the texts. What is no column (the number of features,
provenance) is JSON in the schema's metadata under ``saerl_fast``.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saerl_fast.durable import check_place, commit_file, commit_folder, naming_full_disk
from saerl_fast.errors import FormatError, InputError, MissingDependency
from saerl_fast.extract.store import COLUMNS, iterate_columns, read_shards
from saerl_fast.features import STATUSES, SparseFeatures
from saerl_fast.formats.safetensors_file import parse_json

if TYPE_CHECKING:
    import pyarrow

METADATA = b"saerl_fast"
ROWS_AT_ONCE = 1024
"""Rows of a table in memory, where it has no shards."""
OURS = ("id", "saerl_idx", "saerl_val", "saerl_status", "saerl_n_tokens", "saerl_hidden")


def export_parquet(folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> int:
    """Write the rows of a feature folder, and their columns, to a new parquet file; returns their number.

    A column that holds values of several kinds is written as JSON text, and named in the metadata. Raises InputError
    where the file is there already, and the errors of the store.
    """
    arrow = _arrow()
    root, target = Path(folder), Path(path)
    _refuse_taken(target)
    described = _Described(root)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        with naming_full_disk(target.parent):
            rows = 0
            with arrow.parquet.ParquetWriter(temporary, described.schema) as writer:
                for table in described.tables():
                    writer.write_table(table)
                    rows += table.num_rows
            try:
                commit_file(temporary, target)
            except FileExistsError:
                _refuse_taken(target)
    finally:
        temporary.unlink(missing_ok=True)
    return rows


def export_dataset(folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> int:
    """Write the same table as a new folder for ``datasets.load_from_disk``; returns the number of rows.

    It is written beside its place under a name that begins with a dot, and moved there when it is complete.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingDependency("a datasets folder needs datasets: pip install 'saerl-fast[rl]'") from error
    target = Path(path)
    _refuse_taken(target)
    with (
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch,
        naming_full_disk(target.parent),
    ):
        described, table, complete = _Described(Path(folder)), Path(scratch) / "rows.arrow", Path(scratch) / "rows"
        with _arrow().ipc.new_stream(str(table), described.schema) as writer:
            for part in described.tables():
                writer.write_table(part)
        found = datasets.Dataset.from_file(str(table))  # mapped, not read
        found.info.description = described.schema.metadata[METADATA].decode()
        found.save_to_disk(complete)
        commit_folder(complete, target)
        return len(found)


def read_parquet(path: str | os.PathLike[str]) -> Iterator[SparseFeatures]:
    """The rows that ``export_parquet`` wrote, as an iterator: the SparseFeatures of one row group (a shard) at a time.

    Raises FormatError for another file or for columns of other types.
    """
    arrow = _arrow()
    try:
        file = arrow.parquet.ParquetFile(path)
    except (OSError, arrow.ArrowException) as error:
        raise FormatError(f"{path}: cannot be read as parquet: {error}") from error
    with file:
        note = (file.schema_arrow.metadata or {}).get(METADATA)
        if note is None:
            raise FormatError(f"{path}: its metadata has no saerl_fast entry; was it written by `saerl export`?")
        described = parse_json(note, str(path))
        wanted = [name for name in OURS if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            try:
                table = file.read_row_group(group, columns=wanted)
            except (OSError, arrow.ArrowException) as error:
                raise FormatError(f"{path}: row group {group} is damaged: {error}") from error
            yield from_table(table, described, str(path))


def from_dataset(dataset: Any, rows_at_once: int = ROWS_AT_ONCE) -> Iterator[SparseFeatures]:
    """The rows of a ``datasets.Dataset`` that ``export_dataset`` wrote and ``load_from_disk`` read.

    An iterator of SparseFeatures, of ``rows_at_once`` rows each.
    """
    try:
        described = parse_json(str(dataset.info.description).encode(), "the dataset's description")
    except FormatError as error:
        raise FormatError(
            "this dataset does not say what its features are; was it written by `saerl export`?"
        ) from error
    wanted = [name for name in OURS if name in dataset.column_names]
    for start in range(0, len(dataset), rows_at_once):
        chosen = dataset.select(range(start, min(start + rows_at_once, len(dataset)))).select_columns(wanted)
        yield from_table(chosen.with_format("arrow")[:], described, "the dataset")


def from_table(table: pyarrow.Table, described: dict[str, Any], origin: str) -> SparseFeatures:
    """An Arrow table with our columns as features."""
    features, provenance = described.get("n_features"), described.get("provenance")
    kind = described.get("values", "float32")
    if type(features) is not int or not isinstance(provenance, dict) or kind not in ("float32", "float16"):
        raise FormatError(
            f"{origin}: n_features must be a whole number, provenance an object, and values float32 or float16"
        )
    if missing := [name for name in OURS[:5] if table.column_names.count(name) != 1]:
        raise FormatError(f"{origin}: columns {missing} are missing, or there twice")
    indptr, indices = _lists(table, "saerl_idx", np.dtype(np.int32), origin)
    same, values = _lists(table, "saerl_val", np.dtype(kind), origin)
    if not np.array_equal(indptr, same):
        raise FormatError(f"{origin}: saerl_idx and saerl_val have rows of different lengths")
    status = _column(table, "saerl_status", ("string", "large_string"), origin)
    if not set(status) <= set(STATUSES):
        raise FormatError(f"{origin}: saerl_status must be one of {STATUSES}")
    hidden = None
    if "saerl_hidden" in table.column_names:
        ends, flat = _lists(table, "saerl_hidden", np.dtype(np.float32), origin)
        width = int(ends[1]) if len(ends) > 1 else 0
        if not np.array_equal(ends, np.arange(len(ends)) * width):
            raise FormatError(f"{origin}: saerl_hidden must have rows of one length")
        hidden = flat.reshape(len(ends) - 1, width)
    return SparseFeatures(
        indptr=indptr,
        indices=indices,
        values=values,
        n_features=features,
        ids=_ids(table, described.get("ids_are_json") is True, origin),
        status=tuple(status),
        n_tokens=np.array(_column(table, "saerl_n_tokens", ("int32",), origin), dtype=np.int32),
        hidden=hidden,
        provenance=provenance,
    )


def _ids(table: pyarrow.Table, as_json: bool, origin: str) -> tuple[str | int, ...]:
    found = _column(table, "id", ("string", "large_string") if as_json else ("string", "large_string", "int64"), origin)
    if not as_json:
        return tuple(found)
    try:
        ids = [json.loads(name) for name in found]
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{origin}: id is not JSON: {error}") from error
    if not all(isinstance(name, str) or type(name) is int for name in ids):
        raise FormatError(f"{origin}: ids must be strings or whole numbers")
    return tuple(ids)


def _column(table: pyarrow.Table, name: str, kinds: tuple[str, ...], origin: str) -> list[Any]:
    """The values of a column of one of these types, none missing."""
    column = table[name]
    if str(column.type) not in kinds or column.null_count:
        raise FormatError(f"{origin}: {name} must be {' or '.join(kinds)} with none missing; it is {column.type}")
    return list(column.to_pylist())


def _lists(table: pyarrow.Table, name: str, dtype: np.dtype[Any], origin: str) -> tuple[Any, Any]:
    """Bounds int64 [S + 1] and values of a column of lists."""
    column = table[name].combine_chunks()
    if not hasattr(column, "flatten") or column.null_count:
        raise FormatError(f"{origin}: {name} must be a column of lists with none missing; it is {column.type}")
    lengths = column.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    values = column.flatten().to_numpy(zero_copy_only=False)
    if values.dtype != dtype and len(values):
        raise FormatError(f"{origin}: {name} must hold {dtype}; it holds {values.dtype}")
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), values.astype(dtype)


class _Described:
    """A feature folder as Arrow tables of one schema; two passes over it, none of which holds more than a shard."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shards = read_shards(folder)
        first = next(shards)
        kinds = set(map(type, first.ids))
        for part in shards:
            kinds.update(map(type, part.ids))
        self.ids_are_json = len(kinds) > 1
        self._with_columns = (folder / COLUMNS).exists()
        self._extra, self._as_json = self._columns(first) if self._with_columns else ([], [])
        self.schema = self._schema(first, int in kinds and not self.ids_are_json)

    def _schema(self, first: SparseFeatures, whole_ids: bool) -> Any:
        arrow = _arrow()
        values = arrow.from_numpy_dtype(first.values.dtype)
        fields = [
            ("id", arrow.int64() if whole_ids else arrow.string()),
            ("saerl_idx", arrow.list_(arrow.int32())),
            ("saerl_val", arrow.list_(values)),
            ("saerl_status", arrow.string()),
            ("saerl_n_tokens", arrow.int32()),
        ]
        if first.hidden is not None:
            fields.append(("saerl_hidden", arrow.list_(arrow.float32())))
        note = {
            "n_features": first.n_features,
            "provenance": dict(first.provenance),
            "values": str(first.values.dtype),
            "ids_are_json": self.ids_are_json,
            "json_columns": self._as_json,
        }
        return arrow.schema([*fields, *self._extra], metadata={METADATA: json.dumps(note).encode()})

    def _columns(self, first: SparseFeatures) -> tuple[list[Any], list[str]]:
        """Fields of the columns that came with the texts, and the names of those that must be JSON text."""
        arrow = _arrow()
        rows = iterate_columns(self.folder)
        found: dict[str, Any] = {}
        as_json: list[str] = []
        while chunk := list(islice(rows, ROWS_AT_ONCE)):
            for name in dict.fromkeys(name for row in chunk for name in row):
                if name in OURS[1:]:
                    raise InputError(f"{self.folder}: its texts came with a column {name!r}, which is a name of ours")
                try:
                    kind = arrow.array([row.get(name) for row in chunk]).type
                    both = [arrow.schema([(name, each)]) for each in (found.get(name, kind), kind)]
                    found[name] = arrow.unify_schemas(both, promote_options="permissive").field(0).type
                except (arrow.ArrowException, OverflowError):
                    as_json.append(name)
        found.pop("id", None)  # the id of a row is a column already
        fields = [
            arrow.field(name, arrow.string() if name in as_json or arrow.types.is_null(kind) else kind)
            for name, kind in {**dict.fromkeys(as_json, arrow.string()), **found}.items()
            if name != "id"
        ]
        return fields, sorted(set(as_json) - {"id"})

    def tables(self) -> Iterator[Any]:
        arrow = _arrow()
        rows = iterate_columns(self.folder) if self._with_columns else iter(())
        for part in read_shards(self.folder):
            bounds = part.indptr.astype(np.int32)
            arrays = {
                "id": [json.dumps(name) for name in part.ids] if self.ids_are_json else list(part.ids),
                "saerl_idx": arrow.ListArray.from_arrays(bounds, part.indices),
                "saerl_val": arrow.ListArray.from_arrays(bounds, part.values),
                "saerl_status": list(part.status),
                "saerl_n_tokens": part.n_tokens,
            }
            if part.hidden is not None:
                ends = np.arange(len(part) + 1, dtype=np.int32) * part.hidden.shape[1]
                arrays["saerl_hidden"] = arrow.ListArray.from_arrays(ends, part.hidden.reshape(-1))
            chunk = list(islice(rows, len(part)))
            for field in self._extra:
                column = [row.get(field.name) for row in chunk]
                as_json = field.name in self._as_json
                arrays[field.name] = [json.dumps(v) if as_json and v is not None else v for v in column]
            yield arrow.table(arrays, schema=self.schema)


def _refuse_taken(target: Path) -> None:
    if target.exists():
        raise InputError(f"{target} is there already; choose another name, or delete it")
    if not target.parent.is_dir():
        raise InputError(f"{target.parent} is no folder; make it first")
    check_place(target.parent)


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependency("parquet and datasets need pyarrow: pip install 'saerl-fast[rl]'") from error
    return pyarrow

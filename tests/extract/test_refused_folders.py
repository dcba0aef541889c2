"""Folders and tables that say what cannot be: signed again by whoever made them, and refused by name."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch

from saerl_fast.errors import (
    CorruptStoreError,
    FormatError,
    IncompleteStoreError,
    InputError,
    MissingDependency,
    SaerlError,
)
from saerl_fast.extract import tables
from saerl_fast.extract.inputs import to_json_lines
from saerl_fast.extract.inspect import quarantine, verify_store
from saerl_fast.extract.job import Job, Part, seal
from saerl_fast.extract.merge import merge_parts
from saerl_fast.extract.store import StoreWriter, iterate_columns, load_features, read_part, read_shard, read_split
from saerl_fast.features import SparseFeatures
from tests.extract.stores import content, go_on, job, rows
from tests.formats.limits import at_once

LINES = to_json_lines([{"level": row} for row in range(25)])


def signed(**changes):
    """A manifest with other settings, sealed as whoever made it could."""
    known = json.loads(job().seal())
    known.pop("sha256")
    return seal({**known, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "rows and shard_rows as positive whole numbers"),
        ({"rows": "25"}, "rows and shard_rows as positive whole numbers"),
        ({"shard_rows": True}, "rows and shard_rows as positive whole numbers"),
        ({"fingerprint": []}, "fingerprint and source as objects"),
        ({"source": None}, "fingerprint and source as objects"),
        ({"rows": 10**18, "shard_rows": 1}, "make 10{18} shards, more than 1000000; choose larger shards"),
    ],
)
def test_a_manifest_that_cannot_be(tmp_path, changes, message):
    (tmp_path / "shards").mkdir()
    (tmp_path / "manifest.json").write_bytes(signed(**changes))
    for read in (load_features, lambda folder: list(verify_store(folder)) and Job.load(folder)):
        with at_once(), pytest.raises(FormatError, match=message):
            read(tmp_path)


def test_what_lists_the_most_shards_there_can_be_takes_no_time(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "manifest.json").write_bytes(signed(rows=1_000_000, shard_rows=1, shards=1_000_000))
    with pytest.raises(IncompleteStoreError, match=r"1000000 of 1000000 shards are missing: 0 \(rows 0-0\), 1"):
        load_features(tmp_path)
    with pytest.raises(InputError, match="choose larger shards"):
        Job(1_000_001, 1, {}, {})


def test_no_shard_at_all_and_no_folder_at_all(tmp_path):
    go_on(tmp_path, job())
    for path in (tmp_path / "shards").iterdir():
        path.unlink()
    with pytest.raises(IncompleteStoreError, match="no shard is there yet"):
        load_features(tmp_path, allow_partial=True)
    for place in (tmp_path / "absent", tmp_path / "manifest.json"):
        with pytest.raises(FormatError, match="no such folder|it is a file"):
            Job.load(place)
    with pytest.raises(FormatError, match="no such folder"):
        quarantine(tmp_path / "absent")


def test_a_mark_that_is_missing_is_found_and_made_again(tmp_path):
    go_on(tmp_path, job())
    before = content(tmp_path)
    (tmp_path / "DONE").unlink()
    (finding,) = verify_store(tmp_path)
    assert (finding.path.name, finding.missing) == ("DONE", True)
    go_on(tmp_path, job())
    assert content(tmp_path) == before


def test_a_shard_with_more_rows_than_belong_to_it(tmp_path):
    made = job()
    with StoreWriter(tmp_path, made) as writer:
        writer.write(0, rows(0, 11), [(11, 7)])
    with pytest.raises(CorruptStoreError, match="11 rows where 10 belong"):
        read_shard(tmp_path, made, 0)


def test_a_share_that_is_none(tmp_path):
    for part in ({"index": "0", "of": 2}, {"index": 0}):
        (tmp_path / "part.json").write_bytes(seal(part))
        with pytest.raises(FormatError, match="index and of must be whole numbers"):
            read_part(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"shard": 1}, {"job": "other"}, {"batches": {}}, {"batches": [5]}, {"batches": [[10]]}, {"batches": [["a", "b"]]},
        {"batches": [[0, 7], [10, 7]]}, {"batches": [[-1, 7], [11, 7]]}, {"batches": [[10**30, 7]]},
        {"batches": [[True, 7]]},
    ],
)  # fmt: skip
def test_batches_that_cannot_be(tmp_path, changes):
    made = job()
    (tmp_path / "splits").mkdir()
    note = {"shard": 0, "job": made.digest, "batches": [[4, 7], [6, 7]]}
    (tmp_path / "splits" / "00000.json").write_bytes(seal(note))
    assert read_split(tmp_path, made, 0) == [[4, 7], [6, 7]]
    (tmp_path / "splits" / "00000.json").write_bytes(seal({**note, **changes}))
    with pytest.raises(CorruptStoreError, match="not the batches of shard 0 of this job"):
        read_split(tmp_path, made, 0)


def test_a_record_of_batches_is_kept_as_it_was_and_goes_along_with_its_shard(tmp_path):
    made = job()
    for index in range(2):
        with StoreWriter(tmp_path / f"part-{index}-of-2", made, Part(index, 2)) as writer:
            for shard in writer.shards:
                if shard == 1:
                    writer.write_split(shard, [(4, 7), (6, 7)])
                    writer.write_split(shard, [(5, 7), (5, 7)])  # an earlier run wrote it: that one counts
                span = made.span(shard)
                writer.write(shard, rows(span.start, span.stop), [])
            writer.finish()
    merge_parts(tmp_path)
    assert read_split(tmp_path, made, 1) == [[4, 7], [6, 7]]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b"{}\n" * 24 + b"{\n", "line 25: not JSON"),
        (b"[" * 50_000 + b"\n", "line 1: not JSON"),
        (b"{}\n[]\n", "line 2: a JSON object is wanted; got list"),
        (b"{}\n" * 24, "24 lines for 25 rows"),
    ],
    ids=["half", "deep", "list", "short"],
)
def test_columns_that_cannot_be(tmp_path, lines, message):
    go_on(tmp_path, job(columns=hashlib.sha256(lines).hexdigest()), columns=lines)
    assert message in "".join(finding.problem for finding in verify_store(tmp_path))


def test_columns_that_no_job_has_are_found(tmp_path):
    go_on(tmp_path, job())
    (tmp_path / "columns.jsonl").write_bytes(LINES)
    assert ["the job has no columns" in finding.problem for finding in verify_store(tmp_path)] == [True]


def test_columns_that_are_others_already_are_refused(tmp_path):
    made = job(columns=hashlib.sha256(LINES).hexdigest())
    with StoreWriter(tmp_path, made) as writer:
        writer.write_columns(LINES)
        (tmp_path / "columns.jsonl").write_bytes(LINES[:-2])
        with pytest.raises(CorruptStoreError, match=r"columns.jsonl: content does not match"):
            writer.write_columns(LINES)


@pytest.mark.parametrize("change", ["cut", "number"])
def test_columns_that_change_while_they_are_read_are_noticed(tmp_path, change):
    lines = to_json_lines([{"level": row, "text": "x" * 2000} for row in range(200)])  # more than Python reads ahead
    go_on(tmp_path, job(columns=hashlib.sha256(lines).hexdigest()), columns=lines)
    found = iterate_columns(tmp_path)
    assert next(found)["level"] == 0
    path = tmp_path / "columns.jsonl"
    with open(path, "r+b") as file:
        if change == "cut":
            file.truncate(len(lines) // 2 // 2000 * 2000)
        else:
            file.seek(lines.rindex(b'"level": 199') + 9)
            file.write(b"7")
    with pytest.raises(SaerlError, match="changed while it was read|not JSON"):
        list(found)


# ---- features in one file


def altered(tmp_path, note=None, **arrays):
    """The file of some rows, with arrays and its note exchanged."""
    from safetensors.torch import save

    whole = rows(0, 8)
    tensors = {name: value for name, value in {**whole.to_tensors(), **arrays}.items() if value is not None}
    text = json.dumps({**json.loads(whole.describe()), **(note or {})})
    (tmp_path / "f").write_bytes(save(tensors, metadata={"saerl_fast": text}))
    return tmp_path / "f"


def bytes_of(text):
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("note", "arrays", "message"),
    [
        ({"format_version": 9}, {}, "format version 9; this release reads 1"),
        ({"n_features": 50.0}, {}, "n_features must be a whole number"),
        ({"provenance": []}, {}, "provenance an object"),
        ({}, {"status": None}, "array status is missing"),
        ({}, {"n_tokens": torch.zeros(8, dtype=torch.int64)}, "array n_tokens is missing or not a vector of int32"),
        ({}, {"indptr": torch.zeros(1, 9, dtype=torch.int64)}, "array indptr is missing or not a vector of int64"),
        ({}, {"values": torch.zeros(15, dtype=torch.float64)}, "values must be float32 or float16"),
        ({}, {"hidden": torch.zeros(8, 2, dtype=torch.float16)}, "hidden states float32"),
        ({}, {"status": torch.full((8,), 77, dtype=torch.uint8)}, "unknown status code 77"),
        ({}, {"ids": bytes_of(b"[1, 2")}, "ids are not JSON"),
        ({}, {"ids": bytes_of(b"\xff\xfe")}, "ids are not JSON"),
        ({}, {"ids": bytes_of(b"[" * 50_000)}, "ids are not JSON"),
        ({}, {"ids": bytes_of(b'{"a": 1}')}, "ids must be a list of strings or whole numbers"),
        ({}, {"ids": bytes_of(b"[1, true, 3, 4, 5, 6, 7, 8]")}, "ids must be a list of strings or whole numbers"),
    ],
)
def test_features_that_cannot_be(tmp_path, note, arrays, message):
    with pytest.raises(FormatError, match=message):
        SparseFeatures.load(altered(tmp_path, note, **arrays))


def test_rows_that_hold_features():
    some = replace(rows(0, 6), status=("ok", "empty", "truncated", "invalid", "nonfinite", "windowed"))
    assert some.usable.tolist() == [True, False, True, False, False, True]


# ---- tables


@pytest.fixture
def table(tmp_path):
    pytest.importorskip("pyarrow")
    go_on(tmp_path / "f", job(8, 8))
    tables.export_parquet(tmp_path / "f", tmp_path / "t.parquet")
    import pyarrow.parquet

    return pyarrow.parquet.read_table(tmp_path / "t.parquet")


def described(table, **changes):
    return {**json.loads(table.schema.metadata[b"saerl_fast"]), **changes}


def column(table, name, values, kind=None):
    import pyarrow

    place = table.column_names.index(name)
    return table.set_column(place, name, pyarrow.array(values, kind))


def test_tables_that_cannot_be(table):
    import pyarrow

    lists = table["saerl_val"].to_pylist()
    whole = described(table)
    for changed, note, message in [
        (table, {**whole, "values": 5}, "values float32 or float16"),
        (table, {**whole, "values": ["float32"]}, "values float32 or float16"),
        (table, {**whole, "values": "float16"}, "saerl_val must hold float16; it holds float32"),
        (table, {**whole, "n_features": 10**30}, "n_features must be from 0 to"),
        (table.append_column("id", table["id"]), whole, r"columns \['id'\] are missing, or there twice"),
        (column(table, "id", [1.5] * 8), whole, "id must be string or large_string or int64"),
        (column(table, "id", ["x"] * 7 + [None]), whole, "id must be .* with none missing"),
        (column(table, "id", ["{"] * 8), {**whole, "ids_are_json": True}, "id is not JSON"),
        (column(table, "id", ["[" * 50_000] * 8), {**whole, "ids_are_json": True}, "id is not JSON"),
        (column(table, "id", ["true"] * 8), {**whole, "ids_are_json": True}, "ids must be strings or whole numbers"),
        (column(table, "saerl_status", [3] * 8), whole, "saerl_status must be string"),
        (column(table, "saerl_n_tokens", [2**40] * 8), whole, "saerl_n_tokens must be int32"),
        (
            column(table, "saerl_val", [*lists[1:], lists[0]], pyarrow.list_(pyarrow.float32())),
            whole,
            "different lengths",
        ),
        (column(table, "saerl_val", [None, *lists[1:]], pyarrow.list_(pyarrow.float32())), whole, "none missing"),
        (
            table.append_column(
                "saerl_hidden", pyarrow.array([[1.0]] * 7 + [[1.0, 2.0]], pyarrow.list_(pyarrow.float32()))
            ),
            whole,
            "saerl_hidden must have rows of one length",
        ),
    ]:
        with pytest.raises(SaerlError, match=message):
            tables.from_table(changed, note, "here")
    assert len(tables.from_table(table, whole, "here")) == 8
    assert len(tables.from_table(table[:0], whole, "here")) == 0
    hidden = table.append_column("saerl_hidden", pyarrow.array([[1.0, 2.0]] * 8, pyarrow.list_(pyarrow.float32())))
    assert tables.from_table(hidden, whole, "here").hidden.shape == (8, 2)


def test_a_damaged_row_group_is_named(table, tmp_path):
    path = tmp_path / "t.parquet"
    raw = bytearray(path.read_bytes())
    raw[4:400] = bytes(396)
    path.write_bytes(raw)
    with pytest.raises(FormatError, match="row group 0 is damaged"):
        list(tables.read_parquet(path))


def test_a_dataset_of_someone_else_is_refused(table):
    datasets = pytest.importorskip("datasets")
    with pytest.raises(FormatError, match="does not say what its features are"):
        list(tables.from_dataset(datasets.Dataset.from_dict({"id": ["a"]})))


def test_a_column_with_a_name_of_ours_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    lines = to_json_lines([{"saerl_idx": 1}] * 25)
    go_on(tmp_path / "f", job(columns=hashlib.sha256(lines).hexdigest()), columns=lines)
    with pytest.raises(InputError, match="came with a column 'saerl_idx', which is a name of ours"):
        tables.export_parquet(tmp_path / "f", tmp_path / "t.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_table_that_appears_meanwhile_is_left_alone(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    go_on(tmp_path / "f", job())
    real = tables.commit_file

    def late(temporary, target):
        target.write_bytes(b"another's")
        real(temporary, target)

    monkeypatch.setattr(tables, "commit_file", late)
    with pytest.raises(InputError, match="is there already"):
        tables.export_parquet(tmp_path / "f", tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").read_bytes() == b"another's"


@pytest.mark.parametrize("name", ["pyarrow", "datasets"])
def test_what_is_not_installed_is_named(tmp_path, monkeypatch, name):
    import builtins

    real = builtins.__import__

    def absent(wanted, *more):
        if wanted.split(".")[0] == name:
            raise ImportError(wanted)
        return real(wanted, *more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingDependency, match=r"pip install 'saerl-fast\[rl\]'"):
        (tables.export_parquet if name == "pyarrow" else tables.export_dataset)(tmp_path, tmp_path / "t")

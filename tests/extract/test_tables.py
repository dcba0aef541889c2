"""A folder as parquet and as a dataset, and back to the same arrays, a shard at a time."""

import hashlib
import os
import signal

import numpy as np
import pytest

pytest.importorskip("pyarrow")
import pyarrow
import pyarrow.parquet

from saerl_fast.cli import main
from saerl_fast.errors import FormatError, InputError, PlaceError
from saerl_fast.extract import tables
from saerl_fast.extract.inputs import to_json_lines
from saerl_fast.extract.store import StoreWriter, load_features
from saerl_fast.extract.tables import export_parquet, from_dataset, read_parquet
from saerl_fast.features import SparseFeatures
from tests.extract.stores import FINGERPRINT, go_on, job, same

COLUMNS = [
    {
        "id": f"row-{row}-ä\n",
        "level": row if row % 3 else None,
        "score": row / 4 if row > 12 else row,
        "mixed": row if row < 20 else "many",
        "tags": ["a", "b"][: row % 3],
        **({"late": "x"} if row == 24 else {}),
    }
    for row in range(25)
]


@pytest.fixture
def folder(tmp_path):
    lines = to_json_lines(COLUMNS)
    go_on(tmp_path / "f", job(columns=hashlib.sha256(lines).hexdigest()), columns=lines)
    return tmp_path / "f"


def test_parquet_and_back(folder, tmp_path, capsys):
    path = tmp_path / "rows.parquet"
    assert main(["export", str(folder), "--out", str(path)]) == 0
    assert "25 rows" in capsys.readouterr().out
    wanted = load_features(folder)
    parts = list(read_parquet(path))
    assert [len(part) for part in parts] == [10, 10, 5]  # row groups are shards
    found = SparseFeatures.concatenate(parts)
    assert same(found, wanted)
    assert (found.values.dtype, found.n_features, dict(found.provenance)) == (np.float32, 50, wanted.provenance)
    table = pyarrow.parquet.read_table(path)
    types = {field.name: str(field.type) for field in table.schema}
    assert types["saerl_idx"].startswith("list<")
    assert types["saerl_idx"].endswith("int32>")
    assert types["saerl_val"].endswith("float>")
    assert (types["id"], types["level"], types["score"], types["mixed"]) == ("string", "int64", "double", "string")
    assert table["level"].to_pylist() == [row["level"] for row in COLUMNS]
    assert table["tags"].to_pylist() == [row["tags"] for row in COLUMNS]
    assert table["mixed"].to_pylist() == [str(n) if n < 20 else '"many"' for n in range(25)]
    assert table["late"].to_pylist() == [None] * 24 + ["x"]
    with pytest.raises(InputError, match="is there already"):
        export_parquet(folder, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "rows.parquet"]


def test_a_dataset_and_back(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    assert main(["export", str(folder), "--out", str(tmp_path / "rows")]) == 0
    loaded = datasets.load_from_disk(str(tmp_path / "rows"))
    assert loaded.features["saerl_idx"].feature.dtype == "int32"
    assert loaded.features["saerl_val"].feature.dtype == "float32"
    assert same(SparseFeatures.concatenate(list(from_dataset(loaded, 7))), load_features(folder))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "rows"]


def test_half_precision_hidden_states_and_ids_of_both_kinds(tmp_path):
    generator = np.random.default_rng(0)
    made = job(6)
    wanted = SparseFeatures(
        indptr=np.array([0, 2, 2, 3, 5, 5, 6]),
        indices=np.array([1, 4, 0, 2, 3, 49], np.int32),
        values=generator.random(6).astype(np.float16),
        n_features=50,
        ids=("a", 1, "b", 2, "1", 3),
        status=("ok", "empty", "truncated", "ok", "invalid", "ok"),
        n_tokens=np.arange(6, dtype=np.int32),
        hidden=generator.random((6, 3)).astype(np.float32),
        provenance=FINGERPRINT,
    )
    with StoreWriter(tmp_path / "f", made) as store:
        store.write(0, wanted, [])
        store.finish()
    export_parquet(tmp_path / "f", tmp_path / "p.parquet")
    (found,) = read_parquet(tmp_path / "p.parquet")
    assert same(found, wanted)
    assert found.values.dtype == np.float16
    np.testing.assert_array_equal(found.hidden, wanted.hidden)


def test_other_tables_are_refused_by_name(folder, tmp_path):
    path = tmp_path / "rows.parquet"
    export_parquet(folder, path)
    table = pyarrow.parquet.read_table(path)
    bad = tmp_path / "bad.parquet"
    note = table.schema.metadata
    for change, message in [
        (table.replace_schema_metadata(None), "no saerl_fast entry"),
        (table.drop_columns(["saerl_val"]), "saerl_val"),
        (table.set_column(1, "saerl_idx", table["saerl_n_tokens"]), "a column of lists"),
        (table.set_column(2, "saerl_val", table["saerl_idx"]), "must hold float32; it holds int32"),
        (table.set_column(3, "saerl_status", table["id"]), "saerl_status must be one of"),
        (table.replace_schema_metadata({b"saerl_fast": b'{"n_features": "50"}'}), "n_features"),
    ]:
        pyarrow.parquet.write_table(change, bad)
        with pytest.raises(FormatError, match=message):
            list(read_parquet(bad))
    assert note is not None
    bad.write_bytes(b"PAR1 not")
    with pytest.raises(FormatError, match="cannot be read as parquet"):
        list(read_parquet(bad))


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.PARQUET"])
def test_a_name_of_another_format_is_refused(folder, tmp_path, capsys, name):
    assert main(["export", str(folder), "--out", str(tmp_path / name)]) == 2
    assert "must end in .parquet, or be a folder's name without a suffix" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["nowhere/rows.parquet", "nowhere/rows"])
def test_a_folder_that_is_not_there_is_named(folder, tmp_path, capsys, name):
    assert main(["export", str(folder), "--out", str(tmp_path / name)]) == 2
    assert f"{tmp_path / 'nowhere'} is no folder; make it first" in capsys.readouterr().err


@pytest.mark.parametrize("when", ["save_to_disk", "commit_folder"])
def test_a_dataset_is_there_whole_or_not_at_all(folder, tmp_path, when):
    """kill -9 while the table is written, and before it gets its name."""
    datasets = pytest.importorskip("datasets")
    child = os.fork()
    if not child:
        real = datasets.Dataset.save_to_disk

        def half(self, path):
            real(self.select(range(10)), path)
            os.kill(os.getpid(), signal.SIGKILL)

        def dying(*_):
            os.kill(os.getpid(), signal.SIGKILL)

        try:
            if when == "save_to_disk":
                datasets.Dataset.save_to_disk = half
            else:
                tables.commit_folder = dying
            tables.export_dataset(folder, tmp_path / "rows")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == ["f"]
    assert tables.export_dataset(folder, tmp_path / "rows") == 25
    assert len(datasets.load_from_disk(str(tmp_path / "rows"))) == 25


def test_a_dataset_takes_no_place_that_was_taken_meanwhile(folder, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    real = datasets.Dataset.save_to_disk

    def meanwhile(self, path):
        real(self, path)
        (tmp_path / "rows").mkdir()
        (tmp_path / "rows" / "mine").touch()

    monkeypatch.setattr(datasets.Dataset, "save_to_disk", meanwhile)
    with pytest.raises(PlaceError, match="is there already"):
        tables.export_dataset(folder, tmp_path / "rows")
    assert [p.name for p in (tmp_path / "rows").iterdir()] == ["mine"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "rows"]

"""Reads stream: the peak of memory is that of a shard, however many there are."""

import hashlib
import tracemalloc

import numpy as np
import pytest

from saerl_fast import DifficultyProxy, QualityProbe, StreamingKMeans, load_features, read_shards
from saerl_fast.extract import tables
from saerl_fast.extract.inputs import to_json_lines
from saerl_fast.extract.inspect import verify_store
from saerl_fast.extract.job import Part
from saerl_fast.extract.merge import merge_parts
from saerl_fast.extract.store import StoreWriter
from saerl_fast.features import SparseFeatures
from saerl_fast.steer import steer_shards
from tests.extract.stores import FINGERPRINT, job

ROWS, ENTRIES, WIDTH = 1024, 64, 512
SHARD = ROWS * ENTRIES * 8
"""Bytes of the entries of one shard: half a MiB."""
FEW, MANY = 5, 14


def shard(number):
    generator = np.random.default_rng(number)
    indices = np.sort(generator.permuted(np.tile(np.arange(WIDTH, dtype=np.int32), (ROWS, 1)), axis=1)[:, :ENTRIES])
    return SparseFeatures(
        indptr=np.arange(ROWS + 1, dtype=np.int64) * ENTRIES,
        indices=indices.reshape(-1),
        values=generator.random(ROWS * ENTRIES).astype(np.float32),
        n_features=WIDTH,
        ids=tuple(range(number * ROWS, (number + 1) * ROWS)),
        status=("ok",) * ROWS,
        n_tokens=np.full(ROWS, 9, np.int32),
        provenance=FINGERPRINT,
    )


def write(folder, shards):
    lines = to_json_lines([{"text": "x" * 400, "level": row} for row in range(shards * ROWS)])
    made = job(shards * ROWS, ROWS, columns=hashlib.sha256(lines).hexdigest())
    for part in (Part(0, 2), Part(1, 2)):
        with StoreWriter(folder / part.folder, made, part) as store:
            store.write_columns(lines)
            for number in store.shards:
                store.write(number, shard(number), [])
            store.finish()
    merge_parts(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("memory")
    for shards in (FEW, MANY):
        write(place / str(shards), shards)
    return place


@pytest.fixture(scope="module")
def fitted():
    first = shard(0)
    rows, labels = first.to_scipy(), first.values[first.indptr[:-1]]
    return (
        StreamingKMeans(4, random_state=0).fit(rows),
        DifficultyProxy(random_state=0).fit(rows, labels),
        QualityProbe(random_state=0).fit(rows, labels > np.median(labels)),
    )


def predict(folder, fitted):
    for rows in read_shards(folder):
        for model in fitted:
            model.predict(rows.to_scipy())


def learn(folder):
    model = StreamingKMeans(4, random_state=0)
    for rows in read_shards(folder):
        model.partial_fit(rows.to_scipy())


WORK = {
    "iterate": lambda folder, out, fitted: sum(map(len, read_shards(folder))),
    "verify": lambda folder, out, fitted: list(verify_store(folder)),
    "merge": lambda folder, out, fitted: merge_parts(out, [folder / "part-0-of-2", folder / "part-1-of-2"]),
    "predict": lambda folder, out, fitted: predict(folder, fitted),
    "partial_fit": lambda folder, out, fitted: learn(folder),
    "export": lambda folder, out, fitted: tables.export_parquet(folder, out.with_suffix(".parquet")),
    "read parquet": lambda folder, out, fitted: sum(map(len, tables.read_parquet(f"{folder}.parquet"))),
}


def peak(work, folder, out, fitted):
    tracemalloc.start()
    try:
        work(folder, out, fitted)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", WORK)
def test_more_shards_take_no_more_memory(folders, tmp_path, fitted, name):
    if "parquet" in name or name == "export":
        pytest.importorskip("pyarrow")
    if name == "read parquet":
        for shards in (FEW, MANY):
            tables.export_parquet(folders / str(shards), folders / f"{shards}.parquet")
    WORK[name](folders / str(FEW), tmp_path / "warm", fitted)  # what is imported and kept on first use
    few, many = (peak(WORK[name], folders / str(n), tmp_path / str(n), fitted) for n in (FEW, MANY))
    assert few > SHARD / 2 or name == "read parquet"
    assert many < few + SHARD / 8


def test_a_plan_is_made_of_shards(folders):
    """Ids, labels and predictions of all rows, and features of as many as are fitted on."""

    def plan(folder, shards, _):
        rows = shards * ROWS
        labels = [row % 7 if row % 9 == 0 else None for row in range(rows)]
        found = steer_shards(lambda: read_shards(folder), rows, n_clusters=4, difficulty=labels, fit_rows=500)
        assert len(found.difficulty) == rows

    few, many = (peak(plan, folders / str(n), n, None) for n in (FEW, MANY))
    assert many < few + (MANY - FEW) * SHARD / 5


def test_all_rows_at_once_would_be_seen(folders, tmp_path):
    few, many = (peak(lambda folder, *_: load_features(folder), folders / str(n), tmp_path, None) for n in (FEW, MANY))
    assert many > few + (MANY - FEW) * SHARD / 8


@pytest.mark.parametrize("write", ["export_parquet", "export_dataset"])
def test_arrow_holds_a_shard_too(folders, tmp_path, write):
    """Its memory is not Python's: the pool of Arrow tells."""
    pyarrow = pytest.importorskip("pyarrow")
    if write == "export_dataset":
        pytest.importorskip("datasets")
    held = {}
    usual = pyarrow.default_memory_pool()
    for shards in (FEW, MANY):
        pool = pyarrow.proxy_memory_pool(usual)
        pyarrow.set_memory_pool(pool)
        try:
            suffix = ".parquet" if write == "export_parquet" else ""
            getattr(tables, write)(folders / str(shards), tmp_path / f"{shards}{suffix}")
        finally:
            pyarrow.set_memory_pool(usual)
        held[shards] = pool.max_memory()
    assert held[FEW] > SHARD / 2
    assert held[MANY] < held[FEW] + SHARD / 8

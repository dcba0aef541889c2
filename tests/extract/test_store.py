"""The feature folder: whole or not at all, one job, one writer, no changed byte unnoticed."""

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from saerl_fast import durable
from saerl_fast.errors import (
    CorruptStoreError,
    DiskFullError,
    DtypeError,
    FormatError,
    IncompleteStoreError,
    JobMismatchError,
    SaerlError,
    StoreBusyError,
)
from saerl_fast.extract.inputs import to_json_lines
from saerl_fast.extract.store import StoreWriter, load_features, read_columns, read_shards
from saerl_fast.features import SparseFeatures
from tests.extract.stores import job, rows, same
from tests.extract.stores import rows as featurized


def fill(folder, shards=None):
    made = job()
    with StoreWriter(folder, made) as store:
        for shard in range(made.shards) if shards is None else shards:
            span = made.span(shard)
            store.write(shard, rows(span.start, span.stop), [(len(span), 7)])
        if shards is None:
            store.finish()
    return made


def test_what_is_written_is_read(tmp_path):
    fill(tmp_path / "f")
    wanted = SparseFeatures.concatenate([rows(0, 10), rows(10, 20), rows(20, 25)])
    assert same(load_features(tmp_path / "f"), wanted)
    assert sorted(p.name for p in (tmp_path / "f").iterdir()) == ["DONE", "LOCK", "manifest.json", "shards"]
    assert [len(part) for part in read_shards(tmp_path / "f")] == [10, 10, 5]


def test_a_missing_shard_is_named(tmp_path):
    fill(tmp_path, shards=[0, 2])
    with pytest.raises(IncompleteStoreError, match=r"1 of 3 shards are missing: 1 \(rows 10-19\)"):
        load_features(tmp_path)
    assert len(load_features(tmp_path, allow_partial=True)) == 15


def test_a_folder_of_another_job_is_refused_with_the_keys(tmp_path):
    fill(tmp_path)
    with (
        pytest.raises(JobMismatchError, match="pool: folder 'mean', this run 'max'"),
        StoreWriter(tmp_path, job(pool="max")),
    ):
        pass
    with pytest.raises(JobMismatchError, match="rows: folder 25, this run 26"), StoreWriter(tmp_path, job(26)):
        pass


def test_every_changed_byte_is_found(tmp_path):
    fill(tmp_path)
    path = tmp_path / "shards" / "00001.safetensors"
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for position in [*range(12), *generator.integers(0, len(content), 300).tolist(), len(content) - 1]:
        bad = bytearray(content)
        bad[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(bad))
        with pytest.raises(SaerlError):
            load_features(tmp_path)
    path.write_bytes(content)
    assert len(load_features(tmp_path)) == 25


def test_truncated_and_swapped_shards_are_found(tmp_path):
    fill(tmp_path)
    first, second = tmp_path / "shards" / "00000.safetensors", tmp_path / "shards" / "00001.safetensors"
    content = second.read_bytes()
    for length in range(0, len(content), 97):
        second.write_bytes(content[:length])
        with pytest.raises(SaerlError):
            load_features(tmp_path)
    second.write_bytes(first.read_bytes())
    with pytest.raises(CorruptStoreError, match="not shard 1"):
        load_features(tmp_path)


def test_half_a_surrogate_pair_in_a_header_is_refused_by_name(tmp_path):
    fill(tmp_path)
    path = tmp_path / "shards" / "00001.safetensors"
    content = path.read_bytes()
    assert content.count(b"[10, 7") == 1
    path.write_bytes(content.replace(b"[10, 7", rb"\ud83d"))
    with pytest.raises(SaerlError):
        load_features(tmp_path)


def test_a_shard_of_another_job_is_found(tmp_path):
    fill(tmp_path / "one")
    other = job(seed=1)
    with StoreWriter(tmp_path / "two", other) as store:
        store.write(0, rows(0, 10), [])
    os.replace(tmp_path / "two" / "shards" / "00000.safetensors", tmp_path / "one" / "shards" / "00000.safetensors")
    with pytest.raises(CorruptStoreError, match="not shard 0 of this job"):
        load_features(tmp_path / "one")


def test_a_committed_shard_is_never_replaced(tmp_path):
    made = fill(tmp_path, shards=[0])
    before = (tmp_path / "shards" / "00000.safetensors").read_bytes()
    with StoreWriter(tmp_path, made) as store, pytest.raises(StoreBusyError, match="by another process meanwhile"):
        store.write(0, rows(0, 10, seed=5), [])
    assert (tmp_path / "shards" / "00000.safetensors").read_bytes() == before
    assert not list((tmp_path / "shards").glob("*.tmp"))


def test_finishing_checks_every_shard(tmp_path):
    made = fill(tmp_path, shards=[0, 1, 2])
    path = tmp_path / "shards" / "00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with StoreWriter(tmp_path, made) as store, pytest.raises(CorruptStoreError):
        store.finish()
    assert not (tmp_path / "DONE").exists()


def _hold(folder, ready, release):
    with StoreWriter(folder, job()):
        ready.set()
        release.wait(30)


def test_a_second_writer_is_refused(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready, release))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(StoreBusyError, match=rf"pid {holder.pid} on "), StoreWriter(tmp_path, job()):
        pass
    release.set()
    holder.join(30)
    with StoreWriter(tmp_path, job()):
        pass


def test_a_full_disk_leaves_no_trace_of_the_shard(tmp_path, monkeypatch):
    made = fill(tmp_path, shards=[0])
    with StoreWriter(tmp_path, made) as store:
        monkeypatch.setattr(durable.os, "fsync", _no_space)
        with pytest.raises(DiskFullError, match=r"00001\.safetensors needs \d+ bytes"):
            store.write(1, rows(10, 20), [])
    monkeypatch.undo()
    assert sorted(p.name for p in (tmp_path / "shards").iterdir()) == ["00000.safetensors"]
    fill_rest = job()
    with StoreWriter(tmp_path, fill_rest) as store:
        for shard in (1, 2):
            span = fill_rest.span(shard)
            store.write(shard, rows(span.start, span.stop), [])
        store.finish()
    assert len(load_features(tmp_path)) == 25


def _no_space(_):
    raise OSError(28, "No space left on device")


def test_columns_are_kept_and_belong_to_the_job(tmp_path):
    rows = [{"subject": "Algebra", "level": 3}, {"subject": "a\nb \u2028", "level": None}]
    lines = to_json_lines(rows)
    made = job(2, columns=hashlib.sha256(lines).hexdigest())
    with StoreWriter(tmp_path, made) as store:
        store.write_columns(lines)
        store.write(0, featurized(0, 2), [])
    assert read_columns(tmp_path) == rows
    (tmp_path / "columns.jsonl").write_bytes(b"".join(reversed(lines.splitlines(keepends=True))))
    with pytest.raises(CorruptStoreError, match="SHA-256"):
        read_columns(tmp_path)
    with pytest.raises(FormatError, match="without columns"):
        read_columns(tmp_path / "shards")
    with pytest.raises(JobMismatchError, match="columns: "), StoreWriter(tmp_path, job(2, columns="other")):
        pass


def test_columns_that_json_lacks(tmp_path):
    import datetime

    lines = to_json_lines([{"day": datetime.date(2026, 1, 2), "raw": b"ab", "n": np.int64(3)}])
    assert json.loads(lines) == {"day": "2026-01-02", "raw": "YWI=", "n": 3}
    with pytest.raises(DtypeError, match="row 1, column 'bad': object"):
        to_json_lines([{}, {"bad": object()}])


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(FormatError, match=r"not a feature folder: manifest\.json is missing"):
        load_features(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(FormatError, match="format version 99"):
        load_features(tmp_path)


KILLED = """
import os, signal, sys
import saerl_fast
from saerl_fast.extract import store
from tests import tiny

write, left = store.StoreWriter.write, [int(sys.argv[2])]
def dying(self, *args):
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    write(self, *args)
store.StoreWriter.write = dying
saerl_fast.featurize(tiny.texts(40), tiny.causal_lm(), tiny.sae(), tokenizer=tiny.tokenizer(),
                     out=sys.argv[1], shard_rows=8, progress=False)
"""


def run_featurize(folder, writes):
    code = textwrap.dedent(KILLED)
    return subprocess.run([sys.executable, "-c", code, str(folder), str(writes)], capture_output=True, text=True)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path):
    assert run_featurize(tmp_path / "whole", 99).returncode == 0
    killed = run_featurize(tmp_path / "killed", 3)
    assert killed.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "killed" / "shards").iterdir())) == 3
    with pytest.raises(IncompleteStoreError):
        load_features(tmp_path / "killed")
    done = run_featurize(tmp_path / "killed", 2)  # two shards are left; a third write would kill it again
    assert done.returncode == 0, done.stderr
    for name in [*(f"shards/{n:05d}.safetensors" for n in range(5)), "DONE", "manifest.json"]:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    again = run_featurize(tmp_path / "killed", 0)  # a finished folder is only read
    assert again.returncode == 0

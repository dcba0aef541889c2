"""Out of memory: smaller batches, recorded and taken again; anything else passes untouched."""

import json
import math

import numpy as np
import pytest
import torch

import saerl_fast
from saerl_fast.errors import CorruptStoreError, DeviceMemoryError
from saerl_fast.extract import shard as shard_module
from saerl_fast.extract.backoff import cut_as_recorded, run_halving
from saerl_fast.extract.batching import group_by_length, pack_by_budget
from saerl_fast.extract.inspect import quarantine, recorded_splits
from saerl_fast.extract.job import Job
from saerl_fast.extract.store import read_split
from tests import tiny
from tests.extract.stores import content
from tests.nightly.sizes import daily_and_nightly


class Device:
    """Runs batches of at most ``room`` tokens; fails as torch does on a larger one."""

    def __init__(self, lengths, room, padded):
        self.lengths, self.room, self.padded = lengths, room, padded
        self.ran, self.failures, self.begins = [], [], []

    def run(self, groups):
        for rows in groups:
            sizes = [self.lengths[row] for row in rows.tolist()]
            if (max(sizes) * len(sizes) if self.padded else sum(sizes)) > self.room:
                self.failures.append(len(rows))
                self.begins.append(int(rows[0]))
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")
            self.ran.append(rows)


@daily_and_nightly("cases", 200, 1_000)
def test_no_row_is_lost_and_a_batch_is_tried_log2_times(cases, record_property):
    generator = np.random.default_rng(cases)
    for case in range(cases):
        padded = bool(case % 2)
        group = group_by_length if padded else pack_by_budget
        lengths = generator.integers(0, 40, int(generator.integers(1, 60))).tolist()
        budget = int(generator.integers(40, 600))
        device = Device(lengths, int(generator.integers(40, 700)), padded)
        groups = group(lengths, budget)
        split = run_halving(groups, lengths, group, device.run, lambda device=device: len(device.ran))
        done = np.concatenate([*device.ran, np.zeros(0, np.int64)])
        assert np.array_equal(np.sort(done), np.flatnonzero(lengths))
        assert split == bool(device.failures)
        for row in set(device.begins):
            sizes = [size for size, begin in zip(device.failures, device.begins, strict=True) if begin == row]
            assert len(sizes) <= math.log2(sizes[0])
        again = cut_as_recorded(group(lengths, budget), [(len(rows), 0) for rows in device.ran])
        assert [rows.tolist() for rows in again] == [rows.tolist() for rows in device.ran]
    record_property("cases", cases)


def test_a_text_that_never_fits_is_named_with_its_size():
    device = Device([30, 900, 20], 500, padded=True)
    with pytest.raises(DeviceMemoryError, match="single text of 900 tokens"):
        run_halving(group_by_length(device.lengths, 4096), device.lengths, group_by_length, device.run, lambda: 0)
    assert device.failures == [3, 1]


def test_a_record_of_other_rows_is_refused():
    with pytest.raises(CorruptStoreError, match="records .5. rows, the shard has 3"):
        cut_as_recorded([np.arange(3)], [(2, 7), (3, 7)])


@pytest.fixture
def call():
    return {
        "texts": tiny.texts(24),
        "model": tiny.causal_lm(),
        "sae": tiny.sae(),
        "tokenizer": tiny.tokenizer(),
        "tokens_per_batch": 200,
        "shard_rows": 12,
        "progress": False,
    }


def failing(monkeypatch, error, numbers):
    """The n-th batch of the run fails, for each n."""
    real, seen = shard_module._featurize_batch, [0]

    def sometimes(*arguments):
        seen[0] += 1
        if seen[0] in numbers:
            raise error
        return real(*arguments)

    monkeypatch.setattr(shard_module, "_featurize_batch", sometimes)


def test_the_split_is_recorded_and_taken_again(call, tmp_path, monkeypatch, caplog):
    whole = saerl_fast.featurize(**call)
    with monkeypatch.context() as patch:
        failing(patch, torch.OutOfMemoryError("CUDA out of memory"), {2, 3})
        split = saerl_fast.featurize(**call, out=tmp_path)
    np.testing.assert_array_equal(split.indptr, whole.indptr)
    np.testing.assert_allclose(split.values, whole.values, rtol=1e-4, atol=1e-6)
    assert "out of memory with" in caplog.text
    job = Job.load(tmp_path)
    assert recorded_splits(tmp_path, job) == [0]
    assert sum(rows for rows, _ in read_split(tmp_path, job, 0)) == 12
    before = content(tmp_path)
    for name in ("00000", "00001"):
        (tmp_path / "shards" / f"{name}.safetensors").write_bytes(b"")
    assert len(quarantine(tmp_path)) == 2
    saerl_fast.featurize(**call, out=tmp_path)  # nothing runs out of memory now, and still the batches are the same
    assert content(tmp_path) == before


def test_a_kill_between_the_record_and_its_shard_loses_nothing(call, tmp_path, monkeypatch):
    failing(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"), {1})
    saerl_fast.featurize(**call, out=tmp_path / "one")
    monkeypatch.undo()
    from saerl_fast.extract import run
    from saerl_fast.extract.store import StoreWriter

    failing(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"), {1})
    monkeypatch.setattr(run.StoreWriter, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        saerl_fast.featurize(**call, out=tmp_path / "two")
    monkeypatch.undo()
    assert StoreWriter is run.StoreWriter
    assert json.loads((tmp_path / "two" / "splits" / "00000.json").read_text())["shard"] == 0
    saerl_fast.featurize(**call, out=tmp_path / "two")
    assert content(tmp_path / "two") == content(tmp_path / "one")


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: out of memory, says another library"), MemoryError("host"), ValueError("x")]
)
def test_other_errors_pass_untouched(call, monkeypatch, error):
    failing(monkeypatch, error, {1})
    with pytest.raises(type(error)) as caught:
        saerl_fast.featurize(**call)
    assert caught.value is error
    assert all(not block._forward_hooks for block in call["model"].model.layers)

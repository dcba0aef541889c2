"""Whole shards through the CUDA backends, emulated: what they wait for, and what becomes of codes that find no room."""

import dataclasses
import functools
import logging

import numpy as np
import pytest
import torch

import saerl_fast
from saerl_fast import ops
from saerl_fast.errors import DeviceMemoryError
from saerl_fast.extract import learning, shard
from saerl_fast.extract.shard import Room, _featurize_batch
from saerl_fast.kernels import csr_capacity, kmeans_cuda, pool_cuda
from saerl_fast.ops import check, encode
from saerl_fast.ops.table import TABLE
from saerl_fast.sae import SAE
from saerl_fast.signals import StreamingKMeans, kmeans_stream
from tests import tiny
from tests.extract.test_one_wait import HostRead, free, no_host_reads
from tests.kernels import emulated, emulated_device

pytestmark = emulated.needed

KINDS = {
    "topk": {},
    "abstopk": {},
    "jumprelu": {},
    "standard": {},
    "gated": {},
    "one threshold": {"kind": "jumprelu", "threshold": torch.full((96,), 0.3)},
}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    return emulated_device.libraries(tmp_path_factory.mktemp("emulated"))


@pytest.fixture
def device(libraries, monkeypatch):
    """The CUDA backends run here, as if tensors lay on a GPU."""
    emulated_device.use(monkeypatch, libraries)
    monkeypatch.setattr("saerl_fast.extract.held.HELD_TOKENS", 0)
    monkeypatch.setattr("saerl_fast.extract.run.report_sanity", lambda *_: None)  # which decodes, and waits
    for op in ("topk_encode", "threshold_encode", "segment_pool"):
        monkeypatch.setitem(TABLE[op], "cuda", dataclasses.replace(TABLE[op]["cuda"], refuses=lambda _: None))


def sae_of(name):
    settings = {"metadata": {}, **KINDS[name]}
    return tiny.sae(settings.pop("kind", name), **settings)


def featurize(sae, texts=24, **settings):
    call = {"tokenizer": tiny.tokenizer(), "tokens_per_batch": 120, "packing": "on", "layer": 2, "progress": False}
    return saerl_fast.featurize(tiny.texts(texts, longest=20), tiny.causal_lm(), sae, **call | settings)


def assert_same(found, wanted):
    np.testing.assert_array_equal(found.indptr, wanted.indptr)
    np.testing.assert_array_equal(found.indices, wanted.indices)
    np.testing.assert_array_equal(found.values, wanted.values)


def close(found, wanted):
    np.testing.assert_array_equal(found.indices, wanted.indices)
    np.testing.assert_allclose(found.values, wanted.values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "pool"), [*((name, "mean") for name in KINDS), ("gated", "max"), ("standard", "last")]
)
def test_no_batch_reads_a_number_inside_of_our_operations_either(device, monkeypatch, name, pool):
    sae = sae_of(name)
    with ops.backend("reference"):
        wanted = featurize(sae, pool=pool)
    batches = []

    def guarded(*args):
        batches.append(args[0])
        with no_host_reads(monkeypatch):
            _featurize_batch(*args)

    monkeypatch.setattr(shard, "_featurize_batch", guarded)
    # offsets are the host's own, and of tensors on a GPU thresholds are not looked at
    monkeypatch.setattr(pool_cuda, "_plan", free(pool_cuda._plan))
    monkeypatch.setattr(check, "offsets", free(check.offsets))
    monkeypatch.setattr(encode, "_usual_least", lambda _: 0.0)
    with ops.backend("cuda"):
        found = featurize(sae, pool=pool)
    assert len(batches) > 2
    close(found, wanted)


def test_nor_does_what_is_learnt_from_its_rows(device, libraries, tmp_path_factory, monkeypatch):
    """The sums of clusters and all that is made of them; the Triton kernels are interpreted, and read what they like."""
    kmeans_triton = pytest.importorskip("saerl_fast.kernels.kmeans_triton")
    settings, sae = {"n_clusters": 3, "random_state": 0, "reassignment_ratio": 0.9}, sae_of("jumprelu")
    with ops.backend("reference"):
        rows = featurize(sae).to_scipy()
        wanted, learnt = (StreamingKMeans(**settings).fit(rows) for _ in range(2))
    sums = emulated.compiled("cluster_sums", tmp_path_factory.mktemp("sums"))
    emulated_device.use(monkeypatch, {**libraries, "cluster_sums": sums})
    monkeypatch.setattr(kmeans_cuda, "queue_of", lambda _: (0, 0))
    monkeypatch.setattr(kmeans_cuda, "shared_bytes", lambda _: 2**16)
    monkeypatch.setitem(
        TABLE["kmeans_update"],
        "cuda",
        dataclasses.replace(TABLE["kmeans_update"]["cuda"], refuses=lambda _: None),
    )
    for name, backend in (("kmeans_assign_queued", "triton"), ("kmeans_update_queued", "cuda")):
        monkeypatch.setattr(kmeans_stream, name, functools.partial(getattr(ops, name), backend=backend))
    for module, name in ((kmeans_triton, "exact_nearest"), (kmeans_stream, "_centroids"), (kmeans_stream, "_total")):
        monkeypatch.setattr(module, name, free(getattr(module, name)))
    monkeypatch.setattr(kmeans_stream, "WINDOW", 4)
    fed, feed = [], learning.feed

    def guarded(learn, features, entries, where):
        fed.append(entries is not None)
        with no_host_reads(monkeypatch):
            feed(learn, features, entries, where)

    monkeypatch.setattr("saerl_fast.featurizer.feed", guarded)
    with ops.backend("cuda"):
        features = featurize(sae, shard_rows=8, kmeans=learnt)
    assert fed == [True] * 3
    for start in (0, 8, 16):
        wanted.partial_fit(features[start : start + 8].to_scipy())
    for name in ("cluster_centers_", "counts_", "labels_", "inertia_history_"):
        np.testing.assert_array_equal(getattr(learnt, name), getattr(wanted, name))


def test_waiting_for_the_number_of_entries_is_seen(device, monkeypatch):
    """What the operation did before it had a form that does not wait."""
    monkeypatch.setattr(shard, "_featurize_batch", lambda *args: guard_and_run(monkeypatch, *args))
    monkeypatch.setattr(encode, "_usual_least", lambda _: 0.0)
    monkeypatch.setattr(SAE, "encode_spaced", lambda sae, x, rows, _: sae.encode(x, rows))
    with ops.backend("cuda"), pytest.raises(HostRead):
        featurize(sae_of("standard"))


def guard_and_run(monkeypatch, *args):
    with no_host_reads(monkeypatch):
        _featurize_batch(*args)


def redone(monkeypatch):
    """The tokens of each batch that runs again."""
    tokens, with_room = [], shard._with_room
    monkeypatch.setattr(
        shard, "_with_room", lambda batch, *rest: tokens.append(len(batch.kept)) or with_room(batch, *rest)
    )
    return tokens


@pytest.mark.parametrize("name", ["jumprelu", "standard", "gated"])
def test_codes_that_find_no_room_are_made_again_and_nothing_is_cut(device, monkeypatch, caplog, name):
    sae = sae_of(name)
    with ops.backend("cuda"):
        wanted = featurize(sae, keep_hidden=True, shard_rows=12, tokens_per_batch=60)
        tokens, rooms, spaced = redone(monkeypatch), [], csr_capacity.spaced
        monkeypatch.setattr(csr_capacity, "spaced", lambda work, room: rooms.append(room) or spaced(work, room))
        monkeypatch.setattr(Room, "__init__", lambda self: setattr(self, "entries_per_row", 4))
        with caplog.at_level(logging.WARNING):
            found = featurize(sae, keep_hidden=True, shard_rows=12, tokens_per_batch=60)
    assert_same(found, wanted)
    np.testing.assert_allclose(found.hidden, wanted.hidden, rtol=1e-5, atol=1e-6)
    # every batch of the first shard ran twice; the next shard had room from the start
    assert len(tokens) == rooms.index(8) - 1 > 1
    assert rooms == sorted(rooms)
    assert sum("ran twice" in record.message for record in caplog.records) == 1


def test_only_the_batch_that_needs_it_runs_again(device, monkeypatch):
    sae = sae_of("standard")
    with ops.backend("cuda"):
        wanted = featurize(sae)
        tokens, calls, spaced = redone(monkeypatch), [], csr_capacity.spaced

        def scarce(work, entries_per_row):
            calls.append(work.n_rows)
            return spaced(work, 5 if len(calls) == 2 else entries_per_row)

        monkeypatch.setattr(csr_capacity, "spaced", scarce)
        found = featurize(sae)
    assert len(calls) > 3
    assert tokens == [calls[1]] == calls[-1:]
    assert_same(found, wanted)


def test_no_memory_for_the_second_pass_is_said_so(device, monkeypatch):
    calls, spaced = [], csr_capacity.spaced

    def full(work, entries_per_row):
        calls.append(work)
        if entries_per_row > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return spaced(work, entries_per_row)

    monkeypatch.setattr(Room, "__init__", lambda self: setattr(self, "entries_per_row", 1))
    monkeypatch.setattr(csr_capacity, "spaced", full)
    with ops.backend("cuda"), pytest.raises(DeviceMemoryError, match="Lower tokens_per_batch"):
        featurize(sae_of("standard"))

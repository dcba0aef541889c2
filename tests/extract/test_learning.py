"""featurize(kmeans=...): what is learnt from rows on their device is what partial_fit learns from them on the host."""

import functools

import numpy as np
import pytest
import torch

import saerl_fast
from saerl_fast import StreamingKMeans, ops, read_shards
from saerl_fast.errors import DeviceMemoryError, InputError
from saerl_fast.extract import learning, shard
from saerl_fast.signals import kmeans_stream, tensor_rows
from saerl_fast.signals.kmeans_stream import KMeansStream
from tests import tiny
from tests.extract.test_one_wait import free, no_host_reads

TEXTS = [*tiny.texts(20), "", "\ud800", *tiny.texts(9, seed=3), "", *tiny.texts(12, seed=4, longest=60)]
STATE = ("means_", "cluster_centers_", "counts_", "recent_counts_", "labels_", "inertia_history_", "inertia_")
PLAIN = ("n_batches_", "n_iter_", "seed_", "n_features_in_")


model_of, tokenizer_of = functools.cache(tiny.causal_lm), functools.cache(tiny.tokenizer)


def featurize(texts=TEXTS, sae=None, model=None, **settings):
    call = {"tokenizer": tokenizer_of(), "layer": 0, "shard_rows": 12, "tokens_per_batch": 120, "progress": False}
    return saerl_fast.featurize(
        texts, model or model_of(), sae or tiny.sae(metadata={}), **{**call, "max_length": 40, **settings}
    )


def kmeans(**settings):
    return StreamingKMeans(**{"n_clusters": 4, "random_state": 3, **settings})


def fed_by_hand(features, shard_rows=12, **settings):
    """Rows on the host, a shard at a time."""
    made = kmeans(**settings)
    for start in range(0, len(features), shard_rows):
        rows = features[start : start + shard_rows]
        if rows.usable.any():
            made.partial_fit(rows.to_scipy()[rows.usable])
    return made


def assert_same(found, wanted):
    for name in STATE:
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), name)
        assert np.asarray(getattr(found, name)).dtype == np.asarray(getattr(wanted, name)).dtype
    assert [getattr(found, name) for name in PLAIN] == [getattr(wanted, name) for name in PLAIN]


@pytest.fixture
def uploaded(monkeypatch):
    """How many shards were fed from the host."""
    count, upload = [], learning._uploaded
    monkeypatch.setattr(learning, "_uploaded", lambda *given: count.append(1) or upload(*given))
    return count


@pytest.mark.parametrize(
    ("packing", "metric", "transform"),
    [("off", "cosine", "none"), ("on", "cosine", "sqrt"), ("off", "euclidean", "log1p"), ("on", "euclidean", "none")],
)
def test_the_same_bits_as_by_hand(uploaded, monkeypatch, packing, metric, transform):
    """Rows cut, empty and invalid among them; batches in another order than the rows; small clusters restarted."""
    monkeypatch.setattr(kmeans_stream, "WINDOW", 5)
    settings = {"metric": metric, "value_transform": transform, "reassignment_ratio": 0.9}
    learnt, looks, look = kmeans(**settings), [], KMeansStream._restart_small
    monkeypatch.setattr(KMeansStream, "_restart_small", lambda *given: looks.append(1) or look(*given))
    features = featurize(packing=packing, kmeans=learnt)
    assert {"ok", "empty", "invalid", "truncated"} == set(features.status)
    assert looks
    assert_same(learnt, fed_by_hand(features, **settings))
    assert learnt.counts_.sum() <= features.usable.sum()
    assert not uploaded


@pytest.mark.parametrize("kind", ["jumprelu", "standard", "gated"])
def test_rows_with_any_number_of_features(uploaded, kind):
    sae, learnt = tiny.sae(kind, metadata={}), kmeans()
    features = featurize(sae=sae, kmeans=learnt)
    assert_same(learnt, fed_by_hand(features))
    assert not uploaded


def test_windows_are_merged_first(uploaded):
    learnt = kmeans()
    features = featurize(long_texts="window", max_length=20, kmeans=learnt)
    assert "windowed" in features.status
    assert_same(learnt, fed_by_hand(features))
    assert uploaded


def test_rows_marked_nonfinite_are_left_out(uploaded, monkeypatch):
    """One infinite activation in the second batch of the run."""
    calls, encode = [], saerl_fast.SAE.encode_spaced

    def spoilt(sae, x, rows, room):
        calls.append(1)
        codes = encode(sae, x, rows, room)
        if len(calls) == 2:
            codes.values[0] = torch.inf
        return codes

    monkeypatch.setattr(saerl_fast.SAE, "encode_spaced", spoilt)
    learnt = kmeans()
    features = featurize(on_nonfinite="mark", pool="max", kmeans=learnt)
    assert features.status.count("nonfinite") == 1
    assert_same(learnt, fed_by_hand(features))
    assert len(uploaded) == 1


def test_a_shard_without_usable_rows_is_passed_over():
    learnt = kmeans()
    features = featurize([*tiny.texts(12), *[""] * 12, *tiny.texts(12, seed=5)], kmeans=learnt)
    assert learnt.n_batches_ == 2
    assert_same(learnt, fed_by_hand(features))


def test_a_fitted_one_goes_on(tmp_path):
    features = featurize()
    learnt = fed_by_hand(features)
    learnt.save(tmp_path)
    featurize(kmeans=learnt)
    wanted = StreamingKMeans.load(tmp_path)
    for start in range(0, len(features), 12):
        rows = features[start : start + 12]
        wanted.partial_fit(rows.to_scipy()[rows.usable])
    np.testing.assert_array_equal(learnt.cluster_centers_, wanted.cluster_centers_)
    np.testing.assert_array_equal(learnt.counts_, wanted.counts_)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_run_that_was_stopped_and_goes_on(tmp_path, uploaded, stop_after):
    """The same object: what raised left it as it was. Shards read back are learnt from too, and before the others."""
    done, learnt = [], kmeans()

    def stop(rows):
        done.append(len(rows))
        if len(done) == stop_after:
            raise Stopped

    with pytest.raises(Stopped):
        featurize(out=tmp_path, kmeans=learnt, each_shard=stop)
    assert not hasattr(learnt, "cluster_centers_")
    assert not uploaded
    features = featurize(out=tmp_path, kmeans=learnt)
    assert len(uploaded) == stop_after
    assert_same(learnt, fed_by_hand(features))


def test_a_finished_folder_and_the_shares_of_a_job(tmp_path):
    features = featurize(out=tmp_path / "whole")
    again = kmeans()
    featurize(out=tmp_path / "whole", kmeans=again)
    assert_same(again, fed_by_hand(features))
    shares = kmeans()
    for i in range(2):
        featurize(out=tmp_path / "shares", part=(i, 2), kmeans=shares)
    wanted = kmeans()
    parts = list(read_shards(tmp_path / "whole"))
    for rows in [*parts[::2], *parts[1::2]]:
        wanted.partial_fit(rows.to_scipy()[rows.usable])
    assert_same(shares, wanted)


def test_a_finished_folder_without_a_model(tmp_path, monkeypatch):
    model_of().save_pretrained(tmp_path / "model")
    tokenizer_of().save_pretrained(tmp_path / "model")
    call = {"model": str(tmp_path / "model"), "tokenizer": None, "out": tmp_path / "out", "device": "cpu"}
    features = featurize(**call)
    monkeypatch.setattr("saerl_fast.featurizer.make_reader", None)
    learnt = kmeans()
    featurize(**call, kmeans=learnt)
    assert_same(learnt, fed_by_hand(features))


def test_what_is_refused(tmp_path):
    with pytest.raises(InputError, match="n_clusters=13 needs at least that many rows; got n_samples=12"):
        featurize(out=tmp_path, kmeans=kmeans(n_clusters=13))
    assert len(list((tmp_path / "shards").iterdir())) == 1  # what was computed is kept
    narrow = kmeans().fit(np.eye(9, dtype=np.float32))
    with pytest.raises(InputError, match="X has 96 features, but StreamingKMeans is expecting 9"):
        featurize(kmeans=narrow)
    assert narrow.n_features_in_ == 9
    with pytest.raises(saerl_fast.errors.DtypeError, match="kmeans must be a StreamingKMeans"):
        featurize(kmeans=StreamingKMeans)


def test_no_memory_to_learn_is_said_so(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("saerl_fast.signals.kmeans_stream.kmeans_update_queued", full)
    with pytest.raises(DeviceMemoryError, match="learnt from 12 rows of 96 features"):
        featurize(tiny.texts(12), kmeans=kmeans())


def guard(monkeypatch):
    """Every batch, and all that is learnt but for the seeds, under the guard; our operations may read on a CPU, and
    so may what numpy does there in place of torch."""
    for name in ("topk_encode", "segment_pool_spaced"):
        monkeypatch.setattr(ops, name, free(getattr(ops, name)))
    for name in ("kmeans_assign_queued", "kmeans_update_queued", "_centroids", "_total"):
        monkeypatch.setattr(kmeans_stream, name, free(getattr(kmeans_stream, name)))
    monkeypatch.setattr(tensor_rows, "_transformed", free(tensor_rows._transformed))
    fed, batch, feed = [], shard._featurize_batch, learning.feed

    def guarded(*args):
        with no_host_reads(monkeypatch):
            batch(*args)

    def guarded_feed(learn, *rest):
        fed.append(rest[1] is not None)
        if len(fed) == 1:
            return feed(learn, *rest)
        with no_host_reads(monkeypatch):
            return feed(learn, *rest)

    monkeypatch.setattr(shard, "_featurize_batch", guarded)
    monkeypatch.setattr("saerl_fast.featurizer.feed", guarded_feed)
    return fed


@pytest.mark.gpu
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_on_a_device_nothing_waits_for_what_is_learnt(monkeypatch, metric):
    """torch itself raises at whatever waits, once the first shard has seeded the clusters."""
    fed, feed = [], learning.feed

    def guarded(learn, *rest):
        fed.append(rest[1] is not None)
        torch.cuda.set_sync_debug_mode("error" if len(fed) > 1 else "default")
        try:
            feed(learn, *rest)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr("saerl_fast.featurizer.feed", guarded)
    monkeypatch.setattr(kmeans_stream, "WINDOW", 5)
    model, settings = tiny.causal_lm().to("cuda", torch.bfloat16), {"metric": metric, "reassignment_ratio": 0.9}
    learnt, wanted = kmeans(**settings), kmeans(**settings)
    features = featurize(model=model, kmeans=learnt)
    assert fed == [True] * 4
    for start in range(0, len(features), 12):
        rows = features[start : start + 12]
        wanted.partial_fit(rows[rows.usable].to_torch().to("cuda"))
    assert_same(learnt, wanted)


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_nothing_is_read_between_the_pooled_rows_and_the_next_shard(monkeypatch, tmp_path, metric, resumed):
    """Neither for rows on the device nor for those uploaded; nor where clusters start anew."""
    settings = {"metric": metric, "value_transform": "sqrt", "reassignment_ratio": 0.9, "decay": 0.9}
    monkeypatch.setattr(kmeans_stream, "WINDOW", 5)
    folder = {"out": tmp_path} if resumed else {}
    wanted, learnt = fed_by_hand(featurize(packing="on", **folder), **settings), kmeans(**settings)
    fed = guard(monkeypatch)
    featurize(packing="on", kmeans=learnt, **folder)
    assert fed == [not resumed] * 4
    assert_same(learnt, wanted)

"""Featurize with a backend that was asked for: which operations it reaches, and which folders go on with it."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch

import saerl_fast
from saerl_fast import ops
from saerl_fast.errors import BackendUnavailable, JobMismatchError
from saerl_fast.extract.job import Job
from saerl_fast.formats import save_sae
from saerl_fast.kernels import triton_runtime
from saerl_fast.ops.table import TABLE
from tests import tiny
from tests.kernels.hard_rows import by_sorting

pytestmark = pytest.mark.filterwarnings("ignore::saerl_fast.errors.MismatchWarning")
TEXTS = tiny.texts(9)
PIPELINE = ("topk_encode", "threshold_encode", "segment_pool")


def featurize(sae=None, model=None, texts=TEXTS, **settings):
    call = {"tokenizer": tiny.tokenizer(), "layer": 1, "shard_rows": 3, "progress": False}
    return saerl_fast.featurize(texts, model or tiny.causal_lm(), sae or tiny.sae(), **call | settings)


def wishing(wish):
    """A block for None, the name of a backend, or backends by operation."""
    if wish is None:
        return contextlib.nullcontext()
    return ops.backend(**wish) if isinstance(wish, dict) else ops.backend(wish)


@pytest.fixture
def ran(monkeypatch):
    """(operation, backend) of every body that ran."""
    found = set()

    def noting(op, name, run):
        return lambda *arguments: found.add((op, name)) or run(*arguments)

    for op in PIPELINE:
        for name, body in TABLE[op].items():
            monkeypatch.setitem(TABLE[op], name, dataclasses.replace(body, run=noting(op, name, body.run)))
    return found


@pytest.mark.parametrize(("kind", "encode"), [("topk", "topk_encode"), ("jumprelu", "threshold_encode")])
def test_a_wish_reaches_the_encode_alone(ran, kind, encode):
    features = featurize(tiny.sae(kind))
    pool = {entry for entry in ran if entry[0] == "segment_pool"}
    assert len(pool) == 1
    for name in ("reference", "cpu"):
        if name not in TABLE[encode] or (name == "cpu" and pool == {("segment_pool", "reference")}):
            continue  # nothing is compiled here
        ran.clear()
        with ops.backend(**{encode: name}):
            wished = featurize(tiny.sae(kind))
        assert ran == {(encode, name), *pool}
        np.testing.assert_array_equal(wished.indices, features.indices)
        np.testing.assert_allclose(wished.values, features.values, rtol=1e-4, atol=1e-5)


def test_a_wish_for_the_pool_reaches_the_pool_alone(ran):
    featurize()
    encode = {entry for entry in ran if entry[0] == "topk_encode"}
    ran.clear()
    with ops.backend(segment_pool="reference"):
        featurize()
    assert ran == {("segment_pool", "reference"), *encode}


def test_one_that_cannot_run_is_refused():
    with ops.backend(topk_encode="cuda"), pytest.raises(BackendUnavailable, match="topk_encode: 'cuda' was asked for"):
        featurize()


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_the_exact_encode_of_a_gpu_runs_where_only_the_encode_has_it(ran, monkeypatch):
    """Its kernels are interpreted, but for the select, which takes half a second a row."""
    if reason := triton_runtime.refuses("cpu"):
        pytest.skip(reason)
    from saerl_fast.kernels import topk_bf16

    def select(chunks, k, relu):
        parts = [by_sorting(scores, k) for _, scores, _ in chunks]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    monkeypatch.setattr(topk_bf16, "select", select)
    texts = tiny.texts(2, longest=4)
    before = ops.screening_counts()
    with ops.backend(topk_encode="triton_bf16"):
        found = featurize(texts=texts)
    assert ops.screening_counts().rows > before.rows
    assert ("topk_encode", "triton_bf16") in ran
    assert len(ran) == 2
    with ops.backend(topk_encode="reference"):
        wanted = featurize(texts=texts)
    np.testing.assert_array_equal(found.indptr, wanted.indptr)
    np.testing.assert_array_equal(found.indices, wanted.indices)
    np.testing.assert_allclose(found.values, wanted.values, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """As a folder: a finished run of it is found by its words, without loading it."""
    folder = tmp_path_factory.mktemp("model")
    tiny.causal_lm().save_pretrained(folder)
    save_sae(tiny.sae(), folder / "sae")
    return folder


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("first", "then", "differs"),
    [
        ({"topk_encode": "reference"}, None, "topk_encode_backend: folder 'reference', this run None"),
        (None, {"topk_encode": "reference"}, "topk_encode_backend: folder None, this run 'reference'"),
        ("reference", {"topk_encode": "reference"}, "segment_pool_backend: folder 'reference', this run None"),
        ("reference", None, "topk_encode_backend: folder 'reference'"),
    ],
)
def test_a_folder_does_not_go_on_with_another_wish(model, tmp_path, first, then, differs, finished):
    with wishing(first):
        featurize(model / "sae", model, out=tmp_path / "out")
    if not finished:
        halve(tmp_path / "out")
    with wishing(then), pytest.raises(JobMismatchError, match=differs):
        featurize(model / "sae", model, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"topk_encode": "reference"}, {"topk_encode": "reference"}),
        ("reference", {"topk_encode": "reference", "segment_pool": "reference"}),
        (None, {"decode": "reference", "threshold_encode": "reference", "topk_encode_certified": "reference"}),
    ],
)
def test_a_folder_goes_on_with_the_same_wish_for_what_makes_it(model, tmp_path, first, then):
    with wishing(first):
        whole = featurize(model / "sae", model, out=tmp_path / "out")
    halve(tmp_path / "out")
    with wishing(then):
        again = featurize(model / "sae", model, out=tmp_path / "out")
    np.testing.assert_array_equal(again.values, whole.values)


def test_left_open_no_backend_is_part_of_the_job(model, tmp_path):
    featurize(model / "sae", model, out=tmp_path / "out")
    assert not [key for key in Job.load(tmp_path / "out").fingerprint if "backend" in key]


def halve(out):
    """As a kill before the last shard leaves it."""
    (out / "DONE").unlink()
    sorted((out / "shards").iterdir())[-1].unlink()

"""The proof of a whole fit sees each way of being wrong; real features are run where a folder is given."""

import numpy as np
import pytest
import torch

from saerl_fast.bench import kmeans_fit as bench
from saerl_fast.bench.suite import EFFORT, ROWS, Real, run_row

TINY = {"rows": 400, "latents": 200, "density": 0.2}


@pytest.fixture(scope="module")
def rows():
    return bench.projected(bench.features_of(**TINY), 8)


@pytest.fixture
def found(rows):
    return bench.fitted(rows, 20, seed=0)


def test_a_true_result_passes(found, rows):
    verdict = bench.judged(found, rows, 20)
    assert verdict.failure is None
    assert verdict.facts["quality"] >= bench.LEAST_QUALITY


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        (lambda f: f._replace(labels=(f.labels + 1) % 20), "rows are not with their nearest centroid"),
        (lambda f: f._replace(centroids=f.centroids * 1.02), "the inertia is"),
        (lambda f: f._replace(inertia=f.inertia * 1.001), "the inertia is"),
        (lambda f: f._replace(rows=f.rows * 1.001), "not those of the same projection"),
    ],
    ids=["labels", "centroids", "inertia", "rows"],
)
def test_a_wrong_result_is_seen(found, rows, change, failure):
    assert failure in bench.judged(change(found), rows, 20).failure


def test_a_poor_fit_is_seen(found, rows, monkeypatch):
    poor = found._replace(labels=torch.from_numpy(np.arange(400, dtype=np.int32) % 20))
    monkeypatch.setattr(bench, "fitted", lambda rows, clusters, seed: poor)
    assert "the quality is" in bench.judged(found, rows, 20).failure


def test_a_projection_that_loses_topics_is_seen():
    features = bench.features_of(**TINY)
    verdict = bench.judged_in_full(bench.fitted(good := bench.projected(features, 8), 20, 0), good, 20, features)
    assert verdict.facts["quality_of_sample"] >= bench.LEAST_QUALITY
    # twelve rows say little of twenty topics, and the clusters of what they say are as good as scikit-learn's
    poor = bench.projected(features, 8, max_rows=12)
    found = bench.fitted(poor, 20, seed=0)
    assert bench.judged(found, poor, 20).failure is None
    assert "in the space of all rows" in bench.judged_in_full(found, poor, 20, features).failure


def test_inertia_by_hand():
    rows = np.array([[0, 0], [0, 2], [10, 0]], dtype=np.float32)
    assert bench.inertia(rows, np.array([0, 0, 1])) == 2


def test_real_features_are_run_besides():
    fit = ROWS["kmeans_fit"]
    assert fit.shapes("tiny", Real("somewhere")) == fit.tiny + tuple(s | {"features": "somewhere"} for s in fit.real)
    assert ROWS["pool"].shapes("tiny", Real("somewhere")) == ROWS["pool"].tiny


def test_the_fit_is_timed_over_its_seeds(monkeypatch):
    seeds = []
    fitted = bench.fitted
    monkeypatch.setattr(bench, "fitted", lambda r, k, seed: (seeds.append(seed), fitted(r, k, seed))[1])
    result = run_row("kmeans_fit", ROWS["kmeans_fit"].tiny[0], EFFORT["tiny"], threads=1)
    assert result["exact"] is True
    assert set(seeds) == set(range(bench.SEEDS))

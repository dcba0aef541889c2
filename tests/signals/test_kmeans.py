"""StreamingKMeans: values worked by hand, promises of the iteration, and what it refuses."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import normalize

from saerl_fast.errors import InputError
from saerl_fast.signals import StreamingKMeans
from saerl_fast.signals.cluster_rows import ClusterRows, cluster_rows
from saerl_fast.signals.lloyd import lloyd
from saerl_fast.signals.seeding import seed_centroids
from tests.signals import planted

METRICS = ["cosine", "euclidean"]


def exact_inertia(rows, labels, metric):
    """In float64, with the best centroids for these labels."""
    dense = rows.toarray() if sparse.issparse(rows) else rows
    dense = normalize(dense.astype(np.float64)) if metric == "cosine" else dense.astype(np.float64)
    total = 0.0
    for label in np.unique(labels):
        part = dense[labels == label]
        if metric == "cosine":
            total += len(part) - np.linalg.norm(part.sum(axis=0))
        else:
            total += np.square(part - part.mean(axis=0)).sum()
    return total


def run(rows, seeds, metric="euclidean", max_iter=100, tol=0.0, transform="none"):
    """Lloyd's iteration from given seeds."""
    prepared = cluster_rows(rows, metric, transform)
    rng = np.random.default_rng(0)
    return lloyd(prepared, np.asarray(seeds, dtype=np.float32), max_iter=max_iter, tol=tol, rng=rng)


class TestByHand:
    def test_euclidean(self):
        rows = np.array([[0, 0], [0, 2], [10, 0], [10, 2]], dtype=np.float32)
        found = StreamingKMeans(2, metric="euclidean", random_state=0).fit(rows)
        order = np.argsort(found.cluster_centers_[:, 0])
        assert found.cluster_centers_[order].tolist() == [[0, 1], [10, 1]]
        assert found.counts_.tolist() == [2, 2]
        assert found.inertia_ == 4
        assert found.predict(np.array([[1, 1], [7, 0]])).tolist() == order.tolist()
        np.testing.assert_allclose(found.transform([[0, 4]])[0, order], [3, np.sqrt(109)], rtol=1e-6)

    def test_cosine_looks_at_directions_alone(self):
        rows = np.array([[5, 0], [0.1, 0], [0, 3], [0, 200], [0, 1]], dtype=np.float32)
        found = StreamingKMeans(2, random_state=1).fit(rows)
        order = np.argsort(-found.cluster_centers_[:, 0])
        assert found.cluster_centers_[order].tolist() == [[1, 0], [0, 1]]
        assert found.counts_[order].tolist() == [2, 3]
        assert found.inertia_ == 0
        np.testing.assert_allclose(found.transform([[3, 4]])[0, order], [0.4, 0.2], rtol=1e-6)

    def test_cosine_centroid_is_the_middle_direction(self):
        angle = np.deg2rad([10, -10, 80, 100])
        found = StreamingKMeans(2, random_state=0).fit(np.stack([np.cos(angle), np.sin(angle)], axis=1))
        order = np.argsort(-found.cluster_centers_[:, 0])
        np.testing.assert_allclose(found.cluster_centers_[order], [[1, 0], [0, 1]], atol=1e-6)
        assert found.inertia_ == pytest.approx(4 * (1 - np.cos(np.deg2rad(10))), rel=1e-4)

    def test_a_row_of_zeros_is_at_distance_one(self):
        rows = sparse.csr_matrix(np.array([[1, 0], [0, 1], [0, 0]], dtype=np.float32))
        found = StreamingKMeans(2, random_state=0).fit(rows)
        assert found.inertia_ == 1
        assert found.transform(rows)[2].tolist() == [1, 1]
        assert found.predict(rows)[2] == 0

    def test_types(self):
        found = StreamingKMeans(3, random_state=0).fit(planted.pooled(30, 8).astype(np.float64))
        assert found.cluster_centers_.dtype == np.float32
        assert found.counts_.dtype == np.int64
        assert found.labels_.dtype == found.predict(planted.pooled(30, 8)).dtype == np.int32
        assert found.counts_.sum() == 30
        np.testing.assert_allclose(np.linalg.norm(found.cluster_centers_, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("case", range(25))
def test_inertia_never_rises(metric, case):
    rng = np.random.default_rng(case)
    rows = planted.pooled(int(rng.integers(20, 120)), int(rng.integers(3, 40)), rng.uniform(0.1, 0.9), seed=case)
    if case % 3 == 0:
        rows = rows.toarray()
    n_clusters = int(rng.integers(2, 12))
    # far seeds leave clusters empty from the first step on
    seeds = rng.standard_normal((n_clusters, rows.shape[1])) * (10 if case % 2 else 1)
    prepared = sparse.csr_array(rows) if sparse.issparse(rows) else rows
    exact = []
    for moves in range(1, 9):
        found, history = run(prepared, seeds, metric, max_iter=moves)
        assert all(later < sooner for sooner, later in pairwise(history))
        exact.append(exact_inertia(rows, found.labels, metric))
    steps = np.diff(exact)
    assert steps.max() <= 1e-5 * exact[0]


class TestEmptyClusters:
    @pytest.mark.parametrize("metric", METRICS)
    def test_are_filled(self, metric):
        rows, _ = planted.clusters()
        # all rows are nearest to the first seed
        seeds = np.full((4, rows.shape[1]), -5.0)
        seeds[0] = rows.toarray().mean(axis=0)
        seeds[2] = -7
        found, _ = run(sparse.csr_array(rows), seeds, metric)
        assert len(np.unique(found.labels)) == 4

    def test_take_one_row_from_another_cluster(self):
        rows = np.array([[0.0, 0], [0, 0], [0, 0], [8, 0]], dtype=np.float32)
        found, history = run(rows, [[1.0, 0], [1000, 0]])
        assert found.labels.tolist() == [0, 0, 0, 1]
        assert found.centroids.tolist() == [[0, 0], [8, 0]]
        assert history[-1] == 0

    def test_never_rob_a_cluster_of_its_only_row(self):
        rows = np.array([[0.0, 0], [1, 0], [50, 0]], dtype=np.float32)
        found, _ = run(rows, [[0.5, 0], [40, 0], [1000, 0]])
        assert sorted(np.bincount(found.labels, minlength=3)) == [1, 1, 1]

    def test_same_seed_same_rows_taken(self):
        rows = sparse.csr_array(planted.pooled(60, 10))
        seeds = np.full((8, 10), -3.0)
        first, second = run(rows, seeds)[0], run(rows, seeds)[0]
        assert np.array_equal(first.centroids, second.centroids)


class TestDuplicates:
    @pytest.mark.parametrize("metric", METRICS)
    def test_as_many_points_as_clusters(self, metric):
        points = np.array([[3, 0, 1], [0, 2, 0], [1, 1, 5]], dtype=np.float32)
        rows = points[np.arange(300) % 3]
        found = StreamingKMeans(3, metric=metric, random_state=0).fit(rows)
        assert found.inertia_ == pytest.approx(0, abs=1e-4)
        assert found.counts_.tolist() == [100] * 3

    @pytest.mark.parametrize("metric", METRICS)
    @pytest.mark.parametrize("as_sparse", [True, False])
    def test_fewer_points_than_clusters(self, metric, as_sparse):
        points = planted.pooled(5, 40, density=0.5).toarray()
        rows = points[np.arange(100) % 5]
        rows = sparse.csr_matrix(rows) if as_sparse else rows
        with pytest.raises(InputError, match="n_clusters=6, but the 100 rows hold only 5 different"):
            StreamingKMeans(6, metric=metric, random_state=0).fit(rows)
        StreamingKMeans(5, metric=metric, random_state=0).fit(rows)

    def test_one_direction_many_lengths(self):
        rows = np.outer(np.arange(1, 50), [1, 2, 3]).astype(np.float32)
        with pytest.raises(InputError, match="only 1 different directions"):
            StreamingKMeans(2).fit(rows)
        StreamingKMeans(2, metric="euclidean").fit(rows)

    def test_rows_of_zeros_have_no_direction(self):
        with pytest.raises(InputError, match="only 0 different directions"):
            StreamingKMeans(2).fit(sparse.csr_matrix((10, 4), dtype=np.float32))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("step", ["fit", "partial_fit"])
def test_fewer_rows_than_clusters(metric, step):
    with pytest.raises(InputError, match="n_clusters=20 needs at least that many rows; got n_samples=19"):
        getattr(StreamingKMeans(20, metric=metric), step)(planted.pooled(19, 5))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("as_sparse", [True, False])
def test_planted_clusters_are_recovered(metric, as_sparse):
    rows, kind = planted.clusters()
    given = rows if as_sparse else rows.toarray()
    model = StreamingKMeans(4, metric=metric, value_transform="sqrt", n_init=3, random_state=0)
    assert adjusted_rand_score(kind, model.fit_predict(given)) == 1
    assert np.array_equal(model.predict(given), model.labels_)


@pytest.mark.parametrize("n_clusters", [8, 24])
def test_inertia_within_one_percent_of_scikit_learn(n_clusters):
    rows = normalize(np.sqrt(planted.clusters(n_rows=1500, width=120, n_clusters=12)[0].toarray()))
    ours, theirs = [], []
    for seed in range(6):
        found = StreamingKMeans(n_clusters, metric="euclidean", random_state=seed).fit(rows)
        ours.append(exact_inertia(rows, found.labels_, "euclidean"))
        theirs.append(KMeans(n_clusters, n_init=1, random_state=seed).fit(rows).inertia_)
    assert min(ours) <= 1.01 * min(theirs)
    assert np.mean(ours) <= 1.03 * np.mean(theirs)


@pytest.mark.parametrize("case", range(5))
def test_same_start_same_labels_as_scikit_learn(case):
    rows = planted.clusters(n_rows=500, width=40, seed=case)[0].toarray()
    seeds = seed_centroids(cluster_rows(rows, "euclidean", "none"), 6, np.random.default_rng(case)).centroids
    ours, _ = run(rows, seeds)
    theirs = KMeans(6, init=seeds, n_init=1, tol=0, max_iter=300, algorithm="lloyd").fit(rows)
    far = np.sort(np.square(rows[:, None] - theirs.cluster_centers_[None]).sum(axis=2), axis=1)
    tied = far[:, 1] - far[:, 0] < 1e-4 * far[:, 1]
    assert np.array_equal(ours.labels[~tied], theirs.labels_[~tied])
    assert tied.sum() < 5


def test_the_length_of_a_row_does_not_count_under_cosine():
    rows, _ = planted.clusters()
    factor = sparse.diags(2.0 ** np.random.default_rng(0).integers(-8, 8, size=400))
    first = StreamingKMeans(4, random_state=0).fit(rows)
    second = StreamingKMeans(4, random_state=0).fit((factor @ rows).tocsr())
    assert np.array_equal(first.labels_, second.labels_)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("as_sparse", [True, False])
def test_threads_change_no_bits(metric, as_sparse):
    rows = planted.pooled(700, 90)
    rows = rows if as_sparse else rows.toarray()
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(StreamingKMeans(7, metric=metric, random_state=0).fit(rows))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert np.array_equal(found[0].cluster_centers_, other.cluster_centers_)
        assert np.array_equal(found[0].labels_, other.labels_)


def test_nothing_sparse_is_made_dense(monkeypatch):
    rows = planted.pooled(300, 50)
    model = StreamingKMeans(5, random_state=0)

    def refuse(self, *args, **kwargs):
        raise AssertionError("densified")

    for kind in (sparse.csr_matrix, sparse.csr_array):
        for name in ("toarray", "todense"):
            monkeypatch.setattr(kind, name, refuse)
    model.fit(rows).predict(rows)
    model.partial_fit(rows).transform(rows)


def test_a_read_only_array_brings_no_warning():
    rows = planted.pooled(30, 8)
    dense = rows.toarray()
    for array in (dense, rows.data, rows.indices, rows.indptr):
        array.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        StreamingKMeans(3, metric="euclidean").fit(dense)
        StreamingKMeans(3, metric="euclidean").fit(rows)


def test_numbers_too_large_for_their_squares():
    with pytest.raises(InputError, match="float32|NaN"):
        StreamingKMeans(2, metric="euclidean").fit(np.array([[1e30, 0], [0, 1e30], [1, 1]]))
    assert StreamingKMeans(2).fit(np.array([[1e30, 0], [0, 1e30], [1e30, 1]])).inertia_ == 0


@pytest.mark.parametrize(
    "parameter",
    [
        {"metric": "manhattan"},
        {"n_clusters": 0},
        {"max_iter": 0},
        {"n_init": 0},
        {"tol": -1.0},
        {"decay": 0.0},
        {"decay": 1.5},
        {"reassignment_ratio": 1.0},
    ],
    ids=str,
)
def test_parameters_out_of_range(parameter):
    with pytest.raises(InputError, match=next(iter(parameter))):
        StreamingKMeans(**parameter).fit(planted.pooled(30, 5))


class TestSeeding:
    def test_seeds_are_different_rows(self):
        rows = planted.pooled(50, 20)
        seeds = seed_centroids(
            cluster_rows(sparse.csr_array(rows), "euclidean", "none"), 50, np.random.default_rng(0)
        ).centroids
        assert np.array_equal(np.unique(seeds, axis=0), np.unique(rows.toarray(), axis=0))

    def test_no_row_is_drawn_twice_whatever_rounding_says(self, monkeypatch):
        # as if a row's computed distance to itself were as large as any
        monkeypatch.setattr(ClusterRows, "distances", lambda rows, seeds: np.ones((len(rows), len(seeds)), "float32"))
        rows = planted.pooled(50, 20)
        prepared = cluster_rows(sparse.csr_array(rows), "euclidean", "none")
        seeds = seed_centroids(prepared, 50, np.random.default_rng(0)).centroids
        assert np.array_equal(np.unique(seeds, axis=0), np.unique(rows.toarray(), axis=0))

    def test_far_groups_get_a_seed_each(self):
        centres = 100 * np.eye(10, dtype=np.float32)
        rows = np.repeat(centres, 30, axis=0) + np.random.default_rng(0).standard_normal((300, 10)).astype(np.float32)
        for seed in range(10):
            prepared = cluster_rows(rows, "euclidean", "none")
            seeds = seed_centroids(prepared, 10, np.random.default_rng(seed)).centroids
            assert sorted(seeds.argmax(axis=1)) == list(range(10))

    def test_a_sample_of_many_rows_is_enough(self, monkeypatch):
        monkeypatch.setattr("saerl_fast.signals.seeding.SAMPLE_LEAST", 100)
        rows = planted.clusters(3000, 60, 4)[0]
        seen = []
        monkeypatch.setattr(
            ClusterRows,
            "take",
            lambda rows, chosen, take=ClusterRows.take: (seen.append(len(chosen)), take(rows, chosen))[1],
        )
        seeds = seed_centroids(
            cluster_rows(sparse.csr_array(rows), "cosine", "none"), 4, np.random.default_rng(0)
        ).centroids
        assert seen == [4 * 32]
        assert len(np.unique(StreamingKMeans(4, random_state=0).fit(rows).predict(seeds))) == 4
        # equal rows but for three: no sample holds them all, so all rows are looked at
        few = np.ones((3000, 2), dtype=np.float32)
        few[[10, 1000, 2000]] = [[1, 5], [5, 1], [9, 9.5]]
        seeds = seed_centroids(cluster_rows(few, "euclidean", "none"), 4, np.random.default_rng(0)).centroids
        assert len(np.unique(seeds, axis=0)) == 4

    @pytest.mark.parametrize("as_sparse", [True, False])
    def test_rows_taken_are_the_rows(self, as_sparse):
        rows = planted.pooled(60, 20)
        prepared = cluster_rows(sparse.csr_array(rows) if as_sparse else rows.toarray(), "cosine", "none")
        chosen = np.array([3, 59, 0, 3])
        taken = prepared.take(chosen)
        assert np.array_equal(taken.pick(np.arange(4)), prepared.pick(chosen))
        assert np.array_equal(taken.square_norms, prepared.square_norms[chosen])
        assert taken.shape == (4, 20)

    def test_rows_without_direction_are_no_seeds(self):
        rows = np.zeros((500, 6), dtype=np.float32)
        rows[::50] = planted.pooled(10, 6, 0.9).toarray() + 0.1
        for seed in range(5):
            seeds = seed_centroids(cluster_rows(rows, "cosine", "none"), 8, np.random.default_rng(seed)).centroids
            assert seeds.any(axis=1).all()

    @pytest.mark.parametrize("metric", METRICS)
    @pytest.mark.parametrize("as_sparse", [True, False])
    def test_a_row_is_at_distance_zero_from_itself(self, metric, as_sparse):
        # squares of 300 such numbers do not cancel exactly in float32
        rows = (planted.pooled(200, 300, 0.9).toarray() + 10).astype(np.float32)
        prepared = cluster_rows(sparse.csr_array(rows) if as_sparse else rows, metric, "none")
        far = prepared.distances(prepared.pick(np.arange(200)))
        assert (far.diagonal() == 0).all()
        assert (far[~np.eye(200, dtype=bool)] > 0).all()

"""FeatureProjection: against scikit-learn's TfidfTransformer and TruncatedSVD, its edges, and k-means behind it."""

import json
import logging

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.metrics import adjusted_rand_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from saerl_fast.errors import FormatError, InputError, NonFiniteError, UnsafeFileError
from saerl_fast.signals import FeatureProjection, StreamingKMeans
from saerl_fast.signals.leading_directions import leading_directions
from tests.signals import planted


@parametrize_with_checks([FeatureProjection(), FeatureProjection(3, value_transform="none", n_iter=0)])
def test_scikit_learn_check(estimator, check):
    check(estimator)


def tfidf(rows):
    """scikit-learn's weights of the square roots."""
    return TfidfTransformer().fit_transform(rows.sqrt().astype(np.float64))


def low_rank(n_rows, width, rank, seed=0):
    """Sparse rows of exactly this rank: multiples of a few sparse directions that share no feature."""
    rng = np.random.default_rng(seed)
    directions = rng.gamma(2, 1, (rank, width)) * (np.arange(width) % rank == np.arange(rank)[:, None])
    return sparse.csr_matrix((directions[np.arange(n_rows) % rank]).astype(np.float32))


class TestAgainstScikitLearn:
    def test_weights(self):
        rows = planted.pooled(300, 80)
        found = FeatureProjection(5, random_state=0).fit(rows)
        np.testing.assert_allclose(found.idf_, TfidfTransformer().fit(rows.astype(np.float64)).idf_, rtol=1e-12)

    @pytest.mark.parametrize("shape", [(300, 80), (60, 200)])
    def test_singular_values_and_directions(self, shape):
        rows = planted.clusters(*shape, n_clusters=5)[0]
        found = FeatureProjection(5, n_iter=6, random_state=0).fit(rows)
        weighted = tfidf(rows)
        wanted = TruncatedSVD(5, algorithm="arpack", random_state=0).fit(weighted)
        np.testing.assert_allclose(found.singular_values_, wanted.singular_values_, rtol=1e-5)
        np.testing.assert_allclose(np.abs(found.components_ @ wanted.components_.T), np.eye(5), atol=2e-3)
        projected = found.transform(rows)
        np.testing.assert_allclose(projected, weighted @ found.components_.T, atol=1e-6)
        signs = np.sign((found.components_ * wanted.components_).sum(axis=1))
        np.testing.assert_allclose(projected * signs, wanted.transform(weighted), atol=2e-3)

    def test_one_round_holds_nearly_all_that_can_be_held(self):
        rows = planted.clusters(600, 300, n_clusters=12)[0]
        held = np.square(FeatureProjection(12, random_state=0).fit_transform(rows).astype(np.float64)).sum()
        best = np.square(TruncatedSVD(12, algorithm="arpack", random_state=0).fit(tfidf(rows)).singular_values_).sum()
        assert 0.99 * best < held <= best * (1 + 1e-5)


class TestDirections:
    def test_are_orthonormal_and_positive_at_their_largest(self):
        values, found = leading_directions(
            sparse.csr_array(planted.pooled(200, 90)), 20, n_iter=2, rng=np.random.default_rng(0)
        )
        np.testing.assert_allclose(found @ found.T, np.eye(20), atol=1e-5)
        assert (np.diff(values) < 0).all()
        assert (found[np.arange(20), np.abs(found).argmax(axis=1)] > 0).all()

    @pytest.mark.parametrize(("n_rows", "width"), [(40, 300), (300, 40)])
    def test_no_more_than_the_rows_have(self, n_rows, width):
        rows = low_rank(n_rows, width, rank=4)
        values, found = leading_directions(sparse.csr_array(rows), 30, n_iter=1, rng=np.random.default_rng(0))
        assert found.shape == (4, width)
        np.testing.assert_allclose(values, np.linalg.svd(rows.toarray())[1][:4], rtol=1e-5)

    def test_each_round_holds_more(self):
        rows = sparse.csr_array(planted.pooled(900, 400))
        held = []
        for n_iter in range(4):
            values, _ = leading_directions(rows, 10, n_iter=n_iter, rng=np.random.default_rng(0))
            held.append(np.square(values).sum())
        best = np.square(np.linalg.svd(rows.toarray(), compute_uv=False)[:10]).sum()
        assert (np.diff(held) > 0).all()
        assert 0.99 * best < held[-1] <= best * (1 + 1e-5)


class TestEdges:
    def test_fewer_features_than_components(self, caplog):
        with caplog.at_level(logging.INFO):
            found = FeatureProjection(128, random_state=0).fit(planted.pooled(50, 9, 0.5))
        assert found.n_components_ == 9
        assert found.transform(planted.pooled(5, 9)).shape == (5, 9)
        assert "128 components were asked for; the 50 rows of 9 features have 9 directions" in caplog.text
        assert list(found.get_feature_names_out()[:2]) == ["featureprojection0", "featureprojection1"]

    def test_more_components_than_rank(self):
        rows = low_rank(60, 100, rank=3)
        found = FeatureProjection(10, random_state=0).fit(rows)
        assert found.n_components_ == 3
        # nothing is lost: rows of length 1 stay so
        np.testing.assert_allclose(np.linalg.norm(found.transform(rows), axis=1), 1, rtol=1e-5)

    def test_equal_rows_are_one_direction(self):
        rows = np.tile(np.array([[0, 1, 2, 0]], dtype=np.float32), (20, 1))
        found = FeatureProjection(2, random_state=0).fit(rows)
        assert found.n_components_ == 1
        np.testing.assert_allclose(found.transform(rows), 1, rtol=1e-6)
        with pytest.raises(InputError, match="only 1 different directions"):
            make_pipeline(found, StreamingKMeans(2)).fit(rows)

    def test_empty_rows_become_zeros(self):
        rows = planted.clusters(100, 40)[0].tolil()
        rows[7] = 0
        found = FeatureProjection(4, random_state=0).fit_transform(rows.tocsr())
        assert not found[7].any()
        assert found.any(axis=1).sum() == 99

    def test_all_rows_empty(self):
        with pytest.raises(InputError, match="all 10 rows are zero"):
            FeatureProjection(2).fit(sparse.csr_matrix((10, 5), dtype=np.float32))

    def test_a_stored_zero_is_no_feature(self):
        rows = planted.pooled(40, 20)
        stored = rows.copy()
        stored.data[::3] = 0
        without = stored.copy()
        without.eliminate_zeros()
        first, second = (FeatureProjection(4, random_state=0).fit(given) for given in (stored, without))
        assert np.array_equal(first.idf_, second.idf_)
        np.testing.assert_allclose(first.singular_values_, second.singular_values_, rtol=1e-6)

    @pytest.mark.parametrize("parameter", [{"n_components": 0}, {"n_iter": -1}, {"value_transform": "cube"}], ids=str)
    def test_parameters_out_of_range(self, parameter):
        with pytest.raises(InputError, match=next(iter(parameter))):
            FeatureProjection(**parameter).fit(planted.pooled(30, 5))

    def test_other_width_and_nan_are_refused(self):
        found = FeatureProjection(3).fit(planted.pooled(30, 8))
        with pytest.raises(InputError, match="7 features"):
            found.transform(planted.pooled(5, 7))
        with pytest.raises(InputError, match=r"wants rows \[S, 3\]; got \[4, 2\]"):
            found.inverse_transform(np.zeros((4, 2)))
        with pytest.raises(NonFiniteError):
            found.transform(np.full((1, 8), np.nan))


class TestPromises:
    def test_threads_change_no_bits(self):
        rows = planted.clusters(900, 400, n_clusters=8)[0]
        before = torch.get_num_threads()
        found = []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                found.append(FeatureProjection(20, random_state=0).fit(rows))
                found[-1].projected = found[-1].transform(rows)
        finally:
            torch.set_num_threads(before)
        for other in found[1:]:
            assert np.array_equal(found[0].components_, other.components_)
            assert np.array_equal(found[0].projected, other.projected)

    def test_a_row_does_not_depend_on_the_rows_beside_it(self):
        rows = planted.pooled(70, 60)
        found = FeatureProjection(9, random_state=0).fit(rows)
        alone = np.concatenate([found.transform(rows[row : row + 1]) for row in range(70)])
        assert np.array_equal(alone, found.transform(rows))

    def test_sparse_equals_dense_and_neither_is_changed(self):
        rows = planted.pooled(70, 60)
        before = rows.copy()
        first = FeatureProjection(9, random_state=0).fit_transform(rows)
        assert np.array_equal(first, FeatureProjection(9, random_state=0).fit_transform(rows.toarray()))
        assert np.array_equal(rows.data, before.data)

    def test_global_generators_are_untouched(self):
        # a state of our own: generators left at a usual seed would hide that they are set to it again
        np.random.seed(271828)
        torch.manual_seed(271828)
        before = np.random.get_state()[1].copy(), torch.get_rng_state().clone()
        FeatureProjection(4).fit(planted.pooled(30, 9))
        assert np.array_equal(np.random.get_state()[1], before[0])
        assert torch.equal(torch.get_rng_state(), before[1])

    def test_inverse_names_the_features_of_a_cluster(self):
        rows, kind = planted.clusters(400, 60, 4)
        pipe = make_pipeline(FeatureProjection(6, random_state=0), StreamingKMeans(4, random_state=0)).fit(rows)
        features = pipe[0].inverse_transform(pipe[1].cluster_centers_)
        assert features.shape == (4, 60)
        for cluster, row in enumerate(features):
            (own,) = np.unique(kind[pipe[1].labels_ == cluster])
            # planted kind k lights the features 12 k .. 12 k + 11
            assert set(np.argsort(row)[-12:]) == set(range(12 * own, 12 * own + 12))


class TestKMeansBehindIt:
    def test_planted_clusters_are_recovered(self):
        rows, kind = planted.clusters(600, 120, 6)
        pipe = make_pipeline(FeatureProjection(10, random_state=0), StreamingKMeans(6, n_init=3, random_state=0))
        labels = pipe.fit_predict(rows)
        assert adjusted_rand_score(kind, labels) == 1
        assert np.array_equal(pipe.predict(rows), labels)

    def test_inertia_is_that_of_the_projected_rows(self):
        rows = planted.clusters(500, 100, 5)[0]
        pipe = make_pipeline(FeatureProjection(8, random_state=0), StreamingKMeans(5, metric="euclidean", n_init=4))
        projected = pipe.fit(rows)[0].transform(rows)
        far = np.square(projected - pipe[1].cluster_centers_[pipe[1].labels_]).sum()
        assert pipe[1].inertia_ == pytest.approx(far, rel=1e-4)
        assert far <= 1.02 * KMeans(5, n_init=4, random_state=0).fit(projected).inertia_

    def test_a_stream_of_batches(self):
        rows, kind = planted.clusters(2000, 120, 6)
        projection = FeatureProjection(10, random_state=0).fit(rows[:300])
        model = StreamingKMeans(6, n_init=1, random_state=1)
        for start in range(0, 2000, 250):
            model.partial_fit(projection.transform(rows[start : start + 250]))
        assert model.counts_.sum() == 2000
        assert adjusted_rand_score(kind, model.predict(projection.transform(rows))) > 0.75


class TestFiles:
    @pytest.fixture
    def saved(self, tmp_path):
        model = FeatureProjection(6, random_state=3).fit(planted.pooled(80, 30))
        model.save(tmp_path / "p")
        return model, tmp_path / "p"

    def test_round_trip(self, saved):
        model, folder = saved
        loaded, rows = FeatureProjection.load(folder), planted.pooled(20, 30, seed=5)
        assert np.array_equal(loaded.transform(rows), model.transform(rows))
        assert np.array_equal(loaded.inverse_transform(np.eye(6)), model.inverse_transform(np.eye(6)))
        assert loaded.get_params() == model.get_params()
        assert list(loaded.get_feature_names_out()) == list(model.get_feature_names_out())
        # fitting again draws as the first one did
        assert np.array_equal(loaded.fit(planted.pooled(80, 30)).components_, model.components_)

    def test_not_fitted_and_not_there(self, tmp_path):
        with pytest.raises(NotFittedError):
            FeatureProjection().save(tmp_path)
        with pytest.raises(FormatError, match=r"wanted a folder with projection.json"):
            FeatureProjection.load(tmp_path)

    @pytest.mark.parametrize(
        ("part", "change", "message"),
        [
            ("parameters", {"n_components": 0}, "n_components must be at least 1"),
            ("parameters", {"max_rows": True}, "max_rows has the wrong type"),
            ("state", {"n_components": 7}, "do not fit together"),
            ("state", {"n_features_in": 31}, r"components must be \[6, 31\]"),
            ("state", {"more": 1}, "wanted an object with"),
        ],
        ids=str,
    )
    def test_a_changed_description(self, saved, part, change, message):
        _, folder = saved
        described = json.loads((folder / "projection.json").read_text())
        described[part] |= change
        (folder / "projection.json").write_text(json.dumps(described))
        with pytest.raises(FormatError, match=message):
            FeatureProjection.load(folder)

    @pytest.mark.parametrize(("name", "value"), [("idf", 0.5), ("components", np.nan), ("singular_values", np.inf)])
    def test_numbers_that_no_fit_gives(self, saved, name, value):
        model, folder = saved
        getattr(model, f"{name}_").flat[0] = value
        model.save(folder)
        with pytest.raises(FormatError, match=name):
            FeatureProjection.load(folder)

    def test_a_pickle_is_refused(self, saved):
        _, folder = saved
        (folder / "projection.safetensors").write_bytes(b"\x80\x04N.")
        with pytest.raises(UnsafeFileError):
            FeatureProjection.load(folder)


class TestSample:
    def test_a_sample_holds_nearly_what_all_rows_do(self):
        rows, _ = planted.clusters(3000, 200, n_clusters=8)
        held = [
            np.square(FeatureProjection(8, max_rows=most, random_state=0).fit_transform(rows).astype(float)).sum()
            for most in (400, 3000)
        ]
        assert 0.98 * held[1] < held[0] <= held[1] * (1 + 1e-4)

    def test_a_sample_stands_for_all_rows_whatever_their_order(self):
        rows, labels = planted.clusters(3000, 200, n_clusters=8)
        rows = rows[np.argsort(labels, kind="stable")]
        held = [
            np.square(FeatureProjection(8, max_rows=most, random_state=0).fit_transform(rows).astype(float)).sum()
            for most in (400, 3000)
        ]
        assert 0.98 * held[1] < held[0] <= held[1] * (1 + 1e-4)

    def test_weights_and_sizes_are_those_of_all_rows(self):
        rows, _ = planted.clusters(3000, 200, n_clusters=8)
        sampled, whole = (FeatureProjection(8, max_rows=most, random_state=0).fit(rows) for most in (1000, 3000))
        assert np.array_equal(sampled.idf_, whole.idf_)
        np.testing.assert_allclose(sampled.singular_values_[:3], whole.singular_values_[:3], rtol=0.05)

    @pytest.mark.parametrize(
        ("n_rows", "components", "learnt_from"),
        [
            (900, 4, 900),
            (3000, 4, 1024),
            (12_000, 32, 1500),
            (3000, 200, 1600),
            (100_000, 4, 1024),
            (900_000, 128, 8192),
        ],
    )
    def test_an_eighth_of_the_rows_within_bounds(self, n_rows, components, learnt_from):
        chosen = FeatureProjection(components)._chosen(n_rows, np.random.default_rng(0))
        assert len(chosen) == len(np.unique(chosen)) == learnt_from
        assert len(FeatureProjection(components, max_rows=50)._chosen(n_rows, np.random.default_rng(0))) == 50

    def test_a_small_topic_is_not_lost(self):
        # 1 row of 100: 80 of 8,000, of which 10 or so come into the sample
        rows, kind = planted.clusters(8000, 120, n_clusters=5)
        few = np.flatnonzero(kind == 4)[80:]
        rows, kind = rows[np.setdiff1d(np.arange(8000), few)], np.delete(kind, few)
        for seed in range(10):
            pipe = make_pipeline(
                FeatureProjection(8, random_state=seed), StreamingKMeans(5, n_init=5, random_state=seed)
            )
            labels = pipe.fit_predict(rows)
            own = np.bincount(labels[kind == 4]).argmax()
            assert 2 * np.sum((labels == own) & (kind == 4)) / (np.sum(labels == own) + 80) > 0.95

    def test_a_sample_of_empty_rows_is_not_taken(self):
        rows = np.zeros((300, 20), dtype=np.float32)
        rows[7, 3] = 1
        found = FeatureProjection(2, max_rows=5, random_state=0).fit(rows)
        assert found.n_components_ == 1
        assert found.transform(rows)[7] == pytest.approx(1)

    def test_large_values_do_not_overflow(self):
        rows = planted.pooled(60, 30)
        small = FeatureProjection(4, value_transform="none", random_state=0)
        projected = small.fit_transform(rows)
        np.testing.assert_allclose(small.fit_transform(rows * np.float32(2.0**100)), projected, atol=1e-4)

"""StreamingKMeans batch by batch: running means, forgetting, restarts, and its files."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score

from saerl_fast.errors import FormatError, InputError, UnsafeFileError
from saerl_fast.signals import StreamingKMeans
from tests.signals import planted


def batches(rows, size):
    return [rows[start : start + size] for start in range(0, rows.shape[0], size)]


def streamed(model, rows, size):
    for batch in batches(rows, size):
        model.partial_fit(batch)
    return model


def test_centroids_are_the_means_of_all_rows_won():
    first = np.array([[0, 0], [2, 0], [100, 0]], dtype=np.float32)
    second = np.array([[4, 0], [110, 0], [120, 0]], dtype=np.float32)
    model = StreamingKMeans(2, metric="euclidean", random_state=0)
    model.partial_fit(first).partial_fit(second)
    order = np.argsort(model.cluster_centers_[:, 0])
    np.testing.assert_allclose(model.cluster_centers_[order], [[2, 0], [110, 0]], rtol=1e-6)
    assert model.counts_[order].tolist() == [3, 3]
    assert model.counts_.dtype == np.int64
    assert model.n_batches_ == 2


def test_decay_forgets_old_rows():
    # kept weight floor(4 * 0.5) = 2 at 0, and two new rows at 6: (2 * 0 + 12) / 4
    model = StreamingKMeans(1, metric="euclidean", decay=0.5)
    model.partial_fit(np.zeros((4, 1))).partial_fit(np.full((2, 1), 6.0))
    assert model.cluster_centers_.tolist() == [[3]]
    assert model.counts_.tolist() == [4]


def test_cosine_means_weigh_directions_equally():
    # lengths do not count: the mean direction of one row along x, three along y
    model = StreamingKMeans(1).partial_fit(np.array([[50.0, 0]])).partial_fit(np.array([[0, 1.0]] * 3))
    np.testing.assert_allclose(model.cluster_centers_, [np.array([1, 3]) / np.sqrt(10)], rtol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("as_sparse", [True, False])
def test_planted_clusters_are_recovered(metric, as_sparse):
    rows, kind = planted.clusters(n_rows=1200)
    given = rows if as_sparse else rows.toarray()
    model = StreamingKMeans(4, metric=metric, value_transform="sqrt", random_state=2)
    streamed(model, given, 200)
    assert adjusted_rand_score(kind, model.predict(given)) > 0.99
    assert model.counts_.sum() == 1200


def test_the_same_stream_gives_the_same_bits():
    rows = planted.pooled(400, 30)
    first = streamed(StreamingKMeans(5, random_state=0), rows, 64)
    second = streamed(StreamingKMeans(5, random_state=0), rows, 64)
    assert np.array_equal(first.cluster_centers_, second.cluster_centers_)


def test_after_fit_the_stream_goes_on():
    rows, kind = planted.clusters()
    model = StreamingKMeans(4, n_init=4, random_state=0).fit(rows)
    model.partial_fit(rows)
    assert model.counts_.sum() == 800
    assert adjusted_rand_score(kind, model.labels_) == 1


def test_fit_forgets_the_stream():
    rows = planted.pooled(200, 20)
    model = streamed(StreamingKMeans(4, random_state=0), planted.pooled(100, 20, seed=9), 50)
    assert np.array_equal(model.fit(rows).cluster_centers_, clone(model).fit(rows).cluster_centers_)


class TestRestart:
    """One cluster's rows cease; others appear that no centroid stands for."""

    def stream(self, random_state=0, **parameters):
        rng = np.random.default_rng(0)
        near, far, new = np.zeros(2), np.array([100.0, 0]), np.array([0, 40.0])
        model = StreamingKMeans(2, metric="euclidean", random_state=random_state, **parameters)
        model.partial_fit(np.repeat([near, far], 10, axis=0) + rng.standard_normal((20, 2)))
        for _ in range(20):
            model.partial_fit(np.repeat([near, new], 10, axis=0) + rng.standard_normal((20, 2)))
        return model

    @pytest.mark.parametrize("random_state", range(5))
    def test_a_cluster_that_wins_nothing_starts_anew(self, random_state):
        model = self.stream(random_state)
        assert np.abs(model.cluster_centers_[:, 0]).max() < 3  # none is left where nothing comes
        assert len(set(model.predict(np.array([[0.0, 0], [0, 40]])))) == 2

    def test_the_same_rows_are_drawn_again(self):
        assert np.array_equal(self.stream().cluster_centers_, self.stream().cluster_centers_)

    def test_not_when_the_ratio_is_zero(self):
        centres = self.stream(reassignment_ratio=0.0).cluster_centers_
        assert np.abs(centres[np.argmax(centres[:, 0])] - [100, 0]).max() < 3


class TestFiles:
    @pytest.fixture
    def saved(self, tmp_path):
        model = streamed(StreamingKMeans(4, value_transform="sqrt", decay=0.9, random_state=3), planted.pooled(), 100)
        model.save(tmp_path / "clusters")
        return model, tmp_path / "clusters"

    def test_round_trip(self, saved):
        model, folder = saved
        rows = planted.pooled(seed=5)
        loaded = StreamingKMeans.load(folder)
        assert sorted(path.name for path in folder.iterdir()) == ["kmeans.json", "kmeans.safetensors"]
        assert np.array_equal(loaded.predict(rows), model.predict(rows))
        assert loaded.get_params() | {"random_state": 3} == model.get_params()

    def test_a_loaded_stream_goes_on_as_the_other(self, saved):
        model, folder = saved
        loaded, rows = StreamingKMeans.load(folder), planted.pooled(seed=6)
        streamed(model, rows, 50)
        streamed(loaded, rows, 50)
        assert np.array_equal(loaded.cluster_centers_, model.cluster_centers_)
        assert np.array_equal(loaded.counts_, model.counts_)

    def test_after_fit_too(self, tmp_path):
        model = StreamingKMeans(4, metric="euclidean").fit(planted.pooled())
        model.save(tmp_path)
        loaded = StreamingKMeans.load(tmp_path)
        assert loaded.inertia_ == model.inertia_
        assert np.array_equal(loaded.predict(planted.pooled()), model.labels_)

    def test_not_fitted(self, tmp_path):
        with pytest.raises(ValueError, match="not fitted"):
            StreamingKMeans().save(tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format": "other"}, "wanted format"),
            ({"format_version": 2}, "wanted format"),
            ({"extra": 1}, "wanted the keys"),
            ({"parameters": {}}, "wanted an object with"),
            ({"state": []}, "wanted an object with"),
            ({"arrays_sha256": "0" * 64}, "SHA-256"),
        ],
        ids=str,
    )
    def test_a_changed_description(self, saved, change, message):
        _, folder = saved
        described = json.loads((folder / "kmeans.json").read_text()) | change
        (folder / "kmeans.json").write_text(json.dumps(described))
        with pytest.raises(FormatError, match=message):
            StreamingKMeans.load(folder)

    @pytest.mark.parametrize("name", ["n_features_in", "seed", "n_batches"])
    def test_numbers_below_zero(self, saved, name):
        _, folder = saved
        described = json.loads((folder / "kmeans.json").read_text())
        described["state"][name] = -1
        (folder / "kmeans.json").write_text(json.dumps(described))
        with pytest.raises(FormatError, match="a number is below zero"):
            StreamingKMeans.load(folder)

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("metric", "manhattan", "metric must be"),
            ("n_clusters", 5, r"centroids must be \[5, 200\]"),
            ("n_clusters", True, "wrong type"),
            ("n_clusters", 10**9, "centroids must be"),
            ("tol", "small", "wrong type"),
            ("decay", 7, "decay is out of range"),
        ],
    )
    def test_a_changed_parameter(self, saved, key, value, message):
        _, folder = saved
        described = json.loads((folder / "kmeans.json").read_text())
        described["parameters"][key] = value
        (folder / "kmeans.json").write_text(json.dumps(described))
        with pytest.raises(FormatError, match=message):
            StreamingKMeans.load(folder)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda arrays: arrays["centroids"].__setitem__((0, 0), np.nan), "NaN"),
            (lambda arrays: arrays["counts"].__setitem__(0, -1), "below zero"),
            (lambda arrays: arrays.update(counts=arrays["counts"].astype(np.int32)), "int64; got"),
            (lambda arrays: arrays.update(means=arrays["means"][:, 1:]), "means must be"),
            (lambda arrays: arrays.pop("means"), "means must be"),
            (lambda arrays: arrays.update(more=arrays["counts"]), "unexpected tensors"),
        ],
        ids=["nan", "negative", "dtype", "shape", "missing", "unexpected"],
    )
    def test_changed_arrays_under_a_matching_hash(self, saved, change, message):
        import hashlib

        _, folder = saved
        arrays = {name: array.copy() for name, array in load_file(folder / "kmeans.safetensors").items()}
        change(arrays)
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "kmeans.safetensors")
        described = json.loads((folder / "kmeans.json").read_text())
        content = (folder / "kmeans.safetensors").read_bytes()
        described["arrays_sha256"] = hashlib.sha256(content).hexdigest()
        (folder / "kmeans.json").write_text(json.dumps(described))
        with pytest.raises(FormatError, match=message):
            StreamingKMeans.load(folder)

    def test_a_flipped_byte_a_torn_file_and_a_pickle(self, saved):
        import pickle

        _, folder = saved
        path = folder / "kmeans.safetensors"
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
        with pytest.raises(FormatError, match="SHA-256"):
            StreamingKMeans.load(folder)
        path.write_bytes(content[:-20])
        with pytest.raises(UnsafeFileError):
            StreamingKMeans.load(folder)
        path.write_bytes(pickle.dumps({"centroids": 1}, protocol=4))
        with pytest.raises(UnsafeFileError):
            StreamingKMeans.load(folder)

    def test_no_such_folder(self, tmp_path):
        with pytest.raises(FormatError, match=r"kmeans\.json"):
            StreamingKMeans.load(tmp_path / "nothing")


def test_a_batch_of_another_width():
    model = StreamingKMeans(3).partial_fit(planted.pooled(50, 20))
    with pytest.raises(InputError, match="21 features"):
        model.partial_fit(planted.pooled(50, 21))

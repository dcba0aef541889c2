"""steer: planted clusters, levels and faults are found from a few labels; rows without features are harmless."""

import numpy as np
import pytest
from scipy import sparse, stats
from sklearn.metrics import normalized_mutual_info_score

from saerl_fast.errors import CorruptStoreError, FormatError, InputError
from saerl_fast.features import SparseFeatures
from saerl_fast.signals import DifficultyProxy
from saerl_fast.steer import read_signals, steer, steer_shards, write_signals

ROWS, LATENTS = 600, 80


@pytest.fixture(scope="module")
def planted():
    """Topic t lights latents 10 t .. 10 t + 9; latents 40 and 41 grow with the level, 50 with goodness."""
    generator = np.random.default_rng(0)
    topic, level, good = generator.integers(0, 4, ROWS), generator.integers(1, 6, ROWS), generator.random(ROWS) > 0.2
    dense = np.zeros((ROWS, LATENTS), np.float32)
    for row in range(ROWS):
        dense[row, 10 * topic[row] + generator.choice(10, 6, replace=False)] = generator.random(6) + 1
    dense[:, 40:42] = (level[:, None] * 0.2 + generator.normal(0, 0.1, (ROWS, 2))).clip(0)
    dense[:, 50] = (good * 0.8 + generator.normal(0, 0.2, ROWS)).clip(0)
    dense[7] = 0
    matrix = sparse.csr_matrix(dense)
    features = SparseFeatures(
        indptr=matrix.indptr.astype(np.int64),
        indices=matrix.indices.astype(np.int32),
        values=matrix.data,
        n_features=LATENTS,
        ids=tuple(range(ROWS)),
        status=tuple("empty" if row == 7 else "ok" for row in range(ROWS)),
        n_tokens=np.ones(ROWS, np.int32),
    )
    return features, topic, level, good


def labels(values, share, seed=1):
    known = np.random.default_rng(seed).random(len(values)) < share
    return [value if k else None for value, k in zip(values.tolist(), known, strict=True)]


def test_planted_signals_are_found(planted):
    features, topic, level, good = planted
    found = steer(features, n_clusters=4, difficulty=labels(level, 0.5), quality=labels(good.astype(float), 0.5))
    others = np.arange(ROWS) != 7
    # one start of k-means may merge two topics and split a third; guessing would be near 0
    assert normalized_mutual_info_score(topic[others], found.clusters[others]) > 0.7
    assert stats.spearmanr(found.difficulty[others], level[others]).statistic > 0.8
    assert found.quality[others][good[others]].mean() > found.quality[others][~good[others]].mean() + 0.3
    assert found.difficulty[7] == np.median(found.difficulty[others])
    assert found.held_out["difficulty"]["score"] > 0.8
    found.check_filter()


def test_words_need_to_say_which_is_good(planted):
    features, _, _, good = planted
    words = ["valid" if g else "invalid" for g in good]
    with pytest.raises(InputError, match="good_label"):
        steer(features, n_clusters=4, quality=words)
    found = steer(features, n_clusters=4, quality=words, good_label="valid")
    assert found.quality[good].mean() > found.quality[~good].mean()


@pytest.mark.filterwarnings("ignore::saerl_fast.signals.NearChanceWarning")
def test_a_probe_that_guesses_is_no_filter(planted):
    features = planted[0]
    noise = np.random.default_rng(5).integers(0, 2, ROWS).astype(float)
    with pytest.raises(InputError, match="drops rows at random"):
        steer(features, n_clusters=4, quality=noise.tolist()).check_filter()


def test_bad_labels_are_named(planted):
    features = planted[0]
    with pytest.raises(InputError, match="one label per row is wanted, 600; got 3"):
        steer(features, difficulty=[1, 2, 3])
    with pytest.raises(InputError, match="labels must differ"):
        steer(features, difficulty=[3.0] * ROWS)
    with pytest.raises(InputError, match="clusters"):
        steer(features, n_clusters=601)
    with pytest.raises(InputError, match="no row holds features"):
        steer(features[[7]])


def test_signals_are_written_beside_a_plan_and_read_again(planted, tmp_path):
    features, _, level, good = planted
    known = labels(level, 0.5)
    found = steer(features, n_clusters=4, difficulty=known, quality=good.astype(float).tolist())
    # the label of row 7, which has no features, does not count
    wanted = sum(label is not None for row, label in enumerate(known) if row != 7)
    assert found.labelled == {"difficulty": wanted, "quality": ROWS - 1}
    (tmp_path / "plans" / "a").mkdir(parents=True)
    path = write_signals(found, tmp_path / "plans" / "a", filtered=True, features=tmp_path / "f")
    assert path == tmp_path / "plans" / "a" / "signals.json"
    again = read_signals(path)
    assert again["held_out"] == found.held_out
    assert (again["labelled"], again["filtered"], again["rows"]) == (found.labelled, True, ROWS)
    assert (path.parent / again["features"]).resolve() == tmp_path / "f"
    first = path.read_bytes()
    write_signals(found, path.parent, filtered=True, features=tmp_path / "f")
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("{", CorruptStoreError, "not JSON"),
        ("{}", FormatError, "wanted saerl-signals of version 1, got None"),
        ('{"format": "saerl-signals", "format_version": 2}', FormatError, "make the plan again"),
        ('{"format": "saerl-signals", "format_version": 1, "held_out": 3}', FormatError, "wanted held_out as dict"),
    ],
)
def test_other_files_are_no_signals(tmp_path, content, error, message):
    (tmp_path / "signals.json").write_text(content)
    with pytest.raises(error, match=message):
        read_signals(tmp_path / "signals.json")


def in_shards(features, rows=100):
    """What reads a folder, and a count of how often it did."""
    calls = []

    def read():
        calls.append(1)
        return (features[start : start + rows] for start in range(0, len(features), rows))

    return read, calls


def test_shards_that_fit_in_memory_are_steered_as_ever(planted):
    features, _, level, good = planted
    given = {"n_clusters": 4, "difficulty": labels(level, 0.5), "quality": labels(good.astype(float), 0.5)}
    one, other = steer(features, **given), steer_shards(in_shards(features)[0], ROWS, **given)
    for name in ("clusters", "difficulty", "quality"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (one.held_out, one.labelled) == (other.held_out, other.labelled)


def test_of_more_rows_some_are_fitted_on_and_all_are_predicted(planted, caplog):
    features, topic, level, good = planted
    known = labels(level, 0.3)  # fewer than are fitted on: all of them are
    read, calls = in_shards(features)
    found = steer_shards(read, ROWS, n_clusters=4, difficulty=known, quality=good.astype(float).tolist(), fit_rows=300)
    assert "600 rows; fitted on 300 of them" in caplog.text
    assert len(calls) == 4
    others = np.arange(ROWS) != 7
    assert normalized_mutual_info_score(topic[others], found.clusters[others]) > 0.7
    assert stats.spearmanr(found.difficulty[others], level[others]).statistic > 0.8
    assert found.clusters[7] == 0
    assert found.difficulty[7] == np.median(found.difficulty[others])
    assert found.labelled == {"difficulty": sum(label is not None for label in known), "quality": ROWS - 1}
    rows = np.flatnonzero([label is not None for label in known])
    probe = DifficultyProxy(random_state=0).fit(features[rows].to_scipy(), [known[row] for row in rows])
    np.testing.assert_array_equal(found.difficulty[others], probe.predict(features.to_scipy())[others])
    again = steer_shards(in_shards(features, 37)[0], ROWS, n_clusters=4, difficulty=known, fit_rows=300)
    np.testing.assert_array_equal(again.clusters, found.clusters)
    np.testing.assert_array_equal(again.difficulty, found.difficulty)


def test_shards_without_what_is_needed_are_named(planted):
    features = planted[0]
    read = in_shards(features)[0]
    for given, message in [
        ({"difficulty": [1, 2]}, "one label per row is wanted, 600; got 2"),
        ({"quality": [None] * ROWS}, "quality: no row has a label"),
        ({"difficulty": [3 if row == 7 else None for row in range(ROWS)]}, "none of the rows to be fitted on"),
    ]:
        with pytest.raises(InputError, match=message):
            steer_shards(read, ROWS, n_clusters=4, fit_rows=200, **given)


def test_rows_are_gathered_by_number(planted):
    features = planted[0]
    rows = np.array([0, 99, 100, 350, 599])
    found = SparseFeatures.gather(in_shards(features)[0](), rows)
    assert found.ids == tuple(rows.tolist())
    np.testing.assert_array_equal(found.to_scipy().toarray(), features.to_scipy()[rows].toarray())
    for wrong in ([], [600], [-1, 3]):
        with pytest.raises(InputError, match="wanted rows of 0 to 599"):
            SparseFeatures.gather(in_shards(features)[0](), np.array(wrong, dtype=np.int64))

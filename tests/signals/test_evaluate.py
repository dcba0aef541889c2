"""evaluate: planted signals found by the right kind, noise by none, gaps counted, bad input refused."""

import json

import numpy as np
import pytest

from saerl_fast.errors import DtypeError, InputError, NonFiniteError, ShapeError
from saerl_fast.signals.evaluate import evaluate, format_table, held_out_rows
from tests.signals import planted

KINDS = {"sae", "raw", "tfidf", "tfidf_latex", "length", "majority"}
ROWS = 500


@pytest.fixture(scope="module")
def world():
    """Topic in the features, in the words and weakly in the states; difficulty in five features; quality likewise."""
    rng = np.random.default_rng(0)
    features, kind = planted.clusters(n_rows=ROWS, width=80)
    other, grade, _ = planted.graded(n_rows=ROWS, width=60)
    from scipy import sparse

    words = np.array(["sum", "angle", "prime", "graph"])
    return {
        "features": sparse.hstack([features, other]).tocsr(),
        "hidden": np.eye(4)[kind] + rng.standard_normal((ROWS, 4)),
        "texts": [f"the {words[k]} of {rng.integers(9)} and {rng.integers(9)}" for k in kind],
        "lengths": rng.integers(5, 100, size=ROWS),
        "topic": [f"topic {k}" for k in kind],
        "difficulty": grade.tolist(),
        "quality": np.where(grade > np.median(grade), "good", "bad").tolist(),
    }


@pytest.fixture(scope="module")
def result(world):
    return evaluate(**world)


def test_shape_of_the_result(result):
    assert result["rows"] == ROWS
    assert set(result["topic"]) == set(result["quality"]) == KINDS
    assert set(result["difficulty"]) == KINDS | {"sae_elasticnet"}
    assert json.loads(json.dumps(result)) == result
    assert result["details"]["held_out"] == 135
    assert [result["details"][name]["metric"] for name in ("topic", "difficulty", "quality")] == [
        "accuracy",
        "spearman",
        "auc",
    ]


def test_calibration_of_difficulty_is_of_the_held_out_rows(world, result):
    bins = result["details"]["difficulty"]["calibration"]
    assert set(bins) == set(result["difficulty"]) - {"majority"}
    assert all("calibration" not in result["details"][name] for name in ("topic", "quality"))
    mean = np.array(world["difficulty"])[held_out_rows(ROWS, 0)].mean()
    for kind, found in bins.items():
        assert sum(found["n"]) == 135, kind
        assert np.average(found["observed"], weights=found["n"]) == pytest.approx(mean, abs=1e-4), kind
        assert found["predicted"] == sorted(found["predicted"]), kind
    # the planted signal: what is predicted high is observed high; not so for length
    assert bins["sae_elasticnet"]["observed"][-1] - bins["sae_elasticnet"]["observed"][0] > 1
    assert len(bins["sae_elasticnet"]["n"]) == 10


def test_planted_signals_are_found_where_they_are(result):
    topic, difficulty, quality = result["topic"], result["difficulty"], result["quality"]
    assert topic["sae"] == topic["tfidf"] == 1
    assert 0.5 < topic["raw"] < 0.9
    assert topic["length"] < 0.4
    assert difficulty["sae"] > 0.7
    assert difficulty["sae_elasticnet"] > 0.7
    # standard error 0.086
    assert max(abs(difficulty[kind]) for kind in ("raw", "tfidf", "length")) < 0.26
    assert quality["sae"] > 0.8
    assert max(abs(quality[kind] - 0.5) for kind in ("raw", "tfidf", "length")) < 0.15
    assert (difficulty["majority"], quality["majority"]) == (0, 0.5)
    # 16 clusters of 4 topics: two bits of four
    assert result["topic_nmi"]["sae"] > 0.6


def test_majority_is_the_commonest_training_topic_on_held_out_rows(world, result):
    topic = np.array(world["topic"])
    test = held_out_rows(ROWS, 0)
    train = np.setdiff1d(np.arange(ROWS), test)
    names, counts = np.unique(topic[train], return_counts=True)
    assert result["topic"]["majority"] == (topic[test] == names[counts.argmax()]).mean()


def test_the_same_seed_gives_the_same_numbers(world, result):
    again = evaluate(**world)
    for name in ("topic", "difficulty", "quality", "topic_nmi"):
        assert again[name] == result[name]


def test_held_out_labels_have_no_part_in_the_fit(world, result):
    test = held_out_rows(ROWS, 0)
    changed = np.array(world["difficulty"])
    changed[test] = -changed[test]
    found = evaluate(**world | {"topic": None, "quality": None, "difficulty": changed})
    assert found["details"]["difficulty"]["penalty"] == result["details"]["difficulty"]["penalty"]
    for kind in KINDS | {"sae_elasticnet"}:
        assert found["difficulty"][kind] == pytest.approx(-result["difficulty"][kind], abs=1e-12)


def test_random_labels_are_near_chance_for_every_kind(world):
    scores = []
    for seed in range(3):
        rng = np.random.default_rng(100 + seed)
        noise = {"topic": rng.integers(4, size=ROWS).tolist(), "difficulty": rng.standard_normal(ROWS)}
        found = evaluate(**world | noise | {"quality": None, "seed": seed})
        # 135 rows: standard errors 0.037 and 0.086
        assert max(found["topic"].values()) < 0.25 + 4 * 0.037
        scores.append([found["difficulty"][kind] for kind in ("sae", "sae_elasticnet", "raw", "tfidf_latex")])
    assert np.abs(np.mean(scores, axis=0)).max() < 3 * 0.086 / np.sqrt(3)


def test_gaps_are_left_out_and_counted(world):
    difficulty, topic = list(world["difficulty"]), list(world["topic"])
    test = held_out_rows(ROWS, 0)
    gone = [*test[:10].tolist(), *np.setdiff1d(np.arange(ROWS), test)[:20].tolist()]
    for row in gone:
        difficulty[row], topic[row] = None, "" if row % 2 else None
    found = evaluate(**world | {"difficulty": difficulty, "topic": topic, "quality": None})
    for name in ("topic", "difficulty"):
        counted = found["details"][name]
        assert (counted["labelled"], counted["unlabelled"]) == (470, 30)
        assert (counted["train"], counted["tested"]) == (345, 125)
    assert found["topic"]["sae"] == 1


def test_only_features_and_one_label(world):
    found = evaluate(world["features"], difficulty=world["difficulty"])
    assert set(found) == {"rows", "difficulty", "details"}
    assert set(found["difficulty"]) == {"sae", "sae_elasticnet", "majority"}


def test_texts_may_be_missing(world):
    texts = [None if row % 7 == 0 else text for row, text in enumerate(world["texts"])]
    found = evaluate(**world | {"texts": texts, "difficulty": None, "quality": None})
    assert 0.8 < found["topic"]["tfidf"] < 1


def test_quality_on_a_scale_and_as_booleans(world):
    scale = np.round(np.array(world["difficulty"]), 1)
    only = {"topic": None, "difficulty": None}
    assert evaluate(**world | only | {"quality": scale})["details"]["quality"]["metric"] == "spearman"
    flags = [word == "good" for word in world["quality"]]
    found = evaluate(**world | only | {"quality": flags})
    named = evaluate(**world | only)
    assert found["quality"]["sae"] == pytest.approx(named["quality"]["sae"], abs=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"difficulty": [1.0, 2.0]}, ShapeError, "one label per row is wanted, 500; got 2"),
        ({"texts": ["a"]}, ShapeError, "texts must have one entry per row, 500; got 1"),
        ({"lengths": [1, 2]}, ShapeError, "lengths must have"),
        ({"hidden": np.ones((499, 3))}, ShapeError, "hidden must have"),
        ({"hidden": np.full((500, 3), np.nan)}, NonFiniteError, "hidden"),
        ({"topic": ["one"] * ROWS}, InputError, "labels must differ; all 500 are 'one'"),
        ({"topic": [None] * ROWS}, InputError, "at least 10 labelled"),
        ({"topic": list(range(ROWS))}, InputError, "must be a column of categories"),
        ({"difficulty": [2.5] * ROWS}, InputError, "labels must differ"),
        ({"difficulty": ["hard", "easy"] * 250}, DtypeError, "row 0 holds 'hard'"),
        ({"quality": ["a", "b", "c", "d"] * 125}, DtypeError, "must be numbers"),
        ({"held_out": 500}, InputError, "held_out must be from 1"),
        ({"held_out": 0}, InputError, "held_out must be from 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input(world, change, error, message):
    with pytest.raises(error, match=message):
        evaluate(**world | change)


def test_features_with_nan(world):
    spoilt = world["features"].copy()
    spoilt.data[3] = np.nan
    with pytest.raises(NonFiniteError, match="features hold NaN"):
        evaluate(**world | {"features": spoilt})


def test_labels_on_one_side_of_the_split_only(world):
    test = held_out_rows(ROWS, 0)
    difficulty = [value if row in set(test.tolist()) else None for row, value in enumerate(world["difficulty"])]
    with pytest.raises(InputError, match="0 training labels"):
        evaluate(**world | {"difficulty": difficulty})


def test_held_out_rows():
    assert len(held_out_rows(7474, 0)) == 2000
    assert len(held_out_rows(1000, 0)) == 270
    assert np.array_equal(held_out_rows(100, 5), held_out_rows(100, 5))
    assert not np.array_equal(held_out_rows(100, 5), held_out_rows(100, 6))
    assert len(np.unique(held_out_rows(100, 5))) == 27


def test_table():
    details = {"labelled": 9, "unlabelled": 1, "tested": 3, "standard_error": 0.0123}
    text = format_table(
        {
            "rows": 10,
            "topic": {"sae": 0.7, "tfidf_latex": 0.75, "majority": 0.2},
            "difficulty": {"sae": 0.6, "sae_elasticnet": 0.5, "majority": 0.0},
            "details": {
                "seed": 4,
                "held_out": 3,
                "topic": details | {"metric": "accuracy"},
                "difficulty": details | {"metric": "spearman"},
            },
        }
    )
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert "10 rows, 3 held out (seed 4)" in text
    assert lines["SAE features"][2:] == ["0.700", "0.600", "*"]
    assert lines["SAE features, elastic net"][4:] == ["-", "0.500"]
    assert lines["TF-IDF, LaTeX, 1-2-grams"][3:] == ["0.750", "*", "-"]
    assert lines["unlabelled"] == ["unlabelled", "1", "1"]
    assert "raw" not in text

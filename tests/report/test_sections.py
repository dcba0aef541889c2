"""What the sections compute, by hand: clusters, calibration's words, quality against the truth, runs compared."""

import tomllib
import types
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest

from saerl_fast.curriculum import make_plan
from saerl_fast.features import SparseFeatures
from saerl_fast.report.clusters import clusters_view
from saerl_fast.report.difficulty import hidden_view, labels_view, levels_view
from saerl_fast.report.find import Pieces
from saerl_fast.report.quality import quality_view
from saerl_fast.report.read import Features, Labels, Plan, Run, Training
from saerl_fast.report.scores import scores_view
from saerl_fast.report.training import caution, comparisons, smooth, window_of
from saerl_fast.report.wording import figure, gap_in_words, percent, points, shortened, signed, without_middle
from saerl_fast.rl.label import Label

DENSE = np.array(
    [
        [4, 0, 0, 1],
        [4, 1, 0, 1],
        [4, 0, 0, 1],
        [0, 9, 2, 1],
        [0, 9, 2, 1],
        [0, 0, 0, 0],  # a row without features
    ],
    dtype=np.float32,
)
NAMES = ("a", "b", "c", "d", "e", "f")


def make_run(tmp_path, *, clusters=(0, 0, 0, 1, 1, 0), topic=None, level=None, defect=None, labels=None, **plan):
    from scipy.sparse import csr_matrix

    matrix = csr_matrix(DENSE)
    rows = SparseFeatures(
        indptr=matrix.indptr.astype(np.int64),
        indices=matrix.indices.astype(np.int32),
        values=matrix.data,
        n_features=4,
        ids=NAMES,
        status=("ok",) * 5 + ("empty",),
        n_tokens=np.ones(6, np.int32),
    )
    features = Features(rows, types.SimpleNamespace(fingerprint={}), [f"text {name}" for name in NAMES], None, topic, level, defect)  # fmt: skip
    made = make_plan(list(NAMES), clusters=clusters, status=list(rows.status), prompts_per_step=2, **plan)
    found = None if labels is None else Labels(labels, {"fingerprint": {}})
    plans = [Plan("plan", made, {"held_out": {}, "labelled": {}, "filtered": "drop_lowest" in plan})]
    return Run(tmp_path, Pieces(), features, found, None, None, None, plans, [])


def test_clusters_by_hand(tmp_path):
    labels = [Label("a", 1, 4, 0.25), Label("b", 3, 4, 0.75), Label("f", 4, 4, 1.0)]
    view = clusters_view(
        make_run(
            tmp_path,
            topic=["x", "x", "y", "y", "y", "y"],
            level=np.array([1.0, 2.0, np.nan, 5.0, 5.0, 5.0]),
            difficulty=[1.0, 2.0, 3.0, 7.0, 9.0, 100.0],
            labels=labels,
        )
    )
    first, second = view["shown"]
    assert [(entry["label"], entry["rows"]) for entry in view["shown"]] == [("0", 3), ("1", 2)]
    assert (first["predicted"], second["predicted"]) == (2.0, 8.0)
    assert (first["observed"], first["labelled"], second["observed"]) == (0.5, 2, None)  # f has no features
    assert (first["level"], second["level"]) == (1.5, 5.0)
    assert (first["topic"], first["topic_share"], second["topic"]) == ("x", pytest.approx(2 / 3), "y")
    # feature 0: mean 4 inside, 0 outside, standard deviation of (4, 4, 4, 0, 0); feature 3 sets nothing apart
    assert [entry["feature"] for entry in first["features"]] == [0]
    assert first["features"][0]["strength"] == pytest.approx(4 / np.std([4, 4, 4, 0, 0]))
    assert (first["features"][0]["inside"], first["features"][0]["outside"]) == (1.0, 0.0)
    assert {entry["feature"] for entry in second["features"]} == {1, 2}
    assert second["features"][0] == {  # feature 2 is nowhere else; feature 1 is in one row of three
        "feature": 2, "strength": pytest.approx(2 / np.std([0, 0, 0, 2, 2])), "inside": 1.0, "outside": 0.0,
    }  # fmt: skip
    assert second["features"][1]["outside"] == pytest.approx(1 / 3)
    assert [example["id"] for example in first["examples"]] == ["a", "c"]  # b also has feature 1
    crossing = view["crossing"]
    assert crossing["purity"] == pytest.approx(4 / 5)
    assert crossing["guess"] == pytest.approx(3 / 5)
    assert [[cell["count"] for cell in row["cells"]] for row in crossing["rows"]] == [[2, 0], [1, 2]]
    assert [row["label"] for row in crossing["rows"]] == ["1", "0"]


def test_quality_against_the_truth_by_hand(tmp_path):
    defect = np.array([True, False, False, True, False, True])
    view = quality_view(make_run(tmp_path, defect=defect, quality=[0.1, 0.2, 0.8, 0.75, 0.7, 0.0], drop_lowest=0.4))
    assert (view["dropped"], view["rows"], view["threshold"]) == (2, 5, 0.7)
    truth = view["truth"]
    assert (truth["faulty"], truth["hits"]) == (2, 1)  # a and b are dropped; a and d are defective; f was never read
    assert (truth["precision"], truth["recall"], truth["by_chance"]) == (0.5, 0.5, pytest.approx(0.8))
    assert truth["auc"] == pytest.approx(4 / 6)  # a is below all three sound rows, d below one
    lowest = [(row["id"], row["dropped"], row["faulty"]) for row in view["lowest"]]
    assert lowest == [
        ("a", True, True),
        ("b", True, False),
        ("e", False, False),
        ("d", False, True),
        ("c", False, False),
    ]
    nothing = quality_view(make_run(tmp_path, quality=[0.1, 0.2, 0.8, 0.9, 0.7, 0.0]))
    assert (nothing["dropped"], nothing["threshold"], nothing["truth"]) == (0, None, None)
    assert quality_view(make_run(tmp_path)) is None


def test_level_against_prediction_leaves_out_the_labelled_rows(tmp_path):
    labels = [Label("a", 4, 4, 1.0), Label("e", 0, 4, 0.0)]
    level = np.array([5.0, 1.0, 1.0, 2.0, 1.0, 5.0])
    run = make_run(tmp_path, level=level, difficulty=[0.0, 1.0, 2.0, 3.0, 9.0, 9.0], labels=labels)
    assert levels_view(run) is None  # b, c and d remain; of level 2 there is one row
    run = make_run(tmp_path, level=np.array([5.0, 1, 1, 2, 2, 5]), difficulty=[0.0, 1, 2, 3, 4, 9], labels=labels[:1])
    found = levels_view(run)
    assert (found["rows"], found["unseen"]) == (4, True)
    assert found["spearman"] == pytest.approx(2 / 5**0.5)  # ranks 1 2 3 4 against 1.5 1.5 3.5 3.5
    assert "level 1: 1.50, level 2: 3.50" in found["picture"].label


def test_scores_for_the_true_level_stand_beside_guessing():
    scores = {"length": 0.02, "tfidf": -0.01, "sae": 0.4, "majority": 0.0}
    details = {"metric": "spearman", "standard_error": 0.08, "labelled": 401, "tested": 101}
    found = hidden_view({"level": scores, "details": {"level": details}})
    named = [(row["name"], row["score"]) for row in found["scores"]]
    assert named == [("SAE features", 0.4), ("TF-IDF", -0.01), ("length", 0.02)]
    assert (found["train"], found["tested"], found["error"]) == (300, 101, 0.1)
    assert hidden_view({"difficulty": scores, "details": {}}) is None


def test_pass_rates_have_a_bar_for_each_rate():
    labels = [Label(f"q{row}", right, 4, right / 4) for row, right in enumerate([0, 0, 1, 4, 4, 4])]
    found = labels_view(Labels(labels, {"fingerprint": {"rollouts": 4}}))
    assert (found["rows"], found["mean"], found["none"], found["all"]) == (6, 13 / 24, 1 / 3, 0.5)
    assert "in 4 parts: 2, 1, 0, 0, 3" in found["picture"].label


def evaluation(**scores):
    details = {"metric": "spearman", "standard_error": 0.05, "labelled": 10, "tested": 5}
    return {"rows": 10, "difficulty": scores, "details": {"held_out": 5, "difficulty": details}}


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"sae_elasticnet": 0.5, "raw": 0.1, "tfidf": 0.2}, ["TF-IDF, 0.20", "ahead by 0.30, 4.2 standard errors"]),
        ({"sae_elasticnet": 0.5, "raw": 0.58}, ["raw hidden states, 0.58", "behind by 0.08, between one and two"]),
        ({"sae_elasticnet": 0.5, "length": 0.48}, ["ahead by 0.02, within one standard error"]),
        ({"sae_elasticnet": 0.09, "length": -0.2}, ["0.09, no better than guessing", "length, −0.20"]),
        ({"sae_elasticnet": 0.3, "tfidf": 0.3}, ["They are equal."]),
        ({"sae_elasticnet": 0.3}, ["no control to hold it against"]),
    ],
)
def test_a_score_is_told_beside_its_best_control(scores, said):
    view = scores_view(evaluation(sae=0.9, majority=0.0, **scores))
    sentence = view["judgements"]["difficulty"]["sentence"]
    for part in said:
        assert part in sentence
    assert "0.90" not in sentence  # the ridge is not the model a plan rests on, however good it is
    assert next(row for row in view["rows"] if row["cells"][0]["best"])["name"] == "SAE features"


def training(name, rates, *, policy="default", shuffled=None, steps=4, ids=None, **fingerprint):
    ids = ids or [f"h{row}" for row in range(len(rates))]
    after = {"accuracy": float(np.mean(rates)), "standard_error": float(np.std(rates, ddof=1) / len(rates) ** 0.5)}
    run = {
        "config": {"plan": "plan", "shuffled": shuffled},
        "plan": {"policy": policy},
        "steps": steps,
        "fingerprint": fingerprint,
    }
    answers = [Label(row_id, round(rate * 4), 4, rate) for row_id, rate in zip(ids, rates, strict=True)]
    evaluated = {"n": len(rates), "before": {"accuracy": 0.0, "n": len(rates)}, "after": after | {"n": len(rates)}}
    return Training(name, run, [], evaluated, {}, answers)


def test_runs_are_compared_problem_by_problem():
    ours = training("plan", [0.5, 0.75, 1.0, 0.25], seed=0, order="a")
    theirs = training("shuffled", [0.25, 0.5, 0.75, 0.25], policy="random", seed=0, order="b")
    (found,) = comparisons([theirs, ours])
    changes = [0.25, 0.25, 0.25, 0.0]
    assert (found["one"], found["other"], found["paired"]) == ("plan", "shuffled", True)
    assert (found["gap"], found["error"]) == (pytest.approx(0.1875), pytest.approx(np.std(changes, ddof=1) / 2))
    assert found["differing"] == ["order"]
    assert "plan is 18.8 percentage points above shuffled" in found["sentence"]
    assert "3.0 standard errors" in found["sentence"]
    assert not found["within"]


def test_runs_of_other_problems_are_compared_without_pairs():
    ours = training("plan", [0.5, 0.75, 1.0, 0.25])
    theirs = training("plain", [0.5, 0.75, 0.75, 0.25], shuffled=True, ids=["x", "y", "z", "w"], steps=9)
    (found,) = comparisons([ours, theirs])
    assert not found["paired"]
    assert found["error"] == pytest.approx(np.hypot(np.std([0.5, 0.75, 1, 0.25], ddof=1), np.std([0.5, 0.75, 0.75, 0.25], ddof=1)) / 2)  # fmt: skip
    assert "within one standard error" in found["sentence"]
    assert found["within"]
    assert not found["same_steps"]


def test_the_same_answers_are_called_that_and_one_run_is_not_compared():
    ours, theirs = training("plan", [0.5, 0.25]), training("shuffled", [0.5, 0.25], shuffled=True)
    assert "the answers are the same" in comparisons([ours, theirs])[0]["sentence"]
    assert comparisons([ours]) == []
    two = comparisons([ours, training("other", [0.5, 0.5])])
    assert [(found["one"], found["other"]) for found in two] == [("other", "plan")]


def test_what_a_short_run_cannot_show_is_said():
    one, two = training("a", [1.0, 0.0]), training("b", [1.0, 0.0])
    assert "A comparison this short proves nothing about SAERL" in caution([one, two], 40)
    assert "One run of each kind proves nothing about SAERL" in caution([one, two], 4000)
    assert "single run of 40 steps" in caution([one], 40)


def test_smoothing_by_hand():
    assert smooth(np.array([0.0, 3.0, 6.0, 0.0]), 3).tolist() == [1.5, 3.0, 3.0, 3.0]
    assert [window_of(steps) for steps in (1, 40, 50, 160, 1000)] == [3, 5, 5, 17, 101]


def test_figures_as_people_read_them():
    assert [figure(1234.5), figure(-0.001), figure(None), figure(float("nan")), figure(np.float32(0.5))] == [
        "1,234.50", "0.00", "–", "–", "0.50",
    ]  # fmt: skip
    assert [signed(0.126), signed(-0.126), signed(0.001)] == ["+0.13", "−0.13", "0.00"]
    assert [percent(0.1234, 1), points(-0.0123)] == ["12.3\u00a0%", "−1.2"]
    assert shortened("a  b\nc") == "a b c"
    assert shortened("word " * 100, 20) == "word word word …"
    assert shortened("x" * 100, 20) == "x" * 19 + " …"
    assert without_middle("a  b\nc") == "a b c"
    assert (
        without_middle("Ana has 3. " * 20 + "How many has Ben?", 60)
        == "Ana has 3. Ana has 3. Ana … has 3. How many has Ben?"
    )
    assert without_middle("x" * 100 + "?", 21) == "x" * 9 + " … " + "x" * 8 + "?"
    assert gap_in_words(-0.7, 1.0) == "within one standard error"
    assert gap_in_words(1.5, 1.0).startswith("between one and two")
    assert gap_in_words(-2.5, 1.0) == "2.5 standard errors"
    assert gap_in_words(0.1, 0.0) == "no standard error is known"


def test_the_templates_are_package_data():
    root = Path(__file__).parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    files = [path for path in (root / "saerl_fast" / "report").rglob("*") if path.suffix in (".html", ".css")]
    assert len(files) > 5
    for path in files:
        name = path.relative_to(root / "saerl_fast" / "report").as_posix()
        assert any(fnmatch(name, pattern) for pattern in patterns["saerl_fast.report"]), name

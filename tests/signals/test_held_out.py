"""Scores worked by hand, and what a report says."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from saerl_fast.errors import InputError
from saerl_fast.signals.held_out import area_under_curve, held_out_report, spearman


def test_spearman_by_hand():
    # ranks 1 2 3 4 and 1 3 2 4: 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15)
    assert spearman(np.array([1.0, 5.0, 9.0, 70.0]), np.array([0.1, 0.3, 0.2, 0.4])) == pytest.approx(0.8)
    assert spearman(np.array([3.0, 2.0, 1.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(-1)


def test_spearman_with_ties_agrees_with_scipy():
    rng = np.random.default_rng(0)
    first, second = rng.integers(5, size=200), rng.integers(5, size=200)
    assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic)


def test_a_constant_orders_nothing():
    assert spearman(np.ones(5), np.arange(5.0)) == 0
    assert area_under_curve(np.ones(5), np.array([True, False, True, False, False])) == 0.5
    assert area_under_curve(np.arange(3.0), np.array([True, True, True])) == 0.5


def test_area_under_curve_by_hand():
    # pairs (positive, negative): 3>1, 3>2, 2=2 (half), 2>1
    assert area_under_curve(np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False])) == 3.5 / 4
    rng = np.random.default_rng(0)
    predicted, positive = rng.integers(6, size=100), rng.random(100) < 0.3
    assert area_under_curve(predicted, positive) == pytest.approx(roc_auc_score(positive, predicted))


def report(predicted, labels, **options):
    """A report on predictions that are known beforehand."""
    options = {"two_values": False, "share": 0.2, "seed": 0} | options
    return held_out_report(lambda fitted, tested: predicted[tested], labels, **options)


def test_a_perfect_prediction():
    labels = np.random.default_rng(0).standard_normal(500)
    found = report(labels, labels)
    assert found["score"] == pytest.approx(1)
    assert found["n"] == 100
    assert found["standard_error"] == pytest.approx(1 / np.sqrt(99))
    assert not found["near_chance"]


@pytest.mark.parametrize("n_rows", [60, 500])
@pytest.mark.parametrize("two_values", [False, True])
def test_guessing_is_near_chance_about_49_times_in_50(n_rows, two_values):
    rng = np.random.default_rng(0)
    flags = []
    for seed in range(200):
        labels = rng.standard_normal(n_rows)
        if two_values:
            labels = (labels > 0.5).astype(float)
        flags.append(report(rng.standard_normal(n_rows), labels, two_values=two_values, seed=seed)["near_chance"])
    # 2.3 % of the guesses lie two standard errors above; 200 draws give 4.6, and at most 14 with p > 0.9999
    assert 186 <= sum(flags) < 200


def test_fitted_and_tested_rows_never_meet_and_cover_all():
    for n_rows in (10, 25, 199, 200, 1000):
        seen = []

        def predict(fitted, tested, seen=seen):
            assert not set(fitted) & set(tested)
            seen.append(tested)
            return np.zeros(len(tested))

        found = held_out_report(predict, np.arange(float(n_rows)), two_values=False, share=0.2, seed=0)
        if n_rows < 200:
            assert sorted(np.concatenate(seen)) == list(range(n_rows))
        assert found["n"] == sum(len(tested) for tested in seen)


def test_each_part_has_both_of_two_values():
    labels = np.zeros(40)
    labels[:3] = 1
    found = report(labels, labels, two_values=True)
    assert found["how"] == "3-fold cross-validation"
    assert found["score"] == 1
    with pytest.raises(InputError, match="at least 3 rows of each; got 2"):
        report(labels, np.r_[1.0, 1.0, np.zeros(38)], two_values=True)

"""QualityProbe: ridge against its closed form, thresholds, and what it refuses."""

import numpy as np
import pytest
from scipy import sparse

from saerl_fast.errors import DtypeError, InputError
from saerl_fast.signals import QualityProbe
from saerl_fast.signals.linear import RIDGE_PENALTIES, fit_logistic, fit_ridge
from tests.signals import planted


def two_values(n_rows=400, seed=0):
    rows, signal, _ = planted.graded(n_rows=n_rows, width=60, seed=seed)
    return rows, (signal > np.median(signal)).astype(float)


@pytest.mark.parametrize("as_sparse", [True, False])
def test_ridge_agrees_with_the_normal_equations(as_sparse):
    rows, labels, _ = planted.graded(n_rows=80, width=12)
    dense = rows.toarray().astype(np.float64)
    given = sparse.csr_array(rows) if as_sparse else rows.toarray()
    found = fit_ridge(given, labels, lambda predicted, true: -np.square(predicted - true).mean(), seed=0)
    assert found.penalty in RIDGE_PENALTIES
    # the penalty belongs to rows whose mean squared norm is 1
    penalty = found.penalty * np.square(dense).sum(axis=1).mean()
    centred = dense - dense.mean(axis=0)
    weights = np.linalg.solve(centred.T @ centred + penalty * np.eye(12), centred.T @ (labels - labels.mean()))
    np.testing.assert_allclose(found.weights, weights, rtol=1e-3, atol=1e-4)
    assert found.intercept == pytest.approx(labels.mean() - dense.mean(axis=0) @ weights, rel=1e-3)


def test_logistic_takes_rows_as_they_were_given():
    rows, kinds = planted.clusters()
    names = np.array(["a", "b", "c", "d"])[kinds]
    small = sparse.csr_array(rows)
    large = small * np.float32(1000)
    model, inverse = fit_logistic(small, names, seed=0)
    assert (model.predict(small) == names).mean() > 0.95
    assert inverse > 0
    # the scale of the rows is taken out before the fit, and out of the weights after it
    rescaled, _ = fit_logistic(large, names, seed=0)
    np.testing.assert_allclose(rescaled.predict_proba(large), model.predict_proba(small), atol=1e-3)
    np.testing.assert_allclose(rescaled.coef_ * 1000, model.coef_, atol=0.02 * np.abs(model.coef_).max())


def test_two_values_are_scored_by_auc():
    rows, labels = two_values()
    labels[300:] = np.nan
    probe = QualityProbe(random_state=0).fit(rows, labels)
    assert probe.score_report_["metric"] == "auc"
    assert probe.score_report_["score"] > 0.85
    assert probe.n_labelled_ == 300
    unseen = two_values()[1][300:]
    predicted = probe.predict(rows[300:])
    assert predicted[unseen == 1].mean() > predicted[unseen == 0].mean() + 0.3


def test_a_scale_is_scored_by_spearman():
    rows, labels, _ = planted.graded(n_rows=300, width=60)
    report = QualityProbe(random_state=0).fit(rows, labels).score_report_
    assert report["metric"] == "spearman"
    assert report["score"] > 0.8


def test_booleans_and_words_are_two_values():
    rows, labels = two_values()
    wanted = QualityProbe(random_state=0).fit(rows, labels)
    flags = QualityProbe(random_state=0).fit(rows, labels == 1)
    words = np.where(labels == 1, "valid", "invalid").tolist()
    named = QualityProbe(random_state=0, good_label="valid").fit(rows, words)
    turned = QualityProbe(random_state=0, good_label="invalid").fit(rows, words)
    assert np.array_equal(wanted.coef_, flags.coef_)
    assert np.array_equal(wanted.coef_, named.coef_)
    np.testing.assert_allclose(turned.coef_, -wanted.coef_, rtol=1e-3, atol=1e-5)


def test_words_need_to_know_which_is_good():
    rows, labels = two_values()
    words = np.where(labels == 1, "valid", "invalid").tolist()
    with pytest.raises(InputError, match=r"good_label must say .*invalid.*valid"):
        QualityProbe().fit(rows, words)
    with pytest.raises(InputError, match="'fine' is not among the labels"):
        QualityProbe(good_label="fine").fit(rows, words)
    with pytest.raises(DtypeError, match="row 3 holds"):
        QualityProbe().fit(rows, [1.0, 0.0, None, object()] * 100)


class TestThreshold:
    def test_drops_the_share_asked_for(self):
        rows, labels = two_values()
        labels[200:] = np.nan
        probe = QualityProbe(random_state=0).fit(rows, labels)
        for share in (0.0, 0.05, 0.25):
            dropped = probe.predict(rows) < probe.threshold(share)
            assert dropped.sum() == 400 * share
        others, _ = two_values(n_rows=100, seed=7)
        assert (probe.predict(others) < probe.threshold(0.1, X=others)).sum() == 10

    def test_drops_the_worst(self):
        rows, labels = two_values()
        probe = QualityProbe(random_state=0).fit(rows, labels)
        dropped = probe.predict(rows) < probe.threshold(0.1)
        assert labels[dropped].mean() < 0.05

    def test_refuses_a_probe_near_chance(self):
        rows = planted.pooled(300, 40)
        noise = np.random.default_rng(0).integers(2, size=300)
        with pytest.warns(UserWarning, match="near chance"):
            probe = QualityProbe(random_state=0).fit(rows, noise)
        with pytest.raises(InputError, match="drops rows at random"):
            probe.threshold()
        assert np.isfinite(probe.threshold(force=True))

    @pytest.mark.parametrize("share", [-0.1, 1.0])
    def test_share_out_of_range(self, share):
        probe = QualityProbe(random_state=0).fit(*two_values())
        with pytest.raises(InputError, match="drop_lowest must lie in"):
            probe.threshold(share)

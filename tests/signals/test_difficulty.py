"""DifficultyProxy: closed forms, planted features found, and no leak through screening."""

import numpy as np
import pytest
from scipy import sparse
from scipy.linalg import hadamard
from scipy.stats import spearmanr

from saerl_fast.errors import InputError
from saerl_fast.signals import DifficultyProxy, elastic_net
from saerl_fast.signals.elastic_net import Penalty, choose_penalty, fit_elastic_net
from tests.signals import planted


@pytest.mark.parametrize(("alpha", "l1_ratio"), [(0.5, 1.0), (0.5, 0.5), (1.5, 0.5), (0.2, 0.02)])
def test_orthogonal_columns_have_a_closed_form(alpha, l1_ratio):
    # columns of +1 and -1, mean 0, standard deviation 1, orthogonal: each weight is
    # S(c, alpha * l1_ratio) / (1 + alpha * (1 - l1_ratio)), S the soft threshold, c = x.y / n
    columns = hadamard(16)[:, 1:6]
    labels = columns @ [3.0, -2.0, 0.4, 0.0, 1.0] + 7
    covariance = columns.T @ (labels - 7) / 16
    shrunk = np.sign(covariance) * np.maximum(np.abs(covariance) - alpha * l1_ratio, 0)
    wanted = shrunk / (1 + alpha * (1 - l1_ratio))
    found = fit_elastic_net(
        sparse.csr_array(columns.astype(np.float32)), labels, Penalty((3.0, 2.0, alpha), l1_ratio), 5
    )
    np.testing.assert_allclose(found.weights, wanted, atol=2e-3)
    assert found.intercept == pytest.approx(7, abs=1e-2)


def test_planted_features_are_found():
    rows, labels, carriers = planted.graded(n_rows=600, width=400)
    labels[400:] = np.nan
    proxy = DifficultyProxy(max_features=50, random_state=0).fit(rows, labels)
    assert proxy.n_labelled_ == 400
    assert len(proxy.selected_) == 50
    assert set(carriers) <= set(np.argsort(-np.abs(proxy.coef_))[:5])
    unseen = planted.graded(n_rows=600, width=400)[1][400:]
    truth = np.sqrt(rows[400:, carriers].toarray()).sum(axis=1)
    assert spearmanr(proxy.predict(rows[400:]), unseen).statistic > 0.95 * spearmanr(truth, unseen).statistic


@pytest.mark.filterwarnings("ignore::saerl_fast.signals.NearChanceWarning")
def test_the_score_foretells_unseen_rows():
    # noisy labels, many features: the score must be neither of the rows fitted on nor far from the truth
    gaps = []
    for seed in range(6):
        rows, labels, _ = planted.graded(n_rows=1400, width=100, noise=2.0, seed=seed)
        gapped = np.r_[labels[:400], np.full(1000, np.nan)]
        proxy = DifficultyProxy(random_state=seed).fit(rows, gapped)
        unseen = spearmanr(proxy.predict(rows[400:]), labels[400:]).statistic
        gaps.append(proxy.score_report_["score"] - unseen)
    # each score has a standard error of 0.11 over 80 rows
    assert abs(np.mean(gaps)) < 0.1


class TestScreeningDoesNotLeak:
    """Labels of pure noise, 3,000 features, 300 rows: what a leak turns into a good score."""

    def scores(self):
        found = []
        for seed in range(4):
            rows = planted.pooled(300, 3000, density=0.1, seed=seed)
            noise = np.random.default_rng(100 + seed).standard_normal(300)
            proxy = DifficultyProxy(max_features=30, n_alphas=8, l1_ratios=(0.1,), random_state=seed)
            found.append(proxy.fit(rows, noise).score_report_["score"])
        return np.array(found)

    @pytest.mark.filterwarnings("ignore::saerl_fast.signals.NearChanceWarning")
    def test_noise_scores_near_zero(self):
        # standard error 0.13 for each of the four
        assert abs(self.scores().mean()) < 0.2

    @pytest.mark.filterwarnings("ignore::saerl_fast.signals.NearChanceWarning")
    def test_the_test_above_sees_a_leak(self, monkeypatch):
        whole = {}
        honest = elastic_net.screen

        def leaky(rows, labels, n_features):
            return whole["columns"]

        original = DifficultyProxy._check_parameters

        def fit_on_all(self):
            original(self)
            monkeypatch.setattr(elastic_net, "screen", leaky)

        monkeypatch.setattr(DifficultyProxy, "_check_parameters", fit_on_all)
        found = []
        for seed in range(4):
            rows = planted.pooled(300, 3000, density=0.1, seed=seed)
            noise = np.random.default_rng(100 + seed).standard_normal(300)
            whole["columns"] = honest(sparse.csr_array(rows).sqrt(), noise, 30)
            proxy = DifficultyProxy(max_features=30, n_alphas=8, l1_ratios=(0.1,), random_state=seed)
            found.append(proxy.fit(rows, noise).score_report_["score"])
        assert np.mean(found) > 0.35

    def test_the_penalty_is_not_chosen_by_rows_that_were_screened_on(self):
        # with columns screened on all rows the folds would call for a weak penalty; honest folds choose the
        # strongest, all weights zero or nearly so
        rows = sparse.csr_array(planted.pooled(300, 3000, density=0.1))
        noise = np.random.default_rng(5).standard_normal(300)
        penalty = choose_penalty(rows, noise, max_features=30, n_alphas=10, l1_ratios=(0.5,), seed=0)
        assert len(penalty.path) <= 3


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"max_features": 0}, "at least 1"),
        ({"n_alphas": 0}, "at least 1"),
        ({"l1_ratios": ()}, r"\(0, 1\]"),
        ({"l1_ratios": (0.0,)}, r"\(0, 1\]"),
    ],
)
def test_parameters_out_of_range(parameters, message):
    with pytest.raises(InputError, match=message):
        DifficultyProxy(**parameters).fit(planted.pooled(20, 5), np.arange(20.0))


def test_features_that_never_vary():
    rows = sparse.csr_matrix(np.ones((40, 3), dtype=np.float32))
    with pytest.raises(InputError, match="none of the 3 features varies"):
        DifficultyProxy().fit(rows, np.arange(40.0))

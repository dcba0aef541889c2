"""The scikit-learn contract of the three estimators, all of its checks."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from saerl_fast.errors import DtypeError, InputError, NonFiniteError, SaerlError, ShapeError
from saerl_fast.signals import DifficultyProxy, QualityProbe, StreamingKMeans
from tests.signals import planted

ESTIMATORS = [StreamingKMeans(), StreamingKMeans(metric="euclidean"), DifficultyProxy(), QualityProbe()]


@pytest.mark.filterwarnings("ignore::saerl_fast.signals.NearChanceWarning")
@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_check(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def data():
    rows, labels, _ = planted.graded(n_rows=120, width=30)
    return rows, labels


def predictions(estimator, rows, labels):
    return clone(estimator).set_params(random_state=3).fit(rows, labels).predict(rows)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
class TestAll:
    def test_same_seed_same_bits(self, estimator, data):
        assert np.array_equal(predictions(estimator, *data), predictions(estimator, *data))

    def test_sparse_equals_dense(self, estimator, data):
        rows, labels = data
        found, wanted = predictions(estimator, rows, labels), predictions(estimator, rows.toarray(), labels)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)

    def test_half_precision_and_long_offsets(self, estimator, data):
        # what a feature folder may hand over
        rows, labels = data
        halves = rows.data.astype(np.float16)
        stored = sparse.csr_matrix((halves, rows.indices, rows.indptr.astype(np.int64)), shape=rows.shape)
        same = sparse.csr_matrix((halves.astype(np.float32), rows.indices, rows.indptr), shape=rows.shape)
        assert np.array_equal(predictions(estimator, stored, labels), predictions(estimator, same, labels))

    def test_the_input_is_not_changed(self, estimator, data):
        rows, labels = data
        # indices out of order, as scipy allows
        given = rows.copy()
        for row in range(given.shape[0]):
            span = slice(given.indptr[row], given.indptr[row + 1])
            given.indices[span], given.data[span] = given.indices[span][::-1].copy(), given.data[span][::-1].copy()
        given.has_sorted_indices = False
        before = given.copy()
        shuffled = predictions(estimator, given, labels)
        assert np.array_equal(given.indices, before.indices)
        assert np.array_equal(given.data, before.data)
        np.testing.assert_allclose(shuffled, predictions(estimator, rows, labels), rtol=1e-6)

    def test_predictions_do_not_depend_on_the_rows_beside(self, estimator, data):
        rows, labels = data
        fitted = clone(estimator).set_params(random_state=0).fit(rows, labels)
        parts = [fitted.predict(rows[start : start + 7]) for start in range(0, rows.shape[0], 7)]
        np.testing.assert_allclose(np.concatenate(parts), fitted.predict(rows), rtol=1e-12)

    @pytest.mark.parametrize("seed", [None, 0])
    def test_global_generators_are_untouched(self, estimator, data, seed):
        import random

        import torch

        # a state of our own: generators left at a usual seed would hide that they are set to it again
        np.random.seed(271828)
        torch.manual_seed(271828)
        random.seed(271828)
        before = np.random.get_state()[1].copy(), torch.get_rng_state().clone(), random.getstate()
        clone(estimator).set_params(random_state=seed).fit(*data)
        assert np.array_equal(np.random.get_state()[1], before[0])
        assert torch.equal(torch.get_rng_state(), before[1])
        assert random.getstate() == before[2]

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("as_sparse", [True, False])
    def test_nan_and_infinity_are_refused(self, estimator, data, bad, as_sparse):
        rows, labels = data
        spoilt = rows.copy()
        spoilt.data[5] = bad
        spoilt = spoilt if as_sparse else spoilt.toarray()
        with pytest.raises(NonFiniteError, match=type(estimator).__name__):
            clone(estimator).fit(spoilt, labels)
        fitted = clone(estimator).fit(rows, labels)
        with pytest.raises(NonFiniteError):
            fitted.predict(spoilt)

    def test_errors_are_ours_and_value_errors(self, estimator, data):
        rows, labels = data
        fitted = clone(estimator).fit(rows, labels)
        with pytest.raises(InputError, match="29 features"):
            fitted.predict(rows[:, :29])
        with pytest.raises(SaerlError):
            fitted.predict(rows[:0])
        with pytest.raises((InputError, DtypeError)):
            clone(estimator).fit(np.array([["a", "b"]] * 20), labels[:20])

    def test_unknown_value_transform(self, estimator, data):
        with pytest.raises(InputError, match="sqrt, log1p, none; got 'cube'"):
            clone(estimator).set_params(value_transform="cube").fit(*data)


@pytest.mark.parametrize("estimator", [DifficultyProxy(), QualityProbe()], ids=str)
@pytest.mark.filterwarnings("ignore::saerl_fast.signals.NearChanceWarning")
class TestLabels:
    def test_gaps_are_left_out_and_counted(self, estimator, data):
        rows, labels = data
        rng = np.random.default_rng(0)
        known = rng.random(len(labels)) < 0.7
        with_none = [label if here else None for label, here in zip(labels, known, strict=True)]
        with_nan = np.where(known, labels, np.nan)
        with_none[int(np.flatnonzero(~known)[0])] = np.float32("nan")
        first = clone(estimator).set_params(random_state=0).fit(rows, with_none)
        second = clone(estimator).set_params(random_state=0).fit(rows, with_nan)
        third = clone(estimator).set_params(random_state=0).fit(rows[np.flatnonzero(known)], labels[known])
        assert first.n_labelled_ == second.n_labelled_ == known.sum()
        assert np.array_equal(first.coef_, second.coef_)
        np.testing.assert_allclose(first.coef_, third.coef_, rtol=1e-10)

    def test_pandas_gaps(self, estimator, data):
        pandas = pytest.importorskip("pandas")
        rows, labels = data
        column = pandas.Series(np.round(labels)).astype("Int64")
        column[:40] = pandas.NA
        assert clone(estimator).fit(rows, column).n_labelled_ == 80

    @pytest.mark.parametrize(
        ("labels", "error", "message"),
        [
            (np.zeros(119), ShapeError, "one label per row is wanted, 120; got 119"),
            (np.zeros((120, 2)), ShapeError, "one column"),
            (np.full(120, 3.0), InputError, "all 120 are .*3.0"),
            ([None] * 120, InputError, "at least 10 labelled rows are wanted; got 0"),
            ([1.0, 2.0, 3.0] * 3 + [None] * 111, InputError, "got 9 labels"),
            ([1.0, np.inf] + [2.0] * 118, NonFiniteError, "row 1 holds infinity"),
            (None, InputError, "requires y"),
        ],
        ids=["length", "two columns", "all equal", "none", "too few", "infinity", "no y"],
    )
    def test_useless_labels_are_refused(self, estimator, data, labels, error, message):
        with pytest.raises(error, match=message):
            clone(estimator).fit(data[0], labels)

    def test_random_labels_warn(self, estimator):
        from saerl_fast.signals import NearChanceWarning

        rows = planted.pooled(300, 50)
        noise = np.random.default_rng(1).standard_normal(300)
        with pytest.warns(NearChanceWarning, match="near chance"):
            clone(estimator).set_params(random_state=0).fit(rows, noise)

    def test_a_held_out_row_has_no_part_in_the_fit(self, estimator):
        from saerl_fast.signals.held_out import _splits

        rows, labels, _ = planted.graded(n_rows=250, width=40)
        ((_, tested),) = _splits(labels, False, 0.2, seed=0)
        estimator = clone(estimator).set_params(random_state=0, refit=False)
        wanted = clone(estimator).fit(rows, labels)
        spoilt_rows, spoilt_labels = rows.tolil(), labels.copy()
        spoilt_rows[tested] = 7.0
        spoilt_labels[tested] = -labels[tested]
        found = clone(estimator).fit(spoilt_rows.tocsr(), spoilt_labels)
        assert np.array_equal(found.coef_, wanted.coef_)
        assert found.score_report_["score"] < 0.2 < wanted.score_report_["score"]

    def test_few_labels_are_scored_by_cross_validation(self, estimator, data):
        report = clone(estimator).fit(*data).score_report_
        assert report["how"] == "5-fold cross-validation"
        assert report["n"] == 120
        assert report["n_fitted"] == 96
        assert report["refit"]

    def test_many_labels_are_scored_on_a_part(self, estimator):
        rows, labels, _ = planted.graded(n_rows=300, width=40)
        report = clone(estimator).fit(rows, labels).score_report_
        assert report["how"] == "held-out split"
        assert (report["n"], report["n_fitted"]) == (60, 240)

    @pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
    def test_held_out_share_out_of_range(self, estimator, data, share):
        with pytest.raises(InputError, match="between 0 and 1"):
            clone(estimator).set_params(held_out=share).fit(*data)

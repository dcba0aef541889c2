"""Transformed values, column moments and screening, against numpy on the dense array."""

import numpy as np
import pytest
from scipy import sparse

from saerl_fast.signals.scaling import column_moments, inverse_or_zero, scale_columns, transform_rows
from saerl_fast.signals.screening import correlations, screen
from tests.signals import planted


def test_transforms_by_hand():
    rows = sparse.csr_array(np.array([[4.0, 0.0, -9.0]], dtype=np.float32))
    assert transform_rows(rows, "sqrt").toarray().tolist() == [[2, 0, -3]]
    assert transform_rows(rows, "none").toarray().tolist() == [[4, 0, -9]]
    np.testing.assert_allclose(transform_rows(rows, "log1p").toarray(), [[np.log(5), 0, -np.log(10)]], rtol=1e-6)
    assert rows.data.tolist() == [4, -9]


def test_moments_and_correlations_count_the_zeros():
    rows = sparse.csr_array(planted.pooled(50, 20))
    dense = rows.toarray().astype(np.float64)
    mean, deviation = column_moments(rows)
    np.testing.assert_allclose(mean, dense.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(deviation, dense.std(axis=0), rtol=1e-10)
    labels = np.random.default_rng(0).standard_normal(50)
    wanted = [np.corrcoef(column, labels)[0, 1] for column in dense.T]
    np.testing.assert_allclose(correlations(rows, labels), wanted, rtol=1e-10, atol=1e-12)


def test_constant_columns_say_nothing():
    dense = np.zeros((6, 4), dtype=np.float32)
    dense[:, 1] = 0.1
    dense[:, 2] = [1, 2, 3, 4, 5, 6]
    rows, labels = sparse.csr_array(dense), np.arange(6.0)
    assert inverse_or_zero(column_moments(rows)[1])[[0, 1, 3]].tolist() == [0, 0, 0]
    assert correlations(rows, labels) == pytest.approx([0, 0, 1, 0])
    assert screen(rows, labels, 4).tolist() == [2]
    assert np.isfinite(scale_columns(rows, inverse_or_zero(column_moments(rows)[1])).data).all()


def test_screening_takes_the_strongest_and_ties_go_to_the_lower_index():
    labels = np.array([0.0, 1, 2, 3])
    strong, weak = labels, np.array([0.0, 1, 0, 1])
    rows = sparse.csr_array(np.stack([weak, -strong, weak, strong + 1], axis=1).astype(np.float32))
    assert screen(rows, labels, 1).tolist() == [1]
    assert screen(rows, labels, 2).tolist() == [1, 3]
    assert screen(rows, labels, 3).tolist() == [0, 1, 3]

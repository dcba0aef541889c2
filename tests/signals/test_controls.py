"""The controls: tokens of the LaTeX-aware words, scales and words learnt from training rows only."""

import re

import numpy as np
import pytest
from scipy import sparse

from saerl_fast.signals import controls
from saerl_fast.signals.held_out import spearman
from saerl_fast.signals.linear import fit_ridge
from tests.signals import planted

TRAIN = np.arange(0, 60)


def test_latex_tokens_by_hand():
    text = r"Find $\frac{x_1}{23} \le \{a+b\}^2$, été!"
    found = re.findall(controls.LATEX_PATTERN, text)
    assert found == [
        *["Find", "$", r"\frac", "{", "x", "_", "1", "}", "{", "23", "}", r"\le", r"\{", "a", "+", "b", r"\}"],
        *["^", "2", "$", ",", "été", "!"],
    ]


def test_latex_words_know_signs_and_pairs():
    texts = [r"\frac{1}{2}", r"\sqrt{2}", "1 + 2", "word here"] * 20
    plain, aware = controls.tfidf_rows(texts, TRAIN), controls.tfidf_latex_rows(texts, TRAIN)
    # single digits are no words to the plain one
    assert plain[2].nnz == 0
    assert aware[2].nnz == 5
    np.testing.assert_allclose(np.sqrt(aware.multiply(aware).sum(axis=1)), 1, rtol=1e-5)


@pytest.mark.parametrize("make", [controls.tfidf_rows, controls.tfidf_latex_rows])
def test_words_come_from_training_rows(make):
    texts = [f"alpha beta {'gamma' if row % 2 else 'delta'}" for row in range(80)]
    other = texts[:60] + [f"{text} unheard unheard words" for text in texts[60:]]
    first, second = make(texts, TRAIN), make(other, TRAIN)
    assert first.shape == second.shape
    assert (first[:60] != second[:60]).nnz == 0


def test_no_word_at_all_is_no_error():
    assert controls.tfidf_rows([""] * 80, TRAIN).shape == (80, 1)
    assert controls.tfidf_latex_rows([chr(0x4E00 + row) for row in range(80)], TRAIN).nnz == 0


def test_scales_come_from_training_rows():
    rows = sparse.csr_array(planted.pooled(80, 30))
    states = np.random.default_rng(0).standard_normal((80, 5)) * [1, 10, 100, 0, 3] + 4
    lengths = np.random.default_rng(1).integers(1, 300, size=80)
    changed_rows, changed_states, changed_lengths = rows.toarray(), states.copy(), lengths.copy()
    changed_rows[60:] *= 9
    changed_states[60:] *= 9
    changed_lengths[60:] *= 9
    changed = sparse.csr_array(changed_rows)
    assert np.array_equal(
        controls.sae_rows(rows, TRAIN)[:60].toarray(), controls.sae_rows(changed, TRAIN)[:60].toarray()
    )
    assert np.array_equal(controls.raw_rows(states, TRAIN)[:60], controls.raw_rows(changed_states, TRAIN)[:60])
    assert np.array_equal(controls.length_rows(lengths, TRAIN)[:60], controls.length_rows(changed_lengths, TRAIN)[:60])


def test_scaled_rows_by_hand():
    states = controls.raw_rows(np.array([[1.0, 5], [3, 5], [100, 5]]), np.array([0, 1]))
    assert states.tolist() == [[-1, 0], [1, 0], [98, 0]]
    features = sparse.csr_array(np.array([[4.0, 0], [0, 0], [9, 1]], dtype=np.float32))
    # roots 2 and 0 in training: standard deviation 1; the second feature never occurs there
    assert controls.sae_rows(features, np.array([0, 1])).toarray().tolist() == [[2, 0], [0, 0], [3, 0]]


def test_length_bends():
    lengths = np.random.default_rng(0).integers(1, 500, size=400)
    hump = -np.square(np.log1p(lengths) - 4.5)
    rows = controls.length_rows(lengths, np.arange(400))
    assert spearman(fit_ridge(rows, hump, spearman, seed=0).predict(rows), hump) > 0.9


def test_kinds_without_input_are_left_out():
    rows = sparse.csr_array(planted.pooled(80, 30))
    found = controls.representations(rows, TRAIN, hidden=None, texts=None, lengths=None)
    assert list(found) == ["sae"]
    found = controls.representations(rows, TRAIN, hidden=np.ones((80, 2)), texts=["a b"] * 80, lengths=np.ones(80))
    assert list(found) == ["sae", "raw", "tfidf", "tfidf_latex", "length"]

"""What SAE features are held against: the length of a text, its words, and the model's own hidden states.

Each control is made as good as its kind allows, and learns its scales and words from the training rows only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from saerl_fast.signals.linear import Rows
from saerl_fast.signals.scaling import column_moments, inverse_or_zero, scale_columns, transform_rows

LATEX_PATTERN = r"\\[A-Za-z]+|\\.|[^\W\d_]+|\d+|[^\w\s]|_"
r"""A command (\frac), an escaped sign (\{), a word, a number, or a single sign."""
MAX_WORDS = 200_000
"""Of more different words and pairs, the most frequent are kept."""


def sae_rows(features: sparse.csr_array, train: NDArray[np.int64]) -> sparse.csr_array:
    """Square root of the pooled values, each column divided by its standard deviation over the training rows."""
    evened = transform_rows(features, "sqrt")
    _, deviation = column_moments(evened[train])
    return scale_columns(evened, inverse_or_zero(deviation))


def raw_rows(hidden: NDArray[Any], train: NDArray[np.int64]) -> NDArray[np.float32]:
    """Hidden states [S, D], each column with mean 0 and standard deviation 1 over the training rows."""
    states = np.asarray(hidden, dtype=np.float64)
    centred = states - states[train].mean(axis=0)
    scaled: NDArray[np.float32] = (centred * inverse_or_zero(states[train].std(axis=0))).astype(np.float32)
    return scaled


def length_rows(lengths: Sequence[int] | NDArray[Any], train: NDArray[np.int64]) -> NDArray[np.float32]:
    """Powers one to three of the logarithm of the length [S, 3], so that a linear model can bend."""
    logarithm = raw_rows(np.log1p(np.asarray(lengths, dtype=np.float64))[:, None], train)
    return raw_rows(logarithm ** np.arange(1, 4), train)


def tfidf_rows(texts: Sequence[str], train: NDArray[np.int64]) -> sparse.csr_array:
    """TF-IDF of the words that two training texts have, 1 + log of the count, rows of length 1."""
    return _tfidf(texts, train)


def tfidf_latex_rows(texts: Sequence[str], train: NDArray[np.int64]) -> sparse.csr_array:
    """As tfidf_rows, but tokens are those of LATEX_PATTERN, alone and in pairs.

    On 7,474 MATH problems (two splits) the pairs and signs bring topic accuracy from 0.73 to 0.77, and
    Spearman with the level from 0.55 to 0.59.
    """
    return _tfidf(texts, train, token_pattern=LATEX_PATTERN, ngram_range=(1, 2))


def _tfidf(texts: Sequence[str], train: NDArray[np.int64], **options: Any) -> sparse.csr_array:
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, min_df=2, max_features=MAX_WORDS, dtype=np.float32, **options)
    try:
        words.fit([texts[row] for row in train])
    except ValueError:
        # no word stands in two training texts: this control knows nothing
        return sparse.csr_array(np.zeros((len(texts), 1), dtype=np.float32))
    return sparse.csr_array(words.transform(texts))


def representations(
    features: sparse.csr_array,
    train: NDArray[np.int64],
    *,
    hidden: NDArray[Any] | None,
    texts: Sequence[str] | None,
    lengths: Sequence[int] | NDArray[Any] | None,
) -> dict[str, Rows]:
    """Every kind of feature there is input for, by name; all have S rows, scaled by the training rows."""
    found: dict[str, Rows] = {"sae": sae_rows(features, train)}
    if hidden is not None:
        found["raw"] = raw_rows(hidden, train)
    if texts is not None:
        found["tfidf"] = tfidf_rows(texts, train)
        found["tfidf_latex"] = tfidf_latex_rows(texts, train)
    if lengths is not None:
        found["length"] = length_rows(lengths, train)
    return found

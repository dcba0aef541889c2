"""One look instead of four: the same rows, counts and words as from the checks that it stands for."""

import numpy as np
import pytest
from scipy import sparse

from saerl_fast.errors import InputError, NonFiniteError
from saerl_fast.kernels import native
from saerl_fast.signals import FeatureProjection
from saerl_fast.signals.counted_rows import counted_rows, rows_with
from saerl_fast.signals.inputs import checked_rows
from tests.signals import planted


def both(rows):
    """What the two ways give for the rows, or the error that they raise."""
    found = []
    for way in (
        lambda: counted_rows(FeatureProjection(), rows, reset=True),
        lambda: sparse.csr_array(checked_rows(FeatureProjection(), rows, reset=True)),
    ):
        try:
            found.append(way())
        except (InputError, NonFiniteError) as error:
            found.append((type(error), str(error)))
    return found


def shuffled(rows):
    """The entries of each row in another order, some of them in two halves."""
    coo = rows.tocoo()
    row, column = np.concatenate([coo.row, coo.row[::3]]), np.concatenate([coo.col, coo.col[::3]])
    values = np.concatenate([coo.data, coo.data[::3]]).astype(np.float32)
    order = np.lexsort((np.random.default_rng(0).random(len(row)), row))
    indptr = np.concatenate([[0], np.bincount(row, minlength=rows.shape[0]).cumsum()])
    return sparse.csr_matrix((values[order], column[order].astype(np.int32), indptr), shape=rows.shape)


@pytest.mark.parametrize("change", ["none", "zeros", "shuffled", "empty rows", "dense", "csc", "float64", "int64"])
@pytest.mark.parametrize("compiled", [True, False])
def test_rows_and_counts(change, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(native, "missing", lambda: "left out by a test")
    rows = planted.pooled(90, 40)
    if change == "zeros":
        rows.data[::3] = 0
    elif change == "empty rows":
        rows = sparse.csr_matrix(sparse.vstack([rows[:5], sparse.csr_matrix((3, 40), dtype=np.float32), rows[5:]]))
    elif change == "int64":
        rows.indices, rows.indptr = rows.indices.astype(np.int64), rows.indptr.astype(np.int64)
    else:
        ways = {"shuffled": shuffled, "dense": lambda r: r.toarray(), "csc": lambda r: r.tocsc()}
        rows = ways.get(change, lambda r: r.astype(change) if change == "float64" else r)(rows)
    before = rows.copy()
    (found, having), wanted = both(rows)
    assert (found.indptr == wanted.indptr).all()
    assert (found.indices == wanted.indices).all()
    assert (found.data == wanted.data).all()
    assert (having == rows_with(wanted)).all()
    assert having.sum() == np.count_nonzero(wanted.data)
    # the rows given are as they were, their order too
    for part in ("data", "indices"):
        assert sparse.issparse(rows) is False or (getattr(rows, part) == getattr(before, part)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("order", [lambda rows: rows, shuffled], ids=["in order", "shuffled"])
def test_the_words_are_those_of_scikit_learn(value, order):
    rows = order(planted.pooled(90, 40))
    rows.data[17] = value
    found, wanted = both(rows)
    assert found == wanted
    assert found[0] is NonFiniteError


def test_a_sum_that_overflows_is_not_finite():
    largest = np.full(2, 3e38, dtype=np.float32)
    doubled = sparse.csr_matrix((largest, np.array([1, 1]), np.array([0, 2])), shape=(1, 3))
    with pytest.raises(NonFiniteError, match="infinity"):
        counted_rows(FeatureProjection(), doubled, reset=True)


@pytest.mark.parametrize("column", [-1, 40, 2**31 - 1])
def test_a_column_outside_is_refused_before_it_is_counted(column):
    rows = planted.pooled(90, 40)
    rows.indices[50] = column
    with pytest.raises(InputError, match=r"FeatureProjection: indices must lie in 0\.\.39"):
        counted_rows(FeatureProjection(), rows, reset=True)


def test_a_start_that_falls_is_refused():
    rows = planted.pooled(90, 40)
    rows.indptr[4] = rows.indptr[6]
    with pytest.raises(InputError, match="FeatureProjection: indptr must never fall"):
        counted_rows(FeatureProjection(), rows, reset=True)

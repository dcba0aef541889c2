"""The rotation keeps every cluster within one run of its share."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saerl_fast.curriculum.policies import Policy
from saerl_fast.curriculum.rotation import rotate


def lag(turns, sizes):
    """[n, K]: rows that each cluster has had, less its share, after each place."""
    had = (turns[:, None] == np.arange(len(sizes))).cumsum(axis=0)
    share = np.arange(1, len(turns) + 1)[:, None] * sizes / sizes.sum()
    return had - share


def runs(size, clusters_per_step):
    return Policy("x", clusters_per_step, 0.0, "random").runs(size)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=20),
    size=st.integers(1, 40),
    clusters_per_step=st.one_of(st.integers(1, 8), st.just("all")),
    seed=st.integers(0, 2**32),
)
def test_no_cluster_is_ever_a_run_ahead_or_behind(sizes, size, clusters_per_step, seed):
    sizes = np.array(sizes)
    lengths = runs(size, clusters_per_step)
    turns = rotate(sizes, lengths, np.random.default_rng(seed))
    assert np.array_equal(np.bincount(turns, minlength=len(sizes)), sizes)
    assert np.abs(lag(turns, sizes)).max() <= max(lengths)


@pytest.mark.parametrize("sizes", [[1000] * 16, [100_000] + [40] * 63, (20_000 // np.arange(1, 33)).tolist()])
@pytest.mark.parametrize("clusters_per_step", [1, 4])
def test_all_clusters_end_together(sizes, clusters_per_step):
    sizes = np.array(sizes)
    lengths = runs(32, clusters_per_step)
    turns = rotate(sizes, lengths, np.random.default_rng(0))
    assert np.abs(lag(turns, sizes)).max() <= max(lengths)
    last = np.array([np.flatnonzero(turns == cluster)[-1] for cluster in range(len(sizes))])
    # a cluster's turns come round once in max(lengths) / share places
    period = max(lengths) * sizes.sum() / sizes
    assert (last >= len(turns) - 1 - period).all()


def test_batches_are_of_one_cluster_until_the_remainders():
    sizes = np.array([320, 160, 96])
    turns = rotate(sizes, [32], np.random.default_rng(0)).reshape(-1, 32)
    assert (turns == turns[:, :1]).all()


def test_batches_hold_as_many_clusters_as_asked():
    sizes = np.full(16, 320)
    turns = rotate(sizes, runs(32, 4), np.random.default_rng(0)).reshape(-1, 32)
    assert {len(set(batch)) for batch in turns.tolist()} == {4}


def test_a_big_cluster_takes_its_share_of_the_places():
    turns = rotate(np.array([700, 100]), runs(8, 4), np.random.default_rng(0)).reshape(-1, 8)
    assert {int((batch == 0).sum()) for batch in turns} <= {6, 8}


def test_ties_fall_by_the_seed():
    sizes = np.full(8, 64)
    first = [rotate(sizes, [8], np.random.default_rng(seed))[0] for seed in range(20)]
    assert len(set(first)) > 1
    again = rotate(sizes, [8], np.random.default_rng(3))
    assert np.array_equal(again, rotate(sizes, [8], np.random.default_rng(3)))

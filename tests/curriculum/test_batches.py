"""One epoch: queues, padding, tail swap, permutation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saerl_fast.curriculum.batches import deal, fill_last, mix, queue_up, swap_tails


def rng():
    return np.random.default_rng(0)


def test_queues_are_in_order_and_ties_are_shuffled():
    codes = np.array([1, 0, 1, 0, 1, 0], dtype=np.int32)
    difficulty = np.array([3.0, 2.0, 1.0, 2.0, 2.0, 1.0])
    rows = np.arange(6)
    queues = [queue_up(rows, codes, difficulty, "easy_to_hard", np.random.default_rng(s)).tolist() for s in range(20)]
    assert {tuple(queue) for queue in queues} == {(5, 1, 3, 2, 4, 0), (5, 3, 1, 2, 4, 0)}
    assert queue_up(rows, codes, difficulty, "hard_to_easy", rng()).tolist()[-3:] == [0, 4, 2]
    drawn = queue_up(rows, codes, difficulty, "random", rng())
    assert sorted(drawn[:3].tolist()) == [1, 3, 5]


def test_dealing_follows_the_turns():
    turns = np.array([0, 0, 1, 0, 1])
    sequence = deal(np.array([10, 11, 12, 20, 21]), np.argsort(turns, kind="stable"))
    assert sequence.tolist() == [10, 11, 20, 12, 21]


def test_pads_are_the_earliest_rows_of_the_same_clusters():
    codes = np.array([0, 1, 2, 0, 1, 2, 0, 1], dtype=np.int32)
    epoch = fill_last(np.array([0, 1, 2, 3, 4, 5, 6]), codes, 3, "pad")
    assert epoch.rows[-1].tolist() == [6, 0, 3]
    assert epoch.padded.sum(axis=1).tolist() == [0, 0, 2]
    few = fill_last(np.array([0, 3, 1, 2, 4]), codes, 4, "pad")
    assert few.rows[-1].tolist() == [4, 1, 0, 3]
    full = fill_last(np.arange(6), codes, 3, "pad")
    assert not full.padded.any()
    assert full.rows.shape == (2, 3)


def test_dropped_rows_are_returned():
    epoch = fill_last(np.arange(7), np.zeros(7, dtype=np.int32), 3, "drop")
    assert epoch.rows.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert epoch.dropped.tolist() == [6]
    assert not epoch.padded.any()


@pytest.mark.parametrize(
    ("first", "expected"),
    [(0, [[0, 1, 5], [3, 4, 2], [6, 7, 8]]), (1, [[0, 1, 2], [3, 4, 8], [6, 7, 5]])],
)
def test_tails_change_places_in_pairs(first, expected):
    batches = np.arange(9).reshape(3, 3)
    swap_tails(batches, 1, first)
    assert batches.tolist() == expected


def test_one_batch_has_no_neighbour():
    batches = np.arange(4).reshape(1, 4)
    swap_tails(batches, 2, 0)
    swap_tails(batches, 2, 1)
    assert batches.tolist() == [[0, 1, 2, 3]]


@given(count=st.integers(1, 12), size=st.integers(1, 9), swapped=st.integers(0, 4), first=st.integers(0, 1))
def test_no_row_moves_by_more_than_one_batch(count, size, swapped, first):
    swapped = min(swapped, size // 2)
    epoch = fill_last(np.arange(count * size), np.zeros(count * size, dtype=np.int32), size, "pad")
    mixed = mix(epoch, swapped, first, rng())
    assert sorted(mixed.rows.ravel().tolist()) == list(range(count * size))
    moved = mixed.rows // size - np.arange(count)[:, None]
    assert np.abs(moved).max() <= 1
    # a batch either keeps its own rows or gives its tail for that of one neighbour
    assert set((moved != 0).sum(axis=1).tolist()) <= {0, swapped}
    assert (moved != 0).sum() == 2 * swapped * max(0, (count - first) // 2)


def test_what_was_swapped_in_does_not_stay_at_the_end():
    epoch = fill_last(np.arange(4000), np.zeros(4000, dtype=np.int32), 8, "pad")
    mixed = mix(epoch, 1, 0, rng())
    foreign = mixed.rows // 8 != np.arange(500)[:, None]
    assert foreign.any(axis=0).all()


def test_repeats_stay_marked():
    epoch = fill_last(np.arange(10), np.zeros(10, dtype=np.int32), 4, "pad")
    mixed = mix(epoch, 1, 1, rng())
    assert sorted(mixed.rows[mixed.padded].tolist()) == [0, 1]
    assert sorted(mixed.rows[~mixed.padded].tolist()) == list(range(10))

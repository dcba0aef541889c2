"""Runs cut into pieces: every entry in one piece, no piece too long, every part in a place of its own."""

import pytest
import torch

from saerl_fast.kernels.pieces import cut, grouped


@pytest.mark.parametrize("most", [1, 2, 5, 100])
@pytest.mark.parametrize("lengths", [[0], [7], [0, 0, 3], [1, 10, 0, 5, 6, 0], [4, 5, 6] * 7, [0, 31]])
def test_every_entry_is_in_one_piece(lengths, most):
    starts = torch.nn.functional.pad(torch.tensor(lengths).cumsum(0), (1, 0))
    pieces = cut(starts, sum(lengths), most)
    seen, by_run, parts = [], {}, []
    for begin, end, target in zip(*(field.tolist() for field in pieces[:3]), strict=True):
        assert 0 <= end - begin <= most
        if target == len(lengths):
            assert begin == end
            continue
        seen += range(begin, end)
        if target < 0:
            parts.append(-1 - target)
        else:
            assert target not in by_run
            by_run[target] = (begin, end)
    assert seen == list(range(sum(lengths)))
    assert parts == list(range(len(parts)))
    assert len(parts) <= pieces.most_parts
    for run, length in enumerate(lengths):
        count, first = int(pieces.counts[run]), int(pieces.first_parts[run])
        assert count == max(1, -(-length // most))
        if count == 1:
            assert by_run[run] == (int(starts[run]), int(starts[run + 1]))
        else:
            assert run not in by_run
            assert first + count <= len(parts)


def test_grouped_keeps_the_order_of_equal_keys_and_leaves_strays_out():
    keys = torch.tensor([2, -1, 0, 2, 5, 0, 3]).int()
    order, starts = grouped(keys, 4)
    assert starts.tolist() == [1, 3, 3, 5, 6]
    assert order[1:6].tolist() == [2, 5, 0, 3, 6]
    assert grouped(keys[:0], 3)[1].tolist() == [0, 0, 0, 0]

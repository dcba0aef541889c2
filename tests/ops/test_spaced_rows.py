"""Rows with room between them: the same rows as CSR, however much room there is and whatever it holds."""

import pytest
import torch

from saerl_fast import ops
from saerl_fast.codes import OUTSIDE, OVERFLOWED
from saerl_fast.errors import CapacityError, InputError, SaerlError
from saerl_fast.ops import SpacedRows, TopKCodes
from tests.op_table import OPERATIONS, csr_rows, tensors, topk_codes


def spread(csr, room):
    """The rows of `csr` with `room` places more than each needs, full of nonsense."""
    counts = csr.indptr.diff()
    starts = torch.nn.functional.pad((counts + room).cumsum(0), (1, 0))
    indices = torch.full((int(starts[-1]),), 2**31 - 1, dtype=torch.int32)
    values = torch.full((int(starts[-1]),), torch.nan)
    for row in range(len(counts)):
        here = slice(int(csr.indptr[row]), int(csr.indptr[row + 1]))
        there = slice(int(starts[row]), int(starts[row]) + int(counts[row]))
        indices[there], values[there] = csr.indices[here], csr.values[here]
    return SpacedRows(starts, counts, indices, values)


def assert_same(got, wanted):
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("room", [0, 1, 7])
@pytest.mark.parametrize("n_rows", [0, 1, 12])
def test_to_csr_takes_the_room_away(n_rows, room):
    csr = csr_rows(n_rows, 20)
    assert_same(spread(csr, room).to_csr(), csr)
    assert_same(SpacedRows.of(csr).to_csr(), csr)


def test_joined_parts_are_the_rows_in_order():
    parts = [csr_rows(5, 20, seed=1), csr_rows(0, 20), csr_rows(9, 20, seed=2), csr_rows(3, 20, share=0.0)]
    joined = SpacedRows.joined([spread(part, room) for room, part in enumerate(parts)])
    assert len(joined.starts) == 18
    assert int(joined.starts[-1]) == len(joined.indices) == len(joined.values)
    wanted_counts = torch.cat([part.indptr.diff() for part in parts])
    got = joined.to_csr()
    assert torch.equal(got.indptr.diff(), wanted_counts)
    assert torch.equal(got.indices, torch.cat([part.indices for part in parts]))
    assert torch.equal(got.values, torch.cat([part.values for part in parts]))


def test_a_marked_row_is_refused():
    rows = spread(csr_rows(6, 20), 2)
    rows.counts[[2, 4]] = OUTSIDE
    with pytest.raises(InputError, match=r"2 of 6 rows were to be made from others \(first: row 2\)"):
        rows.to_csr()


@pytest.mark.parametrize("sample", OPERATIONS["segment_pool"].samples, ids=lambda sample: sample.name)
def test_spaced_pooling_gives_the_rows_of_segment_pool(sample):
    given = sample.make()
    got = ops.segment_pool_spaced(**given)
    assert isinstance(got, SpacedRows)
    assert_same(got.to_csr(), ops.segment_pool(**given, backend="reference"))
    assert_same(tensors(given), tensors(sample.make()))


@pytest.mark.parametrize("mode", ["mean", "max", "sum", "last", "count"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_pooling_takes_rows_with_room_between_them(backend, mode):
    codes, offsets = csr_rows(30, 60, seed=3), torch.tensor([0, 0, 1, 12, 13, 13, 30])
    wanted = ops.segment_pool(codes, offsets, 60, mode, backend="reference")
    for room in (0, 5):
        assert_same(ops.segment_pool(spread(codes, room), offsets, 60, mode, backend=backend), wanted)
    marked = spread(codes, 5)
    marked.counts[12], marked.counts[20] = OUTSIDE, OVERFLOWED
    got = ops.segment_pool_spaced(marked, offsets, 60, mode, backend=backend)
    assert got.counts.tolist()[3:] == [OUTSIDE, 0, OVERFLOWED]
    assert torch.equal(got.counts[:3], wanted.indptr.diff()[:3])
    marked.counts[12] = 0
    with pytest.raises(CapacityError, match="1 of 6 rows did not find room"):
        ops.segment_pool(marked, offsets, 60, mode, backend=backend)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("starts", torch.zeros(3, dtype=torch.int64), r"starts must be \[7\]"),
        ("counts", torch.zeros(6), "counts must be of int64"),
        ("values", torch.zeros(2), "to match codes.indices"),
    ],
)
def test_rows_with_room_that_do_not_fit_together_are_refused(field, value, message):
    codes = spread(csr_rows(6, 20), 1)._replace(**{field: value})
    with pytest.raises(SaerlError, match=message):
        ops.segment_pool_spaced(codes, torch.tensor([0, 6]), 20)


def test_the_worst_mark_between_two_rows():
    rows = spread(csr_rows(6, 20), 0)
    rows.counts[[1, 2]] = OUTSIDE
    rows.counts[[2, 4]] = OVERFLOWED
    firsts, lasts = torch.tensor([0, 0, 1, 2, 3, 3, 0]), torch.tensor([1, 2, 2, 4, 4, 6, 0])
    assert rows.worst_between(firsts, lasts).tolist() == [0, OUTSIDE, OUTSIDE, OVERFLOWED, 0, OVERFLOWED, 0]


@pytest.mark.parametrize("sample", OPERATIONS["threshold_encode"].samples, ids=lambda sample: sample.name)
def test_spaced_encoding_on_a_cpu_gives_the_rows_of_threshold_encode(sample):
    wanted = ops.threshold_encode(**sample.make(), backend="reference")
    assert_same(ops.threshold_encode_spaced(**sample.make(), backend="reference", entries_per_row=1).to_csr(), wanted)


@pytest.mark.parametrize("bad", OPERATIONS["threshold_encode"].bad_inputs, ids=lambda bad: bad.name)
def test_spaced_encoding_refuses_what_threshold_encode_does(bad):
    with pytest.raises(bad.error, match=bad.message.replace("threshold_encode:", "threshold_encode_spaced:")):
        ops.threshold_encode_spaced(**(OPERATIONS["threshold_encode"].samples[0].make() | bad.change))


def test_offsets_are_wanted_where_they_can_be_read():
    given = OPERATIONS["segment_pool"].samples[0].make() | {"offsets": torch.zeros(3, dtype=torch.int64, device="meta")}
    with pytest.raises(InputError, match="offsets must be on the CPU"):
        ops.segment_pool_spaced(**given)


def test_an_index_outside_is_refused_here_too():
    codes = TopKCodes(torch.ones(2, 1), torch.tensor([[0], [20]]).int())
    with pytest.raises(InputError, match="indices must lie in 0..19"):
        ops.segment_pool_spaced(codes, torch.tensor([0, 2]), 20)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["mean", "max", "sum", "last", "count"])
def test_a_shard_of_batches_waits_for_the_device_once(mode):
    codes = topk_codes(400, 9, 300)
    offsets = torch.tensor([0, 0, 1, 40, 41, 300, 400])
    on_device = TopKCodes(*(part.cuda() for part in codes))
    ops.segment_pool_spaced(on_device, offsets, 300, mode, backend="cuda").to_csr()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        parts = [ops.segment_pool_spaced(on_device, offsets, 300, mode, backend="cuda") for _ in range(3)]
        joined = SpacedRows.joined(parts)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    wanted = ops.segment_pool(codes, offsets, 300, mode, backend="reference")
    got = joined.to_csr()
    assert torch.equal(got.indices.cpu(), wanted.indices.repeat(3))
    assert torch.equal(got.values.cpu(), wanted.values.repeat(3))

"""The compiled pooling, instruction set by instruction set and thread by thread, against the reference."""

import pytest
import torch

from saerl_fast import ops
from saerl_fast.errors import InputError
from saerl_fast.kernels import native, pool_cpu
from saerl_fast.ops import CsrRows, TopKCodes
from tests.op_table import csr_rows, topk_codes

if native.missing():
    pytest.skip(native.missing(), allow_module_level=True)

MODES = ("sum", "mean", "max", "last", "count")
SETS = native.module().instruction_sets()
OFFSETS = torch.tensor([0, 0, 1, 40, 41, 41, 300, 399, 400])


def random_codes(form, n_latents):
    """Values of both signs that do round, some of them zero and some that cancel."""
    generator = torch.Generator().manual_seed(0)
    codes = topk_codes(400, min(9, n_latents), n_latents) if form == "topk" else csr_rows(400, n_latents, share=0.05)
    values = torch.randn(codes.values.shape, generator=generator)
    values[codes.values == 0] = 0.0
    return codes._replace(values=values)


def assert_same(got, wanted):
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["topk", "csr"])
def test_bits_are_those_of_the_reference(form, mode, isa):
    for n_latents in (1, 63, 64, 65, 700):
        codes = random_codes(form, n_latents)
        wanted = ops.segment_pool(codes, OFFSETS, n_latents, mode, backend="reference")
        assert_same(pool_cpu.segment_pool(codes, OFFSETS, n_latents, mode, isa), wanted)


@pytest.mark.parametrize("mode", MODES)
def test_threads(mode, threads):
    codes = random_codes("csr", 300)
    threads(1)
    wanted = ops.segment_pool(codes, OFFSETS, 300, mode, backend="cpu")
    for count in (2, 3, 7, 100):
        threads(count)
        assert_same(ops.segment_pool(codes, OFFSETS, 300, mode, backend="cpu"), wanted)


@pytest.mark.parametrize("isa", SETS)
def test_sums_that_cancel_or_underflow_are_left_out(isa):
    codes = TopKCodes(torch.tensor([[1.5, 1e-45], [-1.5, 2.0]]), torch.tensor([[3, 70], [3, 5]]).int())
    pooled = CsrRows(*pool_cpu.segment_pool(codes, torch.tensor([0, 2]), 100, "sum", isa))
    assert pooled.indices.tolist() == [5, 70]
    pooled = CsrRows(*pool_cpu.segment_pool(codes, torch.tensor([0, 2]), 100, "mean", isa))
    assert pooled.indices.tolist() == [5]  # 1e-45 / 2 is zero in float32
    assert pooled.values.tolist() == [1.0]


@pytest.mark.parametrize("isa", SETS)
def test_max_with_nan_and_infinity(isa):
    rows = [[torch.nan, -1.0, torch.inf], [5.0, -2.0, 1.0], [7.0, torch.nan, -torch.inf]]
    codes = TopKCodes(torch.tensor(rows), torch.tensor([[0, 1, 2]] * 3).int())
    _, indices, values = pool_cpu.segment_pool(codes, torch.tensor([0, 2, 3]), 3, "max", isa)
    assert indices.tolist() == [0, 1, 2, 0, 1, 2]
    assert values.isnan().tolist() == [True, False, False, False, True, False]
    assert values[[1, 2, 3, 5]].tolist() == [-1.0, torch.inf, 7.0, -torch.inf]


def test_a_segment_leaves_nothing_behind_for_the_next():
    codes = TopKCodes(torch.ones(4, 1), torch.tensor([[0], [200], [0], [64]]).int())
    for mode in MODES:
        indptr, indices, _ = pool_cpu.segment_pool(codes, torch.arange(5), 300, mode)
        assert indptr.tolist() == [0, 1, 2, 3, 4]
        assert indices.tolist() == [0, 200, 0, 64]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_are_summed_in_float32(dtype):
    codes = random_codes("topk", 100)
    codes = codes._replace(values=codes.values.to(dtype))
    wanted = ops.segment_pool(codes, OFFSETS, 100, "sum", backend="reference")
    assert wanted.values.dtype == torch.float32
    assert_same(ops.segment_pool(codes, OFFSETS, 100, "sum", backend="cpu"), wanted)


def test_int64_indices():
    codes = random_codes("topk", 100)
    wide = codes._replace(indices=codes.indices.long())
    assert_same(
        ops.segment_pool(wide, OFFSETS, 100, backend="cpu"), ops.segment_pool(codes, OFFSETS, 100, backend="cpu")
    )


def test_the_compiled_side_guards_itself():
    pool = native.module().segment_pool
    bounds, indptr = torch.tensor([0, 3]), torch.empty(2, dtype=torch.int64)
    start, stop, to = bounds.data_ptr(), bounds.data_ptr() + 8, indptr.data_ptr()
    with pytest.raises(ValueError, match="segments must lie within the entries"):
        pool(start, stop, stop, 1, 0, 0, 2, 5, "sum", to, 1, "auto")
    with pytest.raises(ValueError, match="latents must be from 1"):
        pool(start, stop, stop, 1, 0, 0, 3, 0, "sum", to, 1, "auto")
    with pytest.raises(ValueError, match="pooling must be sum, mean, max or count; got median"):
        pool(start, stop, stop, 0, 0, 0, 3, 5, "median", to, 1, "auto")


@pytest.mark.parametrize("mode", MODES)
def test_waves(mode, threads):
    """More entries than the threads pool in one wave, in segments of very different sizes."""
    generator = torch.Generator().manual_seed(1)
    indices = (torch.randint(0, 5_000, (12_000, 1), generator=generator) + 121 * torch.arange(40)) % 5_000
    codes = TopKCodes(torch.randn(12_000, 40, generator=generator), indices.int())
    tokens = torch.randint(0, 60, (300,), generator=generator)
    tokens[[7, 150]] = 1000
    offsets = torch.nn.functional.pad(tokens.cumsum(0).clamp(max=12_000), (1, 0))
    offsets[-1] = 12_000
    wanted = ops.segment_pool(codes, offsets, 5_000, mode, backend="reference")
    for count in (1, 2, 3):
        threads(count)
        assert_same(ops.segment_pool(codes, offsets, 5_000, mode, backend="cpu"), wanted)


@pytest.mark.parametrize("isa", SETS)
def test_few_and_many_entries_in_a_row_of_latents(isa):
    """Few entries mark the blocks they fall into; from four per block on all blocks are read."""
    n_latents = 640
    for entries in (1, 39, 40, 41, 640):
        indices = torch.randperm(n_latents, generator=torch.Generator().manual_seed(entries))[:entries]
        codes = TopKCodes(torch.ones(1, entries), indices[None].int())
        _, got, values = pool_cpu.segment_pool(codes, torch.tensor([0, 1]), n_latents, "sum", isa)
        assert torch.equal(got, indices.sort().values.int())
        assert torch.equal(values, torch.ones(entries))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stray", [-(2**31), -1, 300, 2**31 - 1])
def test_an_index_outside_is_refused_wherever_it_stands(mode, stray, threads):
    codes = random_codes("csr", 300)
    whole = ops.segment_pool(codes, OFFSETS, 300, mode, backend="cpu")
    for count in (1, 3):
        threads(count)
        for place in (0, 63, 64, 1000, len(codes.indices) - 1):
            indices = codes.indices.clone()
            indices[place] = stray
            with pytest.raises(InputError, match=rf"indices must lie in 0..299 \(latents\); got .*{stray}"):
                ops.segment_pool(codes._replace(indices=indices), OFFSETS, 300, mode, backend="cpu")
        assert_same(ops.segment_pool(codes, OFFSETS, 300, mode, backend="cpu"), whole)


def test_an_int64_index_is_checked_before_it_becomes_int32():
    codes = random_codes("csr", 300)
    indices = codes.indices.long()
    indices[5] += 2**32
    with pytest.raises(InputError, match="indices must lie in 0..299"):
        ops.segment_pool(codes._replace(indices=indices), OFFSETS, 300, backend="cpu")


def test_counts_beyond_what_float32_counts_in_ones():
    tokens = 2**24 + 8
    codes = TopKCodes(torch.ones(tokens, 1), torch.zeros(tokens, 1, dtype=torch.int32))
    offsets = torch.tensor([0, tokens - 8, tokens - 8, tokens])
    assert pool_cpu.segment_pool(codes, offsets, 3, "count")[2].tolist() == [2**24, 8]
    assert pool_cpu.segment_pool(codes, torch.tensor([0, tokens]), 3, "count")[2].tolist() == [2**24 + 8]


def test_the_result_owns_its_memory_and_no_more():
    codes = random_codes("csr", 300)
    indptr, indices, values = pool_cpu.segment_pool(codes, OFFSETS, 300, "mean")
    wanted = values.clone()
    assert indices.untyped_storage().nbytes() == 4 * int(indptr[-1])
    assert values.untyped_storage().nbytes() == 4 * int(indptr[-1])
    del indptr, indices, codes
    for _ in range(20):
        pool_cpu.segment_pool(random_codes("csr", 300), OFFSETS, 300, "sum")
    assert torch.equal(values, wanted)
    values[0] = 5.0
    assert values[0] == 5.0

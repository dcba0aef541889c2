"""The compiled pooling, instruction set by instruction set and thread by thread, against the reference."""

import pytest
import torch

from saerl_fast import ops
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
    pool = native.module().SegmentPool
    bounds = torch.tensor([0, 3])
    start, stop = bounds.data_ptr(), bounds.data_ptr() + 8
    with pytest.raises(ValueError, match="segments must lie within the entries"):
        pool(start, stop, stop, 1, 0, 0, 2, 5, "sum", 1, "auto")
    with pytest.raises(ValueError, match="latents must be from 1"):
        pool(start, stop, stop, 1, 0, 0, 3, 0, "sum", 1, "auto")
    with pytest.raises(ValueError, match="pooling must be sum, mean, max or count; got median"):
        pool(start, stop, stop, 0, 0, 0, 3, 5, "median", 1, "auto")

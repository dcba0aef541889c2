"""The compiled top-k select, instruction set by instruction set, against a stable sort."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from saerl_fast.errors import BackendUnavailable, DtypeError, InputError, ShapeError
from saerl_fast.kernels import native
from tests.kernels.hard_rows import INPUTS, ROWS, by_sorting
from tests.op_table import far_apart

if native.missing():
    pytest.skip(native.missing(), allow_module_level=True)

SETS = native.module().instruction_sets()
WIDTHS = (1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 255, 257, 1000, 2047, 4097, 12345)


def assert_selects(scores, k, isa, **terms):
    values, indices = native.topk_select(scores, k, isa=isa, **terms)
    wanted_values, wanted_indices = by_sorting(scores, k)
    assert torch.equal(values, wanted_values)
    assert torch.equal(indices, wanted_indices)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", INPUTS)
def test_every_width_and_k(name, isa):
    for width in WIDTHS:
        scores = INPUTS[name](width)
        for k in sorted({1, 2, 8, 64, 300, width // 2, width - 1, width}):
            if 1 <= k <= width:
                assert_selects(scores, k, isa)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("width", [5, 16, 64, 100, 4096, 5001])
@pytest.mark.parametrize("k", [1, 5])
def test_nan_anywhere_marks_the_row_and_only_it(width, k, isa):
    for position in {0, 1, width // 2, width - 2, width - 1}:
        scores = torch.randn(3, width)
        scores[1, position] = torch.nan
        values, indices = native.topk_select(scores, k, isa=isa)
        assert values[1].isnan().all()
        assert indices[1].tolist() == list(range(k))
        wanted_values, wanted_indices = by_sorting(scores[[0, 2]], k)
        assert torch.equal(values[[0, 2]], wanted_values)
        assert torch.equal(indices[[0, 2]], wanted_indices)


def test_negative_nan_too():
    scores = torch.zeros(1, 100)
    scores[0, 50] = torch.tensor(-1).to(torch.int32).view(torch.float32)
    assert scores[0, 50].isnan()
    for isa in SETS:
        assert native.topk_select(scores, 3, isa=isa)[0].isnan().all()


@pytest.mark.parametrize("isa", SETS)
def test_bias_and_scale(isa):
    generator = torch.Generator().manual_seed(0)
    scores, bias = torch.randn(ROWS, 3001, generator=generator), torch.randn(3001, generator=generator)
    scale = torch.rand(3001, generator=generator)
    for terms, whole in (
        ({"bias": bias}, scores + bias),
        ({"scale": scale}, scores * scale),
        ({"bias": bias, "scale": scale}, (scores + bias) * scale),
    ):
        values, indices = native.topk_select(scores, 50, isa=isa, **terms)
        wanted_values, wanted_indices = by_sorting(whole, 50)
        assert torch.equal(values, wanted_values)
        assert torch.equal(indices, wanted_indices)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("k", [3, 64])
def test_strides(k, isa):
    generator = torch.Generator().manual_seed(0)
    around = torch.randn(14, 9500, generator=generator)
    for view in (
        around[3:9, 5:4700],
        around[:, ::2],
        around[::3, 1::3],
        around.T[:500],
        around[2].expand(4, -1),
        around[:, 7:8].expand(-1, 300),
        around.flatten()[1:].as_strided((5, 900), (7, 1)),  # overlapping rows
    ):
        kept = min(k, view.shape[1])
        values, indices = native.topk_select(view, kept, isa=isa)
        wanted_values, wanted_indices = by_sorting(view.contiguous(), kept)
        assert torch.equal(values, wanted_values)
        assert torch.equal(indices, wanted_indices)


def test_bias_of_a_strided_row():
    scores = torch.randn(9001, 3, generator=torch.Generator().manual_seed(0)).T
    bias, scale = torch.linspace(-2, 2, 9001), torch.linspace(0, 1, 9001)
    values, indices = native.topk_select(scores, 40, bias=bias, scale=scale)
    wanted_values, wanted_indices = by_sorting((scores + bias) * scale, 40)
    assert torch.equal(values, wanted_values)
    assert torch.equal(indices, wanted_indices)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
def test_threads(count, threads):
    scores = INPUTS["tied"](5000).repeat(8, 1)
    wanted = by_sorting(scores, 20)
    threads(count)
    got = native.topk_select(scores, 20)
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])


def test_reads_nothing_beside_the_row():
    """Guard values around the scores would win every selection."""
    around = torch.full((5, 100 + 64), 1e30)
    around[:, 32:132] = torch.randn(5, 100, generator=torch.Generator().manual_seed(0))
    for width in (*range(1, 20), 31, 33, 63, 65, 99):
        for isa in SETS:
            assert_selects(around[:, 32 : 32 + width].clone(), 1, isa)
            values, _ = native.topk_select(around[1:4, 32 : 32 + width], 1, isa=isa)
            assert (values < 1e29).all()
            values, _ = native.topk_select(around[1:4, 132 - width : 132], 1, isa=isa)
            assert (values < 1e29).all()


def test_relu_comes_last():
    values, indices = native.topk_select(torch.tensor([[-3.0, 2.0, -1.0, -0.0]]), 4, relu=True)
    assert values.tolist() == [[2.0, 0.0, 0.0, 0.0]]
    assert indices.tolist() == [[1, 3, 2, 0]]


@example(seed=0, widths=[5, 5], levels=1, share=1.0)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    widths=st.lists(st.integers(1, 700), min_size=1, max_size=6),
    levels=st.integers(1, 50),
    share=st.floats(0, 1),
)
def test_columns_in_blocks_give_what_the_whole_gives(seed, widths, levels, share):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels, (3, sum(widths)), generator=generator).float()
    scores[scores == 0] = -torch.inf
    k = max(1, int(share * scores.shape[1]))
    wanted_values, wanted_indices = by_sorting(scores, k)
    for isa in SETS:
        running = native.RunningTopK(3, k, isa)
        for block in scores.split(widths, dim=1):
            running.absorb(block.contiguous(), None, None)
        values, indices = torch.empty(3, k), torch.empty(3, k, dtype=torch.int32)
        running.finish(values, indices, False)
        assert torch.equal(values, wanted_values)
        assert torch.equal(indices, wanted_indices)


def test_too_few_columns_are_refused():
    running = native.RunningTopK(2, 5)
    running.absorb(torch.zeros(2, 4), None, None)
    with pytest.raises(ValueError, match="k must not be above the number of columns"):
        running.finish(torch.empty(2, 5), torch.empty(2, 5, dtype=torch.int32), False)


def test_the_compiled_side_guards_itself():
    with pytest.raises(ValueError, match="k must be at least 1"):
        native.module().RunningTopK(2, 0, "auto")
    with pytest.raises(ValueError, match="instruction set must be auto or one of"):
        native.module().RunningTopK(2, 1, "mmx")
    with pytest.raises(ValueError, match="columns must lie below 2"):
        native.module().topk_select(0, 0, 2**31, 1, 1, 0, 0, 1, False, 0, 0, 1, "auto")


def test_mistakes():
    scores = torch.zeros(2, 10)
    with pytest.raises(ShapeError, match=r"scores must be \[N, M\]; got \[10\]"):
        native.topk_select(scores[0], 1)
    with pytest.raises(DtypeError, match="scores must be float32 on the CPU; got torch.float64"):
        native.topk_select(scores.double(), 1)
    with pytest.raises(InputError, match="k must be from 1 to 10; got 11"):
        native.topk_select(scores, 11)
    with pytest.raises(InputError, match="isa must be auto or one of"):
        native.topk_select(scores, 1, isa="neon")
    with pytest.raises(ShapeError, match=r"bias must be \[10\]; got \[9\]"):
        native.topk_select(scores, 1, bias=torch.zeros(9))


def test_no_rows():
    values, indices = native.topk_select(torch.zeros(0, 10), 3)
    assert values.shape == indices.shape == (0, 3)


def test_strides_past_2_to_31(tmp_path):
    scores = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    wanted = by_sorting(scores, 20)
    got = native.topk_select(far_apart(tmp_path, scores), 20)
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])
    three = scores[:, :3].contiguous()
    got = native.topk_select(far_apart(tmp_path, three.T, "columns.bin").T, 2)
    assert torch.equal(got[1], by_sorting(three, 2)[1])


def test_a_missing_module_is_explained(monkeypatch):
    monkeypatch.setattr(native, "_load", lambda: (None, "the compiled module is missing: no compiler"))
    with pytest.raises(BackendUnavailable, match="no compiler. Install a C\\+\\+ compiler"):
        native.topk_select(torch.zeros(1, 1), 1)

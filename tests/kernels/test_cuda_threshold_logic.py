"""The CUDA threshold select and what precedes a product, run thread by thread on the CPU (see cuda_emulation/)."""

import pytest
import torch

from tests.kernels import emulated
from tests.kernels.emulated import address, layouts, size
from tests.kernels.hard_rows import INPUTS

pytestmark = emulated.needed


@pytest.fixture(scope="module")
def selecting(tmp_path_factory):
    return emulated.compiled("threshold_select", tmp_path_factory.mktemp("emulated"))


@pytest.fixture(scope="module")
def preparing(tmp_path_factory):
    return emulated.compiled("gather_rows", tmp_path_factory.mktemp("emulated"))


def select(library, scores, theta, bias=None, scale=None, capacity=None):
    """Row counts, cell counts, and the entries of all rows one after another."""
    rows, width = scores.shape
    cell_counts = torch.full((rows, -(-width // 32)), 99, dtype=torch.uint8)
    row_counts = torch.full((rows,), -9)
    shape = (address(scores), size(rows), size(width), size(scores.stride(0)))
    terms = (address(bias), address(scale), address(theta))
    assert library.saerl_threshold_count(*shape, *terms, address(cell_counts), address(row_counts), 0, None) == 0
    counts = torch.where(row_counts < 0, 1, row_counts)
    starts = counts.cumsum(0) - counts
    capacity = int(counts.sum()) if capacity is None else capacity
    columns = torch.full((capacity + 3,), -7, dtype=torch.int32)
    values = torch.full((capacity + 3,), -7.0)
    code = library.saerl_threshold_write(
        *shape, *terms, address(cell_counts), address(row_counts), address(starts), size(capacity),
        address(columns), address(values), 0, None,
    )  # fmt: skip
    assert code == 0
    assert columns[capacity:].tolist() == [-7] * 3
    assert values[capacity:].tolist() == [-7.0] * 3
    return row_counts, cell_counts, columns[:capacity], values[:capacity]


def wanted(scores, theta):
    kept = scores > theta
    return kept.sum(dim=1), kept.nonzero()[:, 1].int(), scores[kept]


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("width", [1, 33, 700, 4097])
def test_keeps_what_is_above(selecting, name, width):
    scores = INPUTS[name](width)
    theta = torch.randint(0, 3, (width,), generator=torch.Generator().manual_seed(1)).float() / 2
    counts, columns, values = wanted(scores, theta)
    for placed in layouts(scores).values():
        row_counts, cell_counts, got_columns, got_values = select(selecting, placed, theta)
        assert torch.equal(row_counts, counts)
        assert torch.equal(cell_counts.long().sum(dim=1), counts)
        assert torch.equal(got_columns, columns)
        assert torch.equal(got_values, values)


@pytest.mark.parametrize("rows", [1, 3, 5, 9])
def test_bias_scale_and_rows_that_do_not_fill_a_block(selecting, rows):
    generator = torch.Generator().manual_seed(rows)
    scores, bias = torch.randn(rows, 301, generator=generator), torch.randn(301, generator=generator)
    scale, theta = torch.rand(301, generator=generator), torch.full((301,), 0.3)
    counts, columns, values = wanted((scores + bias) * scale, theta)
    row_counts, _, got_columns, got_values = select(selecting, scores, theta, bias, scale)
    assert torch.equal(row_counts, counts)
    assert torch.equal(got_columns, columns)
    assert torch.equal(got_values, values)


def test_a_nan_keeps_one_entry_of_nan(selecting):
    scores = torch.rand(6, 700, generator=torch.Generator().manual_seed(0))
    scores[1, 300] = torch.nan
    row_counts, _, columns, values = select(selecting, scores, torch.full((700,), 0.5))
    before = int(row_counts[0])
    assert row_counts[1] == -1
    assert columns[before] == 0
    assert values[before].isnan()
    assert values.isnan().sum() == 1
    theta = torch.full((700,), 0.5)
    theta[699] = torch.nan
    row_counts, _, columns, values = select(selecting, scores, theta)
    assert row_counts.tolist() == [-1] * 6
    assert columns.tolist() == [0] * 6
    assert values.isnan().all()


@pytest.mark.parametrize("capacity", [0, 1, 57, 1000])
def test_what_does_not_fit_is_counted_and_not_written(selecting, capacity):
    scores = torch.rand(9, 700, generator=torch.Generator().manual_seed(0))
    theta = torch.full((700,), 0.5)
    counts, columns, values = wanted(scores, theta)
    row_counts, _, got_columns, got_values = select(selecting, scores, theta, capacity=capacity)
    assert torch.equal(row_counts, counts)
    assert torch.equal(got_columns, columns[:capacity])
    assert torch.equal(got_values, values[:capacity])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("width", "padding"), [(1, 0), (8, 8), (33, 2), (160, 0)])
def test_gathers_rows_and_marks_those_that_are_not_there(preparing, dtype, width, padding):
    x = torch.randn(7, width + padding).to(dtype)[:, :width]
    index = torch.tensor([6, 0, 0, -1, 3, 7, 2**40])
    gathered = torch.zeros(8, width, dtype=dtype)
    item = x.element_size()
    code = preparing.saerl_gather_rows(
        address(x), size(7), size(width * item), size(x.stride(0) * item), address(index), size(7),
        address(gathered), 0, None,
    )  # fmt: skip
    assert code == 0
    assert torch.equal(gathered[[0, 1, 2, 4]], x[[6, 0, 0, 3]])
    assert gathered[[3, 5, 6]].isnan().all()
    assert (gathered[7] == 0).all()

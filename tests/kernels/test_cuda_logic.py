"""The CUDA selects, compiled for the CPU by a small emulation and run thread by thread (see cuda_emulation/)."""

import pytest
import torch

from tests.kernels import emulated
from tests.kernels.emulated import address, layouts, size
from tests.kernels.hard_rows import INPUTS, by_sorting

pytestmark = emulated.needed


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return emulated.compiled("topk_select", tmp_path_factory.mktemp("emulated"))


def select(library, scores, k, bias=None, scale=None, relu=False):
    rows, width = scores.shape
    values = torch.full((rows, k), torch.nan)
    indices = torch.full((rows, k), -1, dtype=torch.int32)
    code = library.saerl_topk_select(
        address(scores), size(rows), size(width), size(scores.stride(0)), address(bias), address(scale),
        size(k), int(relu), address(values), address(indices), 0, None,
    )  # fmt: skip
    return code, values, indices


def ranks(scores):
    """As csrc/cuda/rank.cuh makes them, in int64."""
    bits = (scores + 0.0).view(torch.int32).long() & 0xFFFFFFFF
    rank = torch.where(bits >= 2**31, 0xFFFFFFFF - bits, bits + 2**31)
    return torch.where(scores.isnan(), 0xFFFFFFFF, rank)


def group_maxima(scores, group):
    """[rows, groups] ranks as the int32 of the same bits."""
    rows, width = scores.shape
    padded = torch.nn.functional.pad(ranks(scores), (0, -width % group))
    largest = padded.view(rows, -1, group).amax(dim=2)
    return torch.where(largest >= 2**31, largest - 2**32, largest).int().contiguous()


def finish(library, scores, group, k):
    rows, width = scores.shape
    maxima = group_maxima(scores, group)
    values = torch.full((rows, k), torch.nan)
    indices = torch.full((rows, k), -1, dtype=torch.int32)
    code = library.saerl_topk_finish(
        address(scores), size(rows), size(width), size(scores.stride(0)), address(maxima),
        group.bit_length() - 1, size(k), 0, address(values), address(indices), 0, None,
    )  # fmt: skip
    return code, values, indices


def assert_selected(got, scores, k):
    code, values, indices = got
    wanted_values, wanted_indices = by_sorting(scores, k)
    assert code == 0
    assert torch.equal(values, wanted_values)
    assert torch.equal(indices, wanted_indices)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize(("width", "k"), [(1, 1), (33, 33), (700, 64), (5000, 20), (4097, 512)])
def test_selects_what_a_stable_sort_selects(library, name, width, k):
    scores = INPUTS[name](width)[:2]
    for placed in layouts(scores).values():
        assert_selected(select(library, placed, k), scores, k)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize(("width", "k", "group"), [(33, 33, 32), (700, 5, 64), (5000, 40, 32), (4097, 300, 256)])
def test_finishes_from_the_maxima_of_groups(library, name, width, k, group):
    scores = INPUTS[name](width)[:2]
    for placed in layouts(scores).values():
        assert_selected(finish(library, placed, group, k), scores, k)


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 9])
def test_rows_that_do_not_fill_a_block(library, rows):
    scores = torch.randn(rows, 300, generator=torch.Generator().manual_seed(rows))
    assert_selected(select(library, scores, 7), scores, 7)
    assert_selected(finish(library, scores, 32, 7), scores, 7)


def test_more_cells_than_places(library):
    scores = torch.randn(1, 1_100_000, generator=torch.Generator().manual_seed(0))
    assert_selected(select(library, scores, 8), scores, 8)


def test_a_row_at_the_limits_fits_the_shared_memory_of_small_gpus(library):
    """99 kB a block on sm_86 and sm_89: the emulation counts what is asked for."""
    width = 2048 * 64
    scores = torch.randn(1, width, generator=torch.Generator().manual_seed(0))
    assert_selected(select(library, scores, 512), scores, 512)
    assert library.emulated_shared_bytes() <= 99 * 1024


def test_bias_scale_relu_and_row_stride(library):
    generator = torch.Generator().manual_seed(0)
    around = torch.randn(3, 900, generator=generator)
    scores, bias = around[:, 100:801], torch.randn(701, generator=generator)
    scale = torch.rand(701, generator=generator)
    _, values, indices = select(library, scores, 300, bias, scale, relu=True)
    wanted_values, wanted_indices = by_sorting((scores + bias) * scale, 300)
    assert torch.equal(values, wanted_values.clamp(min=0))
    assert torch.equal(indices, wanted_indices)


@pytest.mark.parametrize("position", [0, 77, 699])
def test_nan_row_is_marked(library, position):
    scores = torch.rand(6, 700, generator=torch.Generator().manual_seed(0))
    scores[1, position] = torch.nan
    rest = [0, 2, 3, 4, 5]
    for _, values, indices in (select(library, scores, 5), finish(library, scores, 32, 5)):
        assert values[1].isnan().all()
        assert indices[1].tolist() == [0, 1, 2, 3, 4]
        assert torch.equal(indices[rest], by_sorting(scores[rest], 5)[1])


def test_a_negative_nan_is_one(library):
    scores = torch.rand(1, 700)
    scores.view(torch.int32)[0, 300] = -1  # all ones: what a missing row is filled with
    assert select(library, scores, 5)[1].isnan().all()


def test_what_it_has_no_room_for_is_refused(library):
    assert select(library, torch.zeros(1, 600), 513)[0] != 0
    assert select(library, torch.zeros(1, 4), 5)[0] != 0
    assert select(library, torch.zeros(0, 4), 2)[0] == 0
    assert finish(library, torch.zeros(1, 40), 16, 2)[0] != 0
    assert finish(library, torch.zeros(1, 2049 * 32), 32, 2)[0] != 0

"""The floor of a row's select comes from the maxima of groups: it is reached by k columns, and no group is passed over.

Each input puts what would be lost first exactly there: scores equal to the floor, and all of the best in one group.
"""

import pytest
import torch

from saerl_fast.kernels import native
from tests.kernels.hard_rows import by_sorting

if native.missing():
    pytest.skip(native.missing(), allow_module_level=True)

SETS = native.module().instruction_sets()
# groups side by side (of 16 columns and of 256), and groups of columns that lie apart (32 and 128 of them)
SHAPES = [(1024, 20), (8192, 10), (100, 9), (512, 64)]


def selected(scores, k, isa, width):
    """By blocks of columns of this width."""
    running = native.RunningTopK(len(scores), k, isa)
    for block in scores.split(width, dim=1):
        running.absorb(block.contiguous(), None, None)
    values, indices = torch.empty(len(scores), k), torch.empty(len(scores), k, dtype=torch.int32)
    running.finish(values, indices, False)
    return values, indices


def assert_selects(scores, k, isa):
    wanted = by_sorting(scores, k)
    for width in (scores.shape[1], 512):
        values, indices = selected(scores, k, isa, width)
        assert torch.equal(values, wanted[0])
        assert torch.equal(indices, wanted[1])


def normal(rows, columns):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize(("width", "k"), SHAPES)
def test_a_score_that_is_the_floor_itself_is_kept(width, k, isa):
    # the best are spread as far as they can be: the least of them is the k-th largest maximum, whatever the groups
    scores = normal(64, width)
    row, place = torch.arange(64)[:, None], torch.arange(k)
    scores[row, (place * (width // k) + 7 * place + row) % width] = 10.0 + place
    assert_selects(scores, k, isa)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize(("width", "k"), SHAPES)
@pytest.mark.parametrize("run", [1, 16, 256], ids=lambda run: f"runs_of_{run}")
def test_the_best_may_all_lie_in_any_group(width, k, run, isa):
    # row g holds its best in group g, in columns side by side or as far apart as the groups are many
    groups = -(-width // run) if run > 1 else (2 * k + 15) // 16 * 16
    scores = normal(groups, width)
    for g in range(groups):
        members = slice(g, width, groups) if run == 1 else slice(g * run, (g + 1) * run)
        scores[g, members] += 10
    assert_selects(scores, k, isa)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("k", [1, 7, 64])
def test_candidates_are_cut_back_to_the_lower_columns_of_equal_scores(k, isa):
    # more equal scores than are held, in every block; a few larger ones come late
    scores = torch.randint(0, 3, (20, 6000), generator=torch.Generator().manual_seed(0)).float()
    scores[:, 5000::97] = 3
    assert_selects(scores, k, isa)
    assert_selects(scores.clamp(max=1), k, isa)

"""The compiled threshold select: instruction sets, blocks of columns, threads, thresholds in other types."""

import pytest
import torch

from saerl_fast import ops
from saerl_fast.kernels import native, threshold_cpu

if native.missing():
    pytest.skip(native.missing(), allow_module_level=True)

SETS = native.module().instruction_sets()


def select(scores, theta, widths, isa="auto", bias=None, scale=None):
    """counts, indices, values of scores that come in blocks of the given widths."""
    running = native.RunningThreshold(len(scores), isa)
    first = 0
    for width in widths:
        part = slice(first, first + width)
        pick = lambda vector, part=part: None if vector is None else vector[part].contiguous()  # noqa: E731
        running.absorb(scores[:, part].contiguous(), pick(bias), pick(scale), theta[part].contiguous())
        first += width
    counts = torch.empty(len(scores), dtype=torch.int64)
    indices, values = running.finish(counts)
    return counts, indices, values


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("widths", [[1], [1000], [1, 15, 16, 17, 951], [64] * 15 + [40], [999, 1]], ids=str)
@pytest.mark.parametrize("level", [-3.0, 0.0, 2.0])
def test_keeps_exactly_what_is_above(widths, level, isa):
    width = sum(widths)
    scores, bias, scale = normal(7, width), normal(width, seed=1), normal(width, seed=2)
    theta = level + normal(width, seed=3)
    h = (scores + bias) * scale
    keep = (h > theta) & (h > 0)
    counts, indices, values = select(scores, theta, widths, isa, bias, scale)
    assert torch.equal(counts, keep.sum(dim=1))
    assert torch.equal(indices.long(), keep.nonzero()[:, 1])
    assert torch.equal(values, h[keep])


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("position", [0, 63, 99])
def test_nan_leaves_one_entry_and_harms_no_other_row(position, isa):
    scores = normal(3, 100).abs() + 1
    scores[1, position] = torch.nan
    counts, indices, values = select(scores, torch.zeros(100), [40, 60], isa)
    assert counts.tolist() == [100, 1, 100]
    assert indices[100] == 0
    assert values.isnan().nonzero().tolist() == [[100]]


@pytest.mark.parametrize("isa", SETS)
def test_equal_is_not_above_and_zero_is_never_kept(isa):
    scores = torch.tensor([[0.0, -0.0, 2.0, 2.0, 1e-45, torch.inf, torch.inf]])
    theta = torch.tensor([-1.0, -1.0, 2.0, 1.0, 0.0, 5.0, torch.inf])
    _, indices, values = select(scores, theta, [7], isa)
    assert indices.tolist() == [3, 4, 5]
    assert values.tolist() == [2.0, scores[0, 4].item(), torch.inf]


def test_float64_thresholds_are_not_rounded_up():
    above = torch.tensor([0.1], dtype=torch.float32)
    theta = above.double() - 1e-12  # rounds to the score itself
    assert theta.float() == above
    assert threshold_cpu.not_above(theta) < above
    x, w = torch.ones(1, 1), above[:, None]
    for backend in ("cpu", "reference"):
        assert ops.threshold_encode(x, w, torch.zeros(1), theta, backend=backend).values.tolist() == above.tolist()
        assert len(ops.threshold_encode(x, w, torch.zeros(1), 0.1, backend=backend).values) == 0


def test_threads_change_no_bits(threads):
    arguments = normal(1300, 96), normal(3000, 96), normal(3000), 15.0
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        results.append(ops.threshold_encode(*arguments, backend="cpu"))
    assert len(results[0].values) > 10_000
    for other in results[1:]:
        for one, first in zip(other, results[0], strict=True):
            assert torch.equal(one, first)

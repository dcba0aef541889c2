"""Every CPU backend of threshold_encode against float64 on many small encoders: 2,000 rows daily, 10^6 nightly.

The encoders are those of test_sets.py. Thresholds are one for all, or one per latent.
"""

import torch

from saerl_fast import ops
from tests.nightly.sizes import daily_and_nightly
from tests.nightly.test_sets import EXACT, backend, encoders, normal, on_a_grid, scores  # noqa: F401


def thresholds(h):
    """A threshold for all or one per latent, which is a score itself; in every eighth encoder 0."""
    rows, latents = h.shape
    if (rows + latents) % 8 == 0:
        return 0.0
    # of each latent, a score that about a tenth of the rows are above, and no two neighbours take the same row
    place = (rows * 9 // 10 + torch.arange(latents) % 3).clamp(max=rows - 1)
    own = h.sort(dim=0).values[place, torch.arange(latents)].float()
    return own if (rows + latents) % 2 else float(own.median())


def without_k(arguments):
    return {name: value for name, value in arguments.items() if name not in ("k", "relu")}


@daily_and_nightly("total", 2000, 10**6)
def test_exact_scores_keep_exact_rows(total, backend, record_property):  # noqa: F811
    rows, equal, kept = 0, 0, 0
    for arguments in encoders(total, on_a_grid):
        h, _ = scores(arguments)
        theta = thresholds(h)
        got = ops.threshold_encode(**without_k(arguments), theta=theta, backend=backend)
        keep = (h > theta) & (h > 0)
        assert torch.equal(got.indptr.diff(), keep.sum(dim=1))
        assert torch.equal(got.indices.long(), keep.nonzero()[:, 1])
        assert torch.equal(got.values, h[keep].float())
        rows += len(h)
        kept += len(got.values)
        equal += int((h == theta).any(dim=1).sum())
    assert rows == total
    assert equal > 0.05 * rows  # scores equal to their threshold did occur
    record_property("rows", rows)
    record_property("kept", kept)
    record_property("rows_with_a_score_equal_to_its_threshold", equal)


@daily_and_nightly("total", 2000, 10**6)
def test_what_is_kept_is_what_float64_keeps(total, backend, record_property):  # noqa: F811
    rows, swapped = 0, 0
    for arguments in encoders(total, normal):
        h, gap = scores(arguments)
        theta = thresholds(h)
        got = ops.threshold_encode(**without_k(arguments), theta=theta, backend=backend)
        found = torch.zeros_like(h, dtype=torch.bool)
        row = torch.arange(len(h)).repeat_interleave(got.indptr.diff())
        found[row, got.indices.long()] = True
        bound = torch.as_tensor(theta).float().double().clamp(min=0).expand(h.shape[1])
        differs = found != (h > bound)
        if backend in EXACT:
            # two float64 sums of one score, in different orders, may lie on two sides of a threshold
            assert ((h - bound).abs()[differs] <= 2.0**-45 * gap[differs] * 2.0**20).all()
        else:
            assert ((h - bound).abs()[differs] <= gap[differs]).all()
        assert ((got.values - h[row, got.indices.long()]).abs() <= gap[row, got.indices.long()]).all()
        rows += len(h)
        swapped += int(differs.any(dim=1).sum())
    assert rows == total
    record_property("rows", rows)
    record_property("rows_by_the_gap_rule", swapped)

"""Every CPU backend of topk_encode against float64 on many small encoders: 10^4 rows daily, 10^6 nightly."""

import math

import numpy as np
import pytest
import torch

from saerl_fast import ops
from tests.nightly.sizes import daily_and_nightly
from tests.op_table import OPERATIONS, absent

MOST_WIDTH, MOST_LATENTS, MOST_ROWS = 64, 1024, 4000
GAP = 2.0**-20
UNITS = 2**7
"""Scores of encoders on the grid are whole multiples of 1 / UNITS."""
EXACT = ("cpu_int8",)
"""Backends that promise the set of float64; the others may swap latents within the gap."""


@pytest.fixture(params=OPERATIONS["topk_encode"].backends)
def backend(request):
    if reason := absent(request.param):
        pytest.skip(reason)
    return request.param


def encoders(total, numbers):
    """Encoders of random shapes until `total` rows are reached. numbers(rng): what fills each of them."""
    rng = np.random.default_rng(0)
    done = 0
    while done < total:
        rows = min(int(rng.integers(1, min(MOST_ROWS, total // 8) + 1)), total - done)
        width, latents = int(rng.integers(1, MOST_WIDTH + 1)), int(rng.integers(1, MOST_LATENTS + 1))
        drawn = numbers(rng)
        arguments = {
            "x": drawn(rows, width),
            "w_enc": drawn(latents, width),
            "b_enc": drawn(latents),
            "k": int(rng.integers(1, min(latents, 96) + 1)),
            "relu": bool(rng.integers(2)),
        }
        if rng.integers(2):
            arguments["b_dec"] = drawn(width)
        if rng.integers(2):
            arguments["scale"] = torch.from_numpy(rng.choice(np.float32([0.5, 1, 2]), latents))
        if rng.integers(2):
            arguments["row_index"] = torch.from_numpy(rng.integers(0, rows, rows))
        done += rows
        yield arguments


def on_a_grid(rng):
    """Whole numbers, or multiples of 1/8, from -4 to 4: every sum is exact in float32, and ties are common."""
    parts = int(rng.choice([1, 8]))
    return lambda *shape: torch.from_numpy(rng.integers(-4 * parts, 4 * parts + 1, shape).astype(np.float32) / parts)


def normal(rng):
    return lambda *shape: torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


def scores(arguments):
    """h [N, M] in float64, and the gap within which float32 may swap two of them."""
    x = arguments["x"].double()
    if "row_index" in arguments:
        x = x[arguments["row_index"]]
    if "b_dec" in arguments:
        x = x - arguments["b_dec"].double()
    w, b = arguments["w_enc"].double(), arguments["b_enc"].double()
    scale = arguments["scale"].double() if "scale" in arguments else torch.ones(len(b), dtype=torch.float64)
    gap = GAP * (x.norm(dim=1)[:, None] * w.norm(dim=1) + b.abs()) * scale
    return (x @ w.T + b) * scale, gap


@daily_and_nightly("total", 10**4, 10**6)
def test_exact_scores_give_exact_codes(total, backend, record_property):
    rows, tied = 0, 0
    for arguments in encoders(total, on_a_grid):
        h, _ = scores(arguments)
        k, latents = arguments["k"], h.shape[1]
        # the score and, for ties, the index as one whole number: no sort has to be stable
        keys = (h * UNITS) * MOST_LATENTS + torch.arange(latents - 1, -1, -1)
        assert torch.equal(keys, keys.round())
        assert keys.abs().max() < 2**53
        top = keys.topk(min(k + 1, latents), dim=1).values
        indices = latents - 1 - top[:, :k].remainder(MOST_LATENTS).long()
        values = h.gather(1, indices).float()
        got = ops.topk_encode(**arguments, backend=backend)
        assert torch.equal(got.indices.long(), indices)
        assert torch.equal(got.values, values.clamp(min=0) if arguments["relu"] else values)
        rows += len(h)
        if k < latents:
            tied += int((h.gather(1, indices[:, -1:])[:, 0] * UNITS == (top[:, k] / MOST_LATENTS).floor()).sum())
    assert rows == total
    assert tied > 0.01 * rows  # ties across the boundary did occur
    record_property("rows", rows)
    record_property("rows_with_a_tie_at_the_boundary", tied)


@daily_and_nightly("total", 10**4, 10**6)
def test_the_set_is_that_of_float64(total, backend, record_property):
    rows, swapped = 0, 0
    for arguments in encoders(total, normal):
        h, gap = scores(arguments)
        k = arguments["k"]
        values, indices = ops.topk_encode(**arguments, backend=backend)
        best = h.topk(k, dim=1).values
        kth = best[:, -1:]
        chosen = h.gather(1, indices.long())
        assert (indices.long().sort(dim=1).values.diff(dim=1) > 0).all()  # no latent twice
        # of the scores sorted, each is that of float64: the sets are one
        same = (chosen.sort(dim=1, descending=True).values == best).all(dim=1)
        swapped += int((~same).sum())
        if backend in EXACT:
            assert same.all()
        else:
            kept = torch.zeros_like(h, dtype=torch.bool).scatter_(1, indices.long(), True)
            assert kept[h > kth + gap].all()
            assert not kept[h < kth - gap].any()
        wanted = chosen.clamp(min=0) if arguments["relu"] else chosen
        assert ((values - wanted).abs() <= gap.gather(1, indices.long())).all()
        assert (values.diff(dim=1) <= 0).all()
        rows += len(h)
    assert rows == total
    record_property("rows", rows)
    record_property("rows_by_the_gap_rule", swapped)


def test_the_sizes_are_within_the_range_of_whole_numbers():
    largest = (64 * 8 * 4 + 4) * 2 * UNITS * MOST_LATENTS
    assert largest < 2**53
    assert math.log2((64 * 8 * 4 + 4) * 2 * UNITS) < 24  # in float32 too

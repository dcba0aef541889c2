"""The threshold select by int8 screening: what float64 keeps, always; nothing cut, nothing silent."""

import logging

import pytest
import torch

from saerl_fast import ops
from saerl_fast.errors import BackendUnavailable
from saerl_fast.kernels import int8_product, int8_screening, native, screening_counts, threshold_int8
from saerl_fast.ops import choice
from saerl_fast.ops.choice import Call, pick
from saerl_fast.ops.table import TABLE
from tests.kernels.int8_cases import (
    forget_prepared_weights,
    massive,
    normal,
    random_encoder,
    scores,
    whole_rows,
    zipf_encoder,
)

pytestmark = pytest.mark.skipif(bool(int8_product.missing()), reason=str(int8_product.missing()))


def encode(arguments, theta):
    return ops.threshold_encode(**arguments, theta=theta, backend="cpu_int8")


def level(h, l0):
    """A number that about l0 scores of a row are above, halfway between two of them."""
    best = h.flatten().topk(l0 * len(h) + 1).values
    return best[-2:].mean()


def assert_kept(rows, h, theta):
    """Every h > theta and h > 0, in ascending order; values rounded to float32 once (of sums in another order)."""
    keep = (h > theta) & (h > 0)
    assert torch.equal(rows.indptr.diff(), keep.sum(dim=1))
    assert torch.equal(rows.indices.long(), keep.nonzero()[:, 1])
    wanted = h[keep]
    near = (rows.values.double() - wanted.float().double()).abs() <= 1e-12 * h.abs().max()
    next_to = [wanted.float().nextafter(torch.tensor(side)) for side in (torch.inf, -torch.inf)]
    assert (near | torch.stack([rows.values == value for value in next_to]).any(dim=0)).all()


def same(one, other):
    return all(torch.equal(part, others) for part, others in zip(one, other, strict=True))


@pytest.mark.parametrize("change", [lambda arguments: arguments, massive], ids=["plain", "massive"])
@pytest.mark.parametrize("shape", [(40, 64, 513), (33, 385, 4099), (1100, 63, 3001), (1, 300, 1000)], ids=str)
def test_keeps_what_float64_keeps(shape, change):
    arguments = change(random_encoder(*shape))
    h = scores(arguments)
    own = level(h, 20) * (0.5 + torch.rand(shape[2], generator=torch.Generator().manual_seed(8)).double())
    for theta in (level(h, 20), own):
        assert_kept(encode(arguments, theta if theta.ndim else theta.expand(shape[2])), h, theta)


def test_one_row_one_channel_one_latent():
    arguments = random_encoder(1, 1, 1)
    h = scores(arguments)
    for theta in (h - 1, h + 1):
        assert_kept(encode(arguments, theta[0]), h, theta)


@pytest.mark.parametrize("change", [lambda arguments: arguments, massive], ids=["plain", "massive"])
def test_activations_of_an_sae_are_screened_and_not_scored_whole(change):
    arguments = change(zipf_encoder(300, 512, 8192))
    h = scores(arguments)
    theta = level(h, 32).expand(8192)
    before = ops.screening_counts()
    rows, whole, seen = whole_rows(lambda: encode(arguments, theta))
    after = ops.screening_counts()
    assert_kept(rows, h, theta)
    assert (whole, seen) == (0, 300)
    # the screening has to rule out nearly all, and what it scores in float64 is hardly more than what is kept
    assert after.sieved - before.sieved < 0.1 * h.numel()
    assert len(rows.values) <= after.scored - before.scored < 1.3 * len(rows.values)
    assert after.worst <= 1


@pytest.mark.parametrize("limit", [threshold_int8.survivors_limit, lambda n_latents: 0], ids=["screened", "whole"])
def test_scores_that_float32_cannot_tell_from_their_threshold(limit, monkeypatch):
    monkeypatch.setattr(threshold_int8, "survivors_limit", limit)
    arguments = random_encoder(60, 200, 4000, scale=None)
    h = scores(arguments)
    # every latent's threshold lies on its own score of some row, but for a part that float32 drowns
    chosen = torch.arange(4000) % 60
    own = h[chosen, torch.arange(4000)]
    step = 1e-11 * h.abs().max()
    theta = torch.where(torch.arange(4000) % 2 == 0, own - step, own + step)
    assert (theta.float() == own.float()).float().mean() > 0.9
    assert_kept(encode(arguments, theta), h, theta)


def test_equal_is_not_above():
    arguments = {"x": torch.eye(4)[:, :3], "w_enc": torch.full((70, 3), 2.0), "b_enc": torch.ones(70)}
    theta = torch.full((70,), 3.0)
    theta[5], theta[6] = 3.0 - 2.0**-20, 3.0 + 2.0**-20
    rows = encode(arguments, theta)
    assert rows.indptr.tolist() == [0, 1, 2, 3, 3]
    assert rows.indices.tolist() == [5, 5, 5]


def test_bounds_that_are_too_tight_are_noticed(monkeypatch):
    terms = int8_screening.row_terms
    monkeypatch.setattr(
        int8_screening,
        "row_terms",
        lambda x: terms(x)._replace(spread=0.01 * terms(x).spread, size=0.01 * terms(x).size),
    )
    with pytest.raises(BackendUnavailable, match="threshold_encode: .*scores lie outside of their proved bounds"):
        encode(zipf_encoder(50, 96, 2048), 1.0)


def test_a_row_beyond_the_limit_loses_none_wherever_it_stops(monkeypatch):
    """Row i keeps its first 150 + i latents and none behind: it may stop on every side of a full list, or of the limit."""
    monkeypatch.setattr(threshold_int8, "survivors_limit", lambda n_latents: 400)
    kept = 150 + torch.arange(1000)
    w_enc = torch.where(torch.arange(2000)[:, None] < kept, 2.0, -2.0)
    arguments = {"x": torch.eye(1000), "w_enc": w_enc, "b_enc": torch.zeros(2000)}
    rows, whole, seen = whole_rows(lambda: encode(arguments, 1.0))
    assert (whole, seen) == (749, 1000)
    assert torch.equal(rows.indptr.diff(), kept)
    assert torch.equal(rows.indices, torch.cat([torch.arange(count) for count in kept]).int())


def test_where_all_pass_nothing_is_cut_and_it_is_said(caplog):
    arguments = random_encoder(70, 65, 3000)
    arguments["b_enc"] += 1000
    screening_counts._warn_of_whole_rows.cache_clear()
    with caplog.at_level(logging.WARNING):
        rows, whole, seen = whole_rows(lambda: encode(arguments, 1.0))
    assert whole == seen == 70
    assert "threshold_encode: more than 25 % of the rows" in caplog.text
    assert_kept(rows, scores(arguments), torch.tensor(1.0))
    assert len(rows.values) > 0.9 * 70 * 3000


def test_threads_change_no_bits(threads):
    arguments = zipf_encoder(1100, 96, 2000)
    arguments["x"][7] = 0
    arguments["x"][8, 3] = torch.nan
    arguments["x"][9] = 1e30
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        forget_prepared_weights()
        results.append(encode(arguments, 1.0))
    assert results[0].values.isnan().sum() == 1
    for other in results[1:]:
        assert same(
            other._replace(values=other.values.nan_to_num()), results[0]._replace(values=results[0].values.nan_to_num())
        )


def test_a_row_alone_has_the_bits_it_has_in_a_batch():
    arguments = massive(zipf_encoder(30, 192, 3000))
    arguments["x"][3] = arguments["b_dec"]
    arguments["x"][4] *= 1e12  # out of range: scored whole
    together = encode(arguments, 1.0)
    for row in range(0, 30, 3):
        forget_prepared_weights()
        alone = encode(arguments | {"x": arguments["x"][row : row + 1]}, 1.0)
        span = slice(int(together.indptr[row]), int(together.indptr[row + 1]))
        assert torch.equal(alone.values, together.values[span])
        assert torch.equal(alone.indices, together.indices[span])


def test_rows_scored_whole_have_the_bits_of_screened_rows(monkeypatch):
    arguments = zipf_encoder(150, 192, 3000)
    theta = float(level(scores(arguments), 24))
    screened, whole, _ = whole_rows(lambda: encode(arguments, theta))
    assert whole == 0
    monkeypatch.setattr(threshold_int8, "survivors_limit", lambda n_latents: 0)
    scored_whole, whole, rows = whole_rows(lambda: encode(arguments, theta))
    assert whole > 0.9 * rows
    assert same(screened, scored_whole)


@pytest.mark.parametrize("isa", [] if native.missing() else native.module().instruction_sets())
def test_instruction_sets_give_the_same_bits(isa, monkeypatch):
    arguments = massive(zipf_encoder(70, 193, 3001, scale=normal(3001, seed=9).abs() + 0.5))
    wanted = encode(arguments, 1.5)
    screen, quantise = native.ScreenedThreshold, int8_screening.quantise
    monkeypatch.setattr(native, "ScreenedThreshold", lambda *sizes: screen(*sizes, isa=isa))
    monkeypatch.setattr(int8_screening, "quantise", lambda *rows: quantise(*rows, isa=isa))
    assert same(encode(arguments, 1.5), wanted)


def test_dead_latents_masked_by_the_bias_or_the_threshold():
    arguments = zipf_encoder(100, 192, 3000)
    theta = torch.full((3000,), 1.0)
    arguments["b_enc"][::3], theta[1::3] = -torch.inf, torch.inf
    rows, whole, _ = whole_rows(lambda: encode(arguments, theta))
    assert whole == 0
    assert (rows.indices % 3 == 2).all()
    assert_kept(rows, scores(arguments), theta)


@pytest.mark.parametrize("size", [1e-44, 1e-20, 1e12, 1e25, 3e38])
def test_sizes_from_denormal_to_the_largest(size):
    arguments = random_encoder(20, 65, 700, scale=None)
    arguments["x"] = arguments["x"].clamp(-1, 1) * size
    arguments["b_dec"], arguments["b_enc"] = None, arguments["b_enc"] * size
    h = scores(arguments)
    # what becomes 0 or infinite as float32 cannot be told by the test
    finite = h.float().isfinite() & (h.float() != 0)
    rows = encode(arguments, level(h, 16).expand(700))
    keep = (h > level(h, 16)) & finite
    found = torch.zeros_like(keep)
    found[torch.arange(20).repeat_interleave(rows.indptr.diff()), rows.indices.long()] = True
    assert torch.equal(found & finite, keep)


@pytest.mark.parametrize("place", ["x", "w_enc", "b_enc", "b_dec", "scale"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_not_finite(place, value):
    arguments = random_encoder(30, 65, 700)
    arguments[place].view(-1)[5] = value
    h = scores(arguments)
    rows = encode(arguments, 3.0)
    spoilt = h.isnan().any(dim=1)
    keep = (h > 3.0) & ~spoilt[:, None]
    keep[spoilt, 0] = True
    assert torch.equal(rows.indices.long(), keep.nonzero()[:, 1])
    assert torch.equal(rows.indptr.diff(), keep.sum(dim=1))
    row = torch.arange(30).repeat_interleave(rows.indptr.diff())
    assert torch.equal(rows.values.isnan(), spoilt[row])


def test_who_is_asked_depends_on_shape_and_threshold_alone():
    def chosen(**sizes):
        return pick(TABLE, "threshold_encode", Call("cpu", **sizes), None)[0]

    assert chosen(width=1536, n_latents=24576, threshold=0.5) == "cpu_int8"
    assert chosen(width=1536, n_latents=24576) == "cpu"  # a ReLU: how many pass is not known
    assert chosen(width=64, n_latents=24576, threshold=0.5) == "cpu"


def test_a_few_thresholds_of_zero_do_not_decide(monkeypatch):
    asked = []
    monkeypatch.setattr("saerl_fast.ops.encode.choose", lambda table, op, call, want: asked.append(call) or "reference")
    arguments = random_encoder(2, 8, 400)
    theta = torch.full((400,), 2.0)
    theta[:4] = 0
    ops.threshold_encode(**arguments, theta=theta)
    ops.threshold_encode(**arguments, theta=torch.zeros(400))
    ops.threshold_encode(**arguments, theta=1.5)
    assert [call.threshold for call in asked] == [2.0, 0.0, 1.5]
    assert isinstance(asked[0], choice.Call)

"""The exact encode of float32 weights behind a bfloat16 screen, its kernels interpreted."""

import logging

import pytest
import torch

from saerl_fast import ops
from saerl_fast.kernels import scores_cuda, screening_counts, triton_runtime
from saerl_fast.kernels.published import Published
from tests.extract.test_one_wait import free, no_host_reads
from tests.kernels.hard_rows import INPUTS, by_sorting

GridExecutor = pytest.importorskip("triton.runtime.interpreter").GridExecutor

pytestmark = [
    pytest.mark.skipif(triton_runtime.refuses("cpu") is not None, reason=str(triton_runtime.refuses("cpu"))),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
]


@pytest.fixture(scope="module")
def bf16():
    from saerl_fast.kernels import topk_bf16

    return topk_bf16


def inputs(n_rows, width, n_latents, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    make = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    parts = {"x": make(n_rows, width).to(dtype), "w_enc": make(n_latents, width), "b_enc": make(n_latents)}
    return parts | {"b_dec": make(width), "scale": make(n_latents)}


def truth(x, w_enc, b_enc, b_dec=None, scale=None, row_index=None):
    x = x if row_index is None else x[row_index]
    h = (x.double() - (0 if b_dec is None else b_dec.double())) @ w_enc.double().T + b_enc.double()
    return h if scale is None else h * scale.double()


def assert_that_of_float64(got, exact, k):
    ordered, order = exact.sort(dim=1, descending=True, stable=True)
    assert torch.equal(got.indices, order[:, :k].int())
    assert torch.equal(got.values, ordered[:, :k].float())


def by_sorting_chunks(chunks, k, relu):
    """The select of encode_triton.py, which the interpreter takes half a second a row for; it has tests of its own."""
    parts = [(*by_sorting(scores, k), scores.isnan().any(dim=1)) for _, scores, _ in chunks]
    values, indices, spoilt = (torch.cat(part) for part in zip(*parts, strict=True))
    values[spoilt], indices[spoilt] = torch.nan, torch.arange(k, dtype=torch.int32)
    return values, indices


@pytest.mark.parametrize(
    ("terms", "dtype"),
    [
        ((), torch.float32),
        (("b_dec",), torch.bfloat16),
        (("b_dec", "scale", "row_index"), torch.float32),
        (("b_dec", "scale", "row_index"), torch.float16),
    ],
)
def test_set_and_values_are_those_of_float64(terms, dtype):
    arguments = inputs(3, 96, 200, dtype=dtype) | {"row_index": torch.tensor([2, 0, 0])}
    arguments = {name: value for name, value in arguments.items() if name in ("x", "w_enc", "b_enc", *terms)}
    before = ops.screening_counts()
    codes, certified = ops.topk_encode_certified(**arguments, k=5, relu=False, backend="triton_bf16")
    after = ops.screening_counts()
    assert_that_of_float64(codes, truth(**arguments), 5)
    assert certified.any()
    assert after.rows - before.rows == 3
    assert after.whole_rows - before.whole_rows == int((~certified).sum())
    # not all 69 candidates of every row
    assert 5 * int(certified.sum()) <= after.scored - before.scored < 69 * 3
    assert after.outside == before.outside


SETTLED = ("plain", "also plain")


def hard_rows(dtype):
    """Rows that the screen settles, and one of each kind that it cannot: more candidates are open than there is room."""
    arguments = inputs(7, 40, 200)
    x, w, b, scale = (arguments[name] for name in ("x", "w_enc", "b_enc", "scale"))
    scale.abs_().add_(0.5)
    # seventy latents beside each other, seventy one and the same; a channel that no latent reads
    w[:70] = w[0] + 1e-6 * w[:70]
    w[70:140] = w[70]
    b[:140], scale[:140] = 1.0, 2.0
    w[:, 7] *= 1e-4
    x[1], x[2] = 2 * w[0], 2 * w[70]
    x[[0, 6]] -= 0.3 * (w[0] + w[70])
    x[3, 7] = 1e5 + 123
    x[4, 5], x[5, 5] = torch.nan, torch.inf
    places = {"plain": 0, "near ties": 1, "no such row": 7, "ties": 2, "massive": 3, "NaN": 4, "infinite": 5}
    places["also plain"] = 6
    arguments |= {"x": x.to(dtype), "row_index": torch.tensor(list(places.values()))}
    return arguments, list(places)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_that_the_screen_cannot_settle_say_so_and_are_exact_all_the_same(bf16, dtype, monkeypatch):
    monkeypatch.setattr(bf16, "select", by_sorting_chunks)
    # several chunks, of which some have more open rows than go at once
    monkeypatch.setattr(scores_cuda, "BUFFER_NUMBERS", 4 * 200)
    arguments, names = hard_rows(dtype)
    codes, certified = ops.topk_encode_certified(**arguments, k=3, relu=False, backend="triton_bf16")
    assert certified.tolist() == [name in SETTLED for name in names]
    finite = [i for i, name in enumerate(names) if name not in ("NaN", "infinite", "no such row")]
    rows = arguments.pop("row_index")[finite]
    assert_that_of_float64(type(codes)(*(part[finite] for part in codes)), truth(**arguments, row_index=rows), 3)
    assert codes.indices[names.index("ties")].tolist() == [70, 71, 72]
    for name in ("NaN", "no such row"):
        assert codes.values[names.index(name)].isnan().all()
        assert codes.indices[names.index(name)].tolist() == [0, 1, 2]


def test_bounds_that_do_not_hold_are_seen_and_their_rows_scored_whole(bf16, monkeypatch, caplog):
    """As if the tensor cores of a device multiplied less well than was assumed."""
    screen_of = bf16.screen_of

    def broken(encoder):
        screen = screen_of(encoder)
        return screen._replace(w=screen.w * 0.8, error=0 * screen.error, size=0 * screen.size)

    monkeypatch.setattr(bf16, "screen_of", broken)
    monkeypatch.setattr(bf16, "select", by_sorting_chunks)
    screening_counts._warn_of_broken_bounds.cache_clear()
    arguments = inputs(3, 64, 150)
    del arguments["b_dec"], arguments["scale"]
    before = ops.screening_counts()
    codes, certified = ops.topk_encode_certified(**arguments, k=8, relu=False, backend="triton_bf16")
    monkeypatch.undo()
    assert not certified.any()
    assert_that_of_float64(codes, truth(**arguments), 8)
    with caplog.at_level(logging.WARNING):
        assert ops.screening_counts().outside > before.outside
    assert "lie above their proved bounds" in caplog.text


def test_nothing_is_read_on_the_way_and_rows_are_not_copied(bf16, monkeypatch):
    launch = free(GridExecutor.__call__)
    monkeypatch.setattr(GridExecutor, "__call__", launch)
    taken, chunks = [], bf16.ScoreChunks
    monkeypatch.setattr(
        bf16, "ScoreChunks", lambda x, *rest, **bounds: taken.append((x, rest[4])) or chunks(x, *rest, **bounds)
    )
    arguments, _ = hard_rows(torch.bfloat16)
    index = arguments["row_index"][1:3]
    with no_host_reads(monkeypatch):
        certified = ops.topk_encode_certified(**arguments | {"row_index": index}, k=3, backend="triton_bf16")[1]
    assert certified.tolist() == [False, False]
    # the product reads the hook's output itself
    ((x, rows),) = taken
    assert x.data_ptr() == arguments["x"].data_ptr()
    assert torch.equal(rows, index)


@pytest.mark.parametrize("scaled", [False, True])
def test_no_score_lies_above_its_bound(bf16, scaled):
    x, w, b, centre, scale = inputs(6, 96, 300).values()
    # one channel a hundred times the others, as language models have them
    x[:, 7] *= 100
    encoder = Published(w, b, centre, scale if scaled else None)
    exact = truth(x, *encoder)
    for rows, bounds, _ in bf16.upper_bounds(x, None, encoder, bf16.screen_of(encoder), 8):
        assert (bounds.double() >= exact[rows]).all()
        assert (bounds.double() - exact[rows]).mean() < 0.1 * exact.std()


def test_only_what_a_bound_leaves_open_is_scored(bf16):
    x, w, b, centre, _ = inputs(5, 64, 250).values()
    encoder = Published(w, b, centre, None)
    found = bf16.certify(x, None, encoder, bf16.screen_of(encoder), 16)
    exact = truth(x, *encoder)
    ((_, bounds, _),) = bf16.upper_bounds(x, None, encoder, bf16.screen_of(encoder), 80)
    assert found.certified.all()
    whole, scored, outside = found.counts.tolist()
    assert whole == outside == 0
    assert 5 * 16 <= scored <= int((bounds >= found.values[:, -1:]).sum()) + 5 * 16
    assert torch.equal(found.values, exact.topk(16).values.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("named", [False, True])
def test_rounded_rows_and_their_norms(dtype, named):
    from saerl_fast.kernels.rounding_triton import round_rows

    x = inputs(9, 300, 1)["x"].to(dtype).t().contiguous().t()
    x[3, 2], x[4, 200] = torch.nan, torch.inf
    x[5, :4] = torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8, 0.0, -(1 + 2.0**-8 + 2.0**-23)])  # ties go to even
    rows = torch.tensor([5, 3, 0, 9, -1, 5, 8, 4, 2, 1]) if named else None
    centre = inputs(1, 300, 1, seed=4)["x"][0]
    seen = x.float() if rows is None else x.float()[rows.clamp(0, 8)]
    if named:
        seen[(rows < 0) | (rows > 8)] = torch.nan
    rounded, kept, moved, apart = round_rows(x, rows, centre)
    near = seen.bfloat16().float()
    finite = seen.isfinite().all(dim=1)
    assert int((~finite).sum()) == (4 if named else 2)
    if dtype != torch.bfloat16:
        assert torch.equal(rounded[finite].float(), near[finite])
    for got, of in ((kept, near), (moved, seen - near), (apart, seen.double() - centre.double())):
        wanted = of.double().norm(dim=1)
        assert torch.allclose(got[finite], wanted[finite], rtol=1e-12, atol=0)
    # none of these is less than what a bound has to cover
    assert not (moved + kept)[~finite].isfinite().any() or dtype == torch.bfloat16
    assert not apart[~finite].isfinite().any()


@pytest.mark.parametrize(
    ("name", "k"), [*((name, 100) for name in INPUTS), ("random", 1), ("tied", 1), ("infinite", 1100), ("equal", 1100)]
)
def test_the_select_of_open_rows(name, k):
    from saerl_fast.kernels.whole_rows_triton import BLOCK, whole_select_kernel

    scores = INPUTS[name](1100).double().contiguous()
    if name == "random":
        scores[1] *= 1e-300
        scores[2, 700] = torch.nan
    best = torch.full((6, k + 3), 7.0, dtype=torch.float64)
    found = torch.full((6, k + 3), 7, dtype=torch.int32)
    open_rows = torch.tensor([4, 1, 0, 5, 9, 9])
    # the first one went with the launch before
    whole_select_kernel[(3,)](scores[1:], open_rows, torch.tensor([3]), best, found, 1, 1100, k + 3, k, BLOCK=BLOCK)
    order = found.argsort(dim=1)
    order = order.gather(1, best.gather(1, order).argsort(dim=1, descending=True, stable=True))[:, :k]
    values, columns = by_sorting(scores[1:3], k)
    spoilt = scores[1:3].isnan().any(dim=1)
    values[spoilt], columns[spoilt] = torch.nan, torch.arange(k, dtype=torch.int32)
    assert torch.equal(found.gather(1, order)[[1, 0]], columns)
    assert torch.equal(best.gather(1, order)[[1, 0]].nan_to_num(nan=123.0), values.nan_to_num(nan=123.0))
    assert (best[[0, 1], k:] == -torch.inf).all()
    assert (best[2:] == 7).all()
    assert (found[2:] == 7).all()


@pytest.mark.parametrize("width", [1, 17, 130])
def test_pairs_are_scored_where_a_latent_is_named(width):
    from saerl_fast.kernels.rescore_triton import rescore

    x, w, b, centre, scale = inputs(7, width, 40).values()
    latents = torch.randint(-1, 40, (7, 9), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    exact = torch.full((7, 9), 123.0, dtype=torch.float64)
    rescore(x, None, Published(w, b, centre, scale), latents, exact)
    wanted = truth(x, w, b, centre, scale).gather(1, latents.clamp(min=0).long())
    assert torch.allclose(exact[latents >= 0], wanted[latents >= 0], rtol=1e-13, atol=1e-13)
    assert (exact[latents < 0] == 123.0).all()


def test_ties_relu_and_whole_numbers(bf16, monkeypatch):
    monkeypatch.setattr(bf16, "select", by_sorting_chunks)
    grid = lambda *size, seed: torch.randint(-4, 5, size, generator=torch.Generator().manual_seed(seed)).float()  # noqa: E731
    arguments = {"x": grid(5, 24, seed=1), "w_enc": grid(200, 24, seed=2), "b_enc": grid(200, seed=3) - 40}
    wanted = ops.topk_encode(**{name: part.double() for name, part in arguments.items()}, k=90, backend="reference")
    got = ops.topk_encode(**arguments, k=90, backend="triton_bf16")
    assert torch.equal(got.indices, wanted.indices)
    assert torch.equal(got.values, wanted.values.float())
    assert (got.values == 0).any()


def test_no_rows_are_legal():
    arguments = inputs(3, 16, 100)
    none, certified = ops.topk_encode_certified(
        **arguments, k=5, row_index=torch.zeros(0, dtype=torch.int64), backend="triton_bf16"
    )
    assert none.values.shape == none.indices.shape == (0, 5)
    assert certified.shape == (0,)

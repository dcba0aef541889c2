"""The exact encode of float32 weights behind a bfloat16 screen, its kernels interpreted."""

import pytest
import torch

from saerl_fast import ops
from saerl_fast.errors import InputError
from saerl_fast.kernels import triton_runtime

pytestmark = pytest.mark.skipif(triton_runtime.refuses("cpu") is not None, reason=str(triton_runtime.refuses("cpu")))


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
    got = ops.topk_encode(**arguments, k=5, relu=False, backend="triton_bf16")
    after = ops.screening_counts()
    assert_that_of_float64(got, truth(**arguments), 5)
    assert after.rows - before.rows == len(got.values)
    assert after.whole_rows - before.whole_rows < len(got.values)
    # not all 69 candidates of every row
    assert 5 * 3 <= after.scored - before.scored < 69 * len(got.values)


@pytest.mark.parametrize("scaled", [False, True])
def test_no_score_lies_above_its_bound(bf16, scaled):
    x, w, b, centre, scale = inputs(6, 96, 300).values()
    # one channel a hundred times the others, as language models have them
    x[:, 7] *= 100
    encoder = bf16.Encoder(w, b, centre, scale if scaled else None)
    exact = truth(x, *encoder)
    for rows, bounds, _ in bf16.upper_bounds(x, encoder, bf16.screen_of(encoder), 8):
        assert (bounds.double() >= exact[rows]).all()
        assert (bounds.double() - exact[rows]).mean() < 0.1 * exact.std()


def test_only_what_a_bound_leaves_open_is_scored(bf16):
    x, w, b, centre, _ = inputs(5, 64, 250).values()
    encoder = bf16.Encoder(w, b, centre, None)
    values, _, certified, scored = bf16.certify(x, encoder, bf16.screen_of(encoder), 16)
    exact = truth(x, *encoder)
    ((_, bounds, _),) = bf16.upper_bounds(x, encoder, bf16.screen_of(encoder), 80)
    assert certified.all()
    assert 5 * 16 <= int(scored) <= int((bounds >= values[:, -1:]).sum()) + 5 * 16
    assert torch.equal(values, exact.topk(16).values.float())


@pytest.mark.parametrize("width", [1, 17, 130])
def test_pairs_are_scored_where_a_latent_is_named(width):
    from saerl_fast.kernels.rescore_triton import rescore

    x, w, b, centre, scale = inputs(7, width, 40).values()
    latents = torch.randint(-1, 40, (7, 9), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    exact = torch.full((7, 9), 123.0, dtype=torch.float64)
    rescore(x, w, b, centre, scale, latents, exact)
    wanted = truth(x, w, b, centre, scale).gather(1, latents.clamp(min=0).long())
    assert torch.allclose(exact[latents >= 0], wanted[latents >= 0], rtol=1e-13, atol=1e-13)
    assert (exact[latents < 0] == 123.0).all()


def test_rows_that_cannot_be_certified_are_scored_whole():
    arguments = inputs(4, 32, 120)
    del arguments["scale"]
    arguments["w_enc"][1:] = arguments["w_enc"][0] + 1e-6 * arguments["w_enc"][1:]  # the bounds decide nothing
    arguments["b_enc"].zero_()
    arguments["x"][2, 3] = torch.nan
    before = ops.screening_counts().whole_rows
    values, indices = ops.topk_encode(**arguments, k=4, relu=False, backend="triton_bf16")
    assert ops.screening_counts().whole_rows - before == 4
    rest = [0, 1, 3]
    exact = truth(**arguments)[rest]
    assert torch.equal(indices[rest], exact.sort(dim=1, descending=True, stable=True).indices[:, :4].int())
    assert values[2].isnan().all()
    assert indices[2].tolist() == [0, 1, 2, 3]


def test_ties_relu_and_whole_numbers():
    grid = lambda *size, seed: torch.randint(-4, 5, size, generator=torch.Generator().manual_seed(seed)).float()  # noqa: E731
    arguments = {"x": grid(5, 24, seed=1), "w_enc": grid(200, 24, seed=2), "b_enc": grid(200, seed=3) - 40}
    wanted = ops.topk_encode(**{name: part.double() for name, part in arguments.items()}, k=90, backend="reference")
    got = ops.topk_encode(**arguments, k=90, backend="triton_bf16")
    assert torch.equal(got.indices, wanted.indices)
    assert torch.equal(got.values, wanted.values.float())
    assert (got.values == 0).any()


def test_rows_outside_of_x_are_refused_and_no_rows_are_legal():
    arguments = inputs(3, 16, 100)
    with pytest.raises(InputError, match="row_index"):
        ops.topk_encode(**arguments, k=5, row_index=torch.tensor([3]), backend="triton_bf16")
    none = ops.topk_encode(**arguments, k=5, row_index=torch.zeros(0, dtype=torch.int64), backend="triton_bf16")
    assert none.values.shape == none.indices.shape == (0, 5)

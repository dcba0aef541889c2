"""The exact encode for float32 weights by a bfloat16 screen, its kernels interpreted."""

import pytest
import torch

from saerl_fast.kernels import triton_runtime

pytestmark = pytest.mark.skipif(triton_runtime.refuses("cpu") is not None, reason=str(triton_runtime.refuses("cpu")))


@pytest.fixture(scope="module")
def certified():
    from saerl_fast.kernels import topk_certified

    return topk_certified


def inputs(n_rows, width, n_latents, seed=0):
    generator = torch.Generator().manual_seed(seed)
    make = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    return make(n_rows, width), make(n_latents, width), make(n_latents), make(width), make(n_latents)


def truth(x, w, b, centre, scale):
    h = (x.double() - centre.double()) @ w.double().T + b.double()
    return h if scale is None else h * scale.double()


@pytest.mark.parametrize("scaled", [False, True])
def test_bounds_hold_and_the_set_is_that_of_float64(certified, scaled):
    x, w, b, centre, scale = inputs(6, 96, 700)
    scale = scale if scaled else None
    exact = truth(x, w, b, centre, scale)
    for rows, bounds, _ in certified._screen(x, w, b, centre, scale, 8):
        assert (bounds.double() >= exact[rows]).all()
        assert (bounds.double() - exact[rows]).mean() < 0.1 * exact.std()
    values, indices, sure = certified.encode(x, w, b, 5, centre, scale, False)
    ordered, order = exact.sort(dim=1, descending=True, stable=True)
    assert torch.equal(indices, order[:, :5].int())
    assert (values.double() - ordered[:, :5]).abs().max() < 1e-5
    assert sure.any()


def test_rows_that_cannot_be_certified_are_scored_whole(certified):
    x, w, b, centre, _ = inputs(4, 32, 300)
    w[1:] = w[0] + 1e-6 * w[1:]  # all latents alike: the bound decides nothing
    x[2, 3] = torch.nan
    values, indices, sure = certified.encode(x, w, torch.zeros_like(b), 4, centre, None, False)
    assert not sure.any()
    exact = truth(x, w, torch.zeros_like(b), centre, None)
    rest = [0, 1, 3]
    assert torch.equal(indices[rest], exact[rest].sort(dim=1, descending=True, stable=True).indices[:, :4].int())
    assert values[2].isnan().all()
    assert indices[2].tolist() == [0, 1, 2, 3]

"""b_dec folded into the bias: in Triton's interpreter and in torch."""

import pytest
import torch

from saerl_fast.kernels import triton_runtime
from saerl_fast.kernels.folded_bias import folded_bias

FORMS = {
    "[M, D]": lambda w: w,
    "[D, M]": lambda w: w.T.contiguous().T,
    "every other": lambda w: w.repeat_interleave(2, dim=1)[:, ::2],
    "one channel": lambda w: w[:, :1],
}


def with_triton(monkeypatch):
    if reason := triton_runtime.refuses("cpu"):
        pytest.skip(reason)


def with_torch(monkeypatch):
    monkeypatch.setattr(triton_runtime, "refuses", lambda _: "triton is not installed")
    monkeypatch.setattr("saerl_fast.kernels.folded_bias.BLOCK_NUMBERS", 1000)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", [with_triton, with_torch])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_folded_bias_is_that_of_float64(way, form, dtype, monkeypatch):
    way(monkeypatch)
    generator = torch.Generator().manual_seed(0)
    w = FORMS[form](torch.randn(137, 300, generator=generator).to(dtype))
    b_enc, b_dec = torch.randn(137, generator=generator), torch.randn(w.shape[1], generator=generator)
    exact = b_enc.double() - w.double() @ b_dec.double()
    folded = folded_bias(w, b_enc, b_dec)
    assert ((folded.double() - exact).abs() <= 2.0**-24 * exact.abs() + 1e-12).all()

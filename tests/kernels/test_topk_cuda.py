"""The CUDA backend on a device."""

import pytest
import torch

from saerl_fast import ops
from saerl_fast.kernels import scores_cuda
from tests.kernels.hard_rows import INPUTS, by_sorting

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def built():
    if scores_cuda.missing():
        pytest.skip(scores_cuda.missing())


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize(("width", "k"), [(33, 33), (700, 64), (4097, 512), (49152, 64), (131072, 128)])
def test_scores_are_selected_as_a_stable_sort_would(name, width, k):
    bias = INPUTS[name](width)[0].contiguous().cuda()
    x, w_enc = torch.zeros(3, 8, device="cuda"), torch.zeros(width, 8, device="cuda")
    values, indices = ops.topk_encode(x, w_enc, bias, k, relu=False, backend="cuda")
    wanted_values, wanted_indices = by_sorting(bias.cpu().expand(3, -1), k)
    assert torch.equal(values.cpu(), wanted_values)
    assert torch.equal(indices.cpu(), wanted_indices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_set_is_that_of_float64(dtype):
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(300, 512, device="cuda", generator=generator).to(dtype)
    w_enc = torch.randn(8192, 512, device="cuda", generator=generator).to(dtype)
    b_enc = torch.randn(8192, device="cuda", generator=generator).to(dtype)
    values, indices = ops.topk_encode(x, w_enc, b_enc, 64, relu=False, backend="cuda")
    h = x.double() @ w_enc.double().T + b_enc.double()
    gap = 2.0**-20 * (x.double().norm(dim=1)[:, None] * w_enc.double().norm(dim=1) + b_enc.double().abs())
    chosen = torch.zeros_like(h, dtype=torch.bool).scatter_(1, indices.long(), True)
    kth = h.topk(64).values[:, -1:]
    assert chosen[h > kth + gap].all()
    assert not chosen[h < kth - gap].any()
    at_index = indices.long()
    assert ((values - h.gather(1, at_index)).abs() <= gap.gather(1, at_index)).all()


def test_too_many_kept_latents_fall_back_with_a_reason():
    from saerl_fast.errors import BackendUnavailable

    x, w_enc, b_enc = (torch.zeros(*size, device="cuda") for size in ((2, 8), (1000, 8), (1000,)))
    with pytest.raises(BackendUnavailable, match="keeps at most 512 latents per row, not k=513"):
        ops.topk_encode(x, w_enc, b_enc, 513, backend="cuda")
    assert ops.topk_encode(x, w_enc, b_enc, 513).values.shape == (2, 513)

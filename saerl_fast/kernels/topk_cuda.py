"""topk_encode on an NVIDIA GPU: a matrix product in chunks of tokens, then the compiled select.

    h = scale * ((x - b_dec) w_enc^T + b_enc);   values, indices = topk_j h

The scores of one chunk are float32 (never rounded to the weights' type) and lie in one reused buffer; the
select adds bias and scale on the way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saerl_fast.kernels import native
from saerl_fast.kernels.precision import full_float32

BUFFER_NUMBERS = 2**27
"""Numbers in the buffer (512 MB): 2,730 tokens at 49,152 latents."""


def missing() -> str | None:
    """Why no call can run here, or None."""
    reason = native.missing()
    if reason is not None:
        return reason
    if not native.module().cuda:
        return f"built without CUDA kernels: {native.build_record().get('cuda_reason') or 'nvcc was not found'}"
    if not torch.cuda.is_available():
        return "no CUDA device"
    return None


def max_k() -> int:
    """The most kept latents the select has room for."""
    return int(native.module().cuda_max_k)


def encode(
    x: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    k: int,
    b_dec: Tensor | None,
    scale: Tensor | None,
    row_index: Tensor | None,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    """The contract of `ops.topk_encode`; arguments are checked, none is float64, k <= max_k()."""
    n_rows = x.shape[0] if row_index is None else row_index.shape[0]
    n_latents = w_enc.shape[0]
    tokens = max(1, min(n_rows, BUFFER_NUMBERS // n_latents))
    buffer = torch.empty(tokens, n_latents, dtype=torch.float32, device=x.device)
    values = torch.empty(n_rows, k, dtype=torch.float32, device=x.device)
    indices = torch.empty(n_rows, k, dtype=torch.int32, device=x.device)
    bias = b_enc.float().contiguous()
    scale = None if scale is None else scale.float().contiguous()
    for start in range(0, n_rows, tokens):
        rows = slice(start, min(start + tokens, n_rows))
        chunk = x[rows] if row_index is None else x[row_index[rows]]
        scores = buffer[: len(chunk)]
        _product(chunk, w_enc, b_dec, scores)
        native.module().topk_select_cuda(
            native.address(scores), len(chunk), n_latents, scores.stride(0), native.address(bias),
            native.address(scale), k, relu, native.address(values[rows]), native.address(indices[rows]),
            x.device.index, torch.cuda.current_stream(x.device).cuda_stream,
        )  # fmt: skip
    return values, indices


def _product(x: Tensor, w_enc: Tensor, b_dec: Tensor | None, scores: Tensor) -> None:
    """scores = (x - b_dec) w_enc^T, accumulated and written in float32."""
    half = x.dtype == w_enc.dtype and x.dtype in (torch.bfloat16, torch.float16)
    if half and b_dec is None and hasattr(torch.ops.aten.mm, "dtype_out"):
        # the tensor cores take the 16-bit inputs as they are
        torch.mm(x, w_enc.T, out_dtype=torch.float32, out=scores)
        return
    centred = x.float() if b_dec is None else x.float() - b_dec.float()
    with full_float32():
        torch.mm(centred, w_enc.float().T, out=scores)

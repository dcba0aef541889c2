"""topk_encode on an NVIDIA GPU: a matrix product in chunks of tokens, then the compiled select.

    h = scale * ((x - b_dec) w_enc^T + b_enc);   values, indices = topk_j h

Floor:  the matrix product: 96 ns a token at D 1536, M 24,576 on an H200 (bfloat16), and behind it a write and a read
        of the scores, 23 ns each, since cuBLAS writes them all.
Trick:  csrc/cuda/topk_select.cu reads each score once; bias and scale are added there, and b_dec is folded into the
        bias, so that 16-bit x goes to the tensor cores as it lies (scores_cuda.py).

Not timed yet: docs/measured.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saerl_fast.kernels import native
from saerl_fast.kernels.input_norm import InputNorm
from saerl_fast.kernels.scores_cuda import ScoreChunks, queue_of


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
    norm: InputNorm = "none",
) -> tuple[Tensor, Tensor]:
    """The contract of `ops.topk_encode`; arguments are checked but for row_index, none is float64, k <= max_k()."""
    chunks = ScoreChunks(x, w_enc, b_enc, b_dec, scale, row_index, norm)
    values = torch.empty(chunks.n_rows, k, dtype=torch.float32, device=x.device)
    indices = torch.empty(chunks.n_rows, k, dtype=torch.int32, device=x.device)
    for rows, scores in chunks:
        native.module().topk_select_cuda(
            native.address(scores), *scores.shape, scores.stride(0), native.address(chunks.bias),
            native.address(chunks.scale), k, relu, native.address(values[rows]), native.address(indices[rows]),
            *queue_of(scores),
        )  # fmt: skip
    return values, indices

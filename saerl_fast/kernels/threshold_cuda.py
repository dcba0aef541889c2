"""threshold_encode on an NVIDIA GPU: a matrix product in chunks of tokens, then a count and a write of what is kept.

    h = scale * ((x - b_dec) w_enc^T + b_enc);   keep every h > theta and h > 0

Floor:  that of topk_cuda.py; what is kept is 8 bytes an entry.
Trick:  csrc/cuda/threshold_select.cu: the count leaves a byte per 32 columns, the write reads only what keeps
        something. The number of entries stays on the device until all chunks are queued (csr_capacity.py).

Not timed yet: docs/measured.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saerl_fast.kernels import csr_capacity, native
from saerl_fast.kernels.input_norm import InputNorm
from saerl_fast.kernels.scores_cuda import ScoreChunks, queue_of
from saerl_fast.kernels.threshold_cpu import not_above

CELL = 32
"""Columns that share a count (csrc/cuda/score_rows.cuh)."""


def work(
    x: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    theta: Tensor | float,
    b_dec: Tensor | None,
    scale: Tensor | None,
    row_index: Tensor | None,
    norm: InputNorm = "none",
) -> csr_capacity.Work:
    """What makes the rows of `ops.threshold_encode`; arguments are checked but for row_index and NaN in theta, none is
    float64 but theta. A NaN in theta makes every row a NaN row."""
    chunks = ScoreChunks(x, w_enc, b_enc, b_dec, scale, row_index, norm)
    least = least_kept(theta, chunks.n_latents, x.device)

    def run(indptr: Tensor, indices: Tensor, values: Tensor) -> None:
        for rows, scores in chunks:
            n_rows = rows.stop - rows.start
            cells = torch.empty(n_rows, -(-chunks.n_latents // CELL), dtype=torch.uint8, device=x.device)
            counts = torch.empty(n_rows, dtype=torch.int64, device=x.device)
            product = (native.address(scores), *scores.shape, scores.stride(0))
            terms = (native.address(chunks.bias), native.address(chunks.scale), native.address(least))
            counted = (native.address(cells), native.address(counts))
            native.module().threshold_count_cuda(*product, *terms, *counted, *queue_of(scores))
            # a row that is not a number counts -1 and keeps one entry
            csr_capacity.indptr_of(counts.abs(), indptr, rows)
            native.module().threshold_write_cuda(
                *product, *terms, *counted, native.address(indptr[rows]), len(indices), native.address(indices),
                native.address(values), *queue_of(scores),
            )  # fmt: skip

    return csr_capacity.Work(chunks.n_rows, chunks.n_latents, x.device, run)


def least_kept(theta: Tensor | float, n_latents: int, device: torch.device) -> Tensor:
    """[M] float32: a float32 score h has h > theta and h > 0 just when it is above this. NaN stays NaN."""
    if not isinstance(theta, Tensor):
        # a number is handed over with the launch; a copy of it from the host would be waited for
        return torch.full((n_latents,), theta, dtype=torch.float64, device=device).clamp_(min=0).float()
    return not_above(theta).to(device).clamp(min=0).expand(n_latents).contiguous()

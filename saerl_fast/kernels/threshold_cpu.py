"""threshold_encode on the CPU: a matrix product in blocks, each selected from while it is in the cache.

    h = scale * ((x - b_dec) w_enc^T + b_enc);   keep every h > theta and h > 0

Floor:  the matrix product (2 N M D operations).
Trick:  as in topk_cpu.py: a block of tokens x latents is computed into one reused buffer, and what is kept
        goes to one list per row. No [N, M] array and no mask exist.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saerl_fast.kernels import native
from saerl_fast.kernels.precision import full_float32
from saerl_fast.kernels.topk_cpu import BLOCK_NUMBERS, TOKENS


def encode(
    x: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    theta: Tensor | float,
    b_dec: Tensor | None,
    scale: Tensor | None,
    row_index: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The contract of `ops.threshold_encode`; arguments are checked, none is float64 but theta."""
    n_rows = x.shape[0] if row_index is None else row_index.shape[0]
    n_latents = w_enc.shape[0]
    tokens = max(1, min(TOKENS, n_rows))
    latents = min(n_latents, BLOCK_NUMBERS // tokens)
    buffer = torch.empty(tokens * latents, dtype=torch.float32)
    bias = b_enc.float().contiguous()
    scale = None if scale is None else scale.float().contiguous()
    least = not_above(theta).expand(n_latents).contiguous()
    counts = torch.empty(n_rows, dtype=torch.int64)
    indices, values = [], []
    for start in range(0, n_rows, tokens):
        rows = slice(start, min(start + tokens, n_rows))
        centred = (x[rows] if row_index is None else x[row_index[rows]]).float()
        if b_dec is not None:
            centred = centred - b_dec.float()
        running = native.RunningThreshold(len(centred))
        for first in range(0, n_latents, latents):
            columns = slice(first, min(first + latents, n_latents))
            w = w_enc[columns].float()
            scores = buffer[: len(centred) * len(w)].view(len(centred), len(w))
            with full_float32():
                torch.mm(centred, w.T, out=scores)
            running.absorb(scores, bias[columns], None if scale is None else scale[columns], least[columns])
        kept = running.finish(counts[rows])
        indices.append(kept[0])
        values.append(kept[1])
    indptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    if not indices:
        return indptr, torch.empty(0, dtype=torch.int32), torch.empty(0, dtype=torch.float32)
    return indptr, torch.cat(indices), torch.cat(values)


def not_above(theta: Tensor | float) -> Tensor:
    """The largest float32 not above theta: a float32 score is above the one just when above the other."""
    if not isinstance(theta, Tensor):
        # torch compares with a plain number in the type of the tensor
        return torch.tensor(theta, dtype=torch.float32)
    rounded = theta.float()
    return torch.where(rounded.double() > theta.double(), rounded.nextafter(torch.tensor(-torch.inf)), rounded)

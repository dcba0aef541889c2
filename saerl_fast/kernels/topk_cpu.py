"""topk_encode on the CPU: a matrix product in blocks, each selected from while it is in the cache.

    h = scale * ((x - b_dec) w_enc^T + b_enc);   values, indices = topk_j h

Floor:  the matrix product (2 N M D operations).
Trick:  a block of tokens x latents is computed into one reused buffer and handed to the running select,
        which adds bias and scale on the way. No [N, M] array exists.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saerl_fast.kernels import native
from saerl_fast.kernels.precision import full_float32

TOKENS = 1024
"""Rows of one block: with fewer the product itself is slower (256 rows cost a third more)."""
BLOCK_NUMBERS = 2**19
"""Numbers in the buffer (2 MB, most of which stays in the cache): 512 latents for a full block of tokens, else more."""
CANDIDATE_NUMBERS = 2**24
"""Upper bound on the candidates held for one block of tokens, so that a large k takes fewer tokens."""


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
    """The contract of `ops.topk_encode`; arguments are checked, none is float64."""
    n_rows = x.shape[0] if row_index is None else row_index.shape[0]
    n_latents = w_enc.shape[0]
    tokens = max(1, min(TOKENS, n_rows, CANDIDATE_NUMBERS // (4 * k + 512)))
    latents = min(n_latents, BLOCK_NUMBERS // tokens)
    buffer = torch.empty(tokens * latents, dtype=torch.float32)
    values = torch.empty(n_rows, k, dtype=torch.float32)
    indices = torch.empty(n_rows, k, dtype=torch.int32)
    bias = b_enc.float().contiguous()
    scale = None if scale is None else scale.float().contiguous()
    for start in range(0, n_rows, tokens):
        rows = slice(start, min(start + tokens, n_rows))
        centred = (x[rows] if row_index is None else x[row_index[rows]]).float()
        if b_dec is not None:
            centred = centred - b_dec.float()
        running = native.RunningTopK(len(centred), k)
        for first in range(0, n_latents, latents):
            columns = slice(first, min(first + latents, n_latents))
            w = w_enc[columns].float()
            scores = buffer[: len(centred) * len(w)].view(len(centred), len(w))
            with full_float32():
                torch.mm(centred, w.T, out=scores)
            running.absorb(scores, bias[columns], None if scale is None else scale[columns])
        running.finish(values[rows], indices[rows], relu)
    return values, indices

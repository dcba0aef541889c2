"""Mean pooling of token codes to one sparse row per sample."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from saerl_fast import ops
from saerl_fast.bench import proof
from saerl_fast.bench.contest import Contest
from saerl_fast.bench.data import sample_offsets, token_codes
from saerl_fast.bench.encode import backend_of


def pool(samples: int, shortest: int, longest: int, k: int, latents: int) -> Contest:
    """Against a scipy sparse product and a torch index_add into the dense array, whichever is faster."""
    from scipy import sparse

    with warnings.catch_warnings(action="ignore", category=UserWarning):  # torch tells once that CSR is beta
        torch.zeros(1, 1).to_sparse_csr()
    offsets = sample_offsets(samples, shortest, longest)
    lengths = offsets.diff()
    tokens = int(offsets[-1])
    codes = token_codes(tokens, k, latents)
    # made beforehand: what scipy would need anyhow is not charged to it
    flat = (codes.values.numpy().ravel(), codes.indices.numpy().ravel(), np.arange(tokens + 1, dtype=np.int32) * k)
    rows = sparse.csr_array(flat, shape=(tokens, latents))
    weights = (1 / lengths).repeat_interleave(lengths).numpy()
    mean = sparse.csr_array((weights, np.arange(tokens), offsets.numpy()), shape=(samples, tokens))

    def index_add() -> Tensor:
        sample = torch.arange(samples).repeat_interleave(lengths * k)
        dense = torch.zeros(samples * latents)
        dense.index_add_(0, sample * latents + codes.indices.flatten(), codes.values.flatten())
        return dense.view(samples, latents).div_(lengths[:, None]).to_sparse_csr()

    return Contest(
        ours=lambda: ops.segment_pool(codes, offsets, latents, "mean"),
        baselines={"scipy sparse product": lambda: mean @ rows, "torch index_add to CSR": index_add},
        prove=lambda pooled: proof.pooled(pooled, codes, offsets, latents),
        backend=backend_of("segment_pool"),
        facts={"tokens": tokens},
    )

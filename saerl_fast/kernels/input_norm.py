"""The input norms that SAEs are trained behind, in plain torch: what the fused ones are held against."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

InputNorm = Literal["none", "layer_norm", "constant_norm_rescale"]
LAYER_NORM_EPS = 1e-5


def normalised(x: Tensor, norm: InputNorm) -> Tensor:
    """x [N, D] row by row, in float32 at least; x itself where norm is "none". As in sae-lens 6.

    layer_norm: (x - mean) / (std + 1e-5), std by D - 1;   constant_norm_rescale: x sqrt(D) / |x|
    """
    if norm == "none":
        return x
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if norm == "layer_norm":
        centred = wide - wide.mean(dim=-1, keepdim=True)
        return centred / (centred.std(dim=-1, keepdim=True) + LAYER_NORM_EPS)
    rescaled: Tensor = wide * (x.shape[-1] ** 0.5 / torch.linalg.vector_norm(wide, dim=-1, keepdim=True))
    return rescaled

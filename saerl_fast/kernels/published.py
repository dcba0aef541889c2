"""The weights of an encoder as they were published: what exact scores are computed from on a GPU."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Published(NamedTuple):
    """All float32 and contiguous."""

    w: Tensor
    """[M, D]"""
    bias: Tensor
    """[M]"""
    centre: Tensor | None
    """[D]: b_dec"""
    scale: Tensor | None
    """[M]"""

    @staticmethod
    def of(w_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None, scale: Tensor | None) -> Published:
        """Copies only what is of another type, or lies otherwise."""
        centre, factor = (None if part is None else part.float().contiguous() for part in (b_dec, scale))
        return Published(w_enc.float().contiguous(), b_enc.float().contiguous(), centre, factor)

"""Keep float32 products in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Switch off TF32 and bfloat16 shortcuts for float32 products inside the block.

    Trainers often allow TF32 for the whole process; with 10 bits of mantissa the top-k set would no
    longer be the exact one.
    """
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

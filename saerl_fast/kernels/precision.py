"""Keep float32 products in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Switch off the TF32 and bfloat16 shortcuts for float32 products inside the block.

    Trainers often allow them for the whole process. With 7 or 10 bits of mantissa in place of 23 the
    top-k set is no longer the exact one. The switch is torch's own and holds for the whole process.
    """
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch before 2.9
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    lowered = [
        (settings, settings.fp32_precision)
        for settings in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
        if settings.fp32_precision in ("tf32", "bf16")
    ]
    for settings, _ in lowered:
        settings.fp32_precision = "ieee"
    try:
        yield
    finally:
        for settings, precision in lowered:
            settings.fp32_precision = precision

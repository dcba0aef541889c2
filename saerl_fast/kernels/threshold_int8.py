"""threshold_encode on the CPU by int8 screening: exact, and faster than the float32 product alone.

    h = scale * ((x - b_dec) w_enc^T + b_enc);   keep every h > theta and h > 0     in float64, rounded to float32 once

Floor:  the int8 product (2 N M D byte operations) and a float64 dot for each latent that is kept.
Trick:  int8_screening.py, csrc/cpu/screened_threshold.h. The threshold is known before the products are, so nothing has
        to be selected: a latent whose bound does not reach its threshold is out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saerl_fast.kernels import native
from saerl_fast.kernels.int8_screening import Screening, most_survivors, trust
from saerl_fast.kernels.screening_counts import count

PAYS_NOT = "the float32 product is faster for so few channels or latents"
"""Why `pays` said no."""
LEAST_LIMIT = 256
NOT_FOR_RELU = (
    "a threshold of 0 or less says nothing of how few latents pass it, and for many the float32 product is faster"
)
"""Why a ReLU is not screened unless asked for."""


def encode(
    x: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    theta: Tensor | float,
    b_dec: Tensor | None,
    scale: Tensor | None,
    row_index: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The contract of `ops.threshold_encode`; arguments are checked, none is float64 but theta.

    Scores are compared with theta in float64. The bits of a row do not depend on the other rows, the number of
    threads, or the processor. Raises BackendUnavailable as `topk_int8.encode`.
    """
    n_rows = x.shape[0] if row_index is None else row_index.shape[0]
    counts = torch.empty(n_rows, dtype=torch.int64)
    indices, values = [torch.empty(0, dtype=torch.int32)], [torch.empty(0, dtype=torch.float32)]
    if n_rows:
        least = bounds(theta, len(b_enc))
        screening = Screening(x, w_enc, b_enc, b_dec, scale, row_index, least)
        screen = native.ScreenedThreshold(survivors_limit(len(b_enc)), trust(x.shape[1]))
        for rows in screening.blocks():
            encoder = screening.absorb(screen, rows)
            count("threshold_encode", rows.stop - rows.start, screen.finish(encoder, least))
            kept = screen.write(counts[rows])
            indices.append(kept[0])
            values.append(kept[1])
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)), torch.cat(indices), torch.cat(values)


def bounds(theta: Tensor | float, n_latents: int) -> Tensor:
    """max(theta, 0) [M] float64. A plain number counts as float32, as where torch compares float32 scores with it."""
    if not isinstance(theta, Tensor):
        theta = torch.tensor(theta, dtype=torch.float32)
    return theta.double().clamp(min=0).expand(n_latents).contiguous()


def survivors_limit(n_latents: int) -> int:
    """A row that keeps more latents than this is scored whole."""
    return max(LEAST_LIMIT, most_survivors(n_latents))


def pays(width: int, n_latents: int) -> bool:
    """Whether screening is faster than backend `cpu` where few latents pass.

    A rule on shapes alone, so that a row does not change its backend with the size of its batch; how many latents pass
    is not known before. On a processor without AMX it is 1.5 times as fast at the smallest shapes where one latent of
    64 passes, up to a fifth slower at 4,096 latents where one of 16 does, and faster there too from 8,192 on (results
    file of 2026-11-24, threshold-pays).
    """
    return width >= 256 and n_latents >= 4096

"""Encoder weights as int8 rows, prepared once and kept for the next call.

    rotated(w[j][c] * 2^e[c]) = step[j] * q[j] + error,     x[i][c] - b_dec[c] is multiplied by 2^-e[c] in turn

The exponents e balance the channels: 2^e is the root of |x| / |w|, channel by channel, which is what makes the product
of the lengths of rows least, and the bound with it (Cauchy-Schwarz). Then each 64 channels are rotated (a Hadamard
matrix over its root, csrc/cpu/screen_kernels.h), so that a few large numbers do not take the eight bits from all the
others. Both leave the products of rows as they are, but for roundings of float64, which the bound allows for. The
exponents come from the rows of the first call, and a poor choice costs time only, since every result is proved or
computed in float64 (int8_screening.py).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from saerl_fast.kernels import native
from saerl_fast.kernels.int8_product import CHANNEL_STEP

SAMPLE_ROWS = 1024
"""Rows that the exponents are decided from."""
MORE_ROWS = 8
"""A sample smaller than SAMPLE_ROWS is replaced when a call brings so many times its rows."""
KEPT = 2
"""Prepared weights kept, the most recently used ones."""
EXPONENT_LIMIT = 60


@dataclass(frozen=True, slots=True)
class QuantisedRows:
    """Rows as int8. All per row; a step of NaN marks a row that cannot be screened."""

    q: Tensor
    """[N, D rounded up to CHANNEL_STEP] int8"""
    steps: Tensor
    """[N] float32"""
    norms: Tensor
    """[N] float64: length of the scaled row"""
    errors: Tensor
    """[N] float64: length of what rounding changed"""


@dataclass(frozen=True, slots=True)
class Int8Weights:
    """What is prepared from w_enc [M, D] and a sample of activations."""

    w: Tensor
    """[M, D] float32, contiguous: w_enc itself where it is so already"""
    rows: QuantisedRows
    exponents: Tensor
    """[D] float64: the channels of w were multiplied by 2^e"""
    sample_rows: int
    """Rows in the sample"""


def quantise(rows: Tensor, shift: Tensor, exponents: Tensor, isa: str = "auto") -> QuantisedRows:
    """(rows - shift) * 2^exponents, rotated, as int8.

    rows [N, D] float32   shift [D] float64   exponents [D] float64
    """
    count, width = rows.shape
    rows = rows.contiguous()
    factor = exponents.exp2()
    padded = -(-width // CHANNEL_STEP) * CHANNEL_STEP
    q = torch.empty(count, padded, dtype=torch.int8)
    steps = torch.empty(count, dtype=torch.float32)
    norms, errors = torch.empty(count, dtype=torch.float64), torch.empty(count, dtype=torch.float64)
    native.module().quantise(
        native.address(rows), count, width, native.address(shift), native.address(factor), padded,
        native.address(q), native.address(steps), native.address(norms), native.address(errors),
        native.threads(), isa,
    )  # fmt: skip
    return QuantisedRows(q, steps, norms, errors)


def balance(sample: Tensor, w: Tensor) -> Tensor:
    """The exponents e [D] for activations like `sample` [N, D] and weights w [M, D], both centred and float32."""
    finite = sample[sample.isfinite().all(dim=1)]
    if len(finite) == 0:
        return torch.zeros(w.shape[1], dtype=torch.float64)
    size_x, size_w = channel_sizes(finite), channel_sizes(w)
    exponents = (0.5 * (size_x.log2() - size_w.log2())).clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT)
    # a channel that is zero in the sample or in the weights says nothing: it gets what is usual
    known = (size_x > 0) & (size_w > 0) & size_w.isfinite()
    usual = exponents[known].median() if bool(known.any()) else torch.zeros((), dtype=torch.float64)
    return torch.where(known, exponents, usual)


def channel_sizes(rows: Tensor) -> Tensor:
    """The root of the mean square of each channel of [N, D] float32: [D] float64."""
    squares = torch.zeros(rows.shape[1], dtype=torch.float64)
    for part in torch.split(rows, SAMPLE_ROWS):
        squares += part.double().square().sum(dim=0)
    return (squares / len(rows)).sqrt()


class Int8WeightsCache:
    """Prepared weights by the place of w_enc in memory and by its content.

    The content is read again in each call (its fingerprint, a few hundredths of the time of an encode): a change
    in place shows however it was made, also through `.data` or numpy, which torch's version counter does not see.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[object, ...], Int8Weights] = OrderedDict()

    def get(self, w_enc: Tensor, sample_rows: int, sample: Callable[[], Tensor]) -> Int8Weights:
        """The weights prepared for w_enc. Where there are none yet, `sample` is asked for centred rows [N, D]."""
        w_enc = w_enc.detach().contiguous()
        key = (w_enc.data_ptr(), tuple(w_enc.shape), w_enc.dtype, fingerprint(w_enc))
        with self._lock:
            found = self._kept.get(key)
            if found is not None and not _too_small(found.sample_rows, sample_rows):
                self._kept.move_to_end(key)
                return found
        prepared = prepare(w_enc, sample())
        with self._lock:
            # what was prepared from this memory before is stale
            for other in [other for other in self._kept if other[0] == key[0]]:
                del self._kept[other]
            self._kept[key] = prepared
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return prepared

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()


def prepare(w_enc: Tensor, sample: Tensor) -> Int8Weights:
    """Quantise w_enc [M, D], contiguous, with the channels balanced for activations like `sample` [N, D]."""
    w = w_enc.float()
    exponents = balance(sample, w)
    shift = torch.zeros(w.shape[1], dtype=torch.float64)
    return Int8Weights(w, quantise(w, shift, exponents), exponents, len(sample))


def fingerprint(tensor: Tensor) -> int:
    """A number of the bytes of a contiguous tensor."""
    return int(
        native.module().fingerprint(native.address(tensor), tensor.numel() * tensor.element_size(), native.threads())
    )


def _too_small(sample_rows: int, rows: int) -> bool:
    return sample_rows < SAMPLE_ROWS and rows >= MORE_ROWS * sample_rows

"""The compiled kernels, seen with tensors.

The module takes raw addresses, so this file makes sure that what it hands over is what the kernel expects
and outlives the call. It is loaded at first use; where it is not there, `missing` says why.
"""

from __future__ import annotations

import functools
import json
from importlib import resources
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saerl_fast.errors import BackendUnavailable, DtypeError, InputError, ShapeError


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    """The module, or the reason why there is none."""
    try:
        from saerl_fast import _native
    except ImportError as error:
        reason = build_record().get("reason")
        return None, f"the compiled module is missing: {reason or error}"
    return _native, None


def build_record() -> dict[str, str | None]:
    """What was built and with which compilers, or why not; empty where the package was not installed."""
    record = resources.files("saerl_fast") / "_build.json"
    if not record.is_file():
        return {}
    return dict(json.loads(record.read_text()))


def missing() -> str | None:
    """Why the compiled module cannot be used, or None."""
    return _load()[1]


def module() -> ModuleType:
    """The compiled module; raises BackendUnavailable where there is none."""
    native, reason = _load()
    if native is None:
        raise BackendUnavailable(
            f"{reason}. Install a C++ compiler and reinstall saerl-fast (pip install -v shows the build)"
        )
    return native


def threads() -> int:
    """Threads for the next call: torch's count."""
    return torch.get_num_threads()


def address(tensor: Tensor | None) -> int:
    """Where the data lies; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def topk_select(
    scores: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    relu: bool = False,
    isa: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The k largest of (scores + bias) * scale in each row, exactly.

    scores [N, M] float32 on the CPU, any strides   bias [M], scale [M] float32
    isa: "auto", or one of this machine's instruction sets ("avx512", "avx2", "plain")
    -> values [N, k] float32, descending; indices [N, k] int32

    Ties go to the lower index; a row with a NaN gives NaN values and indices 0..k-1. The bits do not
    depend on the number of threads or the instruction set.
    """
    native = module()
    if scores.ndim != 2:
        raise ShapeError(f"topk_select: scores must be [N, M]; got {list(scores.shape)}")
    if scores.dtype != torch.float32 or scores.device.type != "cpu":
        raise DtypeError(f"topk_select: scores must be float32 on the CPU; got {scores.dtype} on {scores.device}")
    rows, width = scores.shape
    if not 1 <= k <= width:
        raise InputError(f"topk_select: k must be from 1 to {width}; got {k}")
    if isa != "auto" and isa not in native.instruction_sets():
        raise InputError(
            f"topk_select: isa must be auto or one of {native.instruction_sets()} on this machine; got {isa!r}"
        )
    bias, scale = _per_column("bias", bias, width), _per_column("scale", scale, width)
    values = torch.empty(rows, k, dtype=torch.float32)
    indices = torch.empty(rows, k, dtype=torch.int32)
    native.topk_select(
        address(scores), rows, width, *scores.stride(), address(bias), address(scale), k, relu,
        address(values), address(indices), threads(), isa,
    )  # fmt: skip
    return values, indices


def _per_column(name: str, vector: Tensor | None, width: int) -> Tensor | None:
    if vector is None:
        return None
    if vector.shape != (width,):
        raise ShapeError(f"topk_select: {name} must be [{width}]; got {list(vector.shape)}")
    return vector.to(torch.float32).contiguous()


class RunningTopK:
    """The select of rows whose scores come in blocks of columns, left to right."""

    def __init__(self, rows: int, k: int, isa: str = "auto") -> None:
        self._native = module().RunningTopK(rows, k, isa)

    def absorb(self, scores: Tensor, bias: Tensor | None, scale: Tensor | None) -> None:
        """Take the next columns: scores [rows, width] float32, columns side by side; bias, scale [width]."""
        self._native.absorb(
            address(scores), scores.shape[1], scores.stride(0), address(bias), address(scale), threads()
        )

    def finish(self, values: Tensor, indices: Tensor, relu: bool) -> None:
        """Write the result into values [rows, k] float32 and indices [rows, k] int32, both contiguous."""
        self._native.finish(address(values), address(indices), relu, threads())


class RunningThreshold:
    """All scores above a threshold per column, of rows whose scores come in blocks of columns, left to right."""

    def __init__(self, rows: int, isa: str = "auto") -> None:
        self._native = module().RunningThreshold(rows, isa)

    def absorb(self, scores: Tensor, bias: Tensor | None, scale: Tensor | None, theta: Tensor) -> None:
        """Take the next columns: scores [rows, width] float32, columns side by side; bias, scale, theta [width]."""
        self._native.absorb(
            address(scores), scores.shape[1], scores.stride(0), address(bias), address(scale), address(theta),
            threads(),
        )  # fmt: skip

    def finish(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Write the number of entries of each row into counts [rows] int64; returns indices int32 and values."""
        return _written(self._native, counts)


def _written(keeper: Any, counts: Tensor) -> tuple[Tensor, Tensor]:
    """What a compiled object keeps of each row: `counts` is filled, indices and values are returned."""
    keeper.counts(address(counts))
    entries = int(counts.sum())
    indices, values = torch.empty(entries, dtype=torch.int32), torch.empty(entries, dtype=torch.float32)
    keeper.write(address(indices), address(values), threads())
    return indices, values


class ScreenedEncoder(NamedTuple):
    """What exact scores are computed from; all contiguous."""

    x: Tensor
    """[rows, D] float32"""
    shift: Tensor
    """[D] float64"""
    float_shift: Tensor
    """[D] float32, the same numbers"""
    w: Tensor
    """[M, D] float32"""
    bias: Tensor
    """[M] float32"""
    scale: Tensor | None
    """[M] float32"""


class ScreenResult(NamedTuple):
    """What happened in a screen (csrc/cpu/screening.h)."""

    whole: int
    """Rows scored whole"""
    sieved: int
    """Pairs scored in float32 in the other rows"""
    scored: int
    """Pairs scored in float64 in the other rows"""
    outside: int
    """Scores outside of their bounds: the products were wrong"""
    worst: float
    """The largest error of an estimate, in units of its bound"""


class Screen:
    """Rows by int8 screening (csrc/cpu/screening.h), whose products come in blocks of columns."""

    def __init__(self, compiled: Any) -> None:
        self._native = compiled
        self._terms: tuple[Tensor, ...] = ()

    def start(self, latents: tuple[Tensor, ...], rows: tuple[Tensor, ...]) -> None:
        """Begin with the next rows. latents: scale, reach, error, low, high [M]; rows: step, spread, size [N]; float32,
        contiguous."""
        self._terms = (*latents, *rows)  # the screen looks at them until it has finished
        self._native.start(len(rows[0]), [address(term) for term in latents], [address(term) for term in rows])

    def absorb(self, products: Tensor) -> None:
        """Take the next columns: products [N, width] int32, contiguous."""
        self._native.absorb(address(products), products.shape[1], threads())


class ScreenedTopK(Screen):
    """The k largest of each row. A row with more than `limit` survivors is scored whole.

    trust: the share of its bound that a score is seldom further away from its estimate.
    """

    def __init__(self, k: int, limit: int, trust: float, isa: str = "auto") -> None:
        super().__init__(module().ScreenedTopK(k, limit, trust, isa))

    def finish(
        self, encoder: ScreenedEncoder, values: Tensor, indices: Tensor, certified: Tensor, relu: bool
    ) -> ScreenResult:
        """Score the survivors; write values [rows, k] float32, indices [rows, k] int32 and certified [rows] bool: those
        settled by bounds, and not scored whole."""
        places = (address(values), address(indices), address(certified))
        return ScreenResult(*self._native.finish(_parts(encoder), *places, relu, threads()))


class ScreenedThreshold(Screen):
    """All of each row above a bound per latent; the terms of the latents are those of score - bound."""

    def __init__(self, limit: int, trust: float, isa: str = "auto") -> None:
        super().__init__(module().ScreenedThreshold(limit, trust, isa))

    def finish(self, encoder: ScreenedEncoder, bound: Tensor) -> ScreenResult:
        """Score the survivors; bound [M] float64, contiguous, none of them NaN or below 0."""
        return ScreenResult(*self._native.finish(_parts(encoder), address(bound), threads()))

    def write(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Write the number of entries of each row into counts [rows] int64; returns indices int32 and values."""
        return _written(self._native, counts)


def _parts(e: ScreenedEncoder) -> tuple[int, ...]:
    rest = (e.shift, e.float_shift, e.w, e.bias, e.scale)
    return address(e.x), e.x.shape[1], *(address(part) for part in rest)

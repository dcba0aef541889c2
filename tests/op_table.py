"""The one table of operations: samples, bad inputs and awkward layouts, shared by tests and benchmarks.

Samples hold small whole numbers, so that every sum and product is exact in any order and ties are common:
all backends and layouts must give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saerl_fast import ops
from saerl_fast.errors import DtypeError, InputError, NonFiniteError, ShapeError
from saerl_fast.kernels import int8_product, native, triton_runtime
from saerl_fast.ops import CsrRows, TopKCodes

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """Arguments made anew by each call."""

    name: str
    make: Callable[[], Arguments]
    not_on: tuple[str, ...] = ()
    """Backends that refuse this form of the operation."""


@dataclass(frozen=True)
class BadInput:
    """What is changed in the first sample, and the error that must come."""

    name: str
    change: Arguments
    error: type[Exception]
    message: str


@dataclass(frozen=True)
class Operation:
    name: str
    function: Callable[..., Any]
    backends: tuple[str, ...]
    samples: tuple[Sample, ...]
    bad_inputs: tuple[BadInput, ...]
    elsewhere: tuple[str, ...] = ()
    """Backends with CPU tests of their own: an interpreted select takes a tenth of a second per row."""

    def __call__(self, arguments: Arguments, **options: Any) -> Any:
        return self.function(**arguments, **options)


def absent(backend: str) -> str | None:
    """Why a CPU backend cannot run on this machine, or None."""
    reasons = {
        "cpu": native.missing,
        "cpu_int8": int8_product.missing,
        "triton": lambda: triton_runtime.refuses("cpu"),
    }
    return reasons.get(backend, lambda: None)()


def grid(*shape: int, seed: int = 0, low: int = -4, high: int = 4) -> Tensor:
    """Whole numbers from low to high as float32."""
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


def topk_codes(n_rows: int, k: int, n_latents: int, seed: int = 0) -> TopKCodes:
    """Codes as an encoder makes them: distinct indices, values descending and some of them zero."""
    order = torch.rand(n_rows, n_latents, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    values = grid(n_rows, k, seed=seed, low=0, high=6).sort(dim=1, descending=True).values
    return TopKCodes(values, order[:, :k].int())


def csr_rows(n_rows: int, n_latents: int, seed: int = 0, share: float = 0.3) -> CsrRows:
    """Rows of different lengths, some of them empty; values of both signs, some zero."""
    kept = torch.rand(n_rows, n_latents, generator=torch.Generator().manual_seed(seed)) < share
    kept[1::5] = False
    indptr = torch.nn.functional.pad(kept.sum(dim=1).cumsum(0), (1, 0))
    return CsrRows(indptr, kept.nonzero()[:, 1].int(), grid(int(indptr[-1]), seed=seed))


def dense(codes: TopKCodes | CsrRows, n_latents: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The dense array that codes stand for, written the slow way."""
    n_rows = codes.indptr.shape[0] - 1 if isinstance(codes, CsrRows) else codes.indices.shape[0]
    array = torch.zeros(n_rows, n_latents, dtype=dtype)
    for row in range(n_rows):
        if isinstance(codes, CsrRows):
            entries = slice(int(codes.indptr[row]), int(codes.indptr[row + 1]))
            array[row, codes.indices[entries].long()] = codes.values[entries].to(dtype)
        else:
            array[row, codes.indices[row].long()] = codes.values[row].to(dtype)
    return array


def encoder(n_rows: int, width: int, n_latents: int, dtype: torch.dtype = torch.float32, **more: Any) -> Arguments:
    """x, w_enc and b_enc on the grid."""
    arguments: Arguments = {
        "x": grid(n_rows, width, seed=1),
        "w_enc": grid(n_latents, width, seed=2),
        "b_enc": grid(n_latents, seed=3),
    }
    return {name: value.to(dtype) for name, value in arguments.items()} | more


def _every_term(n_latents: int, width: int) -> Arguments:
    return {
        "b_dec": grid(width, seed=4),
        "scale": grid(n_latents, seed=5, low=1, high=3),
        "row_index": torch.tensor([5, 0, 0, 8, 3]),
    }


TOPK_SAMPLES = (
    Sample("plain", lambda: encoder(9, 16, 100, k=7)),
    Sample("every_term", lambda: encoder(9, 16, 100, k=7, **_every_term(100, 16))),
    Sample("no_relu", lambda: encoder(9, 16, 100, k=60, relu=False)),
    Sample("bfloat16", lambda: encoder(9, 16, 100, torch.bfloat16, k=7)),
    Sample("float16", lambda: encoder(9, 16, 100, torch.float16, k=7, **_every_term(100, 16))),
    Sample("no_rows", lambda: encoder(0, 16, 100, k=7)),
    Sample("no_rows_chosen", lambda: encoder(3, 16, 100, k=7, row_index=torch.zeros(0, dtype=torch.int64))),
    Sample("one_row", lambda: encoder(1, 16, 100, k=7)),
    Sample("k_is_1", lambda: encoder(9, 16, 100, k=1)),
    Sample("k_is_all", lambda: encoder(9, 16, 101, k=101)),
    Sample("one_latent", lambda: encoder(9, 16, 1, k=1)),
    Sample("one_channel", lambda: encoder(9, 1, 100, k=7)),
    Sample("odd_and_wide", lambda: encoder(3, 17, 8193, k=64)),
    Sample("many_blocks", lambda: encoder(1030, 8, 4500, k=16)),
)

ENCODER_MISTAKES = (
    BadInput("x_is_a_list", {"x": [[1.0]]}, DtypeError, r"x must be a torch.Tensor \[R, D\]; got list"),
    BadInput("x_has_3_axes", {"x": torch.zeros(2, 2, 16)}, ShapeError, r"x must be \[R, D\]; got \[2, 2, 16\]"),
    BadInput("x_is_int", {"x": torch.zeros(2, 16, dtype=torch.int64)}, DtypeError, "x must be of float32.*int64"),
    BadInput("x_is_sparse", {"x": torch.zeros(2, 16).to_sparse()}, InputError, "x must be a dense tensor"),
    BadInput("w_is_transposed", {"w_enc": torch.zeros(16, 100)}, ShapeError, r"Did you mean w_enc.T\?"),
    BadInput("w_of_other_width", {"w_enc": torch.zeros(100, 15)}, ShapeError, r"w_enc must be \[\*, 16\] to match x"),
    BadInput("no_latents", {"w_enc": torch.zeros(0, 16)}, ShapeError, "must have 1 to 2147483647 latents; got 0"),
    BadInput("short_b_enc", {"b_enc": torch.zeros(99)}, ShapeError, r"b_enc must be \[100\].*got \[99\]"),
    BadInput("short_b_dec", {"b_dec": torch.zeros(15)}, ShapeError, r"b_dec must be \[16\].*got \[15\]"),
    BadInput("short_scale", {"scale": torch.ones(1)}, ShapeError, r"scale must be \[100\].*got \[1\]"),
    BadInput("row_too_high", {"row_index": torch.tensor([0, 9])}, InputError, r"lie in 0..8 \(rows of x\).*0 to 9"),
    BadInput("row_negative", {"row_index": torch.tensor([-1])}, InputError, "got values from -1 to -1"),
    BadInput("row_int32", {"row_index": torch.zeros(2, dtype=torch.int32)}, DtypeError, "row_index must be of int64"),
    BadInput("other_device", {"b_enc": torch.zeros(100, device="meta")}, InputError, "b_enc on meta"),
    BadInput(
        "unknown_backend",
        {"backend": "tpu"},
        InputError,
        "cuda, triton, triton_bf16, cpu_int8, cpu, reference; got 'tpu'",
    ),
)

TOPK_MISTAKES = (
    *ENCODER_MISTAKES,
    BadInput("k_is_0", {"k": 0}, InputError, "k must be from 1 to the number of latents 100; got 0"),
    BadInput("k_too_large", {"k": 101}, InputError, "k must be from 1 to the number of latents 100; got 101"),
    BadInput("k_is_float", {"k": 3.0}, DtypeError, "k must be an int; got float"),
    BadInput("k_is_bool", {"k": True}, DtypeError, "k must be an int; got bool"),
)

THRESHOLD_SAMPLES = (
    Sample("plain", lambda: encoder(9, 16, 100, theta=20.0)),
    Sample("every_term", lambda: encoder(9, 16, 100, theta=grid(100, seed=6), **_every_term(100, 16))),
    Sample("relu", lambda: encoder(9, 16, 100, theta=0.0)),
    Sample("nothing_passes", lambda: encoder(9, 16, 100, theta=1e9)),
    Sample("below_zero", lambda: encoder(9, 16, 100, theta=-5.0)),
    Sample("bfloat16", lambda: encoder(9, 16, 100, torch.bfloat16, theta=10.0)),
    Sample("no_rows", lambda: encoder(0, 16, 100, theta=0.0)),
    Sample("many_blocks", lambda: encoder(1030, 8, 4500, theta=60.0)),
    Sample("everything_passes", lambda: encoder(3, 16, 1000, theta=-1e9, b_enc=grid(1000, low=900, high=999))),
)

THRESHOLD_MISTAKES = (
    *ENCODER_MISTAKES,
    BadInput("short_theta", {"theta": torch.zeros(3)}, ShapeError, r"theta must be \[100\].*got \[3\]"),
    BadInput("nan_theta", {"theta": float("nan")}, NonFiniteError, "theta must not be NaN"),
    BadInput("nan_in_theta", {"theta": torch.full((100,), torch.nan)}, NonFiniteError, "theta must not be NaN"),
)


def _codes_mistakes(name: str) -> tuple[BadInput, ...]:
    """Broken CSR rows as argument `name`; valid ones would have 3 rows and indices below 20."""

    def broken(indptr: list[int], indices: list[int], values: list[float]) -> Arguments:
        return {name: CsrRows(torch.tensor(indptr), torch.tensor(indices, dtype=torch.int32), torch.tensor(values))}

    return (
        BadInput("not_codes", {name: "codes"}, DtypeError, f"{name} must be .*got str"),
        BadInput("index_too_high", broken([0, 1, 1, 2], [0, 20], [1.0, 1.0]), InputError, r"lie in 0..19 \(latents\)"),
        BadInput("index_negative", broken([0, 1, 1, 2], [0, -1], [1.0, 1.0]), InputError, "values from -1 to 0"),
        BadInput(
            "indptr_falls", broken([0, 2, 1, 2], [0, 1], [1.0, 1.0]), InputError, "must never fall; got 2 before 1"
        ),
        # each difference of 2^63 and more would wrap to a rise
        BadInput("indptr_wraps", broken([0, 9 * 10**18, -9 * 10**18, 2], [0, 1], [1.0, 1.0]), InputError, "never fall"),
        BadInput("indptr_too_long", broken([0, 1, 1, 9], [0, 1], [1.0, 1.0]), InputError, "from 0 to 2 .*got 0 to 9"),
        BadInput("indptr_starts_late", broken([1, 1, 1, 2], [0, 1], [1.0, 1.0]), InputError, "got 1 to 2"),
        BadInput("no_indptr", broken([], [], []), DtypeError, "indptr must be of int64"),
        BadInput("values_missing", broken([0, 1, 1, 2], [0, 1], [1.0]), ShapeError, r"values must be \[2\]"),
    )


DECODE_SAMPLES = (
    Sample("topk", lambda: {"codes": topk_codes(3, 5, 20), "w_dec": grid(20, 6), "b_dec": grid(6)}),
    Sample("csr", lambda: {"codes": csr_rows(8, 20), "w_dec": grid(20, 6), "b_dec": grid(6)}),
    Sample("bfloat16", lambda: {"codes": topk_codes(3, 5, 20), "w_dec": grid(20, 6).bfloat16(), "b_dec": grid(6)}),
    Sample("k_is_1", lambda: {"codes": topk_codes(3, 1, 20), "w_dec": grid(20, 6), "b_dec": grid(6)}),
    Sample("odd_and_wide", lambda: {"codes": topk_codes(9, 7, 20), "w_dec": grid(20, 333), "b_dec": grid(333)}),
    Sample(
        "twice_in_a_row",
        lambda: {
            "codes": TopKCodes(grid(4, 6, low=1), torch.tensor([[3, 3, 1, 3, 0, 1]] * 4).int()),
            "w_dec": grid(20, 37),
            "b_dec": grid(37),
        },
    ),
    Sample("no_rows", lambda: {"codes": topk_codes(0, 5, 20), "w_dec": grid(20, 6), "b_dec": grid(6)}),
    Sample("no_entries", lambda: {"codes": csr_rows(4, 20, share=0.0), "w_dec": grid(20, 6), "b_dec": grid(6)}),
)

DECODE_MISTAKES = (
    *_codes_mistakes("codes"),
    BadInput("short_b_dec", {"b_dec": torch.zeros(5)}, ShapeError, r"b_dec must be \[6\]"),
    BadInput("w_dec_is_int", {"w_dec": torch.zeros(20, 6).int()}, DtypeError, "w_dec must be of float32"),
    BadInput(
        "values_of_other_shape",
        {"codes": TopKCodes(torch.zeros(3, 4), torch.zeros(3, 5).int())},
        ShapeError,
        r"must have one shape; got \[3, 4\] and \[3, 5\]",
    ),
)

PROJECT_SAMPLES = (
    Sample("plain", lambda: {"csr": csr_rows(8, 20), "matrix": grid(20, 3)}),
    Sample("float16", lambda: {"csr": csr_rows(8, 20), "matrix": grid(20, 3).half()}),
    Sample("no_rows", lambda: {"csr": csr_rows(0, 20), "matrix": grid(20, 3)}),
    Sample("no_columns", lambda: {"csr": csr_rows(8, 20), "matrix": grid(20, 0)}),
)

PROJECT_MISTAKES = (
    *_codes_mistakes("csr"),
    BadInput("topk_codes", {"csr": topk_codes(3, 5, 20)}, DtypeError, "csr must be CsrRows; got TopKCodes"),
    BadInput("vector", {"matrix": torch.zeros(20)}, ShapeError, r"matrix must be \[M, r\]; got \[20\]"),
)


def squares(n_rows: int, n_latents: int) -> CsrRows:
    """Rows whose values are squares of whole numbers, with a sign."""
    rows = csr_rows(n_rows, n_latents)
    return rows._replace(values=rows.values.square().copysign(rows.values))


def _weighted(csr: CsrRows, how: str, columns: int = 3) -> Arguments:
    weights = grid(20, seed=5, low=0)
    return {"csr": csr, "matrix": grid(20, columns), "weights": weights, "value_transform": how}


WEIGHTED_SAMPLES = (
    Sample("plain", lambda: _weighted(csr_rows(8, 20), "none")),
    Sample("roots", lambda: _weighted(squares(8, 20), "sqrt")),
    Sample("float16", lambda: _weighted(csr_rows(8, 20), "none") | {"matrix": grid(20, 3).half()}),
    Sample("no_rows", lambda: _weighted(csr_rows(0, 20), "sqrt")),
    Sample("no_columns", lambda: _weighted(csr_rows(8, 20), "none", columns=0)),
)

WEIGHTED_MISTAKES = (
    *_codes_mistakes("csr"),
    BadInput("short_weights", {"weights": torch.ones(19)}, ShapeError, r"weights must be \[20\] to match matrix"),
    BadInput("transform", {"value_transform": "cube"}, InputError, "value_transform must be one of none, sqrt, log1p"),
)


def _pool(mode: str, **change: Any) -> Sample:
    offsets = torch.tensor([0, 0, 3, 4, 4, 11, 12])
    return Sample(
        mode + "".join(f"_{name}" for name in change),
        lambda: {"codes": topk_codes(12, 5, 20), "offsets": offsets.clone(), "n_latents": 20, "mode": mode} | change,
    )


POOL_SAMPLES = (
    *(_pool(mode) for mode in ("mean", "max", "sum", "last", "count")),
    *(_pool(mode, codes=csr_rows(12, 20)) for mode in ("mean", "max", "sum", "last", "count")),
    _pool("mean", codes=topk_codes(0, 5, 20), offsets=torch.tensor([0, 0, 0])),
    _pool("max", codes=topk_codes(0, 5, 20), offsets=torch.tensor([0])),
    _pool("sum", codes=csr_rows(12, 130), n_latents=130),
    _pool("max", codes=csr_rows(12, 20)._replace(values=-grid(int(csr_rows(12, 20).indptr[-1]), low=1, high=4))),
)

POOL_MISTAKES = (
    *(
        BadInput(bad.name, bad.change | {"offsets": torch.tensor([0, 1, 3])}, bad.error, bad.message)
        for bad in _codes_mistakes("codes")
    ),
    BadInput("unknown_mode", {"mode": "median"}, InputError, "mode must be one of mean, max, sum, last, count"),
    BadInput("offsets_end_early", {"offsets": torch.tensor([0, 11])}, InputError, "from 0 to 12 .*got 0 to 11"),
    BadInput("offsets_fall", {"offsets": torch.tensor([0, 7, 5, 12])}, InputError, "got 7 before 5 at 1"),
    BadInput("offsets_empty", {"offsets": torch.zeros(0).long()}, ShapeError, "at least one element"),
    BadInput("offsets_int32", {"offsets": torch.tensor([0, 12]).int()}, DtypeError, "offsets must be of int64"),
    BadInput("no_latents", {"n_latents": 0}, InputError, "n_latents must be from 1 to 2147483647; got 0"),
    BadInput("latents_float", {"n_latents": 20.0}, DtypeError, "n_latents must be an int; got float"),
)

ASSIGN_SAMPLES = (
    Sample("dense", lambda: {"rows": grid(30, 20, seed=1), "centroids": grid(4, 20, seed=2)}),
    Sample("csr", lambda: {"rows": csr_rows(30, 20), "centroids": grid(4, 20, seed=2)}),
    Sample("one_cluster", lambda: {"rows": grid(30, 20, seed=1), "centroids": grid(1, 20, seed=2)}),
    Sample("ties", lambda: {"rows": grid(30, 20, seed=1), "centroids": grid(2, 20, seed=2).repeat(3, 1)}),
    Sample("bfloat16", lambda: {"rows": grid(30, 20).bfloat16(), "centroids": grid(4, 20).bfloat16()}),
    Sample("no_rows", lambda: {"rows": grid(0, 20), "centroids": grid(4, 20)}),
)

ASSIGN_MISTAKES = (
    *_codes_mistakes("rows"),
    BadInput("other_width", {"rows": torch.zeros(3, 19)}, ShapeError, r"rows must be \[\*, 20\] to match centroids"),
    BadInput("no_centroids", {"centroids": torch.zeros(0, 20)}, ShapeError, "got no centroids"),
    BadInput("unknown_metric", {"metric": "manhattan"}, InputError, "metric must be one of euclidean, cosine"),
    BadInput("nan_row", {"rows": torch.full((3, 20), torch.nan)}, NonFiniteError, "3 of 3 rows have a NaN distance"),
    BadInput("infinite", {"centroids": torch.full((4, 20), torch.inf)}, NonFiniteError, "first: row 0"),
)


def _labels(n_rows: int) -> Tensor:
    return torch.arange(n_rows, dtype=torch.int32) * 7 % 4


UPDATE_SAMPLES = (
    Sample("dense", lambda: {"rows": grid(30, 20), "labels": _labels(30), "n_clusters": 5}, ("cuda",)),
    Sample(
        "csr", lambda: {"rows": csr_rows(30, 20), "labels": _labels(30), "n_clusters": 5, "n_latents": 20}, ("triton",)
    ),
    Sample("int64", lambda: {"rows": grid(30, 20), "labels": _labels(30).long(), "n_clusters": 4}, ("cuda",)),
    Sample("bfloat16", lambda: {"rows": grid(30, 20).bfloat16(), "labels": _labels(30), "n_clusters": 5}, ("cuda",)),
    Sample("no_rows", lambda: {"rows": grid(0, 20), "labels": _labels(0), "n_clusters": 5}, ("cuda",)),
)

UPDATE_MISTAKES = (
    BadInput("label_too_high", {"n_clusters": 3}, InputError, r"labels must lie in 0..2 \(clusters\)"),
    BadInput("label_negative", {"labels": torch.full((30,), -1)}, InputError, "got values from -1 to -1"),
    BadInput("labels_missing", {"labels": _labels(29)}, ShapeError, r"labels must be \[30\] to match rows"),
    BadInput("labels_float", {"labels": torch.zeros(30)}, DtypeError, "labels must be of int32, int64"),
    BadInput("no_clusters", {"n_clusters": 0}, InputError, "n_clusters must be at least 1; got 0"),
    BadInput("clusters_float", {"n_clusters": 2.0}, DtypeError, "n_clusters must be an int; got float"),
    BadInput("csr_without_width", {"rows": csr_rows(30, 20)}, InputError, "pass n_latents=M"),
    BadInput("wrong_width", {"n_latents": 21}, ShapeError, r"rows must be \[\*, 21\]"),
)

OPERATIONS = {
    op.name: op
    for op in (
        Operation(
            "topk_encode",
            ops.topk_encode,
            ("cpu_int8", "cpu", "reference"),
            TOPK_SAMPLES,
            TOPK_MISTAKES,
            ("triton", "triton_bf16"),
        ),
        Operation(
            "topk_encode_certified",
            ops.topk_encode_certified,
            ("cpu_int8", "reference"),
            TOPK_SAMPLES,
            TOPK_MISTAKES,
            ("triton_bf16",),
        ),
        Operation(
            "threshold_encode",
            ops.threshold_encode,
            ("cpu_int8", "cpu", "reference"),
            THRESHOLD_SAMPLES,
            THRESHOLD_MISTAKES,
            ("triton",),
        ),
        Operation("decode", ops.decode, ("triton", "cpu", "reference"), DECODE_SAMPLES, DECODE_MISTAKES),
        Operation("project", ops.project, ("triton", "cpu", "reference"), PROJECT_SAMPLES, PROJECT_MISTAKES),
        Operation("project_weighted", ops.project_weighted, ("cpu", "reference"), WEIGHTED_SAMPLES, WEIGHTED_MISTAKES),
        Operation("segment_pool", ops.segment_pool, ("cpu", "reference"), POOL_SAMPLES, POOL_MISTAKES),
        Operation("kmeans_assign", ops.kmeans_assign, ("triton", "cpu", "reference"), ASSIGN_SAMPLES, ASSIGN_MISTAKES),
        Operation("kmeans_update", ops.kmeans_update, ("triton", "cpu", "reference"), UPDATE_SAMPLES, UPDATE_MISTAKES),
    )
}


# ---- layouts: the same numbers, awkwardly placed in memory

GUARD = 77.0


def contiguous(value: Tensor, _: Path) -> Tensor:
    return value.clone(memory_format=torch.contiguous_format)


def transposed(value: Tensor, _: Path) -> Tensor:
    return value.mT.contiguous().mT if value.ndim == 2 else value.clone()


def sliced(value: Tensor, _: Path) -> Tensor:
    """The middle of a larger tensor full of guard values."""
    around = value.new_full([size + 6 for size in value.shape], GUARD)
    inside = around[tuple(slice(3, 3 + size) for size in value.shape)]
    return inside.copy_(value)


def every_second(value: Tensor, _: Path) -> Tensor:
    around = value.new_full([2 * size for size in value.shape], GUARD)
    return around[tuple(slice(None, None, 2) for _ in value.shape)].copy_(value)


def off_by_one_element(value: Tensor, _: Path) -> Tensor:
    """Contiguous, but not aligned to a vector register."""
    around = value.new_full([value.numel() + 1], GUARD)
    return around[1:].view(value.shape).copy_(value)


def read_only(value: Tensor, folder: Path) -> Tensor:
    """In pages that the processor refuses to write to."""
    if value.numel() == 0 or value.dtype == torch.bfloat16:
        return value.clone()
    file = folder / f"{value.data_ptr()}.bin"
    value.contiguous().numpy().tofile(file)
    array = np.memmap(file, mode="r", dtype=value.numpy().dtype, shape=tuple(value.shape))
    return torch.from_numpy(np.asarray(array))


def far_apart(folder: Path, rows: Tensor, name: str = "sparse.bin") -> Tensor:
    """The rows in a sparse file, more than 2^31 elements from one to the next; takes a few kilobytes of disk."""
    stride = 2**31 + 1024
    file = folder / name
    size = (len(rows) - 1) * stride + rows.shape[1]
    with open(file, "wb") as handle:
        handle.truncate(size * 4)
    spread = torch.from_file(str(file), shared=True, size=size).as_strided(rows.shape, (stride, 1))
    return spread.copy_(rows)


LAYOUTS = {
    layout.__name__: layout for layout in (contiguous, transposed, sliced, every_second, off_by_one_element, read_only)
}


def relaid(arguments: Arguments, layout: str, folder: Path) -> Arguments:
    """The arguments with every tensor in them placed anew."""

    def place(value: Any) -> Any:
        if isinstance(value, Tensor):
            return LAYOUTS[layout](value, folder)
        if isinstance(value, tuple):
            return type(value)(*(place(part) for part in value))
        return value

    return {name: place(value) for name, value in arguments.items()}


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor inside arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors(part)

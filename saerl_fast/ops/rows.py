"""Operations on sparse rows: decode, project, pool."""

from __future__ import annotations

import torch
from torch import Tensor

from saerl_fast.codes import CsrRows, SpacedRows, TopKCodes
from saerl_fast.errors import DtypeError, InputError
from saerl_fast.kernels import pool_cpu
from saerl_fast.ops import check
from saerl_fast.ops.choice import Call, choose
from saerl_fast.ops.reference import PoolMode
from saerl_fast.ops.table import TABLE

VALUE_TRANSFORMS = ("none", "sqrt", "log1p")
POOL_MODES = ("mean", "max", "sum", "last", "count")


def decode(codes: TopKCodes | CsrRows, w_dec: Tensor, b_dec: Tensor, *, backend: str | None = None) -> Tensor:
    """The activations that the codes stand for: b_dec + sum of value * w_dec[index] over the kept latents.

    codes of N rows   w_dec [M, D]   b_dec [D]: float32, bfloat16, float16 or float64
    -> [N, D] float32 (float64 where w_dec or the values are)

    Differentiable, once, in codes.values, w_dec and b_dec; the gradients have the same bits whatever the number of
    threads. An index that occurs twice in a row counts twice. Raises ShapeError, DtypeError, InputError (an index
    outside 0..M-1; the compiled backends on a GPU do not wait to read the indices, and make such a row NaN),
    BackendUnavailable.
    """
    check.tensor("decode", "w_dec", w_dec, "[M, D]")
    check.tensor("decode", "b_dec", b_dec, "[D]")
    check.length("decode", "b_dec", b_dec, w_dec.shape[1], f"to match w_dec {list(w_dec.shape)}")
    check.sparse_shapes("decode", "codes", codes)
    check.same_device("decode", "codes", codes.indices.device, w_dec=w_dec, b_dec=b_dec)
    float64 = torch.float64 in (w_dec.dtype, codes.values.dtype)
    body = TABLE["decode"][choose(TABLE, "decode", Call(w_dec.device.type, float64), backend)]
    if not body.marks_bad_rows:
        check.sparse("decode", "codes", codes, w_dec.shape[0])
    decoded: Tensor = body.run(codes, w_dec, b_dec)
    return decoded


def project(csr: CsrRows, matrix: Tensor, *, backend: str | None = None) -> Tensor:
    """csr [S, M] @ matrix [M, r], such as a truncated SVD of the features.

    -> dense [S, r] float32. Raises ShapeError, DtypeError, InputError (an index outside 0..M-1; the compiled backends
    on a GPU make such a row NaN), BackendUnavailable.
    """
    _check_product("project", csr, matrix)
    body = TABLE["project"][choose(TABLE, "project", Call(matrix.device.type), backend)]
    if not body.marks_bad_rows:
        check.sparse("project", "csr", csr, matrix.shape[0])
    projected: Tensor = body.run(csr, matrix)
    return projected


def project_weighted(
    csr: CsrRows,
    matrix: Tensor,
    weights: Tensor,
    value_transform: str = "none",
    *,
    backend: str | None = None,
) -> Tensor:
    """Each row, weighted and of length 1, times `matrix`: (w / |w|) matrix, with w = f(row) * weights.

    csr of S rows, the indices of each row distinct   matrix [M, r]   weights [M]
    value_transform f: "sqrt" (sign(v) sqrt(|v|)), "log1p" (sign(v) log(1 + |v|)) or "none"
    -> dense [S, r] float32; zeros where w is zero

    What tf-idf and a truncated SVD make of a row, in one pass over its entries and without weighted copies of them.
    Lengths are added up in float64. Raises ShapeError, DtypeError, InputError (an index outside 0..M-1, an unknown
    transform), BackendUnavailable.
    """
    _check_product("project_weighted", csr, matrix)
    check.tensor("project_weighted", "weights", weights, "[M]")
    check.length("project_weighted", "weights", weights, matrix.shape[0], f"to match matrix {list(matrix.shape)}")
    check.same_device("project_weighted", "csr", csr.indices.device, weights=weights)
    check.choice("project_weighted", "value_transform", value_transform, VALUE_TRANSFORMS)
    check.sparse("project_weighted", "csr", csr, matrix.shape[0])
    name = choose(TABLE, "project_weighted", Call(matrix.device.type), backend)
    projected: Tensor = TABLE["project_weighted"][name].run(csr, matrix, weights, value_transform)
    return projected


def _check_product(op: str, csr: object, matrix: Tensor) -> None:
    """By types and shapes: reads no data."""
    check.tensor(op, "matrix", matrix, "[M, r]")
    if not isinstance(csr, CsrRows):
        raise DtypeError(f"{op}: csr must be CsrRows; got {type(csr).__name__}")
    check.sparse_shapes(op, "csr", csr)
    check.same_device(op, "csr", csr.indices.device, matrix=matrix)


def segment_pool(
    codes: TopKCodes | CsrRows | SpacedRows,
    offsets: Tensor,
    n_latents: int,
    mode: PoolMode = "mean",
    *,
    backend: str | None = None,
) -> CsrRows:
    """One sparse row per sample from the codes of its tokens, which lie in sample order.

    offsets [S + 1] int64: sample s owns the tokens offsets[s] : offsets[s + 1]; it may own none
    mode: "sum", "mean" (sum over all tokens of the sample / their number), "max", "last" (the last
    token's codes), "count" (tokens in which the latent is not zero)
    -> CsrRows of S rows, indices ascending, exact zeros left out

    The result is that of pooling the dense [tokens, M] array in which absent latents are zero; "max" of
    negative values is therefore zero as soon as one token lacks the latent. Sums run in token order in
    float32: the same input gives the same bits. NaN stays NaN. The indices of one token must be distinct.

    Raises ShapeError, DtypeError, InputError (offsets that fall or do not end at the number of tokens,
    an index outside 0..n_latents-1, an unknown mode), CapacityError (codes of which some did not find room),
    BackendUnavailable.
    """
    _check_codes("segment_pool", codes)
    check.tensor("segment_pool", "offsets", offsets, "[S + 1]", (torch.int64,))
    check.same_device("segment_pool", "codes", codes.indices.device, offsets=offsets)
    offsets = offsets.cpu()
    _check_pool("segment_pool", codes, offsets, n_latents, mode)
    pooled = _pool("segment_pool", codes, offsets, n_latents, mode, backend)
    return pooled if isinstance(pooled, CsrRows) else pooled.to_csr()


def segment_pool_spaced(
    codes: TopKCodes | CsrRows | SpacedRows,
    offsets: Tensor,
    n_latents: int,
    mode: PoolMode = "mean",
    *,
    backend: str | None = None,
) -> SpacedRows:
    """`segment_pool` without waiting for the device: the rows where the kernel left them, with room between them.

    offsets [S + 1] int64 *on the CPU*, where they are checked; codes on any device, and so is the result
    -> SpacedRows of S rows; a row with an index outside 0..n_latents-1, or of codes for which no room was left, is
    marked in `counts`, and `to_csr` raises

    For many batches in a row: `SpacedRows.joined(parts).to_csr()` waits once for all of them. Raises as `segment_pool`
    does; on a CPU, and where only the reference runs, also for an index outside.
    """
    check.on_cpu("segment_pool_spaced", "offsets", offsets)
    _check_pool("segment_pool_spaced", codes, offsets, n_latents, mode)
    pooled = _pool("segment_pool_spaced", codes, offsets, n_latents, mode, backend)
    return SpacedRows.of(pooled) if isinstance(pooled, CsrRows) else pooled


def _check_codes(op: str, codes: TopKCodes | CsrRows | SpacedRows) -> None:
    if isinstance(codes, SpacedRows):
        check.spaced_shapes(op, "codes", codes)
    else:
        check.sparse_shapes(op, "codes", codes)


def _check_pool(op: str, codes: TopKCodes | CsrRows | SpacedRows, offsets: Tensor, n_latents: int, mode: str) -> None:
    if isinstance(n_latents, bool) or not isinstance(n_latents, int):
        raise DtypeError(f"{op}: n_latents must be an int; got {type(n_latents).__name__}")
    if not 1 <= n_latents <= check.INDEX_LIMIT:
        raise InputError(f"{op}: n_latents must be from 1 to {check.INDEX_LIMIT}; got {n_latents}")
    check.choice(op, "mode", mode, POOL_MODES)
    _check_codes(op, codes)
    check.tensor(op, "offsets", offsets, "[S + 1]", (torch.int64,))
    bounds = codes.starts[1:] if isinstance(codes, SpacedRows) else codes.indices
    n_tokens = codes.indptr.shape[0] - 1 if isinstance(codes, CsrRows) else bounds.shape[0]
    check.offsets(op, "offsets", offsets, n_tokens, "the number of tokens")


def _pool(
    op: str,
    codes: TopKCodes | CsrRows | SpacedRows,
    offsets: Tensor,
    n_latents: int,
    mode: PoolMode,
    backend: str | None,
) -> CsrRows | SpacedRows:
    """offsets on the CPU."""
    device = codes.indices.device
    call = Call(device.type, codes.values.dtype == torch.float64, n_latents=n_latents)
    name = choose(TABLE, "segment_pool", call, backend)
    body = TABLE["segment_pool"][name]
    if not body.marks_bad_rows:
        offsets = offsets.to(device)
        if isinstance(codes, SpacedRows):
            return _pool_compacted(op, codes, offsets, n_latents, mode, name)
        check.sparse_form(op, "codes", codes)
        # a pass over all indices takes a sixth of the time of the compiled pooling, which sees each of them anyhow
        if name != "cpu" or not pool_cpu.checks_indices(codes.indices, mode):
            check.in_range(op, "codes.indices", codes.indices, n_latents, "latents")
    pooled = body.run(codes, offsets, n_latents, mode)
    return pooled if isinstance(pooled, SpacedRows) else CsrRows(*pooled)


def _pool_compacted(
    op: str, codes: SpacedRows, offsets: Tensor, n_latents: int, mode: PoolMode, backend: str
) -> SpacedRows:
    """For a body that takes no room between the rows; what is marked among the codes marks what is pooled of it."""
    csr = codes._replace(counts=codes.counts.clamp(min=0)).to_csr()
    found = _pool(op, csr, offsets, n_latents, mode, backend)
    pooled = SpacedRows.of(found) if isinstance(found, CsrRows) else found
    marks = codes.worst_between(offsets[:-1], offsets[1:])
    return pooled._replace(counts=torch.where(marks < 0, marks, pooled.counts))

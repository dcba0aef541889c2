"""Activations to sparse codes."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from saerl_fast.codes import CsrRows, SpacedRows, TopKCodes
from saerl_fast.errors import InputError, NonFiniteError, ShapeError
from saerl_fast.kernels import csr_capacity
from saerl_fast.kernels.csr_capacity import ENTRIES_PER_ROW
from saerl_fast.kernels.input_norm import InputNorm
from saerl_fast.ops import check
from saerl_fast.ops.choice import Call, choose
from saerl_fast.ops.library import check_row_index, rows_as_seen, topk_encode_op
from saerl_fast.ops.table import TABLE

NORMS = get_args(InputNorm)


def topk_encode(
    x: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    k: int,
    *,
    b_dec: Tensor | None = None,
    scale: Tensor | None = None,
    row_index: Tensor | None = None,
    relu: bool = True,
    norm: InputNorm = "none",
    backend: str | None = None,
) -> TopKCodes:
    """The k largest of h = scale * ((x' - b_dec) w_enc^T + b_enc), row by row, then max(h, 0).

    x [R, D]   w_enc [M, D]   b_enc [M]   b_dec [D]   scale [M]: float32, bfloat16, float16 or float64
    row_index [N] int64: the rows of x that count, in this order (all R rows without it)
    1 <= k <= M
    norm: x' = x, or "layer_norm" (x - mean) / (std + 1e-5) with std by D - 1, or "constant_norm_rescale"
    x sqrt(D) / |x|, in float32 at least: sae-lens's `normalize_activations`
    -> values [N, k] float32, descending;  indices [N, k] int32

    Scores are accumulated and compared in float32 (float64 for float64 input). Ties go to the lower
    index, +inf comes first. A row with a NaN score gives NaN values and indices 0..k-1. `relu=False`
    returns h itself; the choice is the same. Backends `cpu_int8` and `triton_bf16` give the set of float64, and float64
    sums rounded once (`topk_encode_certified`). Not differentiable: a backward pass through it raises.

    Raises ShapeError, DtypeError, InputError (k, devices, row_index out of range) and, where `backend`
    was asked for and cannot run the call, BackendUnavailable. The compiled backends on a GPU do not wait to
    read row_index: there an index that names no row of x gives a NaN row.
    """
    _check_encoder("topk_encode", x, w_enc, b_enc, b_dec, scale, row_index)
    check.choice("topk_encode", "norm", norm, NORMS)
    k = check.kept("topk_encode", k, w_enc.shape[0])
    return TopKCodes(*topk_encode_op(x, w_enc, b_enc, k, b_dec, scale, row_index, relu, backend, norm))


def topk_encode_certified(
    x: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    k: int,
    *,
    b_dec: Tensor | None = None,
    scale: Tensor | None = None,
    row_index: Tensor | None = None,
    relu: bool = True,
    norm: InputNorm = "none",
    backend: str | None = None,
) -> tuple[TopKCodes, Tensor]:
    """`topk_encode` exactly as float64 has it, for the weights as they are given, and of each row how that is known.

    -> codes, certified [N] bool

    A row that is certified was settled by the screen (`cpu_int8`, `triton_bf16`): what it leaves out is proved to lie
    below its k-th score, and what it keeps was scored in float64. The other rows were scored for every latent: near
    ties, rows far from b_dec, rows with a NaN. Both kinds are exact; `reference` certifies none. Which rows are which
    may differ with the backend, the codes do not but for the last bit of a sum.

    Arguments and errors are those of `topk_encode`, which gives the same codes on these backends; x' of a norm is made
    in float32 at least, and taken as exact. `screening_counts` has the totals of the process; until it is asked for
    them, `triton_bf16` waits for nothing.
    """
    op = "topk_encode_certified"
    _check_encoder(op, x, w_enc, b_enc, b_dec, scale, row_index)
    check.choice(op, "norm", norm, NORMS)
    k = check.kept(op, k, w_enc.shape[0])
    call = Call(x.device.type, torch.float64 in (x.dtype, w_enc.dtype), k, w_enc.shape[0], x.shape[1])
    body = TABLE[op][choose(TABLE, op, call, backend)]
    if not body.marks_bad_rows:
        check_row_index(op, row_index, x)
    if norm != "none":
        x, row_index = rows_as_seen(x, row_index, norm), None
    values, indices, certified = body.run(x, w_enc, b_enc, k, b_dec, scale, row_index, relu)
    return TopKCodes(values, indices), certified


def threshold_encode(
    x: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    theta: Tensor | float,
    *,
    b_dec: Tensor | None = None,
    scale: Tensor | None = None,
    row_index: Tensor | None = None,
    norm: InputNorm = "none",
    backend: str | None = None,
) -> CsrRows:
    """All of h = scale * ((x' - b_dec) w_enc^T + b_enc) with h > theta and h > 0, as sparse rows.

    theta [M], or one number for all: JumpReLU has one per latent, BatchTopK one in all, ReLU has 0.
    The other arguments are those of `topk_encode`.
    -> CsrRows of N rows: indptr [N + 1] int64, indices [nnz] int32 ascending, values [nnz] float32

    The comparison is strict: h = theta is not kept. It is made in float32, by backend `cpu_int8` in float64. A row
    with a NaN score gives one entry, index 0 with value NaN, so that it can be seen. The compiled
    backends on a GPU give that for a row_index that names no row of x, and for all rows where theta holds a NaN, in
    place of an error; they wait for the device once, for the number of entries.
    """
    made = _threshold_call("threshold_encode", x, w_enc, b_enc, theta, b_dec, scale, row_index, norm, backend)
    return CsrRows(*(csr_capacity.collect(made) if isinstance(made, csr_capacity.Work) else made))


def threshold_encode_spaced(
    x: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    theta: Tensor | float,
    *,
    b_dec: Tensor | None = None,
    scale: Tensor | None = None,
    row_index: Tensor | None = None,
    norm: InputNorm = "none",
    entries_per_row: int = ENTRIES_PER_ROW,
    backend: str | None = None,
) -> SpacedRows:
    """`threshold_encode` without waiting for the device: room for ``entries_per_row`` entries a row on average.

    -> SpacedRows of N rows. A row for which no room was left is marked OVERFLOWED in `counts`, as is what is pooled
    from it, and `to_csr` raises CapacityError: `threshold_encode` makes such rows, or more room does. Backends that
    know the number of entries anyhow (all on a CPU) mark none. Arguments and errors are those of `threshold_encode`.
    """
    if entries_per_row < 1:
        raise InputError(f"threshold_encode_spaced: entries_per_row must be at least 1; got {entries_per_row}")
    op = "threshold_encode_spaced"
    made = _threshold_call(op, x, w_enc, b_enc, theta, b_dec, scale, row_index, norm, backend)
    if isinstance(made, csr_capacity.Work):
        return csr_capacity.spaced(made, entries_per_row)
    return SpacedRows.of(CsrRows(*made))


def _threshold_call(
    op: str,
    x: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    theta: Tensor | float,
    b_dec: Tensor | None,
    scale: Tensor | None,
    row_index: Tensor | None,
    norm: InputNorm,
    backend: str | None,
) -> csr_capacity.Work | tuple[Tensor, Tensor, Tensor]:
    """indptr, indices, values, or on a device the work that makes them; checks the arguments as far as the body that
    runs wants it."""
    _check_encoder(op, x, w_enc, b_enc, b_dec, scale, row_index)
    check.choice(op, "norm", norm, NORMS)
    if isinstance(theta, Tensor):
        check.tensor(op, "theta", theta, "[M]")
        check.length(op, "theta", theta, w_enc.shape[0], "to match w_enc")
        check.same_device(op, "x", x.device, theta=theta)
    call = Call(
        x.device.type,
        torch.float64 in (x.dtype, w_enc.dtype),
        n_latents=w_enc.shape[0],
        width=x.shape[1],
        norm=norm != "none",
        # on a device, looking at it would wait for everything before it
        threshold=_usual_least(theta) if x.device.type == "cpu" else 0.0,
    )
    body = TABLE["threshold_encode"][choose(TABLE, "threshold_encode", call, backend)]
    if not isinstance(theta, Tensor) or not body.marks_bad_rows:
        _check_theta(op, theta)
    if not body.marks_bad_rows:
        check_row_index(op, row_index, x)
    if norm != "none" and not body.normalises:
        x, row_index, norm = rows_as_seen(x, row_index, norm), None, "none"
    rest = (norm,) if body.normalises else ()
    made: csr_capacity.Work | tuple[Tensor, Tensor, Tensor] = body.run(
        x, w_enc, b_enc, theta, b_dec, scale, row_index, *rest
    )
    return made


def _check_theta(op: str, theta: Tensor | float) -> None:
    """Reads the data: on a GPU this waits for the device."""
    unordered = bool(theta.isnan().any()) if isinstance(theta, Tensor) else theta != theta
    if unordered:
        raise NonFiniteError(f"{op}: theta must not be NaN: nothing compares with it; got NaN")


def _usual_least(theta: Tensor | float) -> float:
    """The least threshold but for one latent in a hundred: a few may be 0, as those of dead latents are."""
    if not isinstance(theta, Tensor):
        return float(theta)
    return float(theta.float().kthvalue(1 + len(theta) // 100).values)


def _check_encoder(
    op: str,
    x: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    b_dec: Tensor | None,
    scale: Tensor | None,
    row_index: Tensor | None,
) -> None:
    check.tensor(op, "x", x, "[R, D]")
    check.tensor(op, "w_enc", w_enc, "[M, D]")
    check.columns(op, "w_enc", w_enc, x.shape[1], f"to match x {list(x.shape)}")
    n_latents = w_enc.shape[0]
    if n_latents == 0 or n_latents > check.INDEX_LIMIT:
        raise ShapeError(f"{op}: w_enc must have 1 to {check.INDEX_LIMIT} latents; got {n_latents}")
    check.tensor(op, "b_enc", b_enc, "[M]")
    check.length(op, "b_enc", b_enc, n_latents, f"to match w_enc {list(w_enc.shape)}")
    if b_dec is not None:
        check.tensor(op, "b_dec", b_dec, "[D]")
        check.length(op, "b_dec", b_dec, x.shape[1], f"to match x {list(x.shape)}")
    if scale is not None:
        check.tensor(op, "scale", scale, "[M]")
        check.length(op, "scale", scale, n_latents, f"to match w_enc {list(w_enc.shape)}")
    if row_index is not None:
        check.tensor(op, "row_index", row_index, "[N]", (torch.int64,))
    check.same_device(op, "x", x.device, w_enc=w_enc, b_enc=b_enc, b_dec=b_dec, scale=scale, row_index=row_index)

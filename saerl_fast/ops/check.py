"""Checks of arguments. Each error says what was wanted, what came, and what to do."""

from __future__ import annotations

import torch
from torch import Tensor

from saerl_fast.codes import CsrRows, SpacedRows, TopKCodes
from saerl_fast.errors import DtypeError, InputError, ShapeError

INDEX_LIMIT = 2**31 - 1
_SHORT = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
    torch.int32: "int32",
    torch.int64: "int64",
}
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def tensor(op: str, name: str, value: object, shape: str, dtypes: tuple[torch.dtype, ...] = FLOATS) -> Tensor:
    """`value` as a tensor of the rank that `shape` (such as "[N, D]") has, of one of `dtypes`."""
    if not isinstance(value, Tensor):
        raise DtypeError(f"{op}: {name} must be a torch.Tensor {shape}; got {type(value).__name__}")
    if value.ndim != shape.count(",") + 1:
        raise ShapeError(f"{op}: {name} must be {shape}; got {list(value.shape)}")
    if value.dtype not in dtypes:
        names = ", ".join(_SHORT[dtype] for dtype in dtypes)
        raise DtypeError(f"{op}: {name} must be of {names}; got {value.dtype}. Convert it with .to()")
    if value.layout != torch.strided:
        raise InputError(f"{op}: {name} must be a dense tensor; got layout {value.layout}. Use .to_dense()")
    return value


def length(op: str, name: str, value: Tensor, wanted: int, why: str) -> None:
    """A vector of `wanted` elements."""
    if value.shape[0] != wanted:
        raise ShapeError(f"{op}: {name} must be [{wanted}] {why}; got {list(value.shape)}")


def columns(op: str, name: str, value: Tensor, wanted: int, why: str) -> None:
    """A matrix with `wanted` columns; names the transpose when that would fit."""
    if value.shape[1] != wanted:
        hint = f" Did you mean {name}.T?" if value.shape[0] == wanted else ""
        raise ShapeError(f"{op}: {name} must be [*, {wanted}] {why}; got {list(value.shape)}.{hint}")


def same_device(op: str, first: str, device: torch.device, **others: Tensor | None) -> None:
    """Every tensor that is there lies on `device`."""
    for name, other in others.items():
        if other is not None and other.device != device:
            raise InputError(
                f"{op}: all tensors must be on one device; {first} is on {device}, {name} on {other.device}. "
                f"Move one with .to()"
            )


def on_cpu(op: str, name: str, value: object) -> None:
    """A tensor that can be read without waiting for a device."""
    if isinstance(value, Tensor) and value.device.type != "cpu":
        raise InputError(f"{op}: {name} must be on the CPU, where it is read; got {value.device}. Use .cpu()")


def kept(op: str, k: object, n_latents: int) -> int:
    """k, with 1 <= k <= M."""
    if isinstance(k, bool) or not isinstance(k, int):
        raise DtypeError(f"{op}: k must be an int; got {type(k).__name__}")
    if not 1 <= k <= n_latents:
        raise InputError(f"{op}: k must be from 1 to the number of latents {n_latents}; got {k}")
    return k


def choice(op: str, name: str, value: object, allowed: tuple[str, ...]) -> None:
    """`value` is one of the words in `allowed`."""
    if value not in allowed:
        raise InputError(f"{op}: {name} must be one of {', '.join(allowed)}; got {value!r}")


def in_range(op: str, name: str, value: Tensor, limit: int, what: str) -> None:
    """Every element from 0 to limit - 1. Reads the data: on a GPU this waits for the device."""
    if value.numel() == 0:
        return
    low, high = (int(bound) for bound in value.aminmax())
    if low < 0 or high >= limit:
        raise InputError(f"{op}: {name} must lie in 0..{limit - 1} ({what}); got values from {low} to {high}")


def offsets(op: str, name: str, value: Tensor, total: int, what: str) -> None:
    """Starts at 0, never falls, ends at `total`. Reads the data."""
    if value.shape[0] == 0:
        raise ShapeError(f"{op}: {name} must have at least one element; got none. No rows is [0]")
    if int(value[0]) != 0 or int(value[-1]) != total:
        raise InputError(f"{op}: {name} must run from 0 to {total} ({what}); got {int(value[0])} to {int(value[-1])}")
    falls = value[1:] < value[:-1]  # compared, not subtracted: a difference beyond 2^63 would wrap to a rise
    if bool(falls.any()):
        at = int(falls.nonzero()[0])
        raise InputError(f"{op}: {name} must never fall; got {int(value[at])} before {int(value[at + 1])} at {at}")


def sparse(op: str, name: str, codes: object, n_latents: int) -> TopKCodes | CsrRows:
    """Codes of either form, whose indices may safely address M latents. Reads the data."""
    known = sparse_form(op, name, codes)
    in_range(op, f"{name}.indices", known.indices, n_latents, "latents")
    return known


def sparse_form(op: str, name: str, codes: object) -> TopKCodes | CsrRows:
    """Codes of either form, whose indices may be any numbers. Reads the data of CSR rows."""
    known = sparse_shapes(op, name, codes)
    if isinstance(known, CsrRows):
        offsets(op, f"{name}.indptr", known.indptr, known.indices.shape[0], "the number of entries")
    return known


def sparse_shapes(op: str, name: str, codes: object) -> TopKCodes | CsrRows:
    """Codes of either form by their types and shapes alone: reads no data."""
    if isinstance(codes, CsrRows):
        tensor(op, f"{name}.indptr", codes.indptr, "[N + 1]", (torch.int64,))
        tensor(op, f"{name}.indices", codes.indices, "[nnz]", (torch.int32, torch.int64))
        tensor(op, f"{name}.values", codes.values, "[nnz]")
        length(op, f"{name}.values", codes.values, codes.indices.shape[0], f"to match {name}.indices")
        if codes.indptr.shape[0] == 0:
            raise ShapeError(f"{op}: {name}.indptr must have at least one element; got none. No rows is [0]")
    elif isinstance(codes, TopKCodes):
        tensor(op, f"{name}.values", codes.values, "[N, k]")
        tensor(op, f"{name}.indices", codes.indices, "[N, k]", (torch.int32, torch.int64))
        if codes.values.shape != codes.indices.shape:
            raise ShapeError(
                f"{op}: {name}.values and {name}.indices must have one shape; "
                f"got {list(codes.values.shape)} and {list(codes.indices.shape)}"
            )
    else:
        raise DtypeError(f"{op}: {name} must be TopKCodes or CsrRows; got {type(codes).__name__}")
    others = {f"{name}.values": codes.values}
    if isinstance(codes, CsrRows):
        others[f"{name}.indptr"] = codes.indptr
    same_device(op, f"{name}.indices", codes.indices.device, **others)
    return codes


def spaced_shapes(op: str, name: str, rows: SpacedRows) -> None:
    """Rows with room between them by their types and shapes alone: reads no data."""
    tensor(op, f"{name}.starts", rows.starts, "[N + 1]", (torch.int64,))
    tensor(op, f"{name}.counts", rows.counts, "[N]", (torch.int64,))
    tensor(op, f"{name}.indices", rows.indices, "[places]", (torch.int32, torch.int64))
    tensor(op, f"{name}.values", rows.values, "[places]")
    length(op, f"{name}.starts", rows.starts, rows.counts.shape[0] + 1, f"to match {name}.counts")
    length(op, f"{name}.values", rows.values, rows.indices.shape[0], f"to match {name}.indices")
    others = {f"{name}.{field}": getattr(rows, field) for field in ("starts", "counts", "values")}
    same_device(op, f"{name}.indices", rows.indices.device, **others)

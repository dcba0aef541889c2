"""One call or more of every operation that has a compiled CPU kernel, on numbers that do round."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from saerl_fast import ops
from saerl_fast.ops import CsrRows, TopKCodes
from saerl_fast.ops.table import TABLE
from tests.op_table import absent, csr_rows, tensors, topk_codes

ELSEWHERE = ("reference", "cuda", "triton", "triton_bf16")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def token_codes() -> TopKCodes:
    codes = topk_codes(700, 12, 900)
    return codes._replace(values=normal(700, 12, seed=1))


def sparse_rows() -> CsrRows:
    rows = csr_rows(300, 900, share=0.1)
    return rows._replace(values=normal(len(rows.values), seed=2))


def _encoder(rows: int, width: int, latents: int) -> dict[str, Tensor]:
    terms = {"b_dec": normal(width, seed=6), "scale": normal(latents, seed=7).abs() + 0.1}
    return {
        "x": normal(rows, width, seed=3),
        "w_enc": normal(latents, width, seed=4),
        "b_enc": normal(latents, seed=5),
    } | terms


def _offsets() -> Tensor:
    return torch.tensor([0, 0, 1, 40, 300, 301, 650, 700, 700])


def _decode_gradients(codes: TopKCodes | CsrRows, w_dec: Tensor, b_dec: Tensor, backend: str) -> tuple[Tensor, ...]:
    """The gradients of values, w_dec and b_dec for an uneven gradient of the output."""
    # no copies: a child just forked would hang in torch's own parallel copy before it reaches our code
    leaves = [part.detach().requires_grad_() for part in (codes.values, w_dec, b_dec)]
    decoded = ops.decode(codes._replace(values=leaves[0]), leaves[1], leaves[2], backend=backend)
    return torch.autograd.grad(decoded, leaves, normal(*decoded.shape, seed=11))


def _calls() -> Iterator[tuple[str, str, Callable[..., Any], dict[str, Any]]]:
    """(operation, variant, function, arguments)"""
    # more rows than one block of tokens holds
    yield "topk_encode", "", ops.topk_encode, _encoder(1100, 70, 900) | {"k": 20}
    yield "topk_encode_certified", "", ops.topk_encode_certified, _encoder(1100, 70, 900) | {"k": 20}
    yield "threshold_encode", "", ops.threshold_encode, _encoder(1100, 70, 900) | {"theta": 6.0}
    for form, codes in (("topk", token_codes()), ("csr", sparse_rows())):
        given = {"codes": codes, "w_dec": normal(900, 70), "b_dec": normal(70, seed=8)}
        yield "decode", form, ops.decode, given
        yield "decode", f"{form}-gradients", _decode_gradients, given
    yield "project", "", ops.project, {"csr": sparse_rows(), "matrix": normal(900, 70)}
    for how in ("none", "sqrt", "log1p"):
        yield "project_weighted", how, ops.project_weighted, {
            "csr": sparse_rows(), "matrix": normal(900, 70), "weights": normal(900, seed=11), "value_transform": how
        }  # fmt: skip
    for mode in ("mean", "max", "sum", "last", "count"):
        yield "segment_pool", mode, ops.segment_pool, {
            "codes": token_codes(), "offsets": _offsets(), "n_latents": 900, "mode": mode
        }  # fmt: skip
    for form, rows in (("dense", normal(300, 900, seed=9)), ("csr", sparse_rows())):
        for metric in ("euclidean", "cosine"):
            given = {"rows": rows, "centroids": normal(70, 900, seed=10), "metric": metric}
            yield "kmeans_assign", f"{form}-{metric}", ops.kmeans_assign, given
        labels = torch.arange(300, dtype=torch.int32) * 7 % 40
        given = {"rows": rows, "labels": labels, "n_clusters": 41, "n_latents": 900}
        yield "kmeans_update", form, ops.kmeans_update, given


def kernel_calls() -> dict[str, Callable[[], Any]]:
    """Every call by its name, on each backend of the table that runs on this CPU."""
    calls: dict[str, Callable[[], Any]] = {}
    for operation, variant, function, arguments in _calls():
        for backend in TABLE[operation]:
            if backend not in ELSEWHERE and absent(backend) is None:
                name = "-".join(part for part in (operation, variant, backend) if part)
                calls[name] = lambda function=function, arguments=arguments, backend=backend: function(
                    **arguments, backend=backend
                )
    return calls


def digest(result: Any) -> str:
    """SHA-256 of every number in a result, NaN included."""
    found = hashlib.sha256()
    for tensor in tensors(result):
        found.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()

"""The table op x backend: which bodies exist, and what each one refuses."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from saerl_fast.kernels import (
    decode_cpu,
    int8_product,
    kmeans_cpu,
    kmeans_cuda,
    latent_groups,
    native,
    pool_cpu,
    pool_cuda,
    scores_cuda,
    sparse_cpu,
    threshold_cpu,
    threshold_cuda,
    threshold_int8,
    topk_cpu,
    topk_cuda,
    topk_int8,
    triton_runtime,
)
from saerl_fast.ops import reference
from saerl_fast.ops.choice import Call, Implementation, Table

NORM_ELSEWHERE = "triton applies an input norm inside of the product, which here is made in float32"


def _never(_: Call) -> None:
    return None


def _cpu_refuses(call: Call) -> str | None:
    if reason := native.missing():
        return reason
    if call.device != "cpu":
        return f"the tensors are on {call.device}"
    return "float64 inputs need the reference" if call.float64 else None


def _int8_refuses(call: Call) -> str | None:
    if reason := _cpu_refuses(call):
        return reason
    if call.width > int8_product.MAX_CHANNELS:
        return f"sums bytes over at most {int8_product.MAX_CHANNELS} channels, not {call.width}"
    return int8_product.missing()


def _int8_topk_declines(call: Call) -> str | None:
    return None if topk_int8.pays(call.width, call.n_latents, call.k) else topk_int8.PAYS_NOT


def _int8_threshold_declines(call: Call) -> str | None:
    if not threshold_int8.pays(call.width, call.n_latents):
        return threshold_int8.PAYS_NOT
    return None if call.threshold > 0 else threshold_int8.NOT_FOR_RELU


def _cpu_pool_refuses(call: Call) -> str | None:
    if call.n_latents > pool_cpu.MAX_LATENTS:
        return f"keeps a row of latents per thread, of {pool_cpu.MAX_LATENTS} at most, not {call.n_latents}"
    return _cpu_refuses(call)


def _cuda_refuses(call: Call) -> str | None:
    if reason := scores_cuda.missing():
        return reason
    if call.device != "cuda":
        return f"the tensors are on {call.device}"
    return "float64 inputs need the reference" if call.float64 else None


def _cuda_topk_refuses(call: Call) -> str | None:
    if reason := _cuda_refuses(call):
        return reason
    limit = topk_cuda.max_k()
    return f"keeps at most {limit} latents per row, not k={call.k}" if call.k > limit else None


def _triton(module: str, function: str) -> Callable[..., Any]:
    """A function of a module of kernels/ that is imported when it is first called: Triton may not be there."""

    def run(*arguments: Any, **named: Any) -> Any:
        return getattr(import_module(f"saerl_fast.kernels.{module}"), function)(*arguments, **named)

    return run


def _triton_refuses(call: Call) -> str | None:
    if reason := triton_runtime.refuses(call.device):
        return reason
    return "float64 inputs need the reference" if call.float64 else None


def _cuda_update_refuses(call: Call) -> str | None:
    return "adds up sparse rows only" if call.sparse is False else _cuda_refuses(call)


def _triton_topk_refuses(call: Call) -> str | None:
    return _triton_refuses(call) or latent_groups.refuses(call.n_latents, call.k)


def _norm_declines(call: Call) -> str | None:
    return NORM_ELSEWHERE if call.norm and _triton_refuses(call) is None else None


def _norm_topk_declines(call: Call) -> str | None:
    return NORM_ELSEWHERE if call.norm and _triton_topk_refuses(call) is None else None


def _triton_update_refuses(call: Call) -> str | None:
    return "adds up dense rows only" if call.sparse else _triton_refuses(call)


TABLE: Table = {
    "topk_encode": {
        "cuda": Implementation(
            topk_cuda.encode, _cuda_topk_refuses, _norm_topk_declines, normalises=True, marks_bad_rows=True
        ),
        "triton": Implementation(
            _triton("encode_triton", "topk"), _triton_topk_refuses, normalises=True, marks_bad_rows=True
        ),
        "triton_bf16": Implementation(_triton("topk_bf16", "encode"), _triton_topk_refuses, marks_bad_rows=True),
        "cpu_int8": Implementation(topk_int8.encode, _int8_refuses, _int8_topk_declines),
        "cpu": Implementation(topk_cpu.encode, _cpu_refuses),
        "reference": Implementation(reference.topk_encode, _never, normalises=True),
    },
    "topk_encode_certified": {
        "triton_bf16": Implementation(
            _triton("topk_bf16", "encode_certified"), _triton_topk_refuses, marks_bad_rows=True
        ),
        "cpu_int8": Implementation(topk_int8.encode_certified, _int8_refuses),
        "reference": Implementation(reference.topk_encode_certified, _never),
    },
    "threshold_encode": {
        "cuda": Implementation(
            threshold_cuda.work, _cuda_refuses, _norm_declines, normalises=True, marks_bad_rows=True
        ),
        "triton": Implementation(
            _triton("encode_triton", "threshold_work"), _triton_refuses, normalises=True, marks_bad_rows=True
        ),
        "cpu_int8": Implementation(threshold_int8.encode, _int8_refuses, _int8_threshold_declines),
        "cpu": Implementation(threshold_cpu.encode, _cpu_refuses),
        "reference": Implementation(reference.threshold_encode, _never, normalises=True),
    },
    "decode": {
        "triton": Implementation(_triton("decode_triton", "decode"), _triton_refuses, marks_bad_rows=True),
        "cpu": Implementation(decode_cpu.decode, _cpu_refuses),
        "reference": Implementation(reference.decode, _never),
    },
    "project": {
        "triton": Implementation(_triton("decode_triton", "project"), _triton_refuses, marks_bad_rows=True),
        "cpu": Implementation(sparse_cpu.project, _cpu_refuses),
        "reference": Implementation(reference.project, _never),
    },
    "project_weighted": {
        "cpu": Implementation(sparse_cpu.project_weighted, _cpu_refuses),
        "reference": Implementation(reference.project_weighted, _never),
    },
    "segment_pool": {
        "cuda": Implementation(pool_cuda.segment_pool, _cuda_refuses, marks_bad_rows=True),
        "cpu": Implementation(pool_cpu.segment_pool, _cpu_pool_refuses),
        "reference": Implementation(reference.segment_pool, _never),
    },
    "kmeans_assign": {
        "triton": Implementation(_triton("kmeans_triton", "assign"), _triton_refuses, marks_bad_rows=True),
        "cpu": Implementation(kmeans_cpu.assign, _cpu_refuses),
        "reference": Implementation(reference.kmeans_assign, _never),
    },
    "kmeans_update": {
        "cuda": Implementation(kmeans_cuda.update, _cuda_update_refuses),
        "triton": Implementation(_triton("kmeans_triton", "update"), _triton_update_refuses),
        "cpu": Implementation(kmeans_cpu.update, _cpu_refuses),
        "reference": Implementation(reference.kmeans_update, _never),
    },
}

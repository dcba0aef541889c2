"""Compiles every Triton kernel for GPUs that are not there, and prints what each takes, as JSON.

A program of its own (python -m tests.kernels.compile_ahead): the interpreter that the tests run kernels in is chosen
when a kernel is decorated.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend

from saerl_fast.kernels import (
    fold_triton,
    gathered_sums,
    nearest_exact,
    nearest_triton,
    rescore_triton,
    rounding_triton,
    row_norms_triton,
    scores_triton,
    select_triton,
    whole_rows_triton,
)

TARGETS = (80, 90)
LONG, INT, FLOAT, DOUBLE, HALF = "*i64", "*i32", "*fp32", "*fp64", "*bf16"
SUM = {
    "begins": LONG, "ends": LONG, "targets": LONG, "sources": INT, "weights": FLOAT, "bias": FLOAT, "out": FLOAT,
    "parts": FLOAT, "n_entries": "i64", "n_sources": "i32", "n_out": "i32", "width": "i32", "stride": "i64",
}  # fmt: skip
NEAREST = {
    "bias": FLOAT, "factor": "fp32", "labels": INT, "nearest": FLOAT, "squares": DOUBLE, "queue": LONG, "count": INT,
    "n_rows": "i32", "n_latents": "i32", "n_clusters": "i32",
}  # fmt: skip
SCREEN = {
    "rounded": FLOAT, "bias": FLOAT, "factor": "fp32", "best": FLOAT, "second": FLOAT, "label": INT, "n_rows": "i32",
    "n_latents": "i32", "n_clusters": "i32", "row_stride": "i32", "stride": "i32",
}  # fmt: skip
SCREEN_TILE = {"column_stride": 1, "WIDEN": False, "ROWS": 128, "TILE": 128, "RUN": 1024}
SETTLE = {
    "centroids": FLOAT, "bias": FLOAT, "factor": "fp32", "limits": FLOAT, "slack": "fp32", "best": FLOAT,
    "second": FLOAT, "label": INT, "labels": INT, "nearest": FLOAT, "squares": DOUBLE, "queue": LONG, "count": INT,
    "first_row": "i32", "n_rows": "i32", "n_latents": "i32", "n_tiles": "i32",
}  # fmt: skip
DENSIFY = {
    "indptr": LONG, "columns": INT, "values": FLOAT, "chunk": HALF, "first_row": "i32", "n_entries": "i64",
    "n_latents": "i32", "stride": "i32",
}  # fmt: skip
SPARSE = {
    "indptr": LONG, "columns": INT, "values": FLOAT, "table": FLOAT, "n_entries": "i64", "stride": "i64"
}  # fmt: skip
DENSE = {"centroids": FLOAT, "row_stride": "i64"}
EXACT_TILE = {"ROWS": 64, "TILE": 32, "CHANNELS": 16, "column_stride": 1, "QUEUED": False}
DOTS = {
    "indptr": LONG, "sources": INT, "x": FLOAT, "table": HALF, "dots": FLOAT, "n_entries": "i64", "n_sources": "i32",
    "width": "i32", "x_stride": "i64", "stride": "i64",
}  # fmt: skip
PARTS = {"first_parts": LONG, "n_parts": LONG, "parts": FLOAT, "out": FLOAT, "width": "i32"}
SCORES = {
    "x": HALF, "w": HALF, "bias": FLOAT, "scale": FLOAT, "centre": FLOAT, "row_index": LONG, "theta": FLOAT,
    "row_error": FLOAT, "row_size": FLOAT, "latent_size": FLOAT, "latent_error": FLOAT, "mean": FLOAT, "rest": FLOAT,
    "factor": FLOAT, "sums": FLOAT, "steep": INT, "some_steep": INT, "scores": FLOAT, "groups": INT, "n_rows": "i32", "x_rows": "i32", "n_latents": "i32", "width": "i32", "n_groups": "i32",
    "x_row_stride": "i32", "w_row_stride": "i32", "scores_stride": "i32",
}  # fmt: skip
HALF_TILE = {
    "x_column_stride": 1, "w_column_stride": 1, "HAS_INDEX": True, "HAS_SCALE": True, "HAS_CENTRE": False,
    "WIDEN": False, "X_BLOCKS": False, "W_BLOCKS": False, "COUNT": False, "BOUND": False, "NORM": 0,
    "CENTRED": False, "ONLY_STEEP": False, "BLOCK_N": 128, "BLOCK_M": 256, "BLOCK_D": 64, "GROUP": 32, "STRIPE": 8,
}  # fmt: skip
COPIED = {"X_BLOCKS": True, "W_BLOCKS": True, "HAS_INDEX": False}
"""Rows and weights by the copy engine, as on Hopper where no mask names rows; with one, weights alone."""
INDEXED = {"W_BLOCKS": True}
WEIGHTS = {"w": "tensordesc<bf16[256, 64]>"}
BLOCKS = WEIGHTS | {"x": "tensordesc<bf16[128, 64]>"}
COUNTS, COUNT, BOUND = {"groups": "*u8"}, {"COUNT": True}, {"BOUND": True}
NORMED = {"NORM": 1, "CENTRED": True}
WIDE = {"GROUP": 64}
"""The groups of a wide dictionary: `group_size_for(49152, 32)`."""
FULL_TILE = {"HAS_CENTRE": True, "WIDEN": True, "BLOCK_N": 64, "BLOCK_M": 128, "BLOCK_D": 16}


def of_scores(types: dict[str, str], tile: dict[str, Any]) -> tuple[Any, dict[str, str], dict[str, Any], int]:
    """A form of the product, by what differs from bfloat16 rows named by a mask, all fetched by the threads."""
    return scores_triton.scores_kernel, SCORES | types, HALF_TILE | tile, 8


def of_float16(types: dict[str, str]) -> dict[str, str]:
    return {name: kind.replace("bf16", "fp16") for name, kind in types.items()}


SELECT = {
    "scores": FLOAT, "ranks": INT, "values": FLOAT, "columns": INT, "n_latents": "i32", "scores_stride": "i32",
    "n_groups": "i32", "k": "i32",
}  # fmt: skip
KEPT = {
    "scores": FLOAT, "theta": FLOAT, "counts": "*u8", "row_counts": LONG, "starts": LONG, "columns": INT,
    "values": FLOAT, "n_latents": "i32", "scores_stride": "i32", "n_groups": "i32", "capacity": "i32",
}  # fmt: skip
ROW_NORMS = {
    "x": HALF, "row_index": LONG, "mean": FLOAT, "rest": FLOAT, "factor": FLOAT, "steep": INT, "n_rows": "i32",
    "x_rows": "i32", "width": "i32", "row_stride": "i32",
}  # fmt: skip
FOLD = {"w": HALF, "b_enc": FLOAT, "b_dec": FLOAT, "folded": FLOAT, "n_latents": "i32", "width": "i32"}
RESCORED = {
    "order": LONG, "latents": INT, "x": HALF, "row_index": LONG, "w": FLOAT, "centre": FLOAT, "bias": FLOAT,
    "scale": FLOAT, "exact": DOUBLE, "n_pairs": "i32", "per_row": "i32", "n_rows": "i32", "x_rows": "i32",
    "width": "i32", "x_row_stride": "i32", "w_stride": "i32",
}  # fmt: skip
ROUNDED = {
    "x": FLOAT, "row_index": LONG, "centre": FLOAT, "rounded": HALF, "kept": DOUBLE, "moved": DOUBLE, "apart": DOUBLE,
    "n_rows": "i32", "x_rows": "i32", "width": "i32", "row_stride": "i32",
}  # fmt: skip
WHOLE = {
    "x": HALF, "row_index": LONG, "open_rows": LONG, "n_open": LONG, "w": FLOAT, "centre": FLOAT, "bias": FLOAT,
    "scale": FLOAT, "scores": DOUBLE, "first": "i32", "room": "i32", "n_rows": "i32", "x_rows": "i32",
    "n_latents": "i32", "width": "i32", "x_row_stride": "i32", "w_stride": "i32",
}  # fmt: skip
WHOLE_SELECT = {
    "scores": DOUBLE, "open_rows": LONG, "n_open": LONG, "best": DOUBLE, "found": INT, "first": "i32",
    "n_latents": "i32", "per_row": "i32", "k": "i32",
}  # fmt: skip
DIVISIBLE = {
    "stride",
    "x_row_stride",
    "w_row_stride",
    "scores_stride",
    "row_stride",
    "column_stride",
    "width",
    "n_latents",
}
"""Numbers that are multiples of 16 for the SAEs people have."""

KERNELS: dict[str, tuple[Any, dict[str, str], dict[str, Any], int]] = {
    "decode": (
        gathered_sums.sum_pieces_kernel,
        SUM | {"table": HALF},
        {"HAS_TARGETS": False, "HAS_WEIGHTS": True, "HAS_BIAS": True, "BLOCK": 512},
        4,
    ),
    "cluster_sums": (
        gathered_sums.sum_pieces_kernel,
        SUM | {"table": FLOAT, "sources": LONG},
        {"HAS_TARGETS": True, "HAS_WEIGHTS": False, "HAS_BIAS": False, "BLOCK": 256},
        4,
    ),
    # Triton makes a constant of every number that is 1
    "one_column": (
        gathered_sums.sum_pieces_kernel,
        {name: kind for name, kind in SUM.items() if name not in ("width", "n_out")} | {"table": FLOAT},
        {"HAS_TARGETS": True, "HAS_WEIGHTS": True, "HAS_BIAS": True, "BLOCK": 16, "width": 1, "n_out": 1},
        4,
    ),
    "one_cluster": (
        nearest_exact.nearest_sparse_kernel,
        {name: kind for name, kind in (NEAREST | SPARSE).items() if name not in ("n_clusters", "n_latents")},
        {"TILE": 16, "ENTRIES": 256, "n_clusters": 1, "n_latents": 1, "QUEUED": False},
        4,
    ),
    "add_parts": (gathered_sums.add_parts_kernel, PARTS, {"BLOCK": 512}, 4),
    "dots": (gathered_sums.dots_kernel, DOTS, {"ENTRIES": 8, "BLOCK": 256}, 4),
    "assign_sparse": (
        nearest_exact.nearest_sparse_kernel,
        NEAREST | SPARSE,
        {"TILE": 256, "ENTRIES": 256, "QUEUED": True},
        4,
    ),
    "screen_dense": (
        nearest_triton.screen_kernel,
        SCREEN | {"rows": FLOAT},
        SCREEN_TILE | {"TF32": True, "CHANNELS": 32},
        8,
    ),
    "screen_sparse": (
        nearest_triton.screen_kernel,
        SCREEN | {"rows": HALF, "rounded": HALF},
        SCREEN_TILE | {"TF32": False, "CHANNELS": 64},
        8,
    ),
    "settle_dense": (
        nearest_triton.settle_dense_kernel,
        SETTLE | {"rows": FLOAT, "row_stride": "i32"},
        {"column_stride": 1, "ROWS": 32, "CHANNELS": 32},
        4,
    ),
    "settle_sparse": (
        nearest_triton.settle_sparse_kernel,
        SETTLE | {"indptr": LONG, "columns": INT, "values": FLOAT, "n_entries": "i64"},
        {"ENTRIES": 512},
        4,
    ),
    "densify": (nearest_triton.densify_kernel, DENSIFY, {"ENTRIES": 1024, "BLOCK": 2048}, 8),
    "assign_dense": (nearest_exact.nearest_dense_kernel, NEAREST | DENSE | {"rows": FLOAT}, EXACT_TILE, 8),
    "assign_dense_bfloat16": (nearest_exact.nearest_dense_kernel, NEAREST | DENSE | {"rows": HALF}, EXACT_TILE, 8),
    "assign_queued": (
        nearest_exact.nearest_dense_kernel,
        NEAREST | DENSE | {"rows": FLOAT},
        EXACT_TILE | {"QUEUED": True, "ROWS": 32},
        8,
    ),
    "scores": of_scores({}, {}),
    "scores_float32": of_scores({"x": FLOAT, "w": FLOAT}, FULL_TILE),
    "scores_copied": of_scores(BLOCKS, COPIED),
    "scores_copied_float16": of_scores(of_float16(BLOCKS), COPIED),
    "scores_copied_wide": of_scores(BLOCKS, COPIED | WIDE),
    # rows named by the hook's mask, weights by the copy engine
    "scores_indexed": of_scores(WEIGHTS, INDEXED),
    "scores_indexed_float16": of_scores(of_float16({"x": HALF} | WEIGHTS), INDEXED),
    "scores_indexed_wide": of_scores(WEIGHTS, INDEXED | WIDE),
    # threshold_encode
    "scores_counted": of_scores(COUNTS, COUNT),
    "scores_counted_copied": of_scores(BLOCKS | COUNTS, COPIED | COUNT),
    "scores_counted_indexed": of_scores(WEIGHTS | COUNTS, INDEXED | COUNT),
    "scores_counted_float16": of_scores(of_float16(BLOCKS) | COUNTS, COPIED | COUNT),
    "scores_counted_normed": of_scores(WEIGHTS | COUNTS, INDEXED | NORMED | COUNT),
    # triton_bf16
    "scores_bounded": of_scores({}, BOUND),
    "scores_bounded_copied": of_scores(BLOCKS, COPIED | BOUND),
    "scores_bounded_copied_wide": of_scores(BLOCKS, COPIED | WIDE | BOUND),
    "scores_bounded_indexed": of_scores(WEIGHTS, INDEXED | BOUND),
    "scores_bounded_indexed_wide": of_scores(WEIGHTS, INDEXED | WIDE | BOUND),
    "fold": (
        fold_triton.fold_kernel,
        FOLD | {"row_stride": "i32"},
        {"column_stride": 1, "BLOCK_M": 16, "BLOCK_D": 128},
        4,
    ),
    # weights stored [D, M]
    "fold_transposed": (
        fold_triton.fold_kernel,
        FOLD | {"column_stride": "i32"},
        {"row_stride": 1, "BLOCK_M": 128, "BLOCK_D": 16},
        4,
    ),
    # an SAE behind a layer norm, on the rows that a hook's mask names
    "scores_normed": of_scores(WEIGHTS, INDEXED | NORMED),
    "scores_steep": of_scores({}, FULL_TILE | {"HAS_CENTRE": False, "NORM": 2, "CENTRED": True, "ONLY_STEEP": True}),
    "row_norms": (
        row_norms_triton.row_norms_kernel,
        ROW_NORMS,
        {"column_stride": 1, "HAS_INDEX": True, "CENTRED": True, "EPS": 1e-5, "STEEP": 2.0, "BLOCK": 1024},
        4,
    ),
    "select": (
        select_triton.topk_kernel,
        SELECT,
        {"RELU": True, "GROUP": 32, "GROUPS": 1024, "CHOSEN": 64, "KEPT": 64},
        4,
    ),
    "select_one": (
        select_triton.topk_kernel,
        {name: kind for name, kind in SELECT.items() if name != "k"},
        {"RELU": True, "GROUP": 32, "GROUPS": 1024, "CHOSEN": 1, "KEPT": 1, "k": 1},
        4,
    ),
    "row_counts": (
        select_triton.row_counts_kernel,
        {"counts": "*u8", "row_counts": LONG, "n_groups": "i32"},
        {"GROUPS": 1024},
        4,
    ),
    "rescore": (
        rescore_triton.rescore_kernel,
        RESCORED,
        {"x_column_stride": 1, "HAS_INDEX": True, "HAS_CENTRE": True, "HAS_SCALE": True, "PAIRS": 8, "CHANNELS": 128},
        4,
    ),
    "round_rows": (
        rounding_triton.round_rows_kernel,
        ROUNDED,
        {"column_stride": 1, "HAS_INDEX": True, "HAS_CENTRE": True, "ROUND": True, "ROWS": 8, "BLOCK": 128},
        4,
    ),
    "whole_scores": (
        whole_rows_triton.whole_scores_kernel,
        WHOLE,
        {
            "x_column_stride": 1,
            "HAS_INDEX": True,
            "HAS_CENTRE": True,
            "HAS_SCALE": True,
            "ROWS": 16,
            "LATENTS": 8,
            "CHANNELS": 16,
        },
        4,
    ),
    "whole_select": (whole_rows_triton.whole_select_kernel, WHOLE_SELECT, {"BLOCK": 1024}, 4),
    "threshold": (select_triton.threshold_kernel, KEPT, {"GROUP": 32, "SPAN": 32}, 4),
}
"""name -> kernel, types of its arguments, constants, warps: the forms that the launchers ask for on a large call"""
STAGES = {name: 3 for name in KERNELS if name.startswith("scores")} | {"scores_float32": 2, "scores_steep": 2}
BEFORE_HOPPER = {name: {"BLOCK_M": 128} for name in STAGES} | {"screen_dense": {"CHANNELS": 16}}
"""Constants on sm_80."""
FETCHED = {"X_BLOCKS": False, "W_BLOCKS": False}
"""There is no bulk copy engine before Hopper: each thread fetches its part."""


def usage(name: str, target: int) -> dict[str, int]:
    """Registers and bytes of stack (that is, spills) per thread, and bytes of shared memory per block."""
    kernel, types, constants, warps = KERNELS[name]
    if target < 90:
        constants = constants | BEFORE_HOPPER.get(name, {})
        if constants.get("W_BLOCKS"):
            constants = constants | FETCHED
            # tensordesc<bf16[128, 64]> is a pointer there
            types = types | {side: re.sub(r"tensordesc<(\w+)\[.*", r"*\1", types[side]) for side in ("x", "w")}
    names = kernel.arg_names
    signature = {argument: types.get(argument, "constexpr") for argument in names}
    places = {(names.index(argument),): value for argument, value in constants.items()}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, argument in enumerate(names)
        if signature[argument][0] == "*" or (argument in DIVISIBLE and signature[argument] != "constexpr")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=aligned)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", target, 32), options={"num_warps": warps, "num_stages": STAGES.get(name, 3)}
    )
    return resources(compiled)


def resources(compiled: Any) -> dict[str, int]:
    """What a compiled kernel takes."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{what}:(\d+)", shown)[1]) for what in ("REG", "STACK"))  # type: ignore[index]
    # loads of one 16-bit number: a tile that is read across the way it lies
    narrow = compiled.asm["ptx"].count("ld.global.b16")
    return {"registers": registers, "stack": stack, "shared": int(compiled.metadata.shared), "narrow": narrow}


def lower_with_ones(name: str) -> None:
    """Lower a kernel where every size is 1. Triton makes constants of those, and a constant has no method `to`."""
    kernel, types, constants, warps = KERNELS[name]
    names = kernel.arg_names
    signature = {argument: types.get(argument, "constexpr") for argument in names}
    ones = {argument: 1 for argument, kind in signature.items() if kind in ("i32", "i64")}
    signature |= dict.fromkeys(ones, "constexpr")
    places = {(names.index(argument),): value for argument, value in (constants | ones).items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs={})
    target = GPUTarget("cuda", 90, 32)
    backend = make_backend(target)
    options = backend.parse_options({"num_warps": warps})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    source.make_ir(target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context)


if __name__ == "__main__":
    wanted = [(name, target) for target in TARGETS for name in KERNELS]
    for name in KERNELS:
        lower_with_ones(name)
    json.dump({f"{name}-sm_{target}": usage(name, target) for name, target in wanted}, sys.stdout)

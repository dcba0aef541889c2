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
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from saerl_fast.kernels import gathered_sums, kmeans_triton

TARGETS = (80, 90)
LONG, INT, FLOAT, DOUBLE, HALF = "*i64", "*i32", "*fp32", "*fp64", "*bf16"
SUM = {
    "begins": LONG, "ends": LONG, "targets": LONG, "sources": INT, "weights": FLOAT, "bias": FLOAT, "out": FLOAT,
    "parts": FLOAT, "n_entries": "i64", "n_sources": "i32", "n_out": "i32", "width": "i32", "stride": "i64",
}  # fmt: skip
NEAREST = {
    "bias": FLOAT, "factor": "fp32", "labels": INT, "nearest": FLOAT, "squares": DOUBLE, "n_latents": "i32",
    "n_clusters": "i32",
}  # fmt: skip
SPARSE = {
    "indptr": LONG, "columns": INT, "values": FLOAT, "table": FLOAT, "n_entries": "i64", "stride": "i64"
}  # fmt: skip
DENSE = {"centroids": FLOAT, "n_rows": "i64", "row_stride": "i64"}
DOTS = {
    "indptr": LONG, "sources": INT, "x": FLOAT, "table": HALF, "dots": FLOAT, "n_entries": "i64", "n_sources": "i32",
    "width": "i32", "x_stride": "i64", "stride": "i64",
}  # fmt: skip
PARTS = {"first_parts": LONG, "n_parts": LONG, "parts": FLOAT, "out": FLOAT, "width": "i32"}

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
        kmeans_triton.nearest_sparse_kernel,
        {name: kind for name, kind in (NEAREST | SPARSE).items() if name not in ("n_clusters", "n_latents")},
        {"TILE": 16, "ENTRIES": 256, "n_clusters": 1, "n_latents": 1},
        4,
    ),
    "add_parts": (gathered_sums.add_parts_kernel, PARTS, {"BLOCK": 512}, 4),
    "dots": (gathered_sums.dots_kernel, DOTS, {"ENTRIES": 8, "BLOCK": 256}, 4),
    "assign_sparse": (kmeans_triton.nearest_sparse_kernel, NEAREST | SPARSE, {"TILE": 256, "ENTRIES": 256}, 4),
    "assign_dense": (
        kmeans_triton.nearest_dense_kernel,
        NEAREST | DENSE | {"rows": FLOAT},
        {"ROWS": 64, "TILE": 32, "CHANNELS": 16, "column_stride": 1},
        8,
    ),
    "assign_dense_bfloat16": (
        kmeans_triton.nearest_dense_kernel,
        NEAREST | DENSE | {"rows": HALF},
        {"ROWS": 64, "TILE": 32, "CHANNELS": 16, "column_stride": 1},
        8,
    ),
}
"""name -> kernel, types of its arguments, constants, warps: the forms that the launchers ask for on a large call"""


def usage(name: str, target: int) -> dict[str, int]:
    """Registers and bytes of stack (that is, spills) per thread, and bytes of shared memory per block."""
    kernel, types, constants, warps = KERNELS[name]
    names = kernel.arg_names
    signature = {argument: types.get(argument, "constexpr") for argument in names}
    places = {(names.index(argument),): value for argument, value in constants.items()}
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, argument in enumerate(names) if signature[argument][0] == "*"
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options={"num_warps": warps})
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{what}:(\d+)", shown)[1]) for what in ("REG", "STACK"))  # type: ignore[index]
    return {"registers": registers, "stack": stack, "shared": int(compiled.metadata.shared)}


if __name__ == "__main__":
    json.dump({f"{name}-sm_{target}": usage(name, target) for target in TARGETS for name in KERNELS}, sys.stdout)

"""The table of rows of the GPU suite, and how one is run: prove, then time with the clock of the device.

At the sizes "full" and "quick" it needs a CUDA device; "tiny" runs anywhere, and shows that all of it runs.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch

from saerl_fast.bench.clock import clock_of, extra_megabytes
from saerl_fast.bench.contest import Contest
from saerl_fast.bench.gpu_encode import (
    encode,
    encode_over_gemm,
    encode_published,
    encode_triton,
    encode_triton_over_gemm,
    select,
    threshold_encode,
    threshold_encode_triton,
)
from saerl_fast.bench.gpu_forward import (
    capture,
    capture_compiled,
    capture_packed,
    featurize_all,
    featurize_over_forward,
    mfu,
)
from saerl_fast.bench.gpu_kmeans import kmeans_iter, kmeans_iter_dense
from saerl_fast.bench.machine import load, machine
from saerl_fast.bench.suite import Row, Shape, Size, digits, figures, grid
from saerl_fast.bench.timing import Effort
from saerl_fast.errors import BackendUnavailable, InputError, MissingDependency

logger = logging.getLogger(__name__)

EFFORT = {"full": Effort(30, 20), "quick": Effort(9, 6), "tiny": Effort(1, 5)}
PEAK_TFLOPS = 790.0
"""bfloat16 products on an H200, measured: what `fraction_of_peak` is a fraction of, on whatever device."""

_WIDE: dict[str, list[Any]] = {"width": [1536, 2048], "latents": [24576, 49152], "k": [32, 64, 128]}
_ENCODE = grid(rows=[16384], **_WIDE)
_ENCODE_QUICK = grid(rows=[8192], width=[1536], latents=[24576, 49152], k=[64])
_ENCODE_TINY = grid(rows=[70], width=[24], latents=[300], k=[8])
_THRESHOLD = grid(rows=[16384], width=[1536, 2048], latents=[24576, 49152], l0=[64])
_THRESHOLD_QUICK = grid(rows=[8192], width=[1536], latents=[24576], l0=[64])
_THRESHOLD_TINY = grid(rows=[70], width=[24], latents=[300], l0=[8])
_KMEANS: dict[str, list[Any]] = {"clusters": [64, 256], "density": [0.03, 0.10]}
_READ: dict[str, list[Any]] = {"shape": ["qwen2.5-1.5b"], "layer": [14], "longest": [2048]}
_READ_TINY: dict[str, list[Any]] = {
    "shape": ["tiny"],
    "layer": [1],
    "longest": [200],
    "texts": [40],
    "tokens_per_batch": [400],
}
_SAE: dict[str, list[Any]] = {"latents": [24576], "k": [64]}
_SAE_TINY: dict[str, list[Any]] = {"latents": [96], "k": [8]}
_FULL = grid(**_READ, texts=[2048], tokens_per_batch=[32768])
_QUICK = grid(**_READ, texts=[1024], tokens_per_batch=[32768])
_FULL_SAE = grid(**_READ, texts=[2048], tokens_per_batch=[32768], **_SAE)
_LONG_SAE = grid(**_READ, texts=[16384], tokens_per_batch=[32768], **_SAE)
_QUICK_SAE = grid(**_READ, texts=[1024], tokens_per_batch=[32768], **_SAE)

ROWS: dict[str, Row] = {
    "encode_over_gemm": Row(encode_over_gemm, full=_ENCODE, quick=_ENCODE_QUICK, tiny=_ENCODE_TINY),
    "encode_triton_over_gemm": Row(encode_triton_over_gemm, full=_ENCODE, quick=_ENCODE_QUICK, tiny=_ENCODE_TINY),
    "encode": Row(encode, full=_ENCODE, quick=_ENCODE_QUICK, tiny=_ENCODE_TINY),
    "encode_triton": Row(encode_triton, full=_ENCODE, quick=_ENCODE_QUICK, tiny=_ENCODE_TINY),
    "encode_published": Row(encode_published, full=_ENCODE, quick=_ENCODE_QUICK, tiny=_ENCODE_TINY),
    "select": Row(
        select,
        full=grid(rows=[4096], latents=[24576, 49152], k=[32, 64, 128]),
        quick=grid(rows=[2048], latents=[24576, 49152], k=[64]),
        tiny=grid(rows=[5], latents=[300], k=[8]),
    ),
    "threshold_encode": Row(threshold_encode, full=_THRESHOLD, quick=_THRESHOLD_QUICK, tiny=_THRESHOLD_TINY),
    "threshold_encode_triton": Row(
        threshold_encode_triton, full=_THRESHOLD, quick=_THRESHOLD_QUICK, tiny=_THRESHOLD_TINY
    ),
    "kmeans_iter": Row(
        kmeans_iter,
        full=grid(rows=[100_000], latents=[24576], **_KMEANS),
        quick=grid(rows=[20_000], latents=[24576], **_KMEANS),
        tiny=grid(rows=[60], latents=[200], clusters=[5], density=[0.2]),
    ),
    "kmeans_iter_dense": Row(
        kmeans_iter_dense,
        full=grid(rows=[1_000_000], columns=[256], clusters=[256]),
        quick=grid(rows=[200_000], columns=[256], clusters=[256]),
        tiny=grid(rows=[60], columns=[16], clusters=[5]),
    ),
    "capture": Row(capture, full=_FULL, quick=_QUICK, tiny=grid(**_READ_TINY)),
    "capture_packed": Row(capture_packed, full=_FULL, quick=_QUICK, tiny=grid(**_READ_TINY)),
    "capture_compiled": Row(capture_compiled, full=_FULL, quick=_QUICK, tiny=grid(**_READ_TINY)),
    "mfu": Row(mfu, full=_FULL, quick=_QUICK, tiny=grid(**_READ_TINY)),
    "featurize_over_forward": Row(
        featurize_over_forward, full=_LONG_SAE, quick=_QUICK_SAE, tiny=grid(**_READ_TINY, **_SAE_TINY)
    ),
    "featurize": Row(featurize_all, full=_FULL_SAE, quick=_QUICK_SAE, tiny=grid(**_READ_TINY, **_SAE_TINY)),
}


def run_gpu_suite(
    size: Size = "full",
    *,
    only: Iterable[str] = (),
    threads: int | None = None,
    report: Callable[[dict[str, Any]], None] = lambda result: None,
    keep: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Run the rows named in `only` (all without it) and return what `suite.run_suite` does, with "suite": "gpu".

    `report` is called with each result, `keep` with all there are so far, so that a run that is ended early has some.

    Times are those of the device. Where they are not a matter of a ratio: `tflops`, `fraction_of_peak` (of
    PEAK_TFLOPS) and `product_tflops`, what one large product reached in the same run.

    Raises InputError for a name that is no row, and where there is no CUDA device for a size other than "tiny".
    """
    names = list(only) or list(ROWS)
    if unknown := sorted(set(names) - set(ROWS)):
        raise InputError(f"no rows named {unknown} in the GPU suite; there are {', '.join(ROWS)}")
    if size != "tiny" and not torch.cuda.is_available():
        raise InputError("the GPU suite needs a CUDA device, and torch sees none; --tiny runs it on a CPU, for show")
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    about = machine(threads or torch.get_num_threads())
    found: dict[str, Any] = {"suite": "gpu", "size": size, "machine": about, "results": []}
    for name in names:
        for shape in ROWS[name].shapes(size):
            logger.info("%s %s", name, shape)
            result = run_gpu_row(name, shape, EFFORT[size], device)
            found["results"].append(result)
            report(result)
            keep(found)
            if device.type == "cuda":
                gc.collect()  # models hold references to themselves
                torch.cuda.empty_cache()
    about["load_at_end"] = load()
    return found


def run_gpu_row(name: str, shape: Shape, effort: Effort, device: torch.device) -> dict[str, Any]:
    """One result, as `run_gpu_suite` describes it; with "error" where something failed that is none of ours to expect.

    On a device that has not been seen before that is a kernel which does not compile or fit there: the rows that
    follow are to be had all the same.
    """
    result: dict[str, Any] = {"name": name, "shape": shape}
    try:
        return result | _proved_and_timed(name, shape, effort, device)
    except Exception as error:  # compilers and drivers have errors of their own, and no common class
        logger.error("%s %s", name, shape, exc_info=error)
        return result | {"error": f"{type(error).__name__}: {str(error).strip()[:500]}"}


def _proved_and_timed(name: str, shape: Shape, effort: Effort, device: torch.device) -> dict[str, Any]:
    result: dict[str, Any] = {}
    try:
        contest = ROWS[name].contest(**shape, device=device)
    except (MissingDependency, BackendUnavailable) as error:
        return result | {"skipped": str(error)}
    except torch.OutOfMemoryError as error:
        return result | {"skipped": f"too little memory for this shape: {error}"}
    verdict = contest.prove(contest.ours())
    result |= {"exact": verdict.failure is None, "backend": contest.backend, **contest.facts, **verdict.facts}
    if verdict.failure is not None:
        return result | {"failure": verdict.failure}
    for call in contest.baselines.values():  # libraries start, kernels are chosen and compiled
        call()
    return result | _rates(result | figures(contest, effort, clock_of(device))) | _memory(contest, device)


def _rates(result: dict[str, Any]) -> dict[str, Any]:
    if "operations" not in result:
        return result
    tflops = result["operations"] / (result["ours_ms"] * 1e9)
    return result | {
        "tflops": digits(tflops),
        "fraction_of_peak": digits(tflops / PEAK_TFLOPS),
        "product_tflops": digits(result["product_operations"] / (result["baseline_ms"] * 1e9)),
    }


def _memory(contest: Contest, device: torch.device) -> dict[str, Any]:
    if not contest.memory or device.type != "cuda":
        return {}
    (baseline,) = contest.baselines.values()
    ours, theirs = extra_megabytes(contest.ours, device), extra_megabytes(baseline, device)
    return {} if ours is None or theirs is None else {"ours_peak_mb": digits(ours), "baseline_peak_mb": digits(theirs)}

"""The table of rows, and how one is run: prove, then time. A new row is one function and one line here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch

from saerl_fast.bench.contest import Contest
from saerl_fast.bench.decode import decode
from saerl_fast.bench.encode import (
    accelerate,
    encode,
    encode_fp32_over_gemm,
    encode_over_gemm,
    encode_vs_sae_lens,
    select,
    threshold_encode,
)
from saerl_fast.bench.kmeans import kmeans_iter
from saerl_fast.bench.kmeans_fit import kmeans_fit, kmeans_fit_full
from saerl_fast.bench.machine import load, machine
from saerl_fast.bench.memory import peak_megabytes
from saerl_fast.bench.pool import pool
from saerl_fast.bench.texts import featurize_over_forward, featurize_over_loop, featurize_vs_interp_embed
from saerl_fast.bench.timing import OURS, Clock, Effort, measure, race
from saerl_fast.errors import BackendUnavailable, InputError, MissingDependency

logger = logging.getLogger(__name__)

Size = Literal["full", "quick", "tiny"]
Shape = dict[str, Any]

EFFORT = {"full": Effort(30, 120), "quick": Effort(9, 8), "tiny": Effort(2, 5)}


@dataclass(frozen=True)
class Real:
    """Real inputs: a folder of features, a file of activations with the folder of its SAE, a table of texts with model
    and SAE, or several of these."""

    features: str | None = None
    activations: str | None = None
    sae: str | None = None
    texts: str | None = None
    text_field: str = "problem"
    model: str | None = None


@dataclass(frozen=True)
class Row:
    """A contest, and the shapes it is held at."""

    contest: Callable[..., Contest]
    full: tuple[Shape, ...]
    quick: tuple[Shape, ...]
    tiny: tuple[Shape, ...]
    real: tuple[Shape, ...] = ()
    """Shapes besides, for a folder of real features."""
    read: tuple[Shape, ...] = ()
    """Shapes besides, for a file of real activations and the SAE that reads them."""
    texts: Mapping[Size, int] = field(default_factory=dict)
    """Numbers of texts, for a table of them, a model and its SAE."""

    def shapes(self, size: Size, real: Real | None = None) -> tuple[Shape, ...]:
        found = {"full": self.full, "quick": self.quick, "tiny": self.tiny}[size]
        if real and real.features is not None:
            found += tuple(shape | {"features": real.features} for shape in self.real)
        if real and real.activations is not None:
            found += tuple(shape | {"activations": real.activations, "sae": real.sae} for shape in self.read)
        if real and real.texts is not None and size in self.texts:
            about = {"file": real.texts, "text_field": real.text_field, "model": real.model, "sae": real.sae}
            found += ({"texts": self.texts[size]} | about,)
        return found


def grid(**sides: Iterable[Any]) -> tuple[Shape, ...]:
    """Every combination."""
    return tuple(dict(zip(sides, values, strict=True)) for values in product(*sides.values()))


_ENCODE = grid(rows=[2048], width=[1536], latents=[24576], k=[64])
_THRESHOLD = grid(rows=[2048], width=[1536], latents=[24576], l0=[64])
_ENCODE_TINY = grid(rows=[70], width=[24], latents=[300], k=[8])
_READ = grid(massive=[0, 4])
_POOL = grid(samples=[2000], shortest=[50], longest=[400], k=[32], latents=[24576])
_KMEANS: dict[str, list[Any]] = {"clusters": [64, 256], "density": [0.03, 0.10, 0.20]}
_FIT = grid(rows=[20000], latents=[4096], density=[0.20], clusters=[64], components=[128])
_FIT_REAL = grid(clusters=[16, 64], components=[128])
_TEXTS: dict[Size, int] = {"full": 2000, "quick": 1000, "tiny": 40}
_LOOP_TEXTS: dict[Size, int] = {"full": 2000, "quick": 500, "tiny": 40}
_TEXTS_TINY = grid(texts=[30])
_FIT_TINY = grid(rows=[400], latents=[200], density=[0.2], clusters=[20], components=[8])

ROWS: dict[str, Row] = {
    "select": Row(
        select,
        full=grid(rows=[1024], latents=[24576, 49152], k=[64]),
        quick=grid(rows=[512], latents=[24576, 49152], k=[64]),
        tiny=grid(rows=[5], latents=[300], k=[8]),
    ),
    "encode": Row(encode, full=_ENCODE, quick=_ENCODE, tiny=_ENCODE_TINY, read=_READ),
    "encode_over_gemm": Row(encode_over_gemm, full=_ENCODE, quick=_ENCODE, tiny=_ENCODE_TINY, read=_READ),
    "encode_fp32_over_gemm": Row(encode_fp32_over_gemm, full=_ENCODE, quick=_ENCODE, tiny=_ENCODE_TINY, read=_READ),
    "encode_vs_sae_lens": Row(encode_vs_sae_lens, full=_ENCODE, quick=_ENCODE, tiny=_ENCODE_TINY, read=_READ),
    "accelerate": Row(accelerate, full=_ENCODE, quick=_ENCODE, tiny=_ENCODE_TINY, read=_READ),
    "threshold_encode": Row(
        threshold_encode,
        full=_THRESHOLD,
        quick=_THRESHOLD,
        tiny=grid(rows=[70], width=[24], latents=[300], l0=[8]),
    ),
    "decode": Row(
        decode,
        full=grid(rows=[2048], width=[1536], latents=[24576], k=[64]),
        quick=grid(rows=[2048], width=[1536], latents=[24576], k=[64]),
        tiny=grid(rows=[70], width=[24], latents=[300], k=[8]),
    ),
    "pool": Row(pool, full=_POOL, quick=_POOL, tiny=grid(samples=[6], shortest=[1], longest=[9], k=[4], latents=[100])),
    "kmeans_iter": Row(
        kmeans_iter,
        full=grid(rows=[20000], latents=[24576], **_KMEANS),
        quick=grid(rows=[20000], latents=[4096], **_KMEANS),
        tiny=grid(rows=[60], latents=[200], clusters=[5], density=[0.03, 0.2]),
    ),
    "kmeans_fit": Row(kmeans_fit, full=_FIT, quick=_FIT, tiny=_FIT_TINY, real=_FIT_REAL),
    "kmeans_fit_full": Row(kmeans_fit_full, full=_FIT, quick=_FIT, tiny=_FIT_TINY, real=_FIT_REAL),
    "featurize_over_forward": Row(featurize_over_forward, full=(), quick=(), tiny=_TEXTS_TINY, texts=_TEXTS),
    "featurize": Row(featurize_over_loop, full=(), quick=(), tiny=_TEXTS_TINY, texts=_LOOP_TEXTS),
    "featurize_vs_interp_embed": Row(featurize_vs_interp_embed, full=(), quick=(), tiny=_TEXTS_TINY, texts=_LOOP_TEXTS),
}


def run_suite(
    size: Size = "full",
    *,
    only: Iterable[str] = (),
    threads: int | None = None,
    rounds: int | None = None,
    real: Real | None = None,
    report: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Run the rows named in `only` (all without it) and return {"machine": ..., "results": [...]}.

    threads: for torch and for our kernels (torch's number without it). rounds: so many, where the size has more. real:
    what rows that can be are run on besides. `report` is called with each result.

    A result holds name, shape and, where our result was proved: exact (true), backend, threads, rounds, ours_ms,
    baseline, baseline_ms, ratio (baseline / ours, medians of wall-clock time), the same from processor time
    (ours_cpu_ms, baseline_cpu_ms, cpu_ratio), and all_baselines_ms. Where the proof failed: exact (false) and
    failure, no time. Where the row cannot run here: skipped, the reason.

    Raises InputError for a name that is no row, and for a row asked for that wants real input and has none.
    """
    names = list(only) or list(ROWS)
    if unknown := sorted(set(names) - set(ROWS)):
        raise InputError(f"no rows named {unknown} in the suite; there are {', '.join(ROWS)}")
    shapes = {name: ROWS[name].shapes(size, real) for name in names}
    if idle := [name for name in only if not shapes[name]]:
        raise InputError(f"{', '.join(idle)}: at size {size} only on real texts; pass --texts FILE, --model and --sae")
    threads = threads or torch.get_num_threads()
    effort = EFFORT[size]
    if rounds is not None and rounds < effort.rounds:
        effort = Effort(rounds, effort.seconds, proved=True)
    about: dict[str, Any] = {"suite": "cpu", "size": size, "machine": machine(threads), "results": []}
    for name in names:
        for shape in shapes[name]:
            logger.info("%s %s", name, shape)
            result = run_row(name, shape, effort, threads)
            about["results"].append(result)
            report(result)
    about["machine"]["load_at_end"] = load()
    return about


def run_row(name: str, shape: Shape, effort: Effort, threads: int) -> dict[str, Any]:
    """One result, as `run_suite` describes it."""
    # a result is read elsewhere: of a file or folder it keeps the name
    named = {key: Path(value).name if isinstance(value, str) else value for key, value in shape.items()}
    result: dict[str, Any] = {"name": name, "shape": named}
    with torch_threads(threads):
        try:
            contest = ROWS[name].contest(**shape)
        except (MissingDependency, BackendUnavailable) as error:
            return result | {"skipped": str(error)}
        with torch_threads(contest.threads or threads):
            verdict = contest.prove(contest.ours())
            result |= {"exact": verdict.failure is None, "backend": contest.backend, **contest.facts, **verdict.facts}
            if verdict.failure is not None:
                return result | {"failure": verdict.failure}
            return result | figures(contest, effort) | (peaks(contest) if contest.memory else {})


def figures(contest: Contest, effort: Effort, clock: Clock = measure) -> dict[str, Any]:
    """Times of both sides and their ratios."""
    times = race(contest.ours, contest.baselines, effort, clock)
    ours, rest = times[OURS], {name: times[name] for name in contest.baselines}
    fastest = min(rest, key=lambda name: rest[name].wall_ms)
    theirs = rest[fastest]
    derived = contest.derived(ours.wall_ms, theirs.wall_ms) if contest.derived else {}
    return {
        "threads": torch.get_num_threads(),
        "rounds": len(ours.wall),
        "ours_ms": digits(ours.wall_ms),
        "baseline": fastest,
        "baseline_ms": digits(theirs.wall_ms),
        "ratio": digits(theirs.wall_ms / ours.wall_ms),
        "ours_cpu_ms": digits(ours.processor_ms),
        "baseline_cpu_ms": digits(theirs.processor_ms),
        "cpu_ratio": digits(theirs.processor_ms / ours.processor_ms),
        "all_baselines_ms": {name: digits(taken.wall_ms) for name, taken in rest.items()},
        **derived,
    }


def digits(number: float) -> float:
    """Four digits: no time here is known better."""
    return float(f"{number:.4g}")


def peaks(contest: Contest) -> dict[str, Any]:
    """Peak memory of both sides, in MB above what was there before the call."""
    (baseline,) = contest.baselines.values()
    ours, theirs = peak_megabytes(contest.ours), peak_megabytes(baseline)
    if ours is None or theirs is None:
        return {"memory": "not measured: the system does not tell"}
    return {"ours_peak_mb": digits(ours), "baseline_peak_mb": digits(theirs)}


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """torch, and our kernels, on this many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def failures(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of the rows whose proof failed, or that ended in an error."""
    return [str(result["name"]) for result in results if result.get("exact") is False or "error" in result]

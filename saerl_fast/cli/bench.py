"""Our operations beside what would be used otherwise, on this machine: every result is proved, then timed.

Ends with 1 when a result is wrong; no speed is shown for it. `python -m benchmarks` in a clone is the same.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Literal

SUMMARY = "the throughput suite on this machine"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", default="cpu", choices=["cpu", "gpu"], help="which suite (default cpu)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller shapes: minutes")
    parser.add_argument("--tiny", action="store_true", help="shapes of a test: shows that all of it runs, no more")
    parser.add_argument("--only", metavar="ROWS", help="rows to run, with commas between: select,encode")
    parser.add_argument("--threads", type=int, help="threads (default: torch's number)")
    parser.add_argument("--rounds", type=int, metavar="N", help="at most N timed rounds of a row of the CPU suite")
    parser.add_argument("--features", metavar="DIR", help="a feature folder: k-means fits on real features besides")
    parser.add_argument("--activations", metavar="FILE", help="real activations (safetensors): encode rows besides")
    parser.add_argument("--sae", metavar="DIR", help="the TopK SAE that reads them, or the texts")
    parser.add_argument("--texts", metavar="FILE", help="a table of texts: featurize rows besides; with --model, --sae")
    parser.add_argument("--text-field", metavar="NAME", default="problem", help="their column (default problem)")
    parser.add_argument("--model", metavar="DIR", help="the model that the SAE was made for")
    parser.add_argument("--json", metavar="FILE", help="write machine and results to FILE")


def run(args: argparse.Namespace) -> int:
    from saerl_fast.bench.suite import failures
    from saerl_fast.errors import InputError

    if args.quick and args.tiny:
        raise InputError("--quick and --tiny were both given; choose one")
    if args.threads is not None and args.threads < 1:
        raise InputError(f"--threads must be at least 1; got {args.threads}")
    if args.rounds is not None and args.rounds < 1:
        raise InputError(f"--rounds must be at least 1; got {args.rounds}")
    if args.suite == "gpu" and (args.features or args.activations or args.texts or args.rounds):
        raise InputError(
            "--features, --activations, --texts and --rounds go with --suite cpu; the GPU suite has its own"
        )
    if (args.activations is None and args.texts is None) != (args.sae is None):
        raise InputError("--activations FILE or --texts FILE and --sae DIR belong together; only one was given")
    if (args.texts is None) != (args.model is None):
        raise InputError("--texts FILE and --model DIR belong together; only one was given")
    found = run_suite_of(args)
    write(args.json, found)
    about = found["machine"]
    device = f"{about['gpu']}; " if args.suite == "gpu" else ""
    print(f"{device}{about['cpu']}, {about['threads']} threads, {about['isa']}; load {about['load_at_start']}, then "
          f"{about['load_at_end']}")  # fmt: skip
    if wrong := failures(found["results"]):
        print(f"wrong or failed: {', '.join(wrong)}")
    return 1 if wrong else 0


def run_suite_of(args: argparse.Namespace) -> dict[str, Any]:
    """The suite that was asked for, its lines printed as they come."""
    size: Literal["full", "quick", "tiny"] = "tiny" if args.tiny else "quick" if args.quick else "full"
    only = [name.strip() for name in args.only.split(",")] if args.only else ()

    def report(result: dict[str, Any]) -> None:
        print(line_of(result), flush=True)

    def keep(found: dict[str, Any]) -> None:
        write(args.json, found)

    if args.suite == "gpu":
        from saerl_fast.bench.gpu_suite import run_gpu_suite

        return run_gpu_suite(size, only=only, threads=args.threads, report=report, keep=keep)
    from saerl_fast.bench.suite import Real, run_suite

    real = Real(args.features, args.activations, args.sae, args.texts, args.text_field, args.model)
    return run_suite(size, only=only, threads=args.threads, rounds=args.rounds, real=real, report=report)


def write(file: str | None, found: dict[str, Any]) -> None:
    """The results so far, where a file is wanted."""
    if file:
        Path(file).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def line_of(result: dict[str, Any]) -> str:
    """One result in one line."""
    shape = " ".join(f"{name}={value}" for name, value in result["shape"].items())
    start = f"{result['name']} {shape}: "
    if "skipped" in result:
        return f"{start}not run: {result['skipped']}"
    if "error" in result:
        return f"{start}FAILED, no speed: {' '.join(result['error'].split())}"
    if not result["exact"]:
        return f"{start}WRONG, no speed: {result['failure']}"
    line = f"{start}{result['ours_ms']:.1f} ms ({result['backend']}), "
    line += f"{result['baseline']} {result['baseline_ms']:.1f} ms: "
    line += f"{result['ratio']:.2f}x, {result['cpu_ratio']:.2f}x in processor time"
    if "tflops" in result:
        line += f"; {result['tflops']} TFLOP/s, {result['fraction_of_peak']} of the peak"
    if "over_forward" in result:
        line += f"; {result['over_forward']} of the forward besides it"
    if "ours_peak_mb" in result:
        line += f"; peak {result['ours_peak_mb']} MB, theirs {result['baseline_peak_mb']} MB"
    return line

"""What runs here, and why the rest does not: the data behind `saerl env`."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("saerl-fast", "torch", "triton", "transformers", "trl", "sae-lens", "datasets", "scikit-learn", "numpy")
ABSENT = "not installed"
RUNS = "yes"
AUTO = "packing='auto'"


def env_dict() -> dict[str, Any]:
    """Versions, hardware, the compiled module, and the table of operations.

    -> {"versions": {package: version}, "hardware": {...}, "compiled module": {...},
        "operations": {operation: {backend: "yes" or the reason why not}},
        "packed texts": {device: {kernel of attention: "yes" or the reason why not, "packing='auto'": what is taken}}}

    Whatever is absent or broken is described in its place; nothing is raised.
    """
    versions = {"python": sys.version.split()[0], **{name: _version(name) for name in PACKAGES}}
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:
        reason = f"torch cannot be imported: {error}"
        hardware = {"cpu": _cpu_model(), "cores": str(os.cpu_count())}
        empty: dict[str, Any] = {"operations": {}, "packed texts": {}}
        return {"versions": versions, "hardware": hardware, "compiled module": {"missing": reason}, **empty}
    return {
        "versions": versions,
        "hardware": _hardware(),
        "compiled module": _compiled_module(),
        "operations": _operations(),
        "packed texts": _packed_texts(),
    }


def env_report() -> str:
    """`env_dict` as text: a table of operations and backends, each empty cell with the number of its reason."""
    env = env_dict()
    lines: list[str] = []
    for title in ("versions", "hardware", "compiled module"):
        lines.append(title)
        lines += [f"  {name:<14} {value}" for name, value in env[title].items()]
        lines.append("")
    lines += _operation_lines(env["operations"])
    for device, kernels in env["packed texts"].items():
        lines += ["", f"attention within packed texts, {device}"]
        told = kernels if RUNS in kernels.values() else {AUTO: kernels[AUTO]}
        lines += [f"  {name:<16} {said}" for name, said in told.items()]
    return "\n".join(lines) + "\n"


def _operation_lines(operations: dict[str, dict[str, str]]) -> list[str]:
    if not operations:
        return ["operations", "  none: see the compiled module"]
    reasons: dict[str, int] = {}
    rows: list[list[str]] = []
    for op, cells in operations.items():
        row = [op]
        for reason in cells.values():
            row.append(RUNS if reason == RUNS else f"- [{reasons.setdefault(reason, len(reasons) + 1)}]")
        rows.append(row)
    table = [["operations", *next(iter(operations.values()))], *rows]
    lines = ["  ".join(f"{cell:<{18 if i == 0 else 10}}" for i, cell in enumerate(row)).rstrip() for row in table]
    return [*lines, "", *(f"  [{number}] {reason}" for reason, number in reasons.items())]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ABSENT


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _hardware() -> dict[str, str]:
    import torch

    from saerl_fast.kernels import native

    sets = [] if native.missing() else native.module().instruction_sets()
    return {
        "cpu": _cpu_model(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "instructions": f"{sets[0]} (of {', '.join(sets)})" if sets else "no compiled module",
        "gpu": _gpus(),
        "capability": _capabilities(),
    }


def _capabilities() -> str:
    from saerl_fast.kernels import gpu

    try:
        return gpu.capabilities() or "none"
    except RuntimeError as error:
        return f"CUDA does not start: {error}"


def _gpus() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none" if torch.version.cuda else "none (this torch is built without CUDA)"
    try:
        return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    except RuntimeError as error:
        return f"CUDA does not start: {error}"


def _compiled_module() -> dict[str, str]:
    from saerl_fast.kernels import native

    record = native.build_record()
    reason = native.missing()
    if reason is not None:
        return {"missing": reason}
    cuda = record.get("cuda") or f"not built: {record.get('cuda_reason')}"
    return {
        "file": str(native.module().__file__),
        "compiler": record.get("native") or "unknown: not built by this package's setup.py",
        "openmp": "yes" if native.module().openmp else "no: the kernels run on one thread",
        "cuda": cuda,
    }


def _operations() -> dict[str, dict[str, str]]:
    from saerl_fast.ops.choice import BACKENDS, Call, refusal
    from saerl_fast.ops.table import TABLE

    # a call that lies where the backend works, so that the reason is the backend's and not the call's
    home = {name: "cuda" if name.startswith(("cuda", "triton")) else "cpu" for name in BACKENDS}
    return {op: {name: refusal(TABLE, op, name, Call(home[name], k=64)) or RUNS for name in BACKENDS} for op in TABLE}


def _packed_texts() -> dict[str, dict[str, str]]:
    """For a bfloat16 model on CUDA and a float32 one on the CPU, neither with a softcap."""
    import torch

    from saerl_fast.extract.attention import KERNELS
    from saerl_fast.extract.packing import choose
    from saerl_fast.kernels import gpu

    found: dict[str, dict[str, str]] = {}
    for device, dtype in (("cuda", torch.bfloat16), ("cpu", torch.float32)):
        absent = gpu.missing() if device == "cuda" else None
        missing = {
            name: absent or kernel.missing(torch.device(device), dtype, False) for name, kernel in KERNELS.items()
        }
        kernel, why = choose("auto", device, missing, lambda _: None)
        taken = f"padded: {absent or why}" if kernel is None else f"{kernel}, where the model passes its self-check"
        found[device] = {name: reason or RUNS for name, reason in missing.items()} | {AUTO: taken}
    return found

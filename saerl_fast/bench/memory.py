"""Peak memory of one call, as the kernel counts it (Linux)."""

from __future__ import annotations

import ctypes
from pathlib import Path

from saerl_fast.bench.contest import Call

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"


def peak_megabytes(call: Call) -> float | None:
    """The highest resident memory during the call, above what was resident before it, in MB of 10^6 bytes.

    The result counts. None where the kernel does not tell.
    """
    release_free_memory()
    try:
        CLEAR.write_text(RESET_PEAK)
        before = _kilobytes("VmRSS")
    except OSError:
        return None
    result = call()
    peak = _kilobytes("VmHWM")
    del result
    return max(0, peak - before) * 1024 / 1e6


def release_free_memory() -> None:
    """Give freed memory back, so that a call that would reuse it is charged for it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _kilobytes(name: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise OSError(f"{STATUS} has no {name}")

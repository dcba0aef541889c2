"""The machine that a figure belongs to, and what ran on it."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from saerl_fast.env import ABSENT, env_dict

PACKAGE = Path(__file__).parent.parent


def machine(threads: int) -> dict[str, Any]:
    """Processor, cores, threads, instruction set, GPU, versions, date (UTC), commit, load of the last minute."""
    from importlib import metadata

    from saerl_fast.kernels import native

    env = env_dict()
    versions = {name: version for name, version in env["versions"].items() if version != ABSENT}
    versions["scipy"] = metadata.version("scipy")
    return {
        "cpu": env["hardware"]["cpu"],
        "cores": os.cpu_count(),
        "threads": threads,
        "isa": "none: " + reason if (reason := native.missing()) else native.module().instruction_sets()[0],
        "gpu": env["hardware"]["gpu"],
        "versions": versions,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "load_at_start": load(),
    }


def load() -> float | None:
    """Processes that wanted to run, averaged over the last minute; None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def commit() -> str | None:
    """The commit of the clone that the package runs from, "+ changes" where it has any.

    Where it runs from elsewhere: SAERL_COMMIT, which whoever has put it there may set, or None.
    """
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return os.environ.get("SAERL_COMMIT")
    changed = _git("status", "--porcelain", "--", ".", "../csrc", "../setup.py")
    head = _git("rev-parse", "HEAD")
    return f"{head} + changes" if changed else head


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(PACKAGE), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()

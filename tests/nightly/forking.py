"""Fork again and again from a process that has used worker threads, and compute in each child.

    python -m tests.nightly.forking FORKS SECONDS

Prints one line a call: its name, and how many children gave the parent's bits, gave others, or hung (not done in
SECONDS; they are killed).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from tests.nightly.kernel_calls import digest, kernel_calls

POLL = 0.005


def outcome(child: int, seconds: float) -> str:
    """How a child ended; one that does not end is killed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return "same" if status == 0 else "other"
        time.sleep(POLL)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hung"


def fork_and_compute(call: Callable[[], Any], wanted: str, seconds: float) -> str:
    child = os.fork()
    if child == 0:
        # no cleaning up: the child must not run what the parent registered for its end
        os._exit(0 if digest(call()) == wanted else 1)
    return outcome(child, seconds)


def main(forks: int, seconds: float) -> None:
    torch.set_num_threads(4)
    calls = kernel_calls()
    wanted = {name: digest(call()) for name, call in calls.items()}
    for name, call in calls.items():
        counts = Counter(fork_and_compute(call, wanted[name], seconds) for _ in range(forks))
        print(name, counts["same"], counts["other"], counts["hung"], flush=True)
        if counts["hung"]:
            return  # the others would hang as well, each for as long


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))

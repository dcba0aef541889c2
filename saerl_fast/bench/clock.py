"""The clock of a device, and inputs that lie elsewhere at each call."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from saerl_fast.bench.contest import Call
from saerl_fast.bench.timing import Clock, Times, measure

HEAD_START = 2_000_000
"""Device cycles (about a millisecond) of idling before a call, in which the host queues it: without them a pair of
events around a short kernel times the host."""
L2_BYTES = 128 * 2**20
"""More than the second-level cache of any GPU of today holds: inputs rotate over as much."""
MOST_COPIES = 8


def clock_of(device: torch.device) -> Clock:
    """How a call on this device is timed: by events on CUDA, by the wall clock elsewhere."""
    return _by_events if device.type == "cuda" else measure


def _by_events(call: Call, times: Times) -> None:
    """Device time between two events, and the processor time of the host in it."""
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    torch.cuda._sleep(HEAD_START)  # type: ignore[no-untyped-call]
    processor = time.process_time()
    before.record()
    result = call()
    after.record()
    times.processor.append(time.process_time() - processor)
    after.synchronize()
    times.wall.append(before.elapsed_time(after) / 1e3)
    del result


def extra_megabytes(call: Call, device: torch.device) -> float | None:
    """The most memory of the device in use during the call, above what was in use before; the result counts."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    del result
    return (peak - before) / 1e6


class Ring:
    """Copies of one tensor, handed out in turn: no call finds its input in a cache because the last one left it."""

    def __init__(self, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        copies = 1 if tensor.device.type != "cuda" else min(MOST_COPIES, 1 + -(-L2_BYTES // max(1, size)))
        self._copies = [tensor, *(tensor.clone() for _ in range(copies - 1))]
        self._turn = 0

    def next(self) -> Tensor:
        """The next copy; all hold the same numbers."""
        self._turn = (self._turn + 1) % len(self._copies)
        return self._copies[self._turn]

"""Times of several calls, interleaved.

pytest-benchmark runs all rounds of one benchmark before the next begins, so a change in the machine's load
between them would look like a difference. Here every round runs every call, each time starting at another one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from saerl_fast.bench.contest import Call

OURS = "ours"
SLOW = 2.0
"""A baseline this many times slower than the fastest one in the first round takes no part in the others."""
LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Effort:
    """Rounds to run, and the seconds after which no further round starts (at least LEAST_ROUNDS are run).

    proved: ours has run for its proof and is not warmed up once more, which at a few long rounds is much of the time.
    """

    rounds: int
    seconds: float
    proved: bool = False


@dataclass
class Times:
    """Seconds of each round."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    """Processor time of all threads of the process; at one thread, the time that other processes cannot disturb."""

    @property
    def wall_ms(self) -> float:
        return 1e3 * statistics.median(self.wall)

    @property
    def processor_ms(self) -> float:
        return 1e3 * statistics.median(self.processor)


def measure(call: Call, times: Times) -> None:
    """Run once and note the times; the result is freed after the clocks are read."""
    wall, processor = time.perf_counter(), time.process_time()
    result = call()
    times.processor.append(time.process_time() - processor)
    times.wall.append(time.perf_counter() - wall)
    del result


Clock = Callable[[Call, Times], None]
"""Runs a call once and notes its times."""


def race(ours: Call, baselines: Mapping[str, Call], effort: Effort, clock: Clock = measure) -> dict[str, Times]:
    """Times of `ours` (under OURS) and of every baseline.

    The first round warms up and is not counted; a baseline that is SLOW in it has that one time only.
    """
    calls = {OURS: ours, **baselines}
    first = {name: Times() for name in calls}
    for name, call in calls.items():
        if name != OURS or not effort.proved:
            clock(call, first[name])
    fastest = min(first[name].wall[0] for name in baselines)
    staying = [name for name in calls if name == OURS or first[name].wall[0] <= SLOW * fastest]
    times = {name: Times() for name in staying}
    start = time.perf_counter()
    for turn in range(effort.rounds):
        if turn >= LEAST_ROUNDS and time.perf_counter() - start > effort.seconds:
            break
        shift = turn % len(staying)
        for name in staying[shift:] + staying[:shift]:
            clock(calls[name], times[name])
    return {name: times.get(name, first[name]) for name in calls}

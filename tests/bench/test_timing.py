"""Rounds are interleaved, a hopeless baseline is timed once, memory is what the call needs."""

import time

import pytest
import torch

from saerl_fast.bench.memory import CLEAR, peak_megabytes
from saerl_fast.bench.timing import LEAST_ROUNDS, OURS, Effort, race


def sleeper(log, name, seconds):
    def call():
        log.append(name)
        time.sleep(seconds)

    return call


def test_rounds_are_interleaved_and_begin_elsewhere_each_time():
    log = []
    times = race(sleeper(log, "ours", 0.01), {"a": sleeper(log, "a", 0.01)}, Effort(4, 60))
    assert log == ["ours", "a", "ours", "a", "a", "ours", "ours", "a", "a", "ours"]
    assert len(times[OURS].wall) == len(times["a"].wall) == 4
    assert times["a"].wall_ms >= 10


def test_a_baseline_twice_as_slow_as_the_fastest_is_timed_once_and_ours_always():
    log = []
    baselines = {"fast": sleeper(log, "fast", 0.01), "slow": sleeper(log, "slow", 0.1)}
    times = race(sleeper(log, "ours", 0.2), baselines, Effort(3, 60))
    assert {name: len(taken.wall) for name, taken in times.items()} == {OURS: 3, "fast": 3, "slow": 1}
    assert log.count("slow") == 1


def test_no_round_starts_after_the_seconds_are_over():
    log = []
    times = race(sleeper(log, "ours", 0.02), {"a": sleeper(log, "a", 0.02)}, Effort(1000, 0.0))
    assert len(times[OURS].wall) == LEAST_ROUNDS


def test_ours_that_was_proved_is_not_warmed_up_once_more():
    log = []
    times = race(sleeper(log, "ours", 0.01), {"a": sleeper(log, "a", 0.01)}, Effort(1, 60, proved=True))
    assert log == ["a", "ours", "a"]
    assert len(times[OURS].wall) == len(times["a"].wall) == 1


def test_sleep_takes_no_processor_time():
    times = race(sleeper([], "ours", 0.05), {"a": sleeper([], "a", 0.05)}, Effort(3, 60))
    assert times[OURS].wall_ms >= 50
    assert times[OURS].processor_ms < 25


@pytest.mark.skipif(not CLEAR.exists(), reason="the peak is read from Linux's /proc")
def test_peak_memory_counts_what_is_freed_inside_the_call():
    def call():
        torch.ones(25_000_000)  # 100 MB, gone when the call ends
        return torch.ones(1)

    assert 95 <= peak_megabytes(call) <= 125
    assert peak_megabytes(lambda: None) <= 5

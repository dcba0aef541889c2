"""What one row of the suite is: our call, the calls it is held against, and the proof of our result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Call = Callable[[], Any]


@dataclass(frozen=True)
class Verdict:
    """What the float64 check of one result found."""

    failure: str | None = None
    """What is wrong with the result, or None."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is worth keeping, such as the share of rows that needed the boundary-gap rule."""


@dataclass(frozen=True)
class Contest:
    """Inputs are made before; each call does the whole work anew and returns its result."""

    ours: Call
    baselines: Mapping[str, Call]
    """At least one; the fastest of them is the one that ours is held against."""
    prove: Callable[[Any], Verdict]
    """Checks what `ours` returned."""
    backend: str
    """Which of our backends runs."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the data turned out to be, such as its density."""
    threads: int | None = None
    """Where the row is defined for a number of threads."""
    memory: bool = False
    """Measure the peak memory of both sides too."""
    derived: Callable[[float, float], Mapping[str, Any]] | None = None
    """What our and their median times, in ms, say besides their ratio."""

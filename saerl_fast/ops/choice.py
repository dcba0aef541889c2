"""Which implementation runs an operation: a pure function that returns reasons.

A backend that was asked for must be able to run the call, or BackendUnavailable says why not. Without
a wish, the first of the device's list that can run it does, and the reasons of those passed over are
logged once.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from saerl_fast.errors import BackendUnavailable, InputError
from saerl_fast.kernels.fork import go_serial_after_fork

logger = logging.getLogger(__name__)

BACKENDS = ("cuda", "triton", "triton_bf16", "cpu_int8", "cpu", "reference")
# where "triton" runs, triton_bf16 has to be asked for, until it has been timed
ORDER = {"cuda": ("cuda", "triton", "triton_bf16", "reference"), "cpu": ("cpu_int8", "cpu", "reference")}
NOT_WRITTEN = "not written for this operation"


@dataclass(frozen=True, slots=True)
class Call:
    """What an implementation needs to know to accept or refuse a call."""

    device: str
    """"cpu" or "cuda" (torch's device type)"""
    float64: bool = False
    """Some input is float64, so that the work is to be done in float64."""
    k: int = 0
    n_latents: int = 0
    width: int = 0
    """D"""
    sparse: bool | None = None
    """Rows come as codes, not as a dense array; None where it is not known or does not matter."""
    norm: bool = False
    """The rows are normalised first."""
    threshold: float = 0.0
    """What nearly all theta of threshold_encode exceed; 0 where nothing is known of them."""


@dataclass(frozen=True, slots=True)
class Implementation:
    """One body of one operation."""

    run: Callable[..., Any]
    """Returns what the operation does; of threshold_encode it may be the `csr_capacity.Work` that makes the rows, which
    the operation then waits for or does not."""
    refuses: Callable[[Call], str | None]
    """The reason why this call cannot run here, or None."""
    declines: Callable[[Call], str | None] = lambda _: None
    """The reason why another backend is faster for this call, or None; asked only where none was wished for."""
    normalises: bool = False
    """It takes an input norm as its last argument; the others are given rows that are normalised already."""
    marks_bad_rows: bool = False
    """A row made from an index that names nothing, or beside a NaN in theta, comes out marked (as NaN, or in its
    count), so that nothing need be read beforehand."""


Table = Mapping[str, Mapping[str, Implementation]]
"""operation -> backend -> implementation"""

wishes: ContextVar[Mapping[str, str]] = ContextVar("saerl_fast_backends", default=MappingProxyType({}))
"""operation -> the backend that the enclosing `backend(...)` blocks (wish.py) ask for"""


def known_backend(name: str) -> str:
    if name not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}")
    return name


def wanted_backend(op: str, argument: str | None = None) -> str | None:
    """The backend asked for: by argument, else by the enclosing `backend(...)` blocks, else none."""
    return wishes.get().get(op) if argument is None else known_backend(argument)


def pick(table: Table, op: str, call: Call, want: str | None) -> tuple[str, tuple[str, ...]]:
    """The backend that runs `call`, and a reason for each one that was passed over before it."""
    passed: list[str] = []
    for name in (want,) if want else ORDER.get(call.device, ("reference",)):
        reason = refusal(table, op, name, call)
        if reason is None and want is None:
            reason = table[op][name].declines(call)
        if reason is None:
            return name, tuple(passed)
        passed.append(f"{name}: {reason}")
    asked = f"{want!r} was asked for, but cannot run this call" if want else "no backend can run this call"
    raise BackendUnavailable(
        f"{op}: {asked} on {call.device}. {'; '.join(passed)}. "
        "Leave the backend open to let the library choose; 'reference' runs everything"
    )


def refusal(table: Table, op: str, name: str, call: Call) -> str | None:
    """Why backend `name` cannot run `call`, or None if it can."""
    implementation = table[op].get(name)
    return NOT_WRITTEN if implementation is None else implementation.refuses(call)


def choose(table: Table, op: str, call: Call, argument: str | None) -> str:
    """`pick`, with the argument and the enclosing blocks as the wish, and one line of log per fallback."""
    if call.device == "cpu":
        go_serial_after_fork()
    name, passed = pick(table, op, call, wanted_backend(op, argument))
    if passed:
        _log_once(op, name, passed)
    return name


@functools.cache
def _log_once(op: str, name: str, passed: tuple[str, ...]) -> None:
    unwritten = all(reason.endswith(NOT_WRITTEN) for reason in passed)
    if name == "reference":
        level = logging.INFO if unwritten else logging.WARNING
    else:
        # from one compiled backend to the next is no cause for alarm, and where there is but one no news
        level = logging.DEBUG if unwritten else logging.INFO
    logger.log(level, "%s runs on %s (%s)", op, name, "; ".join(passed))

"""The tokens of the next shard, made in a thread while the device works on this one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import pairwise
from types import TracebackType
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Ahead(Generic[Made]):
    """Hands out make(key) for each key in order; with a thread, the next one is made while this one is used.

    Use as a context manager: behind it no thread is left. What make raises is raised by the ``take`` of that very key,
    and not at all where the run ends before it. Without a thread, everything is made when it is taken.
    """

    def __init__(self, make: Callable[[int], Made], keys: Sequence[int], *, thread: bool) -> None:
        self._make = make
        self._after = dict(pairwise(keys))
        self._thread = ThreadPoolExecutor(1, "saerl-ahead") if thread else None
        self._making: tuple[int, Future[Made]] | None = None

    def __enter__(self) -> Ahead[Made]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def take(self, key: int) -> Made:
        """What was made for the key; the next one is begun."""
        if self._thread is None:
            return self._make(key)
        making, self._making = self._making, None
        made = making[1].result() if making is not None and making[0] == key else self._make(key)
        if key in self._after:
            after = self._after[key]
            self._making = after, self._thread.submit(self._make, after)
        return made

    def rest(self) -> None:
        """Wait until nothing is being made: what follows may use the tokenizer, as one thread may at a time."""
        if self._making is not None:
            wait([self._making[1]])

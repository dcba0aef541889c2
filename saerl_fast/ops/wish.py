"""Asking for a backend: for every operation in a block, or for single ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from saerl_fast.errors import InputError
from saerl_fast.ops.choice import known_backend, wishes
from saerl_fast.ops.table import TABLE


@contextmanager
def backend(every: str | None = None, /, **operations: str) -> Iterator[None]:
    """Ask for backends in the block: "cuda", "triton", "triton_bf16", "cpu_int8", "cpu" or "reference".

        with ops.backend("reference"):  # for every operation
        with ops.backend(topk_encode="triton_bf16"):  # for this one; the others are as they were outside
        with ops.backend("cuda", topk_encode="triton_bf16"):  # for this one, and another for all others

    The operations are those that `saerl env` lists: `topk_encode_certified` is one of its own, while the spaced and
    queued forms go by the name of what they are a form of. An inner block stands over an outer one for the operations
    that it asks for. Holds for this thread or task only. Raises InputError for an unknown name, of a backend or of an
    operation; the operations raise BackendUnavailable where the backend cannot run them.
    """
    if every is None and not operations:
        raise InputError("backend: name one for every operation, or for some (topk_encode='cpu'); got none")
    for op in operations:
        if op not in TABLE:
            raise InputError(f"backend: operations are {', '.join(TABLE)}; got {op!r}")
    named = {op: known_backend(name) for op, name in operations.items()}
    all_of_them = {} if every is None else dict.fromkeys(TABLE, known_backend(every))
    token = wishes.set({**wishes.get(), **all_of_them, **named})
    try:
        yield
    finally:
        wishes.reset(token)

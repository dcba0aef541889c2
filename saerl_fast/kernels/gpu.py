"""Whether the GPUs that torch sees can run what this package compiles for them."""

from __future__ import annotations

import functools

import torch

LEAST = (8, 0)
"""Compute capability: bfloat16 and asynchronous copies to shared memory begin there (A100, RTX 30)."""


def missing() -> str | None:
    """Why no kernel for GPUs can run here, or None."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        return _too_old(torch.cuda.device_count())
    except RuntimeError as error:
        return f"CUDA does not start: {error}"


@functools.cache
def _too_old(devices: int) -> str | None:
    """The reason of the first of so many devices that is too old: a tensor may lie on any of them."""
    for index in range(devices):
        found = torch.cuda.get_device_capability(index)
        if found < LEAST:
            name = torch.cuda.get_device_name(index)
            return (
                f"GPU {index}, {name}, has compute capability {_dotted(found)}, and the kernels need "
                f"{_dotted(LEAST)} or later: hide it (CUDA_VISIBLE_DEVICES), or leave it to 'reference'"
            )
    return None


def capabilities() -> str:
    """Of all devices, for people; empty where there is none."""
    if not torch.cuda.is_available():
        return ""
    return ", ".join(_dotted(torch.cuda.get_device_capability(index)) for index in range(torch.cuda.device_count()))


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"

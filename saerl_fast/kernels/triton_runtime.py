"""Where Triton kernels can run. The modules that hold them are imported only where they can."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata

import torch
from torch import Tensor

from saerl_fast.kernels import gpu

OLDEST = (3, 6)
"""The oldest release that the kernels are compiled with in the tests; torch 2.11 brings it."""
PACKAGES = ("triton", "pytorch-triton", "triton-windows")
"""What the package may be called that holds the module."""


@functools.cache
def installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def missing() -> str | None:
    """Why Triton cannot be used on any device, or None."""
    if not installed():
        return "triton is not installed (pip install 'saerl-fast[triton]')"
    version = _version()
    numbers = re.match(r"(\d+)\.(\d+)", version or "")
    if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST:
        least = ".".join(map(str, OLDEST))
        return f"triton {version} is too old: the kernels need {least}, which torch 2.11 brings, or later"
    return None


def _version() -> str | None:
    """The release that is installed; None where no package says so."""
    for name in PACKAGES:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def interpreted() -> bool:
    """Kernels run on the CPU, number by number: Triton's interpreter, which is for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def refuses(device: str) -> str | None:
    """Why no kernel can run on tensors of this device type, or None."""
    if reason := missing():
        return reason
    if device == "cpu" and interpreted():
        return None
    if reason := gpu.missing():
        return reason
    if device != "cuda":
        return f"the tensors are on {device}"
    if interpreted():
        return "TRITON_INTERPRET is set, so that Triton runs on the CPU only"
    return None


def on_device_of(tensor: Tensor) -> AbstractContextManager[None]:
    """Launches inside go to the device that holds the tensor, whichever is current."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


def device_of(tensor: Tensor) -> tuple[int, bool]:
    """Multiprocessors of the device that holds the tensor, and whether it is Hopper or newer: warpgroup products, a
    bulk copy engine, 227 kB a block."""
    return _device(tensor.device.index if tensor.device.type == "cuda" else None)


@functools.cache
def _device(index: int | None) -> tuple[int, bool]:
    if index is None:
        # the interpreter: a few programs, each of which has several turns
        return 3, True
    found = torch.cuda.get_device_properties(index)
    # consumer GPUs of later generations have 99 kB
    shared = int(getattr(found, "shared_memory_per_block_optin", 0))
    return found.multi_processor_count, found.major >= 9 and shared >= 160 * 1024

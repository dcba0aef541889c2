"""CUDA sources compiled for the CPU by a small emulation (cuda_emulation/), as a library to call."""

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

SOURCES = Path(__file__).parents[2] / "csrc" / "cuda"
EMULATION = Path(__file__).parent / "cuda_emulation"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))

needed = pytest.mark.skipif(COMPILER is None or not SOURCES.exists(), reason="needs a C++ compiler and csrc/")

LAUNCH = re.compile(r"(\w+(?:<\w+>)?)\s*<<<(.*?), (.*?), (\w+), .*?>>>\((.*?)\);", re.DOTALL)
DYNAMIC = "extern __shared__ __align__(16) unsigned char memory[];"


_LIBRARIES = {}


def compiled(name, folder):
    """The library of csrc/cuda/NAME.cu, every launch run thread by thread on the CPU; made once per process."""
    if name not in _LIBRARIES:
        _LIBRARIES[name] = _compile(name, folder)
    return _LIBRARIES[name]


def _compile(name, folder):
    kernel = (SOURCES / f"{name}.cu").read_text()
    replaced = r"emulation::run(\2, \3, \4, [&] { \1(\5); });"
    emulated, launches = LAUNCH.subn(replaced, kernel)
    assert launches == kernel.count("<<<") > 0
    here = "unsigned char* memory = reinterpret_cast<unsigned char*>(emulation::shared_memory.data());"
    (folder / f"{name}.cpp").write_text(emulated.replace(DYNAMIC, here))
    output = folder / f"{name}.so"
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-Wall", "-Werror", "-Wno-unknown-pragmas"]
    # gcc does not see that a lane without a place reads nothing
    flags.append("-Wno-maybe-uninitialized")
    command = [COMPILER, *flags, f"-I{EMULATION}", f"-I{SOURCES}", str(folder / f"{name}.cpp"), "-o", str(output)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(output))


def address(tensor):
    """A tensor, or None, as the library takes it."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


size = ctypes.c_int64


def layouts(scores):
    """The same rows aligned to 16 bytes, and one number off."""
    rows, width = scores.shape
    stride = -(-width // 4) * 4 + 4
    wide = torch.full((rows, stride), torch.nan)
    wide[:, :width] = scores
    odd = torch.full((rows * (width + 1) + 1,), torch.nan)
    shifted = odd[1:].view(rows, width + 1)[:, :width]
    shifted.copy_(scores)
    return {"aligned": wide[:, :width], "odd": shifted}

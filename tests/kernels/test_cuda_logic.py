"""The CUDA select, compiled for the CPU by a small emulation and run thread by thread (see cuda_emulation/)."""

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.kernels.hard_rows import INPUTS, by_sorting

SOURCES = Path(__file__).parents[2] / "csrc" / "cuda"
EMULATION = Path(__file__).parent / "cuda_emulation"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))

pytestmark = pytest.mark.skipif(COMPILER is None or not SOURCES.exists(), reason="needs a C++ compiler and csrc/")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulated")
    kernel = (SOURCES / "topk_select.cu").read_text()
    launch = re.compile(r"(\w+)<<<(.*?), (\w+), 0, .*?>>>\((.*?)\);", re.DOTALL)
    emulated, launches = launch.subn(r"emulation::run(\2, \3, [&] { \1(\4); });", kernel)
    assert launches == 1
    (folder / "topk_select.cpp").write_text(emulated)
    output = folder / "emulated.so"
    command = [COMPILER, "-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", f"-I{EMULATION}", f"-I{SOURCES}"]
    subprocess.run([*command, str(folder / "topk_select.cpp"), "-o", str(output)], check=True)
    return ctypes.CDLL(str(output))


def select(library, scores, k, bias=None, scale=None, relu=False):
    rows, width = scores.shape
    values = torch.full((rows, k), torch.nan)
    indices = torch.full((rows, k), -1, dtype=torch.int32)
    address = lambda t: ctypes.c_void_p(None if t is None else t.data_ptr())  # noqa: E731
    size = ctypes.c_int64
    code = library.saerl_topk_select(
        address(scores), size(rows), size(width), size(scores.stride(0)), address(bias), address(scale),
        size(k), int(relu), address(values), address(indices), 0, None,
    )  # fmt: skip
    return code, values, indices


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize(("width", "k"), [(1, 1), (33, 33), (700, 64), (5000, 20), (4097, 512)])
def test_selects_what_a_stable_sort_selects(library, name, width, k):
    scores = INPUTS[name](width)[:2].contiguous()
    code, values, indices = select(library, scores, k)
    wanted_values, wanted_indices = by_sorting(scores, k)
    assert code == 0
    assert torch.equal(values, wanted_values)
    assert torch.equal(indices, wanted_indices)


def test_more_groups_than_places(library):
    scores = torch.randn(1, 1_100_000, generator=torch.Generator().manual_seed(0))
    _, values, indices = select(library, scores, 8)
    wanted_values, wanted_indices = by_sorting(scores, 8)
    assert torch.equal(values, wanted_values)
    assert torch.equal(indices, wanted_indices)


def test_bias_scale_relu_and_row_stride(library):
    generator = torch.Generator().manual_seed(0)
    around = torch.randn(3, 900, generator=generator)
    scores, bias = around[:, 100:801], torch.randn(701, generator=generator)
    scale = torch.rand(701, generator=generator)
    _, values, indices = select(library, scores, 300, bias, scale, relu=True)
    wanted_values, wanted_indices = by_sorting((scores + bias) * scale, 300)
    assert torch.equal(values, wanted_values.clamp(min=0))
    assert torch.equal(indices, wanted_indices)


@pytest.mark.parametrize("position", [0, 77, 699])
def test_nan_row_is_marked(library, position):
    scores = torch.rand(2, 700, generator=torch.Generator().manual_seed(0))
    scores[0, position] = torch.nan
    _, values, indices = select(library, scores, 5)
    assert values[0].isnan().all()
    assert indices[0].tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(indices[1:], by_sorting(scores[1:], 5)[1])


def test_what_it_has_no_room_for_is_refused(library):
    assert select(library, torch.zeros(1, 600), 513)[0] != 0
    assert select(library, torch.zeros(1, 4), 5)[0] != 0
    assert select(library, torch.zeros(0, 4), 2)[0] == 0

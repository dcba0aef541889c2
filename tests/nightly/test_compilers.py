"""GPU code under the compilers of others: Triton as older torch brings it, and nvcc with every warning an error."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from saerl_fast.kernels import triton_runtime
from tests.kernels.test_compile_ahead import MOST_REGISTERS, compiled

ROOT = Path(__file__).parents[2]
OLDEST_TRITON = "3.6.0"
"""That of torch 2.11."""

pytestmark = pytest.mark.nightly


@pytest.mark.skipif(not triton_runtime.installed(), reason="triton is not installed")
def test_every_triton_kernel_compiles_with_the_oldest(tmp_path, monkeypatch, record_property):
    folder = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    fetched = subprocess.run([*command, f"triton=={OLDEST_TRITON}"], capture_output=True, text=True, check=False)
    if fetched.returncode != 0:
        pytest.skip(f"triton {OLDEST_TRITON} is not to be had here: {fetched.stderr.strip().splitlines()[-1]}")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    seen = [sys.executable, "-c", "import triton; print(triton.__version__)"]
    assert subprocess.run(seen, capture_output=True, text=True, check=True).stdout.strip() == OLDEST_TRITON
    found = compiled(tmp_path / "cache")
    assert {name.split("-")[0] for name in found} == set(MOST_REGISTERS)
    record_property("triton", OLDEST_TRITON)
    record_property("forms", len(found))
    for name, taken in found.items():
        # it parks one number of the loops over a queue, where the newest does not
        assert taken["stack"] <= 8, (name, taken)
        most = 160 if name.startswith("scores") and name.endswith("sm_90") else 99
        assert taken["shared"] <= most * 1024, (name, taken)


@pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree")
@pytest.mark.parametrize("source", sorted(path.name for path in (ROOT / "csrc" / "cuda").glob("*.cu")))
def test_nvcc_warns_of_nothing_for_any_target(source, tmp_path, monkeypatch, record_property):
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    setup = runpy.run_path(str(ROOT / "setup.py"), run_name="read")
    try:
        nvcc = setup["find_nvcc"]()
    except setup["Missing"] as error:
        pytest.skip(str(error))
    strict = ["--Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra", "-Xptxas", "--warn-on-spills"]
    targets = [f"-gencode={target}" for target in setup["cuda_targets"](nvcc)]
    command = [nvcc, *setup["NVCC_FLAGS"], *strict, *targets, "-c", f"csrc/cuda/{source}", "-o", str(tmp_path / "made")]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert not made.stdout + made.stderr
    record_property("targets", len(targets))
    record_property("names", [target.split(",code=")[1] for target in targets])

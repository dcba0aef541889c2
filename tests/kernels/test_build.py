"""The build in a copy of the sources: without a compiler, with a broken one, with broken code."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IGNORED = shutil.ignore_patterns("*.so", "__pycache__", "_build.json", "build", "*.egg-info", ".git", ".venv", "out")

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree")


@pytest.fixture
def sources(tmp_path):
    folder = tmp_path / "sources"
    folder.mkdir()
    for name in (
        "setup.py",
        "pyproject.toml",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "constraints.txt",
        ".clang-format",
    ):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder)
    for name in ("csrc", "saerl_fast"):
        shutil.copytree(ROOT / name, folder / name, ignore=IGNORED)
    (folder / "tests").mkdir()
    return folder


def build(sources, mode, **environment):
    """`setup.py build`; returns the finished process and the folder of the package."""
    environment = {**os.environ, "SAERL_BUILD": mode, **environment}
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", "made", "--build-temp", "temp"]
    run = subprocess.run(command, cwd=sources, env=environment, capture_output=True, text=True, check=False)
    return run, sources / "made" / "saerl_fast"


def record(package):
    return json.loads((package / "_build.json").read_text())


def script(folder, text):
    file = folder / "compiler"
    file.write_text("#!/bin/sh\n" + text)
    file.chmod(0o755)
    return str(file)


def test_without_a_module_the_reference_works_and_the_reason_is_shown(sources):
    run, package = build(sources, "none")
    assert run.returncode == 0, run.stderr
    assert not list(package.glob("_native*"))
    code = (
        # an editable installation would lend its own module
        "import sys; sys.meta_path[:] = [finder for finder in sys.meta_path if 'Editable' not in str(finder)]\n"
        "import torch, saerl_fast.ops as ops, saerl_fast.env as env\n"
        "x, w = torch.tensor([[3.0, 5.0]]), torch.eye(2)\n"
        "print(ops.topk_encode(x, w, torch.zeros(2), 1).indices.tolist())\n"
        "print(env.env_report())\n"
        "ops.topk_encode(x, w, torch.zeros(2), 1, backend='cpu')"
    )
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    used = subprocess.run(
        [sys.executable, "-c", code], cwd=sources.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert used.stdout.startswith("[[1]]\n"), used.stderr
    assert "the compiled module is missing: built with SAERL_BUILD=none" in used.stdout
    assert "topk_encode runs on reference" in used.stderr
    assert "BackendUnavailable: topk_encode: 'cpu' was asked for" in used.stderr


def test_no_compiler_is_one_clear_line(sources):
    run, package = build(sources, "auto", CXX="/nowhere/c++")
    assert run.returncode == 0, run.stderr
    lines = [line for line in run.stderr.splitlines() if line.startswith("saerl_fast:")]
    assert lines == [
        "saerl_fast: installing without the compiled module, so CPU kernels run as plain PyTorch, slower: "
        "no C++ compiler found (/nowhere/c++)"
    ]
    assert record(package)["reason"] == "no C++ compiler found (/nowhere/c++)"
    assert record(package)["native"] is None


@pytest.mark.parametrize("mode", ["cpu", "cuda"])
def test_asked_for_fails_loudly_without_a_compiler(sources, mode):
    run, _ = build(sources, mode, CXX="/nowhere/c++")
    assert run.returncode != 0
    assert f"SAERL_BUILD={mode}, but no C++ compiler found (/nowhere/c++)" in run.stderr


def test_cuda_asked_for_fails_loudly_without_nvcc(sources):
    compiler = script(sources, "exit 0\n")
    run, _ = build(sources, "cuda", CXX=compiler, CUDA_HOME="/nowhere", PATH="/nowhere")
    assert run.returncode != 0
    assert "SAERL_BUILD=cuda, but nvcc not found (PATH, /nowhere/bin)" in run.stderr


@pytest.mark.parametrize("with_ninja", [True, False])
def test_a_compile_error_is_shown_with_its_consequence(sources, with_ninja, tmp_path):
    if with_ninja and shutil.which("ninja") is None:
        pytest.skip("ninja is not installed")
    compiler = script(sources, 'echo "threads.cpp:7: error: this is broken"; exit 1\n')
    path = {} if with_ninja else {"PATH": "/nowhere"}
    run, package = build(sources, "auto", CXX=compiler, CUDA_HOME="/nowhere", **path)
    assert run.returncode == 0, run.stderr
    assert "threads.cpp:7: error: this is broken" in run.stderr
    assert "installing without the compiled module" in run.stderr
    assert record(package)["reason"] == "the C++ build failed: threads.cpp:7: error: this is broken"
    run, _ = build(sources, "cpu", CXX=compiler, **path)
    assert run.returncode != 0
    assert "SAERL_BUILD=cpu, but the C++ build failed: threads.cpp:7: error" in run.stderr


def test_a_failing_nvcc_costs_only_the_cuda_kernels(sources, tmp_path):
    """A compiler that makes empty files passes; the nvcc beside it fails."""
    compiler = script(sources, 'for last; do :; done; : > "$last"\n')
    home = sources / "cuda" / "bin"
    home.mkdir(parents=True)
    (home / "nvcc").write_text(
        "#!/bin/sh\n[ $1 = --list-gpu-code ] && echo sm_90 && exit\necho 'error: no nvcc'; exit 1\n"
    )
    (home / "nvcc").chmod(0o755)
    run, package = build(sources, "auto", CXX=compiler, CUDA_HOME=str(home.parent), PATH="/usr/bin:/bin")
    assert run.returncode == 0, run.stderr
    assert "building without CUDA kernels: the CUDA build failed: error: no nvcc" in run.stderr
    assert record(package)["cuda"] is None
    assert record(package)["native"] is not None
    assert list(package.glob("_native*.so"))


def test_unknown_mode(sources):
    run, _ = build(sources, "fast")
    assert run.returncode != 0
    assert "SAERL_BUILD must be one of auto, cpu, cuda, none; got 'fast'" in run.stderr


def test_sdist_carries_the_sources(sources):
    command = [sys.executable, "setup.py", "-q", "sdist", "-d", "made"]
    subprocess.run(command, cwd=sources, check=True, capture_output=True)
    (archive,) = (sources / "made").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    wanted = {str(file.relative_to(ROOT)) for file in (ROOT / "csrc").rglob("*") if file.is_file()}
    assert wanted | {"setup.py", "pyproject.toml"} <= names
    assert not any(name.endswith(".so") for name in names)


@pytest.mark.slow
def test_builds_without_ninja(sources, tmp_path):
    found = shutil.which(os.environ.get("CXX", "c++"))
    if found is None:
        pytest.skip("no C++ compiler")
    # what is built is not run here, so that it need not be fast
    compiler = script(sources, f'exec {found} "$@" -O0\n')
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("as", "ld", "sh"):
        if shutil.which(tool):
            (tools / tool).symlink_to(shutil.which(tool))
    run, package = build(sources, "cpu", CXX=compiler, PATH=str(tools))
    assert run.returncode == 0, run.stderr
    assert list(package.glob("_native*.so"))
    assert record(package)["cuda_reason"] == "built with SAERL_BUILD=cpu"

"""benchmarks/gpu.sh on a machine without a GPU: it goes all the way, says what it did, and imports no trainer."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a script for Linux")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An environment in which importing trl, datasets or sae_lens fails."""
    folder = tmp_path_factory.mktemp("blocked")
    for name in ("trl", "datasets", "sae_lens"):
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is not to be imported here')\n")
    return {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
        "SAERL_GPU_PLACE": str(folder / "place"),
    }


def run(environment, *words):
    return subprocess.run([SCRIPT, *words], env=environment, capture_output=True, text=True, check=False)


def test_a_dry_run_of_three_slices(environment, tmp_path):
    tests = run(environment, "--out", tmp_path, "--slice", "tests", "--dry-run")
    assert tests.returncode == 0, tests.stdout + (tmp_path / "tests.log").read_text()
    assert re.search(r"^build: (ok|there already)", tests.stdout, re.MULTILINE)
    assert re.search(r"^tests: ok", tests.stdout, re.MULTILINE)
    collected = (tmp_path / "tests.log").read_text()
    for file in ("tests/kernels/test_topk_cuda.py", "tests/extract/test_one_wait.py"):
        assert file in collected
    assert "ERROR" not in collected
    assert "tests/ops/" not in collected
    operations = run(environment, "--out", tmp_path, "--slice", "ops", "--dry-run")
    assert re.search(r"^ops: ok", operations.stdout, re.MULTILINE)
    assert "tests/ops/test_op_table_gpu.py" in (tmp_path / "tests.log").read_text()

    kmeans = run(environment, "--out", tmp_path, "--slice", "kmeans", "--dry-run")
    assert kmeans.returncode == 0, kmeans.stdout
    assert kmeans.stdout == (tmp_path / "summary.txt").read_text()
    assert "build: there already" in kmeans.stdout
    assert re.search(r"^kmeans: ok.*\n  kmeans_iter rows=60 .* ms", kmeans.stdout, re.MULTILINE)
    found = json.loads((tmp_path / "kmeans.json").read_text())
    assert [row["exact"] for row in found["results"]] == [True, True]
    if (ROOT / ".git").exists():
        assert len(found["machine"]["commit"].split()[0]) == 40
    assert len(list(tmp_path.iterdir())) <= 8


def test_a_build_that_fails_is_the_end_and_the_status(environment, tmp_path):
    without = {**environment, "PYTHON": "false", "SAERL_GPU_PLACE": str(tmp_path / "place")}
    done = run(without, "--out", tmp_path / "out", "--slice", "tests", "--dry-run")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("build: FAILED with 1 ")


def test_an_absent_tool_is_a_line(environment, tmp_path):
    without = {
        **environment,
        "PYTHON": "true",
        "SAERL_GPU_PLACE": str(tmp_path / "place"),
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    }
    if Path("/usr/local/cuda/bin/compute-sanitizer").exists():
        pytest.skip("the tool is there")
    done = run(without, "--out", tmp_path, "--slice", "sanitize", "--dry-run")
    assert done.returncode == 0
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        assert f"{tool}: not run, compute-sanitizer is not installed" in done.stdout


@pytest.mark.parametrize(
    ("answer", "code", "line", "status"),
    [
        ("========= Error: Device not supported", 1, "memcheck: not run, it refuses the device", 0),
        ("========= ERROR SUMMARY: 3 errors", 86, "memcheck: FAILED with 86", 1),
        ("5 passed in 2 s\\n========= ERROR SUMMARY: 0 errors", 0, "memcheck: ok, 1 summaries without an error", 0),
        (
            "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
            0,
            "racecheck: ok, 1 summaries without an error",
            0,
        ),
        # what it calls a warning does not change its status
        (
            "========= RACECHECK SUMMARY: 2 hazards displayed (0 errors, 2 warnings)",
            0,
            "racecheck: FAILED with 0; tests.log: ========= RACECHECK SUMMARY: 2 hazards",
            1,
        ),
        ("5 passed in 2 s", 0, "memcheck: FAILED with 0", 1),
    ],
)
def test_what_a_sanitizer_says(environment, tmp_path, answer, code, line, status):
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\nprintf '{answer}\\n'\nexit {code}\n")
    tool.chmod(0o755)
    found = {
        **environment,
        "PYTHON": "true",
        "SAERL_GPU_PLACE": str(tmp_path / "place"),
        "PATH": f"{tool.parent}:{os.environ['PATH']}",
    }
    done = run(found, "--out", tmp_path / "out", "--slice", "sanitize", "--dry-run")
    assert line in done.stdout
    assert done.returncode == status


@pytest.mark.parametrize("words", [[], ["--out"], ["--out", "x", "--slice", "nonsense"], ["--fast"]])
def test_mistakes_end_with_2_and_the_usage(environment, words):
    done = run(environment, *words)
    assert done.returncode == 2
    assert "--slice NAME" in done.stdout

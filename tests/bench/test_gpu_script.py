"""benchmarks/gpu.sh on a machine without a GPU: it goes all the way, says what it did, and imports no trainer."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from saerl_fast.bench import gpu_suite

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


STAND_IN = '''#!{python} -S
"""In place of Python: installs nothing, passes every test, and writes a result for every row it is asked for."""
import json, os, sys, time
words = sys.argv[1:]
with open(os.environ["ASKED"], "a") as asked:
    asked.write(" ".join(words) + "\\n")
if "install" in words:
    os.makedirs(words[words.index("--target") + 1])
elif "pytest" in words:
    print("3 passed in 0.1 s\\n========= ERROR SUMMARY: 0 errors")
elif "bench" in words:
    found = []
    for row in words[words.index("--only") + 1].split(","):
        if row == os.environ.get("BREAKS"):
            sys.exit("Segmentation fault")
        if row == os.environ.get("HANGS"):
            time.sleep(60)
        found.append({{"name": row}})
        with open(words[words.index("--json") + 1], "w") as file:
            json.dump({{"results": found}}, file)
        print(row, "rows=1: 1.0 ms", flush=True)
'''
"""What a slice does is tested elsewhere, and whole in the nightly tests; this is about the script around it."""
TEXT = SCRIPT.read_text()
SLICES = re.search(r'case "\$slice" in all \| (.*?)\) ;;', TEXT)[1].split(" | ")
SUITES = {name: rows.split(",") for name, rows in re.findall(r"suite (\w+) ([\w,]+) ;;", TEXT)}


@pytest.fixture
def stand_in(tmp_path):
    program = tmp_path / "python"
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    return {
        **os.environ,
        "PYTHON": str(program),
        "SAERL_GPU_PLACE": str(tmp_path / "place"),
        "ASKED": str(tmp_path / "asked"),
    }


def rows_of(file):
    return [result["name"] for result in json.loads(file.read_text())["results"]]


def test_the_usage_names_every_slice_and_the_slices_hold_every_row():
    usage = re.search(r"--slice    (.*?); without", TEXT)[1]
    assert usage.split(" | ") == SLICES
    assert {"build", "tests", "ops", "sanitize", *SUITES} == set(SLICES)
    assert sorted(row for rows in SUITES.values() for row in rows) == sorted(gpu_suite.ROWS)


@pytest.mark.parametrize("name", SLICES)
def test_each_slice_goes_through_and_ends_with_its_summary(stand_in, tmp_path, name):
    out = tmp_path / "out"
    done = run(stand_in, "--out", out, "--slice", name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == (out / "summary.txt").read_text()
    assert re.search(r"^build: ok", done.stdout, re.MULTILINE)
    if name in SUITES:
        assert rows_of(out / f"{name}.json") == SUITES[name]
        assert re.search(rf"^{name}: ok, \d+ s\n  {SUITES[name][0]} rows=1", done.stdout, re.MULTILINE)
    asked = (tmp_path / "asked").read_text()
    (install,) = (line for line in asked.splitlines() if " install " in line)
    assert all(word in install for word in ("--no-index", "--no-build-isolation", "--no-deps"))
    # older releases of setuptools refuse the whole file for it
    assert not re.search("^license", (tmp_path / "place.sources" / "pyproject.toml").read_text(), re.MULTILINE)


def test_all_slices_leave_eight_files_at_most_and_the_summary_comes_last(stand_in, tmp_path):
    out = tmp_path / "out"
    done = run(stand_in, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(out.iterdir())) <= 8
    assert done.stdout == (out / "summary.txt").read_text()
    said = [line.split(":")[0] for line in done.stdout.splitlines() if re.match(r"\w+: ", line)]
    tools = ["memcheck", "racecheck", "initcheck", "synccheck"]
    assert said == ["build", "tests", "ops", *tools, *SUITES]


@pytest.mark.parametrize("name", SUITES)
def test_a_slice_that_breaks_loses_its_last_rows_alone(stand_in, tmp_path, name):
    out = tmp_path / "out"
    broken = SUITES[name][-1]
    done = run({**stand_in, "BREAKS": broken}, "--out", out)
    assert done.returncode == 1
    assert f"{name}: FAILED with 1 after" in done.stdout
    assert "bench.log: Segmentation fault" in done.stdout
    for other, rows in SUITES.items():
        assert rows_of(out / f"{other}.json") == [row for row in rows if row != broken]
        assert (f"{other}: ok" in done.stdout) == (other != name)
        assert all(f"  {row} rows=1" in done.stdout for row in rows if row != broken)


def test_a_slice_that_hangs_is_ended_and_keeps_what_it_has(stand_in, tmp_path):
    out = tmp_path / "out"
    hanging = SUITES["forward"][-1]
    done = run({**stand_in, "HANGS": hanging, "SAERL_GPU_LONGEST": "4"}, "--out", out, "--slice", "forward")
    assert done.returncode == 1
    assert re.search(r"^forward: FAILED, not done after [0-4] s; bench.log", done.stdout, re.MULTILINE)
    assert rows_of(out / "forward.json") == SUITES["forward"][:-1]
    # graphs are made by a compiler of its own, which takes longest and is likeliest to hang
    assert hanging == "capture_compiled"


@pytest.mark.parametrize("words", [[], ["--out"], ["--out", "x", "--slice", "nonsense"], ["--fast"]])
def test_mistakes_end_with_2_and_the_usage(environment, words):
    done = run(environment, *words)
    assert done.returncode == 2
    assert "--slice NAME" in done.stdout

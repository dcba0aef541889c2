"""benchmarks/gpu.sh, every slice one after the other, as far as it goes without a GPU: every row, proved."""

import json
import re
import sys

import pytest

from saerl_fast.bench import gpu_suite
from tests.bench.test_gpu_script import SUITES, environment, run  # noqa: F401

pytestmark = [pytest.mark.nightly, pytest.mark.skipif(sys.platform != "linux", reason="a script for Linux")]


def test_all_slices(environment, tmp_path, record_property):  # noqa: F811
    done = run(environment, "--out", tmp_path, "--dry-run")
    assert done.returncode == 0, done.stdout + (tmp_path / "bench.log").read_text()[-4000:]
    assert len(list(tmp_path.iterdir())) <= 8
    assert done.stdout == (tmp_path / "summary.txt").read_text()
    found = [row for name in SUITES for row in json.loads((tmp_path / f"{name}.json").read_text())["results"]]
    assert [row["name"] for row in found] == [row for rows in SUITES.values() for row in rows]
    assert {row["name"] for row in found} == set(gpu_suite.ROWS)
    # the select alone is a compiled one, and a dry run compiles nothing
    proved = [row["name"] for row in found if row.get("exact")]
    assert set(gpu_suite.ROWS) - set(proved) <= {"select"}
    record_property("rows", len(proved))
    for name, seconds in re.findall(r"^(\w+): ok, (\d+) s$", done.stdout, re.MULTILINE):
        record_property(f"{name}_s", int(seconds))

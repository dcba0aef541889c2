"""`saerl env`: complete, and unbreakable where things are missing."""

import subprocess
import sys

from saerl_fast import env
from saerl_fast.kernels import native
from saerl_fast.ops.choice import BACKENDS
from saerl_fast.ops.table import TABLE


def test_every_cell_is_filled():
    operations = env.env_dict()["operations"]
    assert set(operations) == set(TABLE)
    for cells in operations.values():
        assert tuple(cells) == BACKENDS
        assert cells["reference"] == "yes"
        assert all(cells.values())


def test_report_has_one_line_per_operation_and_every_reason():
    report = env.env_report()
    described = env.env_dict()
    for op, cells in described["operations"].items():
        (line,) = (line for line in report.splitlines() if line.startswith(f"{op} "))
        assert line.count("yes") == list(cells.values()).count("yes")
        assert line.count("[") == len(BACKENDS) - list(cells.values()).count("yes")
        for reason in cells.values():
            assert reason in report
    for package in env.PACKAGES:
        assert package in report
    assert described["versions"]["torch"] in report


def test_absent_package_is_said_to_be_absent():
    assert env._version("no-such-package") == "not installed"


def test_missing_module_is_the_reason(monkeypatch):
    monkeypatch.setattr(native, "_load", lambda: (None, "the compiled module is missing: no compiler"))
    described = env.env_dict()
    assert described["operations"]["topk_encode"]["cpu"] == "the compiled module is missing: no compiler"
    assert described["compiled module"] == {"missing": "the compiled module is missing: no compiler"}
    assert "no compiled module" in env.env_report()


def test_without_torch():
    code = "import sys; sys.modules['torch'] = None; from saerl_fast import env; print(env.env_report())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "torch cannot be imported" in run.stdout
    assert "operations" in run.stdout

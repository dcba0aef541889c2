"""What the large tests found goes into a file where asked: --findings FILE."""

import json
import platform
from datetime import date
from pathlib import Path

import torch

from tests.nightly.sizes import SHARE
from tests.ops.conftest import threads  # noqa: F401

FINDINGS = []


def pytest_runtest_logreport(report):
    if report.when == "call" and report.user_properties:
        found = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 1), "share": SHARE}
        FINDINGS.append(found | dict(report.user_properties))


def pytest_sessionfinish(session):
    file = session.config.getoption("--findings")
    if file and FINDINGS:
        machine = {"processor": processor(), "torch": torch.__version__, "threads": torch.get_num_threads()}
        content = {"date": date.today().isoformat(), "machine": machine, "findings": FINDINGS}
        Path(file).write_text(json.dumps(content, indent=1) + "\n")


def processor():
    described = Path("/proc/cpuinfo")
    names = [line for line in described.read_text().splitlines() if "model name" in line] if described.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor()

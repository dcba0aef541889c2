"""What the large tests found goes into a file where asked: --findings FILE."""

import json
import platform
from datetime import date
from pathlib import Path

import torch

from tests.nightly.sizes import SHARE


class Findings:
    """A plugin of pytest: every test that recorded a property, with its outcome and its time."""

    def __init__(self, file):
        self.file, self.found = Path(file), []

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.user_properties:
            found = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 1)}
            self.found.append(found | {"share": SHARE} | dict(report.user_properties))

    def pytest_sessionfinish(self):
        if self.found:
            machine = {"processor": processor(), "torch": torch.__version__, "threads": torch.get_num_threads()}
            content = {"date": date.today().isoformat(), "machine": machine, "findings": self.found}
            self.file.write_text(json.dumps(content, indent=1) + "\n")


def processor():
    described = Path("/proc/cpuinfo")
    names = [line for line in described.read_text().splitlines() if "model name" in line] if described.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor()

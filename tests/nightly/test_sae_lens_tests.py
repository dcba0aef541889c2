"""sae-lens's own tests of its SAEs, from a checkout of its sources: what passes with its SAEs passes with accelerated ones.

Its distributions hold no tests; ``--sae-lens-tests DIR`` is a checkout at the tag of the version that is installed.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("sae_lens")

HERE = Path(__file__).parent
FILES = ("standard", "topk", "abstopk", "jumprelu", "gated", "transcoder", "sae")


def run(checkout, report, *more):
    """Name of each test -> passed, failed or skipped."""
    found = [
        checkout / "tests" / "saes" / f"test_{kind}{'_sae' * (kind not in ('sae', 'transcoder'))}.py" for kind in FILES
    ]
    files = [str(file) for file in found if file.exists()]
    assert files, f"no tests of sae-lens in {checkout}"
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        "-o",
        "addopts=",
        *more,
    ]
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), str(checkout)])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*words, "--continue-on-collection-errors", f"--junitxml={report}", *files],
        cwd=checkout, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert report.exists(), done.stdout[-2000:] + done.stderr[-2000:]
    results = {}
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = {child.tag for child in case} & {"failure", "error", "skipped"}
        results[f"{case.get('classname')}::{case.get('name')}"] = outcome.pop() if outcome else "passed"
    return results


@pytest.mark.nightly
def test_what_passes_with_their_saes_passes_with_accelerated_ones(request, record_property, tmp_path):
    if not (checkout := request.config.getoption("--sae-lens-tests")):
        pytest.skip("needs --sae-lens-tests DIR, a checkout of sae-lens at the version that is installed")
    checkout, counts = Path(checkout).resolve(), tmp_path / "counts.json"
    plain = run(checkout, tmp_path / "plain.xml")
    fast = run(checkout, tmp_path / "fast.xml", "-p", "accelerated_saes", f"--accelerated-counts={counts}")
    passed = [name for name, outcome in plain.items() if outcome == "passed"]
    ran = json.loads(counts.read_text())
    record_property("cases", len(passed))
    record_property("cases_there", len(plain))
    record_property("sae_lens", version("sae-lens"))
    record_property("ran", ran)
    print(
        f"\nsae-lens's own: {len(passed)} of {len(plain)} tests pass without us (the rest want a network or packages);"
    )
    print("; ".join(f"{name} {number}" for name, number in sorted(ran.items())))
    assert [name for name in passed if fast.get(name) != "passed"] == []
    for kind in ("standard", "topk", "abstopk", "jumprelu", "gated"):
        assert ran.get(f"{kind}: sparse compared", 0) > 0, kind
    assert ran["topk: ours"] > 0
    assert ran["abstopk: ours"] > 0

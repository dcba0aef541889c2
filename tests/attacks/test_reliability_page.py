"""docs/reliability.md says what the files of results say, and names every seed and test there is."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attacks.seeds import SEEDS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"

if not PAGE.exists():
    pytest.skip("needs the source tree", allow_module_level=True)


def newest(folder):
    return json.loads(max((ROOT / "tests" / folder / "results").glob("*.json")).read_text())


def seed_rows():
    """(name, files, caught by) of each line of the table of seeds."""
    table = PAGE.read_text().split("## Seeded bugs")[1].split("\n## ")[0]
    return [tuple(cell.strip() for cell in row.strip("|").split("|")) for row in re.findall(r"^\|.*\|$", table, re.M)][
        2:
    ]


def test_the_table_of_seeds_is_that_of_the_last_run():
    verdicts = newest("attacks")["verdicts"]
    assert [row[0] for row in seed_rows()] == [verdict["seed"] for verdict in verdicts]
    for (_, file, how), verdict in zip(seed_rows(), verdicts, strict=True):
        assert verdict["caught"]
        assert file == f"`{verdict['file']}`"
        assert how == verdict["how"].replace("|", "\\|") or how == f"`{verdict['how']}`"


def test_the_last_run_planted_every_seed():
    assert {verdict["seed"] for verdict in newest("attacks")["verdicts"]} == {seed.name for seed in SEEDS}


SIZES = (
    "rows", "pairs", "runs", "forks", "kills", "states", "sizes", "flips", "truncations_and_swaps", "rounds", "texts",
    "exceptions", "inputs", "cases", "forms", "targets",
)  # fmt: skip


def nightly_findings():
    """The last finding of each test, over all files of results."""
    found = {}
    for path in sorted((ROOT / "tests" / "nightly" / "results").glob("*.json")):
        content = json.loads(path.read_text())
        assert content["date"] in PAGE.read_text()
        found |= {finding["test"]: finding for finding in content["findings"]}
    return found.values()


def test_figures_of_the_nightly_run_are_on_the_page():
    page = PAGE.read_text()
    for finding in nightly_findings():
        assert finding["outcome"] == "passed"
        file, name = re.search(r"(\w+\.py)::(\w+)", finding["test"]).groups()
        lines = [line for line in page.splitlines() if line.startswith("|") and (name in line or file in line)]
        assert lines, finding["test"]
        size = next(finding[kind] for kind in SIZES if kind in finding)
        assert any(f"{size:,}" in line.split("|")[-2] for line in lines), finding


def test_every_file_it_names_exists():
    for name in re.findall(r"`((?:nightly|ops|kernels|attacks|extract|formats)/\w+\.py)", PAGE.read_text()):
        assert (ROOT / "tests" / name).exists(), name


def test_findings_are_written_wherever_the_test_lies(tmp_path):
    file = tmp_path / "found.json"
    test = "tests/extract/test_backoff.py::test_no_row_is_lost_and_a_batch_is_tried_log2_times[daily]"
    command = [sys.executable, "-m", "pytest", test, "--findings", str(file)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (found,) = json.loads(file.read_text())["findings"]
    assert (found["test"], found["outcome"], found["cases"]) == (test, "passed", 200)

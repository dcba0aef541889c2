"""saerl bench: exit codes, the file it writes, and its twin python -m benchmarks."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.table import markdown
from saerl_fast.bench import machine
from saerl_fast.cli import main
from tests.bench.test_suite import spoil_row

ROOT = Path(__file__).parent.parent.parent


def test_results_are_written_and_shown(tmp_path, capsys):
    file = tmp_path / "results.json"
    assert main(["bench", "--tiny", "--only", "select,pool", "--threads", "1", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert [(row["name"], row["exact"]) for row in found["results"]] == [("select", True), ("pool", True)]
    assert found["machine"]["threads"] == 1
    shown = capsys.readouterr().out
    assert "select rows=5 latents=300 k=8: " in shown
    assert "in processor time" in shown


def test_a_wrong_result_ends_with_1_and_shows_no_speed(tmp_path, capsys, monkeypatch):
    spoil_row(monkeypatch, "pool")
    file = tmp_path / "results.json"
    assert main(["bench", "--tiny", "--only", "pool", "--json", str(file)]) == 1
    (row,) = json.loads(file.read_text())["results"]
    assert row["exact"] is False
    assert "ours_ms" not in row
    shown = capsys.readouterr().out
    assert "WRONG, no speed: a mean is off" in shown
    assert " ms" not in shown


@pytest.mark.parametrize("words", [["--only", "speed"], ["--threads", "0"], ["--rounds", "0"], ["--tiny", "--quick"]])
def test_mistakes_end_with_2(words, capsys):
    assert main(["bench", *words]) == 2
    assert "InputError" in capsys.readouterr().err


def test_python_m_benchmarks_is_the_same():
    words = [sys.executable, "-m", "benchmarks", "--tiny", "--only", "select"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("select rows=5 latents=300 k=8: ")


def test_the_commit_is_that_of_the_clone_or_none(monkeypatch, tmp_path):
    if (ROOT / ".git").exists():
        assert len(machine.commit().split()[0]) == 40
    monkeypatch.setattr(machine, "PACKAGE", tmp_path)
    assert machine.commit() is None


def test_results_on_file_are_whole():
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        found = json.loads(path.read_text())
        assert found["machine"]["date"], path
        assert all(row.get("exact") or row.get("skipped") for row in found["results"]), path


def test_the_tables_of_the_docs_are_those_of_their_files():
    text = (ROOT / "docs" / "measured.md").read_text()
    files = sorted(set(re.findall(r"benchmarks/results/[\w.-]+\.json", text)))
    assert files, "no figure without a results file"
    lines = [line for file in files for line in markdown(json.loads((ROOT / file).read_text()))]
    assert set(re.findall(r"^\|.*\|$", text, flags=re.MULTILINE)) == set(lines)

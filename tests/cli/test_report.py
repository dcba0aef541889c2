"""saerl report: where the page goes, and what a user gets wrong. That its options arrive: tests/report."""

import json
import re
from pathlib import Path

import pytest

from saerl_fast.cli import build_parser, main

SANITY = {"explained_variance": 0.7125, "l0": 16.0, "dead_share": 0.04, "k": 16, "d_sae": 512, "rows": 4096}


def test_the_page_lies_in_the_folder_unless_told_otherwise(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    (tmp_path / "sae.json").write_text(json.dumps(SANITY))
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "0.71" in text
    assert "k is 16" in text
    assert "4.0\u00a0%" in text


def test_what_a_user_gets_wrong_is_named(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["report", str(tmp_path)]) == 2
    assert "FormatError" in capsys.readouterr().err
    (tmp_path / "sae.json").write_text("{")
    assert main(["report", str(tmp_path)]) == 2
    assert "sae.json: not JSON" in capsys.readouterr().err
    (tmp_path / "sae.json").write_text(json.dumps(SANITY))
    assert main(["report", str(tmp_path), "--topic", "topic"]) == 2
    assert "--topic names a column of a feature folder" in capsys.readouterr().err


def test_the_command_in_the_docs_is_one():
    page = (Path(__file__).parents[2] / "docs" / "report.md").read_text()
    (line,) = re.findall(r"^saerl .*$", page, flags=re.MULTILINE)
    args = build_parser()[0].parse_args(line.split()[1:])
    assert (args.command, args.folder, args.topic, args.level, args.defect) == (
        "report",
        "out/demo",
        "topic",
        "level",
        "defect",
    )

"""Pieces absent, broken, moved, foreign: said on the page, or refused by name; the page is written whole or not at all."""

import errno
import json
import os
import re
import shutil
import sys

import numpy as np
import pytest

from saerl_fast.cli import main
from saerl_fast.errors import (
    CorruptStoreError,
    DiskFullError,
    FormatError,
    IncompleteStoreError,
    InputError,
    JobMismatchError,
    MissingDependency,
    SaerlError,
)
from saerl_fast.report import write_report
from saerl_fast.report.find import find_pieces
from tests.report.conftest import HOSTILE, LEVELS, problems, write_rows


def test_every_piece_is_found_and_nothing_else(whole_run):
    found = find_pieces(whole_run)
    assert found.features == whole_run / "features"
    assert found.labels == whole_run / "labels"  # not the answers inside the GRPO runs, which look the same
    assert found.plans == [whole_run / "plan", whole_run / "shuffled"]
    assert found.runs == [whole_run / "grpo" / "plan", whole_run / "grpo" / "shuffled"]
    assert (found.evaluation, found.sae) == (whole_run / "evaluation.json", whole_run / "sae.json")
    assert found.also == []
    inner = find_pieces(whole_run / "grpo" / "plan")
    assert (inner.runs, inner.labels) == ([whole_run / "grpo" / "plan"], None)


def test_the_page_holds_every_section_and_no_script_of_the_data(page):
    text = page.read_text()
    assert "Absent" not in text
    for title in ("Clusters", "Difficulty", "Scores beside controls", "Plan", "Training", "SAE", "Sources"):
        assert f">{title}</h" in text
    assert "proves nothing about SAERL" in text
    assert (
        text.count("Held-out accuracy by level, in figures")
        == text.count("Held-out accuracy by topic, in figures")
        == 1
    )
    assert "<script" not in text.lower()
    assert "&lt;script&gt;document.title=&#39;hacked&#39;" in text  # in the problem, and in its id


def test_the_command_writes_the_same_page_as_the_function(whole_run, page, tmp_path, capsys):
    out = tmp_path / "page.html"
    words = ["report", str(whole_run), "--topic", "topic", "--level", "level", "--defect", "defect", "--out", str(out)]
    assert main(words) == 0
    assert str(out) in capsys.readouterr().out
    date = r"Made \S+ \S+ UTC"
    assert re.sub(date, "", out.read_text()) == re.sub(date, "", page.read_text())


def test_the_page_needs_nothing_else(page):
    text = page.read_text()
    for address in re.findall(r"""(?:src|href|action|poster)\s*=\s*["']?([^"'\s>]+)""", text):
        assert address.startswith(("#", "data:")), address
    assert not re.search(r"url\(\s*[\"']?(?!#)", text)
    assert "@import" not in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)) > 100
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)
    assert "#0102" not in text  # the stand-ins for the page's own colours
    assert text.count('role="img"') == text.count('aria-label="') - text.count("<nav") > 10


@pytest.mark.parametrize("kept", ["features", "labels", "evaluation.json", "sae.json", "plan", "grpo/plan"])
def test_one_piece_alone_makes_a_page_that_names_the_absent_ones(part, kept):
    text = write_report(part(kept)).read_text()
    # featurize leaves the sanity of its SAE beside the features
    assert f"{4 if kept == 'features' else 5} of 6 parts are absent" in text
    command = {"features": "saerl featurize", "grpo/plan": "saerl train", "labels": "saerl label"}.get(kept)
    if command is not None:
        assert command not in text


def test_a_folder_without_any_piece(tmp_path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(FormatError, match="wanted what saerl featurize, evaluate, label, plan or train has left"):
        write_report(tmp_path)
    with pytest.raises(FormatError, match="no such folder"):
        write_report(tmp_path / "nowhere")
    assert not (tmp_path / "report.html").exists()


def text_to(content):
    return lambda path: path.write_text(content)


def without(key):
    return lambda path: path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))


def with_value(*keys, value):
    def change(path):
        found = json.loads(path.read_text())
        inner = found
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        path.write_text(json.dumps(found))

    return change


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


def first_line_cut(path):
    path.write_text(path.read_text()[9:])


@pytest.mark.parametrize(
    ("file", "change", "error"),
    [
        ("features/manifest.json", text_to("{"), CorruptStoreError),
        ("features/shards/00000.safetensors", flipped, CorruptStoreError),
        ("features/shards/00000.safetensors", os.unlink, IncompleteStoreError),
        ("features/columns.jsonl", flipped, CorruptStoreError),
        ("labels/labels.jsonl", first_line_cut, FormatError),
        ("labels/manifest.json", without("fingerprint"), FormatError),
        ("evaluation.json", text_to("[]"), CorruptStoreError),
        ("evaluation.json", without("details"), FormatError),
        ("evaluation.json", with_value("topic", "sae", value=float("nan")), FormatError),
        ("evaluation.json", with_value("details", "topic", value={"metric": "accuracy"}), FormatError),
        ("evaluation.json", with_value("details", "difficulty", "calibration", "sae", "n", value=[]), FormatError),
        ("sae.json", without("l0"), FormatError),
        ("sae.json", with_value("k", value="8"), FormatError),
        ("plan/plan.json", text_to("{}"), FormatError),
        ("plan/plan.safetensors", flipped, CorruptStoreError),
        ("plan/signals.json", text_to("{}"), FormatError),
        ("plan/signals.json", with_value("held_out", "difficulty", value={"score": 0.5}), FormatError),
        ("labels/manifest.json", with_value("left_out", value=3), FormatError),
        ("grpo/plan/run.json", without("fingerprint"), FormatError),
        ("grpo/plan/metrics.jsonl", first_line_cut, CorruptStoreError),
        ("grpo/plan/eval.json", with_value("before", "accuracy", value="high"), FormatError),
        ("grpo/plan/eval.json", with_value("after", "by", value={"level": 3}), FormatError),
        ("grpo/plan/eval/after/labels.jsonl", first_line_cut, FormatError),
    ],
)
def test_a_broken_piece_is_named_and_no_page_is_written(part, file, change, error):
    run = part()
    change(run / file)
    with pytest.raises(error) as caught:
        write_report(run)
    assert isinstance(caught.value, SaerlError)
    assert file.split("/")[0] in str(caught.value)
    assert not (run / "report.html").exists()


def test_a_run_that_is_still_going(part):
    run = part("grpo", "labels")
    (run / "labels" / "labels.jsonl").unlink()
    path = run / "grpo" / "plan"
    (path / "done.json").unlink()
    with_value("after", value=None)(path / "eval.json")
    shutil.rmtree(path / "eval" / "after")
    (path / "metrics.jsonl").write_text(path.joinpath("metrics.jsonl").read_text()[:-20])  # cut off in its last line
    text = write_report(run).read_text()
    assert "unfinished" in text
    assert "3 of 4" in text
    assert "so nothing is compared" in text
    assert "5 of 6 parts are absent" in text
    assert "pass rates: saerl label" in text


def test_a_folder_that_was_moved_finds_its_texts_beside(part, whole_run, tmp_path):
    run = part("features", "plan", "problems.jsonl")
    aside = tmp_path / "aside.jsonl"
    data = whole_run / "problems.jsonl"
    shutil.move(data, aside)
    try:
        assert "Texts are not shown" not in write_report(run).read_text()
        (run / "problems.jsonl").unlink()
        text = write_report(run).read_text()
        assert "Texts are not shown" in text
        assert "<blockquote>" not in text
        assert "<blockquote>" in write_report(run, data=str(aside)).read_text()
    finally:
        shutil.move(aside, data)


def test_another_table_is_not_shown_for_this_one(part, tmp_path):
    run = part("features")
    write_rows(tmp_path / "other.jsonl", problems(90, "h"))
    with pytest.raises(JobMismatchError, match="SHA-256 differs"):
        write_report(run, data=str(tmp_path / "other.jsonl"))


def test_truth_that_is_not_there(part):
    run = part("features", "sae.json")
    with pytest.raises(InputError, match="no column 'subject'"):
        write_report(run, topic="subject")
    with pytest.raises(InputError, match="--level topic: wanted numbers, got 'trains' in row 0"):
        write_report(run, level="topic")
    shutil.rmtree(run / "features")
    with pytest.raises(InputError, match="--topic names a column of a feature folder"):
        write_report(run, topic="topic")


def test_the_first_screen_tells_the_plans_probe_and_what_grpo_really_took(part):
    run = part("features", "evaluation.json", "plan", "grpo")
    text = write_report(run, **LEVELS).read_text()
    head = text[: text.index('<section id="clusters">')]
    signals = json.loads((run / "plan" / "signals.json").read_text())["held_out"]["difficulty"]
    assert f"the plan&#39;s probe {signals['score']:.2f}".replace("-", "\u2212") in head
    assert f"over {signals['n']} rows" in head
    assert "GRPO here took" in head
    assert "of shuffled" in head
    assert "of plan" not in head
    assert "SAERL reads training problems" in head


def test_nothing_filtered_has_no_share_of_the_filtered(part):
    run = part("features", "plan")
    dropped = "defective among the dropped"
    filtered = json.loads((run / "plan" / "signals.json").read_text())["filtered"]
    assert (dropped in write_report(run, **LEVELS).read_text()) == filtered


def test_a_plan_of_other_rows_shows_no_clusters(part):
    run = part("features")
    from saerl_fast.curriculum import make_plan

    make_plan([f"x{row}" for row in range(90)], clusters=np.arange(90) % 3, prompts_per_step=6).save(run / "plan")
    text = write_report(run, **LEVELS).read_text()
    assert "clusters need a feature folder and a plan of the same rows" in text


def test_hostile_cluster_labels_and_formulas(part):
    run = part("features")
    from saerl_fast.curriculum import make_plan
    from saerl_fast.extract.store import load_features

    ids = list(load_features(run / "features").ids)
    labels = [(HOSTILE, "$\\frac{1}{", "</svg><b>")[row % 3] for row in range(len(ids))]
    make_plan(ids, clusters=labels, prompts_per_step=6).save(run / "plan")
    text = write_report(run, **LEVELS).read_text()
    assert "<script" not in text.lower()
    assert f"Cluster {HOSTILE[:8]}".replace("<", "&lt;").replace(">", "&gt;") in text
    assert "$\\frac{1}{" in text
    assert text.count("</svg>") == text.count("<svg ")


def test_a_full_disk_is_named_and_the_old_page_stays(part, monkeypatch):
    run = part("sae.json")
    path = write_report(run)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"the disk is full: .*report\.html needs \d+ bytes"):
        write_report(run)
    assert path.read_bytes() == before
    assert not list(run.glob("*.tmp"))


def test_a_target_that_cannot_be(part, tmp_path):
    run = part("sae.json")
    with pytest.raises(InputError, match="wanted a file in a folder that exists"):
        write_report(run, out=tmp_path / "nowhere" / "report.html")
    with pytest.raises(InputError, match="wanted a file in a folder that exists"):
        write_report(run, out=tmp_path)


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_what_is_not_installed_is_named(part, monkeypatch, package):
    run = part("sae.json")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match=r"pip install 'saerl-fast\[report\]'"):
        write_report(run)


def test_a_second_piece_of_a_kind_is_said_to_be_left_out(part, caplog):
    run = part("evaluation.json")
    (run / "plan").mkdir()
    shutil.copy(run / "evaluation.json", run / "plan" / "evaluation.json")
    text = write_report(run).read_text()
    assert "1 found but not shown" in text
    assert "plan/evaluation.json is left out" in caplog.text

"""saerl label on a tiny model folder."""

import json

import pytest

from saerl_fast.cli import main
from saerl_fast.rl.label import read_labels
from tests.rl.conftest import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    tiny_model().save_pretrained(root / "model")
    tiny_tokenizer().save_pretrained(root / "model")
    rows = [{"id": f"q{row}", "problem": f"{row} + 1 =", "answer": str(row % 3)} for row in range(9)]
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "ids.txt").write_text("q4\n\nq1\n")
    (root / "my_verifier.py").write_text(
        "def check(completion, answer, id):\n    return id == 'q4' or completion.startswith(answer)\n"
        "def bad(completion, answer):\n    return float('nan')\n"
    )
    return root


def run(world, out, *more):
    words = ["label", str(world / "data.jsonl"), "--text-field", "problem", "--answer-field", "answer"]
    words += ["--model", str(world / "model"), "--out", str(out), "--rollouts", "3", "--max-new-tokens", "4"]
    return main([*words, *more])


def test_a_random_subset_with_the_built_in_verifier(world, tmp_path, capsys):
    assert run(world, tmp_path, "--rows", "5", "--batch-size", "2") == 0
    labels = read_labels(tmp_path)
    assert len(labels) == 5
    assert "5 rows, mean pass rate" in capsys.readouterr().out
    source = json.loads((tmp_path / "manifest.json").read_text())["source"]
    assert source["data"] == str(world / "data.jsonl")
    assert run(world, tmp_path, "--rows", "5", "--batch-size", "2") == 0
    assert run(world, tmp_path, "--rows", "5", "--batch-size", "2", "--seed", "1") == 2
    assert "JobMismatchError" in capsys.readouterr().err


def test_named_rows_with_a_verifier_of_the_current_folder(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(world)
    assert run(world, tmp_path / "a", "--ids", "ids.txt", "--verifier", "my_verifier:check") == 0
    labels = read_labels(tmp_path / "a")
    assert [row.id for row in labels] == ["q1", "q4"]
    assert labels[1].pass_rate == 1.0
    assert run(world, tmp_path / "b", "--verifier", "my_verifier:bad") == 2
    assert "VerifierError: verifier my_verifier:bad, row 'q" in capsys.readouterr().err


def test_refusals(world, tmp_path, capsys):
    assert run(world, tmp_path, "--ids", str(world / "none.txt")) == 2
    assert "no such file of ids" in capsys.readouterr().err
    assert run(world, tmp_path, "--model", str(tmp_path / "no_model")) == 2
    assert "InputError: model: cannot load a causal LM" in capsys.readouterr().err
    (tmp_path / "numbers.jsonl").write_text('{"problem": "1", "answer": "1"}\n')
    words = ["label", str(tmp_path / "numbers.jsonl"), "--text-field", "problem", "--answer-field", "answer"]
    assert main([*words, "--model", "m", "--out", str(tmp_path), "--ids", str(world / "ids.txt")]) == 2
    assert "named by whole numbers" in capsys.readouterr().err

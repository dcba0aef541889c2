"""Accuracy, its standard error, and the paired difference, against numpy."""

import json

import numpy as np
import pytest

from saerl_fast.rl.held_out import summarise, write_eval
from saerl_fast.rl.label import Label
from saerl_fast.rl.problems import read_problems
from saerl_fast.rl.train_config import TrainConfig

ROWS = [{"id": n, "problem": "x", "answer": "1", "level": [10, 2, 2, 10, None][n]} for n in range(5)]
BEFORE = [Label(n, right, 4, right / 4) for n, right in enumerate([0, 1, 2, 4, 4])]
AFTER = [Label(n, right, 4, right / 4) for n, right in enumerate([2, 1, 2, 3, 4])]


def error(values):
    return np.std(values, ddof=1) / np.sqrt(len(values))


def test_accuracy_and_its_standard_error():
    found = summarise(BEFORE, read_problems(ROWS, "problem", "answer"), ["level", "topic"])
    rates = [0, 0.25, 0.5, 1, 1]
    assert (found["accuracy"], found["n"]) == (pytest.approx(np.mean(rates)), 5)
    assert found["standard_error"] == pytest.approx(error(rates))
    assert list(found["by"]) == ["level"]
    assert list(found["by"]["level"]) == ["2", "10"]
    assert found["by"]["level"]["10"]["standard_error"] == pytest.approx(error([0, 1]))
    assert summarise(BEFORE[:1], read_problems(ROWS, "problem", "answer"), [])["standard_error"] is None


def test_the_difference_is_paired(tmp_path):
    config = TrainConfig(model="m", data="d", out="o", eval="e", eval_rollouts=4)
    problems = read_problems(ROWS, "problem", "answer")
    assert write_eval(tmp_path / "eval.json", config, problems, BEFORE, None)["difference"] is None
    found = write_eval(tmp_path / "eval.json", config, problems, BEFORE, AFTER)
    changes = [0.5, 0, 0, -0.25, 0]
    assert found["difference"]["accuracy"] == pytest.approx(np.mean(changes))
    assert found["difference"]["standard_error"] == pytest.approx(error(changes))
    assert json.loads((tmp_path / "eval.json").read_text()) == found

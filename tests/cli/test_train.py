"""saerl train from a YAML file, and what it refuses."""

import json

import pytest

from saerl_fast.cli import build_parser, main
from tests.rl.conftest import plan_for, tiny_model, tiny_tokenizer

YAML = """
model: {root}/model
data: {root}/data.jsonl
plan: {root}/plan
out: {root}/run
verifier: train_verifier:check
eval: {root}/data.jsonl
eval-rollouts: 2
eval_by: [topic]
grpo:
  num_generations: 2
  max_completion_length: 3
  gradient_checkpointing: false
  learning_rate: 1e-4
  max_steps: 2
"""


@pytest.fixture
def world(tmp_path, monkeypatch):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"id": f"q{row}", "problem": f"q{row} =", "answer": "1", "topic": "ab"[row % 2]} for row in range(8)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan_for(8).save(tmp_path / "plan")
    (tmp_path / "train_verifier.py").write_text("def check(completion, answer, topic):\n    return topic == 'a'\n")
    (tmp_path / "grpo.yaml").write_text(YAML.format(root=tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_from_yaml(world, capsys):
    assert main(["train", "--config", "grpo.yaml", "--grpo", "max_steps=3"]) == 0
    printed = capsys.readouterr().out
    assert "run: 3 steps, finished" in printed
    assert "held-out accuracy 0.500 -> 0.500 over 8 problems, difference +0.000 ± 0.000" in printed
    grpo = json.loads((world / "run" / "run.json").read_text())["config"]["grpo"]
    assert grpo["max_steps"] == 3
    assert grpo["num_generations"] == 2
    lines = [json.loads(line) for line in (world / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["frac_reward_zero_std"] == 1 for line in lines)  # the verdict hangs on the row alone
    assert list((json.loads((world / "run" / "eval.json").read_text()))["before"]["by"]) == ["topic"]
    assert main(["train", "--config", "grpo.yaml", "--grpo", "max_steps=3"]) == 0
    assert "nothing was done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("plann: x\n", r"unknown keys ['plann'] for `saerl train`; known are"),
        ("grpo: {learning_rat: 1}\n", "unknown keys ['learning_rat'] (did you mean learning_rate?)"),
        ("grpo: 3\n", "grpo: wanted a mapping"),
        ("eval-rollouts: many\n", 'wanted "greedy" or a whole number'),
        ("shuffled: perhaps\n", "shuffled: wanted true or false"),
        ("plan: nowhere\n", "nowhere"),
    ],
)
def test_a_bad_config_is_named(world, capsys, line, message):
    key = line.partition(":")[0]
    kept = YAML[: YAML.index("grpo:")] if key == "grpo" else YAML
    kept = "".join(found + "\n" for found in kept.splitlines() if found.partition(":")[0] != key)
    (world / "bad.yaml").write_text(kept.format(root=world) + line)
    assert main(["train", "--config", "bad.yaml"]) == 2
    assert message in capsys.readouterr().err
    assert not (world / "run").exists()


def test_a_grpo_setting_without_a_value(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--model", "m", "--data", "d", "--out", "o", "--grpo", "max_steps"])
    assert "wanted KEY=VALUE" in capsys.readouterr().err


def test_the_config_in_the_docs_is_one():
    import re
    from pathlib import Path

    import yaml

    from saerl_fast.rl.train_config import TrainConfig, grpo_settings

    page = (Path(__file__).parents[2] / "docs" / "train.md").read_text()
    found = yaml.safe_load(re.search(r"^```yaml\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)[1])
    config = TrainConfig.from_mapping({key.replace("-", "_"): value for key, value in found.items()})
    assert config.eval_by == ("topic", "level")
    assert grpo_settings(config)["learning_rate"] == 1e-6
    commands = re.findall(r"^saerl (?:.*\\\n)*.*$", page, flags=re.MULTILINE)
    assert len(commands) == 2
    parser, _ = build_parser()
    label = parser.parse_args(commands[0].replace("\\\n", " ").split()[1:])
    assert (label.command, label.rows, label.out) == ("label", 2000, "labels")

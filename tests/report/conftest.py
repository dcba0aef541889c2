"""A small but complete run, left by the real stations: features, scores, labels, plans, GRPO runs; its report."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from tests import tiny

ROWS = 90
HOSTILE = "<script>document.title='hacked'</script>"
LEVELS = {"level": "level", "topic": "topic", "defect": "defect"}


def solved(completion, answer, level):
    """A verifier whose verdict hangs on the level and on the completion."""
    return len(set(completion)) + int(answer) > int(level) + 3


def problems(count, prefix="p"):
    """Problems whose words tell the topic and, loosely, the level; one in six is defective, one in three an attack."""
    rng = np.random.default_rng(0 if prefix == "p" else 1)
    rows = []
    for row in range(count):
        level, topic = int(rng.integers(1, 6)), ("trains", "apples", "sums")[row % 3]
        words = tiny.WORDS[10 * (row % 3) : 10 * (row % 3) + 12]
        text = " ".join(rng.choice(words, 10)) + " find" * level
        row_id = f"{prefix}{row}"
        if row % 3 == 2:  # enough of them to stand among the examples
            text, row_id = f"{HOSTILE} {text}", f"{row_id}{HOSTILE}"
        defect = "wrong_key" if row % 6 == 0 else ""
        truth = {"topic": topic, "level": level, "defect": defect, "quality": "bad" if defect else "good"}
        rows.append({"id": row_id, "text": text, "answer": str(row % 5), **truth})
    return rows


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """Written once; tests that change it copy it."""
    pytest.importorskip("trl")
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    from saerl_fast.cli import main
    from saerl_fast.formats import load_sae, save_sae
    from saerl_fast.rl.label import label
    from saerl_fast.rl.train import TrainConfig, train

    home = tmp_path_factory.mktemp("world")
    run = home / "run"
    run.mkdir()
    tiny.causal_lm().save_pretrained(home / "model")
    tiny.tokenizer(pad=True).save_pretrained(home / "model")
    save_sae(tiny.sae(), home / "sae")
    rows = problems(ROWS)
    write_rows(run / "problems.jsonl", rows)
    write_rows(run / "held_out.jsonl", problems(12, "h"))
    words = ["featurize", str(run / "problems.jsonl"), "--text-field", "text", "--keep-hidden"]
    words += ["--model", str(home / "model"), "--sae", str(home / "sae"), "--out", str(run / "features")]
    assert main(words) == 0
    words = ["evaluate", str(run / "features"), "--topic", "topic", "--difficulty", "level", "--quality", "quality"]
    assert main([*words, "--json", str(run / "evaluation.json")]) == 0
    label(rows, str(home / "model"), verifier=solved, text_field="text", count=60, rollouts=4, max_new_tokens=4,
          out=run / "labels", progress=False)  # fmt: skip
    words = ["plan", str(run / "features"), "--prompts-per-step", "6", "--clusters", "3"]
    assert main([*words, "--labels", str(run / "labels"), "--out", str(run / "plan"), "--epochs", "2"]) == 0
    assert main([*words, "--policy", "random", "--out", str(run / "shuffled")]) == 0
    for name in ("plan", "shuffled"):
        grpo = {"num_generations": 2, "max_completion_length": 4, "gradient_checkpointing": False, "max_steps": 4}
        config = TrainConfig(
            model=str(home / "model"), data=str(run / "problems.jsonl"), out=str(run / "grpo" / name), text_field="text",
            plan=str(run / name), verifier="tests.report.conftest:solved", eval=str(run / "held_out.jsonl"),
            grpo=grpo | {"learning_rate": 1e-3, "per_device_train_batch_size": 12, "save_strategy": "no"},
        )  # fmt: skip
        train(config, progress=False)
    from saerl_fast.extract.hooks import block_output
    from saerl_fast.extract.loading import load_blocks, load_tokenizer
    from saerl_fast.extract.reader import Reader
    from saerl_fast.extract.stream import ActivationStream
    from saerl_fast.sae import sanity

    model = str(home / "model")
    reader = Reader(load_blocks(model, 1), load_tokenizer(model), block_output(1), "tiny")
    tokens = next(
        ActivationStream([row["text"] for row in rows], reader, batch_rows=256, buffer_rows=512, max_length=64)
    )
    found = sanity(load_sae(home / "sae"), tokens)
    sae = {"explained_variance": found.explained_variance, "l0": found.l0, "dead_share": found.dead_share}
    (run / "sae.json").write_text(json.dumps(sae | {"k": 8, "d_sae": 96, "rows": len(tokens)}))
    return run


@pytest.fixture
def part(whole_run, tmp_path):
    """part(name, ...) copies the whole run, or of it the pieces named, to break or to move."""

    def copy(*names):
        target = tmp_path / "run"
        if not names:
            return shutil.copytree(whole_run, target)
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (whole_run / name).is_dir() else shutil.copy)(whole_run / name, target / name)
        return target

    return copy


@pytest.fixture(scope="session")
def page(whole_run, tmp_path_factory):
    """The report of the whole run, with the truth named."""
    from saerl_fast.report import write_report

    return write_report(whole_run, out=tmp_path_factory.mktemp("page") / "report.html", **LEVELS)

"""Rollout labels: the same whatever the order of work, resumable, every refusal named."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from saerl_fast.durable import sole_writer, write_once
from saerl_fast.errors import (
    CorruptStoreError,
    FormatError,
    InputError,
    JobMismatchError,
    NonFiniteError,
    StoreBusyError,
    VerifierError,
)
from saerl_fast.rl.label import difficulty_column, label, read_labels
from saerl_fast.rl.rollout import DrawToken, Sampling, encode_prompt, generate
from tests.rl.conftest import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]
ROWS = [{"id": f"q{row}", "problem": f"{row} + {'1 + ' * (row % 4)}2 =", "answer": str(row % 10)} for row in range(20)]


def vowels(completion, answer):
    """Right where a vowel comes up: a random model does that now and then."""
    return any(letter in completion for letter in "aeiou")


def run(rows=ROWS, verifier=vowels, **settings):
    settings = {"rollouts": 4, "max_new_tokens": 5, "batch_size": 6, "progress": False} | settings
    return label(rows, tiny_model(), tiny_tokenizer(), verifier, **settings)


def test_every_row_has_its_label_in_order(tmp_path):
    labels = run(out=tmp_path)
    assert [row.id for row in labels] == [row["id"] for row in ROWS]
    assert {row.rollouts for row in labels} == {4}
    assert len({row.correct for row in labels}) > 2
    lines = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert lines[0].keys() == {"id", "pass_rate", "correct", "rollouts", "mean_score"}
    assert all(line["pass_rate"] == line["correct"] / 4 for line in lines)
    assert read_labels(tmp_path) == labels == run()
    assert len(list((tmp_path / "chunks").iterdir())) == 4
    assert list(tmp_path.rglob("*.tmp")) == []


def test_what_is_drawn_for_a_row_depends_on_no_other_row():
    whole = {row.id: row for row in run()}
    for settings in ({"batch_size": 1}, {"batch_size": 20}, {"ids": ["q7", "q3", "q11"]}, {"count": 5}):
        assert all(row == whole[row.id] for row in run(**settings))
    assert run(rows=ROWS[::-1]) == list(whole.values())[::-1]
    assert run(seed=1) != list(whole.values())


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = run()
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    torch.manual_seed(4)
    assert run() == first


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_its_mode(training):
    model = tiny_model().train(training)
    label(ROWS[:2], model, tiny_tokenizer(), vowels, max_new_tokens=2, progress=False)
    assert model.training is training


def test_a_committed_file_is_never_replaced(tmp_path):
    write_once(tmp_path / "a", b"first")
    with pytest.raises(FileExistsError):
        write_once(tmp_path / "a", b"second")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"first")]


def test_tokens_are_drawn_from_the_softmax():
    """Chi-square of 20,000 draws of one token from known logits at temperature 2."""
    logits = torch.tensor([2.0, -1.0, 0.5, -math.inf, 3.0, 0.0])
    draws = 20_000
    uniforms = torch.from_numpy(np.random.default_rng(0).random((draws, 1)))
    processor = DrawToken(uniforms, 4, 2.0)
    tokens = processor(torch.zeros(draws, 4, dtype=torch.long), logits.repeat(draws, 1)).argmax(-1)
    counts = torch.bincount(tokens, minlength=6).double()
    expected = torch.softmax(logits.double() / 2, -1) * draws
    assert counts[3] == 0
    kept = expected > 0
    chi2 = float(((counts - expected)[kept] ** 2 / expected[kept]).sum())
    assert chi2 < 18.5  # 99.9 % point of 4 degrees of freedom
    edges = DrawToken(torch.tensor([[0.0], [1 - 2**-53]], dtype=torch.float64), 4, 1.0)
    tokens = edges(torch.zeros(2, 4, dtype=torch.long), torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]] * 2))
    assert tokens.argmax(-1).tolist() == [1, 2]


def test_greedy_is_the_models_own_greedy():
    model, tokenizer = tiny_model().eval(), tiny_tokenizer()
    texts = [row["problem"] for row in ROWS[:5]]
    prompts = [encode_prompt(tokenizer, text) for text in texts]
    ours = generate(model, tokenizer, prompts, list(range(5)), Sampling(1, 6, 0.0))
    for text, found in zip(texts, ours, strict=True):
        one = tokenizer(text, return_tensors="pt")
        made = model.generate(input_ids=one["input_ids"], attention_mask=one["attention_mask"], max_new_tokens=6,
                              do_sample=False)  # fmt: skip
        assert found == tokenizer.batch_decode(made[:, one["input_ids"].shape[1] :], skip_special_tokens=True)


def test_a_completion_ends_at_the_end_token():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all tokens alike: the end comes up once in 44
    texts = generate(model, tokenizer, [[5, 6]], ["x"], Sampling(64, 60))[0]
    lengths = {len(text) for text in texts}
    assert min(lengths) < 30
    assert len(lengths) > 10
    model.generation_config.eos_token_id = [1, *range(3, 44)]  # now any visible token ends it
    assert {len(text) for text in generate(model, tokenizer, [[5, 6]], ["x"], Sampling(64, 60))[0]} <= {0, 1}


def test_chat_messages_go_through_the_template():
    tokenizer = tiny_tokenizer()
    rows = [{"problem": [{"role": "user", "content": "1+1"}], "answer": "2"}]
    with pytest.raises(InputError, match="no chat template"):
        label(rows, tiny_model(), tokenizer, vowels, progress=False, max_new_tokens=4)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}?{% endfor %}{% if add_generation_prompt %}=={% endif %}"
    )
    assert encode_prompt(tokenizer, rows[0]["problem"]) == tokenizer("1+1?==")["input_ids"]
    assert len(label(rows, tiny_model(), tokenizer, vowels, progress=False, max_new_tokens=4)) == 1


def test_the_verifier_sees_the_row():
    seen = []

    def check(completion, answer, *, topic, **row):
        seen.append((answer, topic, row["level"]))
        return 0.75

    rows = [{"problem": "1", "answer": 7, "topic": "sums", "level": 3, "completion": "in the way"}]
    found = run(rows=rows, verifier=check, rollouts=2)[0]
    assert seen == [("7", "sums", 3)] * 2
    assert (found.correct, found.mean_score, found.pass_rate) == (2, 0.75, 1.0)
    assert run(rows=rows, verifier=lambda completion, answer: -1)[0].mean_score == -1


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (float("nan"), "wanted a finite number; got nan"),
        (float("inf"), "wanted a finite number; got inf"),
        (None, "wanted True, False or a number; got None"),
        ("1", "wanted True, False or a number; got '1'"),
        (ZeroDivisionError("boom"), "raised ZeroDivisionError: boom"),
        (SystemExit(3), "raised SystemExit: 3"),
    ],
)
def test_a_bad_verifier_is_named_with_the_row_and_loses_nothing(tmp_path, returned, message):
    def bad(completion, answer, **row):
        if row["id"] != "q4":
            return 0
        if isinstance(returned, BaseException):
            raise returned
        return returned

    with pytest.raises(VerifierError, match=f"row 'q4', completion .*{message}"):
        run(verifier=bad, out=tmp_path, batch_size=5)
    kept = {path: path.read_bytes() for path in (tmp_path / "chunks").iterdir()}
    assert 0 < len(kept) < 4
    assert not (tmp_path / "labels.jsonl").exists()
    returned = 1.0
    assert [row.correct for row in run(verifier=bad, out=tmp_path, batch_size=5)] == [0] * 4 + [4] + [0] * 15
    assert all(path.read_bytes() == content for path, content in kept.items())


CHILD = """
import os, signal, sys
from tests.rl.test_label import run, vowels
calls = 0
def killing(completion, answer):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return vowels(completion, answer)
killing.__module__, killing.__qualname__ = vowels.__module__, vowels.__qualname__
run(verifier=killing, out=sys.argv[1])
"""


def test_killed_and_started_again_it_ends_with_the_same_bytes(tmp_path):
    run(out=tmp_path / "whole")
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "killed"), "54"],
        cwd=ROOT, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, timeout=240, check=False,
    )  # fmt: skip
    assert child.returncode == -signal.SIGKILL
    # a chunk is 24 scores: two are there, and what was done of the third is lost
    assert [path.name for path in sorted((tmp_path / "killed" / "chunks").iterdir())] == ["00000.json", "00001.json"]
    (tmp_path / "killed" / "chunks" / "00002.json.1.tmp").write_text("left over")
    run(out=tmp_path / "killed")
    for path in sorted((tmp_path / "whole").rglob("*.json*")):
        assert (tmp_path / "killed" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    assert list((tmp_path / "killed").rglob("*.tmp")) == []


def test_a_finished_folder_costs_no_rollout(tmp_path):
    calls = []

    def counting(completion, answer):
        calls.append(completion)
        return True

    first = run(verifier=counting, out=tmp_path)
    done = len(calls)
    assert run(verifier=counting, out=tmp_path) == first
    assert len(calls) == done == 80


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 5}, "seed"),
        ({"rollouts": 2}, "rollouts"),
        ({"temperature": 0.5}, "temperature"),
        ({"max_new_tokens": 4}, "max_new_tokens"),
        ({"batch_size": 3}, "batch_size"),
        ({"count": 7}, "rows"),
        ({"rows": [*ROWS[:-1], {**ROWS[-1], "answer": "0"}]}, "texts"),
        ({"verifier": "math"}, "verifier"),
    ],
)
def test_another_job_is_refused(tmp_path, change, key):
    run(out=tmp_path)
    with pytest.raises(JobMismatchError, match=f"\n  {key}: folder"):
        run(out=tmp_path, **change)


def test_another_model_is_refused(tmp_path):
    run(out=tmp_path)
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(1.001)
    with pytest.raises(JobMismatchError, match="weights: folder"):
        label(ROWS, model, tiny_tokenizer(), vowels, rollouts=4, max_new_tokens=5, batch_size=6, out=tmp_path)


def test_damage_and_a_second_writer_are_named(tmp_path):
    first = run(out=tmp_path)
    (tmp_path / "labels.jsonl").unlink()
    chunk = tmp_path / "chunks" / "00001.json"
    whole = chunk.read_text()
    for content, message in (
        (whole.replace('"correct": 1', '"correct": 2', 1), "does not match its SHA-256"),
        (whole[:-9], "not JSON"),
        ((tmp_path / "chunks" / "00002.json").read_text(), "other rows than this chunk"),
    ):
        chunk.write_text(content)
        with pytest.raises(CorruptStoreError, match=message):
            run(out=tmp_path)
    chunk.unlink()
    with sole_writer(tmp_path), pytest.raises(StoreBusyError, match="another process is writing"):
        run(out=tmp_path)
    assert run(out=tmp_path) == first


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "at temperature 0 all are the same"),
        ({"temperature": -1.0}, "temperature: wanted a number from 0 up"),
        ({"rollouts": 0}, "rollouts: wanted a whole number"),
        ({"batch_size": 0}, "batch_size: wanted a whole number"),
        ({"count": 0}, "count: wanted a whole number"),
        ({"count": 21}, "wanted 21 rows to label; only 20 of 20 can be"),
        ({"ids": ["q1", "nobody"]}, r"1 are not in the table: \['nobody'\]"),
        ({"ids": ["q1"], "count": 1}, "count or ids, not both"),
        ({"max_new_tokens": 64}, "leave no prompt in a context of 64"),
        ({"text_field": "question"}, "text_field: the table has no column 'question'; it has"),
        ({"answer_field": "key"}, "answer_field: the table has no column 'key'"),
        ({"id_field": "answer"}, "does not name every row once"),
        ({"rows": []}, "the table is empty"),
        ({"verifier": "nonsense"}, 'wanted "math" or "module:function"'),
        ({"verifier": "no_such_module:check"}, "cannot import 'no_such_module'"),
        ({"verifier": "math:no_such_function"}, "module 'math' has no 'no_such_function'"),
        ({"verifier": "math:pi"}, "wanted a function; got float"),
    ],
)
def test_bad_arguments_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        run(**settings)


def test_rows_that_cannot_be_labelled_are_left_out_and_counted(tmp_path, caplog):
    bad = [
        {"id": "a", "problem": None, "answer": "1"},
        {"id": "b", "problem": "1", "answer": None},
        {"id": "c", "problem": "1 " * 40, "answer": "1"},
    ]
    labels = run(rows=[*bad, *ROWS], out=tmp_path)
    assert [row.id for row in labels] == [row["id"] for row in ROWS]
    left_out = json.loads((tmp_path / "manifest.json").read_text())["left_out"]
    assert left_out == {"no text": 1, "no answer": 1, "too long": 1}
    assert "rows left out: 1 no text, 1 no answer, 1 too long" in caplog.text
    with pytest.raises(InputError, match="row 'c' cannot be labelled: too long"):
        run(rows=[*bad, *ROWS], ids=["q1", "c"])


def test_a_broken_model_is_named():
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="logits for row"):
        label(ROWS, model, tiny_tokenizer(), vowels, max_new_tokens=3, progress=False)


def test_labels_become_a_difficulty_column(tmp_path):
    labels = run(ids=["q2", "q5"], out=tmp_path)
    column = difficulty_column(labels, ["q5", "q9", "q2"])
    assert column == [1 - labels[1].pass_rate, None, 1 - labels[0].pass_rate]
    (tmp_path / "labels.jsonl").write_text('{"id": "a", "correct": 3, "rollouts": 2, "mean_score": 1}\n')
    with pytest.raises(FormatError, match="line 1: wanted 0 <= correct <= rollouts"):
        read_labels(tmp_path)
    with pytest.raises(FormatError, match="no such file"):
        read_labels(tmp_path / "nowhere")


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    import errno

    from saerl_fast.errors import DiskFullError

    real = os.fsync
    seen = []

    def full(descriptor):
        seen.append(descriptor)
        if len(seen) == 7:
            raise OSError(errno.ENOSPC, "no space")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="What was committed is intact"):
        run(out=tmp_path)
    monkeypatch.setattr(os, "fsync", real)
    assert run(out=tmp_path) == run()
    assert list(tmp_path.rglob("*.tmp")) == []

"""A training run on a tiny model: its files, its order, killed and started again, every refusal named."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from saerl_fast.errors import InputError, JobMismatchError, PlanError, TrainerMismatchError, VerifierError
from saerl_fast.rl.metrics import batches_of, read_metrics
from saerl_fast.rl.order import shuffle_plan
from saerl_fast.rl.train import TrainConfig, last_checkpoint, train
from tests.rl.conftest import plan_for, tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]
ROWS = 22
SEEN = []


def vowels(completion, answer, id):
    """Right where a vowel comes up; notes the row. KILL_AT ends the process at that call."""
    SEEN.append(id)
    if str(len(SEEN)) == os.environ.get("KILL_AT"):
        os.kill(os.getpid(), signal.SIGKILL)
    return any(letter in completion for letter in "aeiou")


GOOD = []


def broken(completion, answer, id):
    """NaN from the 41st completion on, until GOOD holds something."""
    SEEN.append(id)
    return float("nan") if len(SEEN) > 40 and not GOOD else 0.0


def raising(completion, answer, id):
    raise ZeroDivisionError("boom")


def leaving(completion, answer, id):
    raise SystemExit(0)


SMALL = {"num_generations": 2, "max_completion_length": 3, "gradient_checkpointing": False, "save_steps": 4}
SMALL |= {"per_device_train_batch_size": 8, "learning_rate": "1e-3"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    tiny_model().save_pretrained(root / "model")
    tiny_tokenizer().save_pretrained(root / "model")
    write(root / "data.jsonl", [problem(row) for row in range(ROWS)])
    held_out = [{**problem(row), "id": f"h{row}", "topic": "ab"[row % 2], "level": row % 3} for row in range(10)]
    write(root / "held_out.jsonl", held_out)
    plan_for(ROWS).save(root / "plan")
    return root


def problem(row):
    return {"id": f"q{row}", "problem": f"q{row} = ?", "answer": str(row % 10)}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def config(world, out, **settings):
    grpo = SMALL | settings.pop("grpo", {})
    defaults = {"plan": str(world / "plan"), "verifier": "tests.rl.test_train:vowels"}
    return TrainConfig(
        model=str(world / "model"), data=str(world / "data.jsonl"), out=str(out), grpo=grpo, **defaults | settings
    )


def run(world, out, **settings):
    SEEN.clear()
    return train(config(world, out, **settings), progress=False)


def scored(plan):
    """Ids in the order in which completions are scored in training: each prompt twice."""
    return [f"q{row}" for row in plan.order.tolist() for _ in range(2)]


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """One planned run from beginning to end, with the ids that its verifier saw."""
    out = tmp_path_factory.mktemp("whole")
    result = run(world, out, eval=str(world / "held_out.jsonl"))
    return result, list(SEEN)


def test_the_files_of_a_run(whole, world):
    result, _ = whole
    plan = plan_for(ROWS)
    assert result.ran
    names = {path.name for path in result.out.iterdir()}
    assert names >= {"run.json", "policy.json", "metrics.jsonl", "eval.json", "done.json", "model", "checkpoint-4"}
    assert not [path for path in result.out.rglob("*") if path.name.endswith((".tmp", ".part"))]
    written = json.loads((result.out / "run.json").read_text())
    assert written["config"]["plan"] == str(world / "plan")
    assert written["steps"] == plan.steps == result.done["steps"]
    lines = read_metrics(result.out / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, plan.steps + 1))
    for line, step in zip(lines, plan, strict=True):
        assert line["batches"] == [step.number]
        assert line["clusters"] == {str(c): int((step.clusters == c).sum()) for c in np.unique(step.clusters)}
        assert line["difficulty"]["mean"] == pytest.approx(step.difficulty.mean())
        assert line["difficulty"]["highest"] == step.difficulty.max()
        assert 0 <= line["reward"] <= 1
        assert 0 <= line["frac_reward_zero_std"] <= 1
        assert line["trl"]["num_tokens"] > 0
    assert np.all(np.diff([line["seconds"] for line in lines]) > 0)


def test_the_verifier_sees_the_plans_order(whole):
    _, seen = whole
    assert seen[10:-10] == scored(plan_for(ROWS))  # the held-out ten come before and after


def test_held_out_accuracy_before_and_after(whole):
    result, _ = whole
    found = json.loads((result.out / "eval.json").read_text())
    assert found == result.eval
    assert (found["n"], found["left_out"], found["rollouts"], found["greedy"]) == (10, 0, 1, True)
    for when in ("before", "after"):
        by = found[when]["by"]
        assert {name: {k: v["n"] for k, v in by[name].items()} for name in by} == {
            "topic": {"a": 5, "b": 5},
            "level": {"0": 4, "1": 3, "2": 3},
        }
        halves = [by["topic"][name]["accuracy"] for name in "ab"]
        assert found[when]["accuracy"] == pytest.approx(sum(halves) / 2)
    assert found["difference"]["accuracy"] == pytest.approx(found["after"]["accuracy"] - found["before"]["accuracy"])


def test_training_changed_the_saved_model(whole, world):
    before, after = load_file(world / "model/model.safetensors"), load_file(whole[0].out / "model/model.safetensors")
    assert before.keys() == after.keys()
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_a_finished_run_is_left_as_it_is(whole, world):
    out = whole[0].out
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != "LOCK"}
    again = run(world, out, eval=str(world / "held_out.jsonl"))
    assert not again.ran
    assert again.eval == whole[0].eval
    assert SEEN == []
    assert {path: path.stat().st_mtime_ns for path in before} == before


CHILD = """
import sys
from pathlib import Path
import tests.rl.test_train as here
world, out = Path(sys.argv[1]), Path(sys.argv[2])
here.run(world, out, eval=str(world / "held_out.jsonl"))
"""


def test_killed_in_the_middle_it_goes_on_and_ends_the_same(whole, world, tmp_path):
    environment = os.environ | {"KILL_AT": str(10 + 6 * 8 + 3), "CUDA_VISIBLE_DEVICES": ""}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(world), str(tmp_path)], cwd=ROOT, env=environment, timeout=240, check=False
    )
    assert child.returncode == -signal.SIGKILL
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "rew')  # cut off by the kill
    torn = tmp_path / "checkpoint-6"
    torn.mkdir()
    (torn / "model.safetensors").write_text("half")
    result = run(world, tmp_path, eval=str(world / "held_out.jsonl"))
    assert result.ran
    assert scored(plan_for(ROWS))[4 * 8 :] == SEEN[:-10]  # from checkpoint 4 on; the held-out ten after it
    assert not torn.exists()
    ours, theirs = (read_metrics(folder / "metrics.jsonl") for folder in (tmp_path, whole[0].out))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    assert [line["reward"] for line in ours] == [line["reward"] for line in theirs]
    assert np.all(np.diff([line["seconds"] for line in ours]) > 0)
    weights = [load_file(folder / "model/model.safetensors") for folder in (tmp_path, whole[0].out)]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert result.eval == whole[0].eval


def test_killed_after_training_only_what_is_missing_is_done(whole, world, tmp_path):
    import shutil

    out = tmp_path / "run"
    shutil.copytree(whole[0].out, out)
    (out / "done.json").unlink()
    shutil.rmtree(out / "eval" / "after")
    again = run(world, out, eval=str(world / "held_out.jsonl"))
    assert len(SEEN) == 10
    assert again.eval == whole[0].eval
    (out / "done.json").unlink()
    shutil.rmtree(out / "model")
    again = run(world, out, eval=str(world / "held_out.jsonl"))
    assert SEEN == []  # the last checkpoint is of the last step, and both evaluations are there
    assert again.eval == whole[0].eval


def test_the_shuffled_baseline_has_the_plans_prompts_and_budget(world, tmp_path):
    plan = plan_for(ROWS)
    result = run(world, tmp_path, shuffled=True, seed=3)
    assert result.done["steps"] == plan.steps
    assert result.eval is None
    shuffled = shuffle_plan(plan, 3)
    assert scored(shuffled) == SEEN
    for epoch in range(2):
        steps = slice(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        assert sorted(shuffled.rows[steps].ravel()) == sorted(plan.rows[steps].ravel())
        assert shuffled.padded[steps].sum() == plan.padded[steps].sum()
    assert not np.array_equal(shuffled.rows, plan.rows)
    assert not np.array_equal(shuffle_plan(plan, 4).rows, shuffled.rows)
    assert len({len(line["clusters"]) for line in read_metrics(tmp_path / "metrics.jsonl")}) > 1


@pytest.mark.parametrize("shuffled", [None, False])
def test_without_a_plan(world, tmp_path, shuffled):
    rows = [problem(row) for row in range(9)]
    rows[5]["answer"] = None
    write(tmp_path / "data.jsonl", rows)
    settings = {"plan": None, "shuffled": shuffled, "grpo": {"num_train_epochs": 2}}
    SEEN.clear()
    train(replace(config(world, tmp_path / "run", **settings), data=str(tmp_path / "data.jsonl")), progress=False)
    once, twice = SEEN[:16:2], SEEN[16::2]
    usable = sorted(row["id"] for row in rows if row["answer"] is not None)
    assert sorted(once) == sorted(twice) == usable
    assert (once == usable) == (shuffled is False)
    assert (twice == usable) == (shuffled is False)
    line = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert line["batches"] == [3]
    assert "clusters" not in line


def test_max_steps_without_a_plan(world, tmp_path):
    result = run(world, tmp_path, plan=None, grpo={"max_steps": 7})
    assert result.done["steps"] == 7
    assert len(SEEN) == 7 * 8


def test_chat_prompts_reach_the_trainer(world, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
    )
    tiny_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{**problem(row), "problem": [{"role": "user", "content": f"q{row}"}]} for row in range(4)]
    write(tmp_path / "data.jsonl", rows)
    wanted = config(world, tmp_path / "run", plan=None, eval=str(tmp_path / "data.jsonl"), eval_rollouts=2)
    SEEN.clear()
    result = train(replace(wanted, model=str(tmp_path / "model"), data=str(tmp_path / "data.jsonl")), progress=False)
    assert result.eval["rollouts"] == 2
    assert len(SEEN) == 8 + 8 + 8


def test_a_bad_verifier_is_named_with_row_and_completion_and_the_run_goes_on_later(world, tmp_path, monkeypatch):
    with pytest.raises(VerifierError, match=r"row 'q\d+', completion '.*': wanted a finite number; got nan"):
        run(world, tmp_path / "a", verifier="tests.rl.test_train:broken")
    assert not (tmp_path / "a" / "done.json").exists()
    monkeypatch.setattr("tests.rl.test_train.GOOD", ["repaired"])
    assert run(world, tmp_path / "a", verifier="tests.rl.test_train:broken").done["steps"] == 12
    # from the checkpoint of step 4: what was scored before it is not scored again
    assert scored(plan_for(ROWS))[4 * 8 :] == SEEN
    for name, raised in (("raising", "ZeroDivisionError: boom"), ("leaving", "SystemExit: 0")):
        with pytest.raises(VerifierError, match=rf"row 'q\d+', completion '.*': raised {raised}"):
            run(world, tmp_path / name, verifier=f"tests.rl.test_train:{name}")


def test_another_job_is_refused_but_not_another_save_interval(whole, world):
    out = whole[0].out
    held_out = str(world / "held_out.jsonl")
    for change, key in (
        ({"grpo": {"learning_rate": 1e-4}}, "grpo"),
        ({"shuffled": True}, "order"),
        ({"seed": 1}, "seed"),
        ({"verifier": "math"}, "verifier"),
        ({"eval": None}, "held_out"),
    ):
        with pytest.raises(JobMismatchError, match=f"\n  {key}: folder"):
            run(world, out, **{"eval": held_out} | change)
    assert not run(world, out, eval=held_out, grpo={"save_steps": 2, "logging_steps": 5}).ran


def test_a_plan_of_another_dataset_is_refused(world, tmp_path):
    plan_for(ROWS + 2).save(tmp_path / "plan")
    with pytest.raises(PlanError, match="2 ids of the plan are not in this dataset"):
        run(world, tmp_path / "a", plan=str(tmp_path / "plan"))
    write(tmp_path / "data.jsonl", [{"id": row, "problem": "1", "answer": "1"} for row in range(ROWS)])
    with pytest.raises(PlanError, match="22 ids of this dataset are not in the plan"):
        train(replace(config(world, tmp_path / "b"), data=str(tmp_path / "data.jsonl")), progress=False)
    # nothing was written: the folders are free for the corrected run
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def test_a_plan_by_row_number_knows_the_table_by_its_texts(world, tmp_path):
    from saerl_fast.curriculum import fingerprint, make_plan

    rows = [{"problem": f"q{row} = ?", "answer": "1"} for row in range(12)]
    texts = fingerprint([row["problem"] for row in rows], "problem")
    make_plan(list(range(12)), prompts_per_step=4, policy="random", fingerprint=texts).save(tmp_path / "plan")
    settings = {"plan": str(tmp_path / "plan"), "verifier": "math"}
    for name, table in (("a", rows), ("b", [{**row, "id": f"q{n}"} for n, row in enumerate(rows)])):
        write(tmp_path / f"{name}.jsonl", table)
        wanted = replace(config(world, tmp_path / name, **settings), data=str(tmp_path / f"{name}.jsonl"))
        assert train(wanted, progress=False).done["steps"] == 3
    write(tmp_path / "c.jsonl", rows[::-1])
    with pytest.raises(PlanError, match="'problem' is not the one the plan was made from"):
        train(replace(config(world, tmp_path / "c", **settings), data=str(tmp_path / "c.jsonl")), progress=False)


def test_held_out_problems_that_are_trained_on_are_counted(world, tmp_path, caplog):
    run(world, tmp_path, grpo={"max_steps": 1}, eval=str(world / "data.jsonl"))
    assert "22 of 22 held-out problems are also in the training table" in caplog.text


def test_a_full_disk_is_named_and_the_run_goes_on_later(whole, world, tmp_path, monkeypatch):
    import errno

    from trl import GRPOTrainer

    from saerl_fast.errors import DiskFullError

    real = GRPOTrainer._save_checkpoint

    def full(self, *arguments):
        if self.state.global_step == 8:
            (Path(self.args.output_dir) / "checkpoint-8").mkdir()
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, *arguments)

    monkeypatch.setattr(GRPOTrainer, "_save_checkpoint", full)
    with pytest.raises(DiskFullError, match="the disk is full.*run the same command again"):
        run(world, tmp_path)
    monkeypatch.setattr(GRPOTrainer, "_save_checkpoint", real)
    run(world, tmp_path)
    assert scored(plan_for(ROWS))[4 * 8 :] == SEEN
    weights = [load_file(folder / "model/model.safetensors") for folder in (tmp_path, whole[0].out)]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_planned_row_without_an_answer_is_refused(world, tmp_path):
    rows = [problem(row) for row in range(ROWS)]
    rows[7]["answer"] = ""
    write(tmp_path / "data.jsonl", rows)
    with pytest.raises(InputError, match="row 'q7' of the plan has no answer"):
        train(replace(config(world, tmp_path / "a"), data=str(tmp_path / "data.jsonl")), progress=False)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"grpo": {"learning_rat": 1}}, InputError, r"grpo: unknown keys \['learning_rat'\] \(did you mean learning_rate\?\); known are"),
        ({"grpo": {"output_dir": "x"}}, InputError, "leave output_dir out; it is `out`"),
        ({"grpo": {"num_generations": 1, "per_device_train_batch_size": 4}}, InputError, "GRPOConfig refused the settings"),
        ({"grpo": {"num_generations": "two"}}, InputError, "GRPOConfig refused the settings"),
        ({"grpo": {"shuffle_dataset": True}}, TrainerMismatchError, "shuffle_dataset: wanted False"),
        ({"grpo": {"num_train_epochs": 3}}, TrainerMismatchError, "num_train_epochs: wanted 1"),
        ({"grpo": {"max_steps": 99}}, TrainerMismatchError, "max_steps=99 goes beyond the plan's 12"),
        ({"recipe": "ppo"}, InputError, "recipe: wanted one of grpo, dapo"),
        ({"plan": None, "grpo": {"gradient_accumulation_steps": 9}}, InputError, "wanted at least 36 problems"),
        ({"verifier": "no_such_module:f"}, InputError, "cannot import"),
        ({"text_field": "question"}, InputError, "no column 'question'"),
        ({"eval_rollouts": "some"}, InputError, 'wanted "greedy" or a whole number'),
        ({"shuffled": "yes"}, InputError, "shuffled: wanted true or false"),
        ({"seed": -1}, InputError, "seed: wanted a whole number"),
    ],
)  # fmt: skip
def test_bad_settings_are_named_before_anything_is_written(world, tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        run(world, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_not_there_is_named(world, tmp_path):
    with pytest.raises(InputError, match="model: cannot load a causal LM"):
        train(replace(config(world, tmp_path), model=str(tmp_path / "nowhere")), progress=False)


def test_batches_of_optimizer_steps():
    from types import SimpleNamespace

    def settings(generation, accumulation, iterations=1):
        return SimpleNamespace(
            steps_per_generation=generation, gradient_accumulation_steps=accumulation, num_iterations=iterations
        )

    assert batches_of(range(1), settings(2, 2), 9) == [0]
    assert batches_of(range(3, 4), settings(4, 2), 9) == [1]
    assert batches_of(range(2), settings(1, 3), 5) == [0, 1, 2, 3, 4]
    assert batches_of(range(2, 3), settings(2, 2, 2), 9) == [1]


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-12").mkdir()
    assert last_checkpoint(tmp_path, clear=False) == str(tmp_path / "checkpoint-10")
    assert (tmp_path / "checkpoint-12").exists()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert last_checkpoint(tmp_path, only_models=True) is None
    assert not (tmp_path / "checkpoint-12").exists()

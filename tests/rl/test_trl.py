"""A real GRPOTrainer on a tiny model: its reward function sees the plan's order, whatever happens."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from saerl_fast.errors import TrainerMismatchError
from saerl_fast.rl.trl import PlanGuard, grpo_config
from tests.rl.conftest import SMALL, plan_for, problems, tiny_model, tiny_tokenizer, train, trainer_for

ROOT = Path(__file__).parents[2]


def as_seen(plan, generations=2):
    """The calls of the reward function: one per batch, each row num_generations times in a row."""
    return [[row for row in batch for _ in range(generations)] for batch in plan.rows.tolist()]


@pytest.mark.parametrize(
    ("recipe", "policy", "settings"),
    [
        ("grpo", "saerl", {}),
        ("dapo", "default", {"num_iterations": 2}),
        (None, "stratified", {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 2}),
    ],
)
def test_the_reward_function_sees_the_plans_order(tmp_path, recipe, policy, settings):
    plan = plan_for(22, policy=policy)
    ordered = plan.apply(problems(22), "id")
    assert train(plan, ordered, tmp_path, recipe=recipe, **settings) == as_seen(plan)


def test_the_recipe_reaches_the_trainer(tmp_path):
    plan = plan_for(22)
    trainer = trainer_for(plan, plan.apply(problems(22), "id"), tmp_path, [], recipe="dapo")
    assert (trainer.loss_type, trainer.epsilon_high, trainer.beta) == ("dapo", 0.28, 0.0)
    assert trainer.mask_truncated_completions
    assert plan.check(trainer) == ()


def test_two_processes_share_each_batch_in_contiguous_halves(tmp_path):
    plan = plan_for(22)
    plan.save(tmp_path / "plan")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    launch += ["--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "-m", "tests.rl.two_processes"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launch, str(tmp_path / "plan"), str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        halves = [batch[4 * rank : 4 * rank + 4] for batch in as_seen(plan)]
        assert json.loads((tmp_path / f"rank{rank}.json").read_text()) == halves


def test_a_resumed_run_goes_on_where_the_plan_was(tmp_path):
    plan = plan_for(22)
    ordered = plan.apply(problems(22), "id")
    whole = train(plan, ordered, tmp_path, save_strategy="steps", save_steps=8)
    assert plan.step(8).epoch == 1
    resumed = train(plan, ordered, tmp_path, resume=str(tmp_path / "checkpoint-8"))
    assert resumed == whole[8:] == as_seen(plan)[8:]


def test_trl_breaks_the_order_where_check_says_so(tmp_path):
    """The reasons check gives are real: shuffling mixes, a partial chunk is dropped."""
    plan = plan_for(22, policy="default", partial="drop", epochs=1)
    ordered = plan.apply(problems(22), "id")
    from trl import GRPOConfig

    shuffled = plan.grpo_args(num_generations=2) | {"shuffle_dataset": True}
    config = GRPOConfig(output_dir=str(tmp_path), **SMALL | shuffled)
    with pytest.raises(TrainerMismatchError, match="shuffle_dataset"):
        plan.check(config)
    assert train(plan, ordered, tmp_path, config=config, guarded=False) != as_seen(plan)

    larger = plan.grpo_args(num_generations=2) | {"generation_batch_size": 12, "per_device_train_batch_size": 12}
    config = GRPOConfig(output_dir=str(tmp_path), **SMALL | larger | {"gradient_accumulation_steps": 1})
    with pytest.raises(TrainerMismatchError, match="the last 2 of 20 prompts"):
        plan.check(config)
    seen = train(plan, ordered, tmp_path, config=config, guarded=False)
    assert sum(len(call) for call in seen) == 36


def test_trls_defaults_are_refused(tmp_path):
    from trl import GRPOConfig

    with pytest.raises(TrainerMismatchError) as caught:
        plan_for(22).check(GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False))
    for word in ("shuffle_dataset", "num_train_epochs", "takes 1 prompts"):
        assert word in str(caught.value)


def test_several_optimizer_steps_per_batch_under_a_pure_plan(tmp_path):
    settings = {"output_dir": str(tmp_path), "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1} | SMALL
    with pytest.raises(TrainerMismatchError, match="one cluster per batch.*4 optimizer steps"):
        grpo_config(plan_for(22, policy="saerl"), num_generations=2, **settings)
    grpo_config(plan_for(22, policy="saerl"), num_generations=2, force=True, **settings)
    grpo_config(plan_for(22, policy="default"), num_generations=2, **settings)


def test_the_guard_stops_a_run_on_the_wrong_data(tmp_path):
    plan = plan_for(24)
    seen = []
    trainer = trainer_for(plan, problems(24), tmp_path, seen)
    with pytest.raises(TrainerMismatchError, match="24 rows, the plan 48"):
        trainer.train()
    assert seen == []
    with pytest.raises(TrainerMismatchError, match="24 rows, the plan 48"):
        plan.check(trainer)


def test_the_guard_stops_a_shuffling_trainer(tmp_path):
    from trl import GRPOConfig, GRPOTrainer

    plan = plan_for(22)
    config = GRPOConfig(
        output_dir=str(tmp_path), **SMALL | plan.grpo_args(num_generations=2) | {"shuffle_dataset": True}
    )
    trainer = GRPOTrainer(
        tiny_model(),
        lambda completions, **columns: [0.0] * len(completions),
        args=config,
        train_dataset=plan.apply(problems(22), "id"),
        processing_class=tiny_tokenizer(),
        callbacks=[PlanGuard(plan)],
    )
    with pytest.raises(TrainerMismatchError, match="shuffle_dataset"):
        trainer.train()


def test_the_guard_says_when_it_cannot_see_the_order(tmp_path, caplog):
    plan = plan_for(22)
    bare = SimpleNamespace(dataset=plan.apply(problems(22), "id").select_columns(["prompt"]))
    for remove in (True, False):
        config = grpo_config(plan, output_dir=str(tmp_path), num_generations=2, remove_unused_columns=remove, **SMALL)
        if remove:
            PlanGuard(plan).on_train_begin(config, None, None, train_dataloader=bare)
            assert "remove_unused_columns" in caplog.text
        else:
            with pytest.raises(TrainerMismatchError, match="no column saerl_row"):
                PlanGuard(plan).on_train_begin(config, None, None, train_dataloader=bare)

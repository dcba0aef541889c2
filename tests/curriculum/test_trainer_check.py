"""plan.check on settings that stand for a GRPOConfig; tests/rl has the real one."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset

from saerl_fast.curriculum import make_plan
from saerl_fast.errors import DtypeError, TrainerMismatchError


def plan_of(policy="saerl", clusters=3, **settings):
    rng = np.random.default_rng(0)
    signals = {"clusters": rng.integers(0, clusters, 22), "difficulty": rng.normal(size=22)}
    return make_plan(range(22), **signals, prompts_per_step=4, epochs=2, policy=policy, **settings)


def config(**changes):
    """What GRPOConfig holds for 4 prompts, 2 generations and one optimizer step per chunk."""
    fitting = {
        "shuffle_dataset": False,
        "num_train_epochs": 1,
        "max_steps": -1,
        "num_generations": 2,
        "num_iterations": 1,
        "generation_batch_size": 8,
        "steps_per_generation": 1,
        "gradient_accumulation_steps": 1,
        "per_device_train_batch_size": 8,
        "world_size": 1,
        "ignore_data_skip": False,
        "accelerator_config": SimpleNamespace(split_batches=False),
    }
    return SimpleNamespace(**fitting | changes)


def test_what_fits_passes_in_silence(caplog):
    assert plan_of().check(config()) == ()
    assert plan_of().check(config(), world_size=1) == ()
    assert plan_of().check(config(max_steps=12, num_train_epochs=3)) == ()
    assert plan_of().check(SimpleNamespace(args=config())) == ()
    assert not caplog.records


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shuffle_dataset": True}, "shuffle_dataset=False"),
        ({"generation_batch_size": 16}, "takes 8 prompts at a time.*have 4.*generation_batch_size=8"),
        ({"generation_batch_size": 10}, "the last 3 of 48 prompts.*drop them"),
        ({"num_generations": 4}, "takes 2 prompts at a time"),
        ({"num_train_epochs": 3.0}, "num_train_epochs=3"),
        ({"max_steps": 13}, "beyond the plan's 12"),
        ({"steps_per_generation": 2}, "one cluster per batch.*2 optimizer steps"),
        ({"ignore_data_skip": True}, "ignore_data_skip"),
        ({"accelerator_config": SimpleNamespace(split_batches=True)}, "split_batches"),
    ],
)
def test_what_breaks_the_order_is_refused(changes, message):
    with pytest.raises(TrainerMismatchError, match=message):
        plan_of().check(config(**changes))


def test_the_wrong_number_of_processes():
    with pytest.raises(TrainerMismatchError, match="made for 1 processes, the run has 4"):
        plan_of().check(config(), world_size=4)


def test_every_problem_is_named_at_once():
    with pytest.raises(TrainerMismatchError) as caught:
        plan_of().check(config(shuffle_dataset=True, generation_batch_size=10, num_train_epochs=3), world_size=2)
    for word in ("shuffle_dataset", "takes 5 prompts", "drop them", "num_train_epochs", "2"):
        assert word in str(caught.value)


def test_force_lets_several_steps_per_batch_through_and_nothing_else():
    several = {"steps_per_generation": 8, "per_device_train_batch_size": 1}
    assert plan_of().check(config(**several), force=True) == ()
    with pytest.raises(TrainerMismatchError, match="shuffle"):
        plan_of().check(config(shuffle_dataset=True, **several), force=True)


@pytest.mark.parametrize("plan", [plan_of("default"), plan_of("stratified"), plan_of("random"), plan_of(clusters=1)])
def test_mixed_batches_may_feed_several_steps(plan):
    assert plan.check(config(steps_per_generation=8)) == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 7}, "stops after 7 of the plan's 12"),
        ({"num_train_epochs": 0.5}, "stops after 6 of the plan's 12"),
        ({"gradient_accumulation_steps": 2}, "takes in 2 batches"),
        ({"num_iterations": 2}, "2 rounds in a row"),
    ],
)
def test_what_should_be_known_is_logged_and_returned(changes, message, caplog):
    with caplog.at_level(logging.WARNING):
        notes = plan_of().check(config(**changes))
    assert len(notes) == 1
    assert message in notes[0]
    assert message in caplog.text


def test_a_trainer_shows_its_dataset_too():
    plan = plan_of()
    given = Dataset.from_dict({"prompt": [str(row) for row in range(22)]})
    ordered = plan.apply(given)

    def check(dataset):
        return plan.check(SimpleNamespace(args=config(), train_dataset=dataset))

    assert check(ordered) == ()
    for dataset, message in (
        (given, "22 rows, the plan 48"),
        (ordered.shuffle(seed=0), "another order"),
        (ordered.remove_columns("saerl_row"), "no column saerl_row"),
        (ordered.to_iterable_dataset(), "IterableDataset"),
    ):
        with pytest.raises(TrainerMismatchError, match=message):
            check(dataset)


def test_something_else_than_a_config():
    with pytest.raises(DtypeError, match="got dict"):
        plan_of().check({"shuffle_dataset": False})

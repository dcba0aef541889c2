"""A plan applied to a dataset, and the settings it asks for."""

import logging

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict

from saerl_fast.curriculum import fingerprint, make_plan
from saerl_fast.errors import DtypeError, InputError, PlanError, TrainerMismatchError

COUNT = 22


def plan_of(ids, **settings):
    rng = np.random.default_rng(0)
    signals = {"clusters": rng.integers(0, 3, COUNT), "difficulty": rng.normal(size=COUNT)}
    return make_plan(ids, **signals | {"prompts_per_step": 4, "epochs": 2, "policy": "saerl"} | settings)


def dataset(**more):
    rows = range(COUNT)
    texts = [f"problem {row}" for row in rows]
    return Dataset.from_dict({"id": [f"q{row}" for row in rows], "prompt": texts} | more)


def test_the_dataset_comes_out_in_the_plans_order():
    plan = plan_of([f"q{row}" for row in range(COUNT)])
    ordered = plan.apply(dataset(), id_column="id")
    assert len(ordered) == len(plan) == 48
    assert ordered["id"][:] == plan.columns()["id"].tolist()
    assert ordered["prompt"][:] == [f"problem {row}" for row in plan.order]
    assert ordered["saerl_row"][:] == plan.order.tolist()
    assert ordered["saerl_step"][:] == np.repeat(np.arange(12), 4).tolist()
    assert ordered["saerl_cluster"][:] == plan.codes[plan.order].tolist()
    assert ordered["saerl_difficulty"][:] == plan.difficulty[plan.order].tolist()
    assert ordered._indices is None


def test_ids_find_their_rows_in_any_order():
    plan = plan_of([f"q{row}" for row in range(COUNT)])
    straight, shuffled = (plan.apply(d, id_column="id") for d in (dataset(), dataset().shuffle(seed=3)))
    assert straight.to_dict() == shuffled.to_dict()


def test_columns_keep_their_types():
    chat = [[{"role": "user", "content": f"problem {row}"}] for row in range(COUNT)]
    given = dataset(messages=chat, level=[row % 2 for row in range(COUNT)])
    given = given.cast_column("level", ClassLabel(names=["low", "high"]))
    ordered = plan_of(range(COUNT)).apply(given)
    assert ordered.features["level"] == ClassLabel(names=["low", "high"])
    assert ordered[5]["messages"] == chat[ordered[5]["saerl_row"]]
    assert set(ordered.column_names) - set(given.column_names) == {
        "saerl_row", "saerl_step", "saerl_cluster", "saerl_difficulty",
    }  # fmt: skip


def test_applying_twice_replaces_the_columns(caplog):
    plan = plan_of(range(COUNT))
    stale = dataset(saerl_cluster=[9] * COUNT)
    with caplog.at_level(logging.INFO):
        assert plan.apply(stale)["saerl_cluster"][:] == plan.codes[plan.order].tolist()
    assert "saerl_cluster" in caplog.text


def test_words_as_clusters_and_no_difficulty():
    plan = make_plan(range(8), clusters=["a", "b"] * 4, prompts_per_step=2, order="random")
    ordered = plan.apply(Dataset.from_dict({"prompt": [str(row) for row in range(8)]}))
    assert set(ordered["saerl_cluster"]) == {"a", "b"}
    assert np.isnan(ordered["saerl_difficulty"][:]).all()


def test_blocks_are_put_together(monkeypatch):
    monkeypatch.setattr("saerl_fast.curriculum.handoff.GATHERED_ROWS", 5)
    plan = plan_of(range(COUNT))
    assert plan.apply(dataset())["prompt"][:] == [f"problem {row}" for row in plan.order]


def test_left_out_rows_may_be_missing_from_the_dataset():
    status = ["ok"] * 21 + ["empty"]
    plan = plan_of([f"q{row}" for row in range(COUNT)], status=status)
    ordered = plan.apply(dataset().select(range(21)), id_column="id")
    assert ordered["id"][:] == plan.columns()["id"].tolist()


def by_name(**settings):
    return plan_of([f"q{row}" for row in range(COUNT)], **settings)


@pytest.mark.parametrize(
    ("apply", "error", "message"),
    [
        (lambda: by_name().apply(dataset()), PlanError, "id_column"),
        (lambda: by_name().apply(dataset(), id_column="key"), PlanError, "'key'"),
        (lambda: by_name().apply(dataset(), id_column="prompt"), PlanError, "not in the plan: 'problem 0'"),
        (lambda: by_name().apply(dataset().select(range(9)), id_column="id"), PlanError, "13 ids of the plan.*'q10'"),
        (lambda: by_name().apply(dataset(key=[0] * COUNT), id_column="key"), PlanError, "each id once"),
        (lambda: plan_of(range(COUNT)).apply(dataset().select(range(9))), PlanError, "22 rows, this dataset has 9"),
        (lambda: plan_of(range(COUNT)).apply(dataset(), id_column="id"), PlanError, "not in the plan"),
        (lambda: plan_of(range(COUNT)).apply(DatasetDict(train=dataset())), DtypeError, "DatasetDict"),
        (lambda: plan_of(range(COUNT)).apply(dataset().to_iterable_dataset()), DtypeError, "IterableDataset"),
        (lambda: plan_of(range(COUNT)).apply([{"prompt": "x"}] * COUNT), DtypeError, "list"),
    ],
)
def test_another_dataset_is_refused_and_the_difference_named(apply, error, message):
    with pytest.raises(error, match=message):
        apply()


def test_a_fingerprint_tells_datasets_of_one_length_apart(caplog):
    plan = plan_of(range(COUNT), fingerprint=fingerprint(dataset()["prompt"], "prompt"))
    plan.apply(dataset())
    assert "only the number of rows" not in caplog.text
    other = dataset().map(lambda row: {"prompt": row["prompt"] + ("!" if row["id"] == "q7" else "")})
    with pytest.raises(PlanError, match="'prompt' is not the one"):
        plan.apply(other)
    with pytest.raises(PlanError, match="'prompt'"):
        plan.apply(dataset().remove_columns("prompt"))
    with caplog.at_level(logging.WARNING):
        plan_of(range(COUNT)).apply(dataset())
    assert "only the number of rows" in caplog.text


def test_fingerprints_tell_none_from_empty_and_mind_the_borders():
    texts = [["ab", "c"], ["a", "bc"], ["ab", ""], ["ab", None], ["ab"], ["ab", "\ud800"]]
    assert len({fingerprint(column, "text") for column in texts}) == len(texts)
    with pytest.raises(DtypeError, match="int"):
        fingerprint([1], "text")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"generation_batch_size": 32, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}),
        (
            {"num_generations": 3},
            {"generation_batch_size": 12, "per_device_train_batch_size": 6, "gradient_accumulation_steps": 2},
        ),
        (
            {"world_size": 2, "per_device_train_batch_size": 4},
            {"generation_batch_size": 32, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
        ),
        ({"gradient_accumulation_steps": 1}, {"generation_batch_size": 32, "gradient_accumulation_steps": 1}),
        ({"steps_per_generation": 4}, {"steps_per_generation": 4, "per_device_train_batch_size": 8}),
    ],
)
def test_grpo_args(settings, expected):
    arguments = plan_of(range(COUNT)).grpo_args(**settings)
    assert arguments["shuffle_dataset"] is False
    assert arguments["num_train_epochs"] == 1
    assert expected.items() <= arguments.items()
    assert "world_size" not in arguments
    assert ("generation_batch_size" in arguments) != ("steps_per_generation" in settings)


def test_the_launchers_world_size_counts(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert plan_of(range(COUNT)).grpo_args()["gradient_accumulation_steps"] == 1


def test_recipes():
    plan = plan_of(range(COUNT))
    assert "loss_type" not in plan.grpo_args()
    assert plan.grpo_args(recipe="grpo")["loss_type"] == "grpo"
    dapo = plan.grpo_args(recipe="dapo")
    assert (dapo["loss_type"], dapo["epsilon_high"], dapo["mask_truncated_completions"], dapo["beta"]) == (
        "dapo", 0.28, True, 0.0,
    )  # fmt: skip
    assert plan.grpo_args(recipe="dapo", epsilon_high=0.3)["epsilon_high"] == 0.3
    with pytest.raises(InputError, match="recipe"):
        plan.grpo_args(recipe="ppo")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shuffle_dataset": True}, "shuffle_dataset"),
        ({"num_train_epochs": 3}, "make_plan\\(epochs"),
        ({"generation_batch_size": 64}, "wanted 32, got 64"),
        ({"steps_per_generation": 3}, "wanted 32, got 24"),
        ({"per_device_train_batch_size": 5}, "divisor of 32"),
        ({"world_size": 3}, "over 3 processes"),
    ],
)
def test_contradictions_are_refused_at_once(settings, message):
    with pytest.raises(TrainerMismatchError, match=message):
        plan_of(range(COUNT)).grpo_args(**settings)

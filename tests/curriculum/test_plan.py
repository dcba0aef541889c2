"""BatchPlan: reading it, and that it cannot be bent."""

import dataclasses
import json

import numpy as np
import pytest

from saerl_fast.curriculum import make_plan
from saerl_fast.errors import InputError, PlanError


@pytest.fixture
def plan():
    rng = np.random.default_rng(0)
    return make_plan(
        [f"q{row}" for row in range(22)],
        clusters=rng.integers(3, 6, 22),
        difficulty=rng.normal(size=22),
        quality=np.arange(22.0),
        drop_lowest=0.1,
        prompts_per_step=4,
        epochs=2,
        policy="saerl",
    )


def test_sizes(plan):
    assert (len(plan), plan.steps, plan.steps_per_epoch, plan.epochs, plan.prompts_per_step) == (40, 10, 5, 2, 4)
    assert "20 of 22 rows, 3 clusters, 2 epochs, 10 steps of 4" in repr(plan)


def test_a_step_says_what_and_why(plan):
    step = plan.step(7)
    assert (step.number, step.epoch) == (7, 1)
    assert step.ids.tolist() == [f"q{row}" for row in plan.rows[7]]
    assert step.difficulty.tolist() == plan.difficulty[plan.rows[7]].tolist()
    assert set(step.clusters.tolist()) <= {3, 4, 5}
    assert [other.number for other in plan] == list(range(10))
    with pytest.raises(InputError, match="0 to 9"):
        plan.step(10)


def test_why(plan):
    kept = plan.why("q21")
    assert kept["kept"]
    assert kept["reason"] == "kept"
    assert [plan.step(number).epoch for number in kept["steps"]] == [0, 1]
    low = plan.why("q1")
    assert (low["kept"], low["reason"], low["quality"], low["threshold"], low["steps"]) == (
        False, "low quality", 1.0, 2.0, [],
    )  # fmt: skip
    with pytest.raises(InputError, match="'q99'"):
        plan.why("q99")


def test_rows_of_the_table_are_in_order(plan):
    rows = list(plan.to_rows())
    assert [row["row"] for row in rows] == plan.order.tolist()
    assert [row["step"] for row in rows] == np.repeat(np.arange(10), 4).tolist()
    assert set(rows[0]) == {"step", "epoch", "id", "row", "cluster", "difficulty", "quality", "padded"}
    json.dumps(rows)


def test_summary_is_json(plan):
    summary = json.loads(json.dumps(plan.summary()))
    assert summary["kept"] == 20
    assert sum(cluster["kept"] for cluster in summary["clusters"].values()) == 20
    assert sum(cluster["left_out"] for cluster in summary["clusters"].values()) == 2
    assert summary["rows_swapped_per_step"] == 1
    assert summary["quality_threshold"] == 2.0


def test_a_plan_cannot_be_changed(plan):
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.seed = 3
    for name in ("rows", "padded", "ids", "codes", "difficulty", "reasons", "dropped"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(plan, name)[0] = 0


def test_digest_tells_order_and_ids_apart(plan):
    assert dataclasses.replace(plan, seed=5).digest == plan.digest
    assert dataclasses.replace(plan, rows=plan.rows[:, ::-1], padded=plan.padded[:, ::-1]).digest != plan.digest
    ids = plan.ids.copy()
    ids[0] = "other"
    assert dataclasses.replace(plan, ids=ids).digest != plan.digest


def changed(array, place, value):
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"rows": changed(p.rows, (0, 0), p.rows[0, 1])}, "each kept row once"),
        (lambda p: {"rows": changed(p.rows, (0, 0), 22)}, "from 0 to 21"),
        (lambda p: {"rows": changed(p.rows, (0, 0), -1)}, "from 0 to 21"),
        (lambda p: {"rows": changed(p.rows, (0, 0), 0)}, "each kept row once"),
        (lambda p: {"rows": p.rows[:9], "padded": p.padded[:9]}, "divisor"),
        (lambda p: {"rows": p.rows.ravel()}, "steps, prompts"),
        (lambda p: {"padded": p.padded[:, 1:]}, "padded"),
        (lambda p: {"padded": changed(p.padded, (0, 0), True)}, "each kept row once"),
        (lambda p: {"codes": changed(p.codes, 21, 3)}, "codes"),
        (lambda p: {"codes": changed(p.codes, 21, -1)}, "no cluster"),
        (lambda p: {"codes": p.codes[:-1]}, "22 ids"),
        (lambda p: {"reasons": changed(p.reasons, 21, 9)}, "reasons"),
        (lambda p: {"reasons": changed(p.reasons, 21, 1)}, "each kept row once"),
        (lambda p: {"difficulty": changed(p.difficulty, 21, np.nan)}, "not finite"),
        (lambda p: {"quality": p.quality[:-1]}, "quality"),
        (lambda p: {"ids": changed(p.ids, 0, "q1")}, "each id once"),
        (lambda p: {"dropped": np.full((2, 1), 21)}, "each kept row once"),
    ],
)
def test_a_plan_that_is_not_a_permutation_cannot_exist(plan, change, message):
    with pytest.raises(PlanError, match=message):
        dataclasses.replace(plan, **change(plan))


def test_a_plan_without_signals():
    plan = make_plan(range(10), prompts_per_step=5, policy="random")
    assert plan.ids.tolist() == list(range(10))
    assert np.isnan(plan.step(0).difficulty).all()
    assert plan.why(3)["difficulty"] is None
    assert plan.step(0).clusters.tolist() == [0] * 5

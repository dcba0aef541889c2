"""make_plan: the invariants, the filters, and bad input."""

import logging
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saerl_fast.curriculum import PRESETS, make_plan
from saerl_fast.errors import DtypeError, InputError, NonFiniteError, PlanError


def columns(count, clusters=5, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "ids": [f"q{row}" for row in range(count)],
        "clusters": rng.integers(0, clusters, count),
        "difficulty": rng.normal(size=count),
        "quality": rng.normal(size=count),
    }


@st.composite
def settings_of_plans(draw):
    size = draw(st.integers(1, 12))
    count = draw(st.integers(size, 120))
    policy = draw(st.sampled_from(sorted(PRESETS)))
    knobs = {}
    if policy not in ("easy_to_hard", "random"):
        knobs = {
            "clusters_per_step": draw(st.one_of(st.none(), st.integers(1, 6), st.just("all"))),
            "tail_swap": draw(st.one_of(st.none(), st.floats(0, 0.5))),
        }
    return (
        columns(count, draw(st.integers(1, 9)), draw(st.integers(0, 99)))
        | knobs
        | {
            "prompts_per_step": size,
            "policy": policy,
            "order": draw(st.sampled_from([None, "easy_to_hard", "hard_to_easy", "random"])),
            "epochs": draw(st.integers(1, 3)),
            "partial": draw(st.sampled_from(["pad", "drop"])),
            "seed": draw(st.integers(0, 2**40)),
        }
    )


@settings(max_examples=120, deadline=None)
@given(wanted=settings_of_plans())
def test_each_epoch_holds_each_row_once(wanted):
    plan = make_plan(**wanted)
    count, size = len(wanted["ids"]), wanted["prompts_per_step"]
    assert plan.rows.shape[1] == size
    assert plan.steps == plan.epochs * plan.steps_per_epoch
    for epoch in range(plan.epochs):
        steps = slice(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        once = plan.rows[steps][~plan.padded[steps]].tolist() + plan.dropped[epoch].tolist()
        assert sorted(once) == list(range(count))
        assert plan.padded[steps].sum() == (-count % size if wanted["partial"] == "pad" else 0)
        assert len(plan.dropped[epoch]) == (count % size if wanted["partial"] == "drop" else 0)
    assert make_plan(**wanted).digest == plan.digest


@settings(max_examples=60, deadline=None)
@given(wanted=settings_of_plans())
def test_the_swap_moves_no_row_by_more_than_one_batch(wanted):
    moved = make_plan(**wanted)
    still = make_plan(**wanted | {"tail_swap": 0.0})
    assert moved.steps == still.steps
    for epoch in range(moved.epochs):
        steps = slice(epoch * moved.steps_per_epoch, (epoch + 1) * moved.steps_per_epoch)
        places = {}
        for plan in (still, moved):
            number = np.arange(plan.steps_per_epoch)[:, None] + np.zeros_like(plan.rows[steps])
            once = ~plan.padded[steps]
            places[plan is moved] = number[once][np.argsort(plan.rows[steps][once])]
        assert np.abs(places[True] - places[False]).max(initial=0) <= 1


def test_saerl_batches_are_of_one_cluster_but_for_the_tail():
    table = columns(640, clusters=4)
    table["clusters"] = np.repeat(np.arange(4), 160)
    plan = make_plan(**table, prompts_per_step=16, policy="saerl")
    for step in plan:
        counts = sorted(np.unique(step.clusters, return_counts=True)[1].tolist())
        assert counts in ([2, 14], [16])
    assert len({int(np.bincount(step.clusters).argmax()) for step in list(plan)[:4]}) == 4


def test_easy_to_hard_inside_each_cluster():
    plan = make_plan(**columns(400), prompts_per_step=8, policy="saerl", tail_swap=0.0)
    steps = np.arange(plan.steps)[:, None] + np.zeros_like(plan.rows)
    for cluster in range(5):
        mine = plan.codes[plan.rows] == cluster
        order = np.argsort(plan.difficulty[plan.rows][mine])
        assert (np.diff(steps[mine][order]) >= 0).all()


def test_epochs_are_drawn_anew():
    plan = make_plan(**columns(64), prompts_per_step=8, epochs=2, policy="random")
    first, second = plan.rows[:8], plan.rows[8:]
    assert not np.array_equal(first, second)
    assert make_plan(**columns(64), prompts_per_step=8, policy="random").rows.tolist() == first.tolist()


def test_seed_decides_and_global_random_state_is_left_alone():
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    plans = [make_plan(**columns(100), prompts_per_step=8, seed=seed) for seed in (0, 0, 1)]
    assert plans[0].digest == plans[1].digest != plans[2].digest
    assert before == (random.getstate(), np.random.get_state()[1].tolist())


def test_inputs_are_not_modified():
    table = columns(50)
    copies = {name: np.array(value, copy=True) for name, value in table.items()}
    plan = make_plan(**table, prompts_per_step=8, drop_lowest=0.2, max_difficulty=1.0)
    for name, value in copies.items():
        assert np.array_equal(value, table[name])
    table["difficulty"][0] = 7.0
    assert plan.difficulty[0] == copies["difficulty"][0]


def test_left_out_rows_are_named_with_their_reason(caplog):
    table = columns(10)
    table["difficulty"] = np.arange(10.0)
    table["quality"] = np.array([5.0, 1, 2, 3, 4, 6, 7, 8, 9, 0])
    status = ["ok"] * 9 + ["empty"]
    status[3] = "truncated"
    with caplog.at_level(logging.INFO):
        plan = make_plan(**table, status=status, prompts_per_step=2, drop_lowest=0.3, max_difficulty=7, policy="saerl")
    assert plan.why("q9")["reason"] == "status: empty"
    assert plan.why("q8")["reason"] == "too hard"
    assert [plan.why(f"q{row}")["reason"] for row in (1, 2)] == ["low quality"] * 2
    assert plan.why("q3")["kept"]
    assert plan.threshold == 3.0
    assert plan.summary()["left_out"] == {"low quality": 2, "too hard": 1, "status: empty": 1}
    assert "6 of 10 rows planned" in caplog.text


def test_unread_rows_need_no_label_and_no_difficulty():
    table = columns(12)
    table["difficulty"][3] = np.nan
    table["clusters"][3] = -7
    plan = make_plan(**table, status=["ok"] * 3 + ["empty"] + ["ok"] * 8, prompts_per_step=4)
    assert -7 not in plan.cluster_labels
    assert plan.why("q3")["cluster"] is None
    assert 3 not in plan.rows


def test_cluster_names_may_be_words():
    table = columns(40)
    table["clusters"] = np.array(["algebra", "geometry"])[np.arange(40) % 2]
    plan = make_plan(**table, prompts_per_step=4, policy="saerl")
    assert plan.cluster_labels == ("algebra", "geometry")
    assert plan.why("q1")["cluster"] == "geometry"


def test_what_is_cut_off_is_logged_and_recorded(caplog):
    with caplog.at_level(logging.INFO):
        plan = make_plan(**columns(22), prompts_per_step=4, epochs=2, partial="drop")
        assert plan.dropped.shape == (2, 2)
        assert "2 rows of each of 2 epochs" in caplog.text
        make_plan(**columns(22), prompts_per_step=4, epochs=2)
        assert "4 repeated rows" in caplog.text


def test_one_label_for_all_is_said(caplog):
    table = columns(16) | {"clusters": np.zeros(16, dtype=int)}
    with caplog.at_level(logging.WARNING):
        make_plan(**table, prompts_per_step=4)
    assert "one cluster label" in caplog.text


def test_a_swap_of_less_than_a_row_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        make_plan(**columns(16), prompts_per_step=3, policy="saerl")
    assert "no whole row" in caplog.text


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ids": []}, InputError, "at least one row"),
        ({"ids": [f"q{row % 9}" for row in range(20)]}, InputError, "each id once"),
        ({"ids": [1.5] * 20}, DtypeError, "integers or all strings"),
        ({"ids": ["a", *range(19)]}, DtypeError, "int and str"),
        ({"ids": [True, *range(2, 21)]}, DtypeError, "bool"),
        ({"ids": [2**70, *range(19)]}, InputError, "2\\*\\*63"),
        ({"ids": "abcdefghijklmnopqrst"}, DtypeError, "got str"),
        ({"clusters": np.zeros(19, dtype=int)}, InputError, "clusters: .*20 ids"),
        ({"clusters": np.zeros((20, 1), dtype=int)}, InputError, "clusters"),
        ({"clusters": np.zeros(20)}, DtypeError, "integer labels"),
        ({"clusters": [None, *["a"] * 19]}, DtypeError, "NoneType"),
        ({"difficulty": np.zeros(21)}, InputError, "difficulty: .*20 ids"),
        ({"difficulty": [float("nan")] * 20}, NonFiniteError, "difficulty: .*'q0' and 19 more"),
        ({"difficulty": [float("inf"), *[0.0] * 19]}, NonFiniteError, "difficulty"),
        ({"difficulty": ["hard"] * 20}, DtypeError, "numbers"),
        ({"quality": [0.0] * 19 + [float("nan")]}, NonFiniteError, "quality: .*'q19'"),
        ({"quality": None, "drop_lowest": 0.1}, InputError, "wanted quality"),
        ({"difficulty": None, "max_difficulty": 1.0}, InputError, "wanted difficulty"),
        ({"max_difficulty": float("nan")}, InputError, "max_difficulty"),
        ({"max_difficulty": -1e9}, InputError, "no row is left"),
        ({"drop_lowest": 1.0}, InputError, "drop_lowest"),
        ({"drop_lowest": -0.1}, InputError, "drop_lowest"),
        ({"drop_lowest": float("nan")}, InputError, "drop_lowest"),
        ({"status": ["empty"] * 20}, InputError, "no row is left.*20 status: empty"),
        ({"status": ["ok"] * 19}, InputError, "status"),
        ({"status": [0] * 20}, DtypeError, "status"),
        ({"prompts_per_step": 0}, InputError, "prompts_per_step"),
        ({"prompts_per_step": 2.0}, InputError, "prompts_per_step"),
        ({"prompts_per_step": 21}, InputError, "at most 20"),
        ({"prompts_per_step": True}, InputError, "prompts_per_step"),
        ({"epochs": 0}, InputError, "epochs"),
        ({"seed": -1}, InputError, "seed"),
        ({"seed": 2**63}, InputError, "seed"),
        ({"partial": "ignore"}, InputError, "pad, drop, error"),
        ({"partial": "error", "prompts_per_step": 8}, PlanError, "4 are left over"),
        ({"policy": "best"}, InputError, "policy"),
        ({"fingerprint": "abc"}, InputError, "fingerprint"),
    ],
)
def test_bad_input_is_named(change, error, message):
    with pytest.raises(error, match=message):
        make_plan(**columns(20) | {"prompts_per_step": 4} | change)


def test_partial_error_lets_full_batches_pass():
    assert make_plan(**columns(20), prompts_per_step=4, partial="error").steps == 5


def test_a_hundred_thousand_rows():
    """Guards against anything quadratic: that would take minutes here."""
    table = columns(100_000, clusters=64)
    plan = make_plan(**table | {"ids": np.arange(100_000)}, prompts_per_step=8, policy="stratified", epochs=2)
    assert plan.steps == 25_000

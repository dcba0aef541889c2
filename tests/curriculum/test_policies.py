"""Policies: presets, knobs, and what is refused."""

import logging

import pytest

from saerl_fast.curriculum.policies import PRESETS, Policy, choose_policy
from saerl_fast.errors import InputError


def test_presets():
    assert PRESETS["default"] == Policy("default", 4, 0.125, "easy_to_hard")
    assert PRESETS["saerl"] == Policy("saerl", 1, 0.125, "easy_to_hard")
    assert set(PRESETS) == {"default", "saerl", "stratified", "easy_to_hard", "random"}
    assert [name for name, policy in PRESETS.items() if policy.pure] == ["saerl"]


def test_a_turned_knob_shows_in_the_name():
    assert choose_policy("saerl", tail_swap=0.25) == Policy("saerl+", 1, 0.25, "easy_to_hard")
    assert choose_policy("saerl", tail_swap=0.125) is PRESETS["saerl"]
    assert choose_policy(choose_policy("saerl", tail_swap=0.25), order="random").name == "saerl+"


@pytest.mark.parametrize(
    ("clusters_per_step", "size", "runs"),
    [
        (1, 8, [8]),
        (4, 8, [2, 2, 2, 2]),
        (4, 10, [3, 3, 2, 2]),
        (4, 3, [1, 1, 1]),
        ("all", 3, [1, 1, 1]),
        ("any", 3, [3]),
    ],
)
def test_runs_fill_a_batch(clusters_per_step, size, runs):
    assert Policy("x", clusters_per_step, 0.0, "random").runs(size) == runs


@pytest.mark.parametrize(
    ("fraction", "size", "rows"), [(0.125, 8, 1), (0.125, 3, 0), (0.125, 4, 1), (0.5, 5, 2), (0, 8, 0)]
)
def test_swapped_rows_are_rounded_half_up_and_at_most_half(fraction, size, rows):
    assert Policy("x", 1, fraction, "random").swapped(size) == rows


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"policy": "saerl2"}, "default, saerl"),
        ({"clusters_per_step": 0}, "clusters_per_step"),
        ({"clusters_per_step": 1.5}, "clusters_per_step"),
        ({"clusters_per_step": True}, "clusters_per_step"),
        ({"clusters_per_step": "some"}, "clusters_per_step"),
        ({"tail_swap": 0.6}, "tail_swap"),
        ({"tail_swap": -0.1}, "tail_swap"),
        ({"tail_swap": float("nan")}, "tail_swap"),
        ({"order": "trapezoid"}, "order"),
        ({"policy": "random", "tail_swap": 0.1}, "tail_swap"),
    ],
)
def test_bad_knobs_are_refused(knobs, message):
    with pytest.raises(InputError, match=message):
        choose_policy(**({"policy": "saerl"} | knobs))


def test_default_makes_do_with_what_there_is_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        assert choose_policy("default", clustered=False) == Policy("default+", "any", 0.0, "easy_to_hard")
        assert choose_policy("default", graded=False) == Policy("default+", 4, 0.125, "random")
        assert choose_policy("stratified", graded=False).order == "random"
    assert "no clusters given" in caplog.text
    assert "no difficulty given" in caplog.text


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"policy": "saerl", "clustered": False}, "wants clusters"),
        ({"policy": "saerl", "graded": False}, "wants difficulty"),
        ({"policy": "easy_to_hard", "graded": False}, "wants difficulty"),
        ({"policy": "default", "clustered": False, "clusters_per_step": 4}, "wants clusters"),
        ({"policy": "default", "graded": False, "order": "easy_to_hard"}, "wants difficulty"),
    ],
)
def test_a_policy_asked_for_by_name_is_not_watered_down(knobs, message):
    with pytest.raises(InputError, match=message):
        choose_policy(**knobs)

"""The built-in maths verifier: extraction, normalisation, exactness, hostile text."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saerl_fast.errors import DtypeError, InputError
from saerl_fast.rl.verify import extract_answer, is_correct, maths_reward, read_number


@pytest.mark.parametrize(
    ("completion", "found"),
    [
        (r"so \boxed{12}.", "12"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"first \boxed{3}, the answer is 4", "3"),
        (r"\fbox{7}", "7"),
        ("5 + 7 = 12\n#### 12", "12"),
        ("#### 1\nmore\n#### 2\n99", "2"),
        ("The answer is 12 because 5 + 7 is so.", "12"),
        ("The final answer is: $-3$. I used 4 steps.", "-3"),
        ("**Answer:** 8", "8"),
        ("Answer = 2/3", "2/3"),
        ("The answer is x + 1. Done with 3.", "x + 1"),
        (" 7 10 8", "8"),
        ("7, 10, so 1,234.", "1,234"),
        ("from 3-5", "5"),
        ("it is -5", "-5"),
        ("it is −5", "-5"),
        ("0.5 or .25", ".25"),
        ("value x2 is none", None),
        (r"\boxed{unclosed 12", "12"),
        ("no number", None),
        ("", None),
    ],
)
def test_extract_answer(completion: str, found: str | None) -> None:
    assert extract_answer(completion) == found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", Fraction(12)),
        ("+12", Fraction(12)),
        ("-012", Fraction(-12)),
        ("12.50", Fraction(25, 2)),
        (".5", Fraction(1, 2)),
        ("1,234,567", Fraction(1234567)),
        (r"1{,}234", Fraction(1234)),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"-\dfrac{3}{4}", Fraction(-3, 4)),
        (r"\frac34", Fraction(3, 4)),
        (r"\tfrac{-1}{2}", Fraction(-1, 2)),
        ("$ 7 $", Fraction(7)),
        (r"\( 7 \)", Fraction(7)),
        (r"50\%", Fraction(50)),
        (r"90^\circ", Fraction(90)),
        (r"\text{12}", Fraction(12)),
        ("12.", Fraction(12)),
        ("1/0", None),
        ("12,34", None),
        ("1,2345", None),
        ("1e5", None),
        ("nan", None),
        ("inf", None),
        ("٣", None),
        ("1_000", None),
        ("2**3", None),
        ("**12**", Fraction(12)),
        (r"1\,234", Fraction(1234)),
        ("12 13", None),
        ("", None),
        ("1/2/3", None),
        ("9" * 301, None),
    ],
)
def test_read_number(text: str, value: Fraction | None) -> None:
    assert read_number(text) == value


@pytest.mark.parametrize(
    ("completion", "key", "correct"),
    [
        ("12", "12", True),
        ("12.0", "12", True),
        ("012", "12", True),
        ("0.5", "1/2", True),
        (r"\boxed{\frac{2}{4}}", "0.5", True),
        ("0.33", "1/3", False),
        ("0.3333333333333333", "1/3", False),
        ("1000", "1,000", True),
        ("-3", "3", False),
        (r"\boxed{x = 5}", "5", True),
        (r"\boxed{5 \text{ cm}}", "5", True),
        ("The answer is therefore 12.", "12", True),
        (r"\boxed{2x}", "2", False),
        (r"\boxed{x^2}", "2", False),
        (r"\boxed{3, 4}", "4", False),
        (r"\boxed{3 + 4}", "4", False),
        (r"\boxed{x^2 + 1}", "x^2+1", True),
        (r"\boxed{\left(1, 2\right)}", "(1,2)", True),
        (r"\boxed{12}", "long solution ... #### 12", True),
        ("12", r"we get \boxed{12}", True),
        ("12 13", "12", False),
        ("", "12", False),
        ("nothing", "0", False),
    ],
)
def test_is_correct(completion: str, key: str, correct: bool) -> None:
    assert is_correct(completion, key) is correct


@given(st.integers(-(10**20), 10**20))
def test_whole_numbers_round_trip(number: int) -> None:
    assert is_correct(f"Thus it is {number:,}.", str(number))
    assert not is_correct(f"Thus it is {number + 1}.", str(number))


@given(st.integers(-9999, 9999), st.integers(1, 9999))
def test_fractions_round_trip(top: int, bottom: int) -> None:
    assert read_number(rf"\frac{{{top}}}{{{bottom}}}") == read_number(f"{top}/{bottom}") == Fraction(top, bottom)


@given(st.text(max_size=300))
def test_any_text_is_safe(text: str) -> None:
    extract_answer(text)
    assert isinstance(is_correct(text, "1"), bool)
    if text.strip():
        assert isinstance(is_correct("1", text), bool)


@pytest.mark.parametrize(
    "piece",
    ["{", "}", "\\boxed{", "\\frac{", "\\frac", "1,", "1,111", "9", "1/", "answer is ", "answer ", " ", "####", "-",
     "1.", ".1", "\\left", "$", "\\text{", "-1", "1 / ", "{,}", "a1", "\u0661", "\ud800"],
)  # fmt: skip
def test_hostile_repetition_takes_bounded_time(piece: str) -> None:
    text = piece * 200_000
    start = time.process_time()
    is_correct(text, "12")
    is_correct("12", text if text.strip() else "x" + text)
    read_number(text)
    assert time.process_time() - start < 1.0


def test_rewards_of_plain_text_and_chats() -> None:
    chat = [{"role": "assistant", "content": "the answer is 4"}]
    assert maths_reward(["3", "5", chat], answer=["3", 4, "4"], prompts=["a", "b", "c"]) == [1.0, 0.0, 1.0]
    assert maths_reward([], answer=[]) == []


def test_bad_input_has_named_errors() -> None:
    with pytest.raises(DtypeError, match="got NoneType"):
        extract_answer(None)  # type: ignore[arg-type]
    with pytest.raises(DtypeError, match="got bytes"):
        is_correct("1", b"1")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="blank"):
        is_correct("1", " \n")
    with pytest.raises(InputError, match="1 for 2"):
        maths_reward(["1", "2"], answer=["1"])
    with pytest.raises(DtypeError, match="got float"):
        maths_reward([float("nan")], answer=["1"])

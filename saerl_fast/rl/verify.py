r"""The built-in maths verifier: does a completion end in the right number?

Pure functions over text; nothing is evaluated. The final answer of a completion is, in this order of preference:

1. the content of the last ``\boxed{...}`` or ``\fbox{...}``;
2. what follows the last ``####`` on its line;
3. what follows the last "answer is", "answer:" or "answer =": the number there, else the rest of the sentence;
4. the last number.

Two answers are equal when both read as the same rational number (``0.5``, ``1/2``, ``\frac{1}{2}``; ``1,000`` and
``1000``), or else when their texts are equal after spaces and LaTeX dressing are taken off. Equality is exact: there
is no tolerance, and 0.33 is not 1/3.

Only the last ``TAIL`` characters of a completion are looked at, and a number has at most ``LONGEST_NUMBER``
characters, so any text takes bounded time.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from fractions import Fraction

from saerl_fast.errors import DtypeError, InputError

TAIL = 20_000
"""Characters at the end of a completion that are searched for an answer."""

LONGEST_NUMBER = 300
"""Characters of the longest text that is read as a number."""

_MINUS = str.maketrans({"−": "-", "–": "-", "﹣": "-", "-": "-", "\u00a0": " ", "\u202f": " "})
_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.[0-9]+)?|\.[0-9]+)"
_LATEX = r"\\[dt]?frac\s*(?:\{\s*[-+]?[0-9.,]{1,100}\s*\}|[0-9])\s*(?:\{\s*[-+]?[0-9.,]{1,100}\s*\}|[0-9])"
_NUMBER = rf"(?:{_LATEX}|{_DECIMAL}(?:\s?/\s?{_DECIMAL})?)"
_FIND_NUMBER = re.compile(rf"(?:(?<![\w)\]}}.])[-+]\s?)?(?<![\w.]){_NUMBER}")
_READ_DECIMAL = re.compile(rf"[-+]?{_DECIMAL}")
_READ_LATEX = re.compile(r"([-+]?)\\[dt]?frac(?:\{([-+]?[0-9.,]+)\}|([0-9]))(?:\{([-+]?[0-9.,]+)\}|([0-9]))")
_TWO_NUMBERS = re.compile(r"[0-9.]\s+[0-9.]")
_SAID = re.compile(r"\banswer(?:\s+is|\s*[:=])(?:\s*[:=])?", re.IGNORECASE)
_LEAD = " \t$*`:=({[\\\"'"
_UNIT = re.compile(r"\\(?:text|mathrm)\{([^{}]*)\}")
_WORDS = re.compile(r"[A-Za-z\s=.,:;$'*]*")
_BOX = re.compile(r"\\f?boxed\s*\{|\\fbox\s*\{")
_DRESSING = re.compile(
    r"\\left|\\right|\\[,;:! ]|\\(?:text|mathrm|mathbf|textbf)(?=\{)|\^\s*\{?\\circ\}?|\\(?:degree|%|\$)|[$%€£°`]|\s"
)


def extract_answer(completion: str) -> str | None:
    """The final answer in a completion as written there, stripped; None when there is none.

    Raises DtypeError when ``completion`` is not a string.
    """
    text = _text(completion, "extract_answer")[-TAIL:].translate(_MINUS)
    for find in (_boxed, _after_hashes, _after_phrase, _last_number):
        found = find(text)
        if found:
            return found
    return None


def read_number(text: str) -> Fraction | None:
    """The rational number that the whole of ``text`` stands for, or None.

    Reads integers, decimals, thousands separators, ``a/b`` and ``\\frac{a}{b}``, with a sign, inside ``$`` or other
    LaTeX dressing, with a trailing full stop or percent sign (which is dropped: 50% reads as 50).
    """
    if len(text) > LONGEST_NUMBER or _TWO_NUMBERS.search(text):
        return None
    bare = _undress(text)
    latex = _READ_LATEX.fullmatch(bare)
    if latex:
        sign, top, top_digit, bottom, bottom_digit = latex.groups()
        value = _ratio(top or top_digit, bottom or bottom_digit)
        return -value if value is not None and sign == "-" else value
    top, slash, bottom = bare.partition("/")
    return _ratio(top, bottom) if slash else _decimal(bare)


def is_correct(completion: str, key: str) -> bool:
    """True when the final answer of ``completion`` equals ``key``.

    ``key`` may itself be a full solution (a ``\\boxed{}`` or ``####`` line is looked for first) or a bare answer.
    Raises InputError when ``key`` is blank, DtypeError when either is not a string.
    """
    key = _text(key, "is_correct").translate(_MINUS)
    if not key.strip():
        raise InputError("is_correct: wanted a key; got blank text. Drop rows without an answer before training")
    wanted = _boxed(key[-TAIL:]) or _after_hashes(key[-TAIL:]) or key.strip()
    number = read_number(wanted)
    found = extract_answer(completion)
    if found is None:
        return False
    if number is None:
        return _undress(found) == _undress(wanted)
    value = read_number(found)
    return (_only_number(found) if value is None else value) == number


def maths_reward(completions: Sequence[object], answer: Sequence[object], **_columns: object) -> list[float]:
    """Reward function in TRL's form: 1.0 where the completion is correct, else 0.0.

    ``completions`` are strings, or chats (a list of messages, of which the last one's "content" counts); ``answer`` is
    the dataset's column of keys (strings or integers). Raises InputError when the lengths differ.
    """
    if len(completions) != len(answer):
        raise InputError(
            f"maths_reward: wanted one answer per completion; got {len(answer)} for {len(completions)}. "
            "Name the key column 'answer'"
        )
    return [
        float(is_correct(_content(completion), str(key))) for completion, key in zip(completions, answer, strict=True)
    ]


def _text(value: object, caller: str) -> str:
    if not isinstance(value, str):
        raise DtypeError(f"{caller}: wanted text (str); got {type(value).__name__}")
    return value


def _content(completion: object) -> str:
    """The text of a completion, plain or chat."""
    if isinstance(completion, Sequence) and not isinstance(completion, str) and completion:
        last = completion[-1]
        if isinstance(last, Mapping):
            return _text(last.get("content"), "maths_reward")
    return _text(completion, "maths_reward")


def _boxed(text: str) -> str | None:
    """The content of the last box, with its braces balanced; None when there is no closed box."""
    openings = [match.end() for match in _BOX.finditer(text)]
    if not openings:
        return None
    depth = 1
    for place in range(openings[-1], len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[openings[-1] : place].strip() or None
    return None


def _after_hashes(text: str) -> str | None:
    _, mark, rest = text.rpartition("####")
    return rest.split("\n", 1)[0].strip() or None if mark else None


def _after_phrase(text: str) -> str | None:
    """What follows the last "answer is": the number that stands there, else the rest of the sentence."""
    last = deque(_SAID.finditer(text), maxlen=1)
    if not last:
        return None
    sentence = text[last[0].end() :].lstrip().split("\n", 1)[0]
    number = _FIND_NUMBER.search(sentence)
    if number and not sentence[: number.start()].strip(_LEAD):
        return number.group()
    return sentence.split(". ", 1)[0].strip().rstrip(".") or None


def _last_number(text: str) -> str | None:
    last = deque(_FIND_NUMBER.finditer(text), maxlen=1)
    return last[0].group().strip() if last else None


def _only_number(text: str) -> Fraction | None:
    """The number among plain words ("therefore 12", "x = 5", "5 cm"); None with two numbers or any formula."""
    plain = _UNIT.sub(" ", text[:LONGEST_NUMBER])
    numbers = list(_FIND_NUMBER.finditer(plain))
    if len(numbers) != 1:
        return None
    before, after = plain[: numbers[0].start()], plain[numbers[0].end() :]
    if not _WORDS.fullmatch(before) or not _WORDS.fullmatch(after) or after[:1].isalpha():
        return None
    return read_number(numbers[0].group())


def _undress(text: str) -> str:
    """Without spaces, currency, percent and degree signs, LaTeX spacing and text commands, and outer braces."""
    bare = _DRESSING.sub("", text.translate(_MINUS).replace("{,}", ","))
    for opening, closing in (("\\(", "\\)"), ("\\[", "\\]")):
        bare = bare.removeprefix(opening).removesuffix(closing)
    bare = bare.strip("*").rstrip(".")
    while len(bare) > 1 and bare[0] == "{" and bare[-1] == "}":
        bare = bare[1:-1]
    return bare


def _decimal(text: str) -> Fraction | None:
    return Fraction(text.replace(",", "")) if _READ_DECIMAL.fullmatch(text) else None


def _ratio(top: str, bottom: str) -> Fraction | None:
    above, below = _decimal(top), _decimal(bottom)
    return above / below if above is not None and below else None

"""Figures as people read them: rounded, with a true minus, with what is missing as a dash."""

from __future__ import annotations

import math
import numbers
from typing import Any

MISSING = "–"
MINUS = "−"


def figure(value: Any, digits: int = 2) -> str:
    """A number with this many decimals: 1,234.50."""
    if not _known(value):
        return MISSING
    text = f"{value:,.{digits}f}"
    return text.replace("-", "" if float(text.replace(",", "")) == 0 else MINUS)


def whole(value: Any) -> str:
    """A count: 12,345."""
    return figure(value, 0)


def signed(value: Any, digits: int = 2) -> str:
    """A difference: +0.12, −0.12, 0.00."""
    text = figure(value, digits)
    return text if text == MISSING or text.startswith(MINUS) or not float(text.replace(",", "")) else f"+{text}"


def percent(value: Any, digits: int = 0) -> str:
    """A share: 0.123 is 12 %."""
    return figure(value * 100, digits) + "\u00a0%" if _known(value) else MISSING


def points(value: Any, digits: int = 1) -> str:
    """A difference of shares in percentage points, signed."""
    return signed(value * 100, digits) if _known(value) else MISSING


def significant(value: Any, digits: int = 3) -> str:
    """A number of unknown size, to so many figures."""
    if not _known(value):
        return MISSING
    text = f"{value:.{digits}g}"
    return text.replace("-", MINUS, 1) if text.startswith("-") else text


def shortened(text: str, longest: int = 240) -> str:
    """The beginning of a text, on one line, cut between words."""
    line = " ".join(text.split())
    if len(line) <= longest:
        return line
    head = line[: longest - 1]
    return (head.rsplit(" ", 1)[0] if " " in head[longest // 2 :] else head).rstrip(" ,.;:") + " …"


def without_middle(text: str, longest: int = 480) -> str:
    """A text on one line, cut between words in the middle: a problem ends in its question."""
    line = " ".join(text.split())
    if len(line) <= longest:
        return line
    half = (longest - 3) // 2
    head, tail = line[:half], line[-half:]
    head = head.rsplit(" ", 1)[0] if " " in head[half // 2 :] else head
    tail = tail.split(" ", 1)[1] if " " in tail[: half // 2] else tail
    return f"{head.rstrip(' ,;:')} … {tail}"


def plural(count: int, word: str) -> str:
    """1 step, 2 steps."""
    return f"{whole(count)} {word}" + ("" if count == 1 else "s")


def gap_in_words(gap: float, error: float) -> str:
    """A difference held against its standard error; both in the same unit."""
    if not error:
        return "no standard error is known"
    size = abs(gap) / error
    if size < 1:
        return "within one standard error"
    if size < 2:
        return "between one and two standard errors, so not told apart from chance"
    return f"{size:.1f} standard errors"


def _known(value: Any) -> bool:
    """Whether it is a finite number, of Python or of numpy."""
    return isinstance(value, numbers.Number) and math.isfinite(float(value))  # type: ignore[arg-type]


FILTERS = {
    "figure": figure,
    "whole": whole,
    "signed": signed,
    "percent": percent,
    "points": points,
    "significant": significant,
    "shortened": shortened,
}

"""JSON of a run, checked before a figure of it reaches the page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saerl_fast.errors import CorruptStoreError, FormatError

NUMBER, WHOLE, TEXT, OBJECT = "a finite number", "a whole number", "text", "an object"


def fits(value: Any, kind: str) -> bool:
    """Whether a value of JSON is of a kind."""
    if kind == NUMBER:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is {WHOLE: int, TEXT: str, OBJECT: dict}[kind]


def require(found: Mapping[str, Any], where: object, wanted: Mapping[str, str], *, optional: bool = False) -> None:
    """Every key of ``wanted`` must hold its kind; with optional, it may be absent or null. Raises FormatError."""
    for name, kind in wanted.items():
        value = found.get(name)
        if (optional and value is None) or fits(value, kind):
            continue
        raise FormatError(f"{where}: wanted {name} as {kind}, got {value!r:.80}; make the file again")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl that a running job appends to: a last line without its end is left out.

    Raises CorruptStoreError for any other line that is no JSON object.
    """
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    lines = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorruptStoreError(f"{path}, line {number}: not JSON ({error}); remove the line") from error
        if not isinstance(found, dict):
            raise CorruptStoreError(f"{path}, line {number}: wanted a JSON object, got {type(found).__name__}")
        lines.append(found)
    return lines

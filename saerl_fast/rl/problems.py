"""A table of problems: which column is the prompt, which the answer, what names a row."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saerl_fast.errors import InputError

logger = logging.getLogger(__name__)

RowId = str | int


@dataclass(frozen=True)
class Problems:
    """Rows with their ids. id_field is None where rows are named by their number."""

    rows: Sequence[Mapping[str, Any]]
    ids: Sequence[RowId]
    text_field: str
    answer_field: str
    id_field: str | None

    def __len__(self) -> int:
        return len(self.rows)

    def text(self, place: int) -> Any:
        return self.rows[place].get(self.text_field)

    def lacks(self, place: int) -> str | None:
        """Why a row cannot be posed and checked: "no text", "no answer", or None where it can."""
        text, answer = self.text(place), self.rows[place].get(self.answer_field)
        if text is None or text == [] or (isinstance(text, str) and not text.strip()):
            return "no text"
        if answer is None or not str(answer).strip():
            return "no answer"
        return None


def read_problems(
    rows: Sequence[Mapping[str, Any]], text_field: str, answer_field: str, id_field: str | None = None
) -> Problems:
    """Rows as problems. Without ``id_field`` the column "id" names them where it names each once, else their number.

    Raises InputError for a column that is not there or an id column that does not name every row once.
    """
    if not rows:
        raise InputError("wanted at least one row; the table is empty")
    columns = {name for row in rows for name in row}
    for option, name in (("text_field", text_field), ("answer_field", answer_field), ("id_field", id_field)):
        if name is not None and name not in columns:
            raise InputError(f"{option}: the table has no column {name!r}; it has {sorted(map(str, columns))}")
    ids = _ids(rows, id_field or "id")
    if ids is None and id_field is not None:
        raise InputError(f"id_field: {id_field!r} does not name every row once with a string or a whole number")
    if ids is None and "id" in columns:
        logger.warning("column id does not name every row once; rows are numbered from 0 instead")
    named = id_field if id_field is not None else ("id" if ids is not None else None)
    return Problems(rows, list(range(len(rows))) if ids is None else ids, text_field, answer_field, named)


def _ids(rows: Sequence[Mapping[str, Any]], field: str) -> list[RowId] | None:
    found = [row.get(field) for row in rows]
    ids: list[RowId] = [value for value in found if isinstance(value, (str, int)) and not isinstance(value, bool)]
    of_one_kind = len({type(value) for value in ids}) == 1
    return ids if len(ids) == len(rows) and of_one_kind and len(set(ids)) == len(ids) else None

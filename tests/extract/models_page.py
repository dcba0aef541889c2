"""The table of docs/models.md: family x hook point x packing, each cell found by reading a model of that family.

``python -m tests.extract.models_page`` writes it into the page.
"""

from __future__ import annotations

from pathlib import Path

from saerl_fast.errors import InputError, ModelMismatchError
from saerl_fast.extract.hooks import block_output, find_module
from saerl_fast.extract.packing import choose_layout
from saerl_fast.extract.reader import Reader
from tests import families, tiny
from tests.extract.cells import LAYER, POINTS, marks, named

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- families -->\n", "<!-- end -->"
CONTEXT = 64


def hook_cell(family: str, point: str) -> str:
    """The module that is read and the marks of what holds there; or why there is none."""
    model, hook = families.model(family), named(point)
    try:
        module, side = find_module(model, hook)
    except ModelMismatchError as error:
        return f"none: {str(error).split(': ', 1)[-1]}"
    name = next(name for name, other in model.named_modules() if other is module)
    inside = name.split(f"{families.blocks_path(family)}.{hook.layer}", 1)[-1].removeprefix(".") or "block"
    where = "in, normed" if point == "mlp_normed" else "in" if side == "input" else "out"
    return f"`{inside}` {where}: {marks(family, point)}"


def packing_cell(family: str) -> str:
    """What the choice of a layout says, where packing is asked for."""
    reader = Reader(families.model(family), tiny.tokenizer(), block_output(LAYER), family)
    try:
        return choose_layout(reader, "on", CONTEXT).name
    except InputError as error:
        return f"no: {str(error).split('text_by_text: ')[-1].split('. Leave')[0]}"


def head() -> list[str]:
    return [f"| family | {' | '.join(POINTS)} | packing |", "|---" * (len(POINTS) + 2) + "|"]


def row(family: str) -> str:
    """The line of one family."""
    cells = [hook_cell(family, point) for point in POINTS]
    return f"| {' | '.join([family, *cells, packing_cell(family)])} |"


def in_page() -> str:
    """The table as the page has it."""
    return PAGE.read_text().split(BEGIN)[1].split(END)[0]


if __name__ == "__main__":
    page = PAGE.read_text()
    made = "\n".join([*head(), *map(row, families.FAMILIES)]) + "\n"
    PAGE.write_text(page.replace(BEGIN + in_page() + END, BEGIN + made + END))

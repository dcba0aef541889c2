"""The table of docs/models.md: family x hook point x packing, each cell found by reading a model of that family.

``python -m tests.extract.models_page`` writes it into the page.
"""

from __future__ import annotations

from pathlib import Path

import torch

from saerl_fast.errors import InputError, ModelMismatchError
from saerl_fast.extract.hooks import block_output, find_module, parse_hook
from saerl_fast.extract.packing import choose_layout
from saerl_fast.extract.reader import Reader
from tests import families, tiny
from tests.extract.test_hooks import LAYER, Watch, read, tokens

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- families -->\n", "<!-- end -->"
POINTS = [*families.SAE_LENS, "embed"]
CONTEXT = 64


def hook_cell(family: str, point: str, text: list, places: dict) -> str:
    """The module that is read, where what is read has the bits of the full forward; else the reason."""
    model = families.model(family)
    hook = parse_hook("hook_embed" if point == "embed" else f"blocks.{LAYER}.{families.SAE_LENS[point]}")
    try:
        module, side = find_module(model, hook)
        found = read(model, hook, text)
    except ModelMismatchError as error:
        return f"none: {str(error).split(': ', 1)[-1]}"
    if not torch.equal(found, places[point]):
        return "DIFFERS from the full forward"
    name = next(name for name, other in model.named_modules() if other is module)
    inside = name.split(f"{families.blocks_path(family)}.{hook.layer}", 1)[-1].removeprefix(".") or "block"
    return f"`{inside}` {'in' if side == 'input' else 'out'}"


def packing_cell(family: str) -> str:
    """What the choice of a layout says, where packing is asked for."""
    reader = Reader(families.model(family), tiny.tokenizer(), block_output(LAYER), family)
    try:
        return choose_layout(reader, "on", CONTEXT).name
    except InputError as error:
        return f"no: {str(error).split('text_by_text: ')[-1].split('. Leave')[0]}"


def table() -> str:
    """The whole table, in Markdown."""
    lines = [f"| family | {' | '.join(POINTS)} | packing |", "|---" * (len(POINTS) + 2) + "|"]
    text = tokens(23)
    for family in families.FAMILIES:
        places, _ = Watch(family, families.SAE_LENS).run(text)
        cells = [hook_cell(family, point, text, places) for point in POINTS]
        lines.append(f"| {' | '.join([family, *cells, packing_cell(family)])} |")
    return "\n".join(lines) + "\n"


def in_page() -> str:
    """The table as the page has it."""
    return PAGE.read_text().split(BEGIN)[1].split(END)[0]


if __name__ == "__main__":
    page = PAGE.read_text()
    PAGE.write_text(page.replace(BEGIN + in_page() + END, BEGIN + table() + END))

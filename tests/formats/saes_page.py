"""The table of docs/saes.md, format x kind: what each cell was held against when all of tests/formats/test_owners.py ran.

    python -m pytest tests/formats/test_owners.py --findings tests/nightly/results/DATE_sae_formats.json
    python -m tests.formats.saes_page

The first with the libraries of ``owners.py`` on PYTHONPATH; the second writes the table of the newest such file.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.formats.owners import KINDS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "saes.md"
RESULTS = ROOT / "tests" / "nightly" / "results"
BEGIN, END = "<!-- formats -->\n", "<!-- end -->"
DOORS = {
    "sae-lens 6": "`load_sae`",
    "sae-lens before 6.0": "`load_sae`",
    "EleutherAI sparsify": "`load_sae`",
    "Gemma Scope (npz)": "`load_sae`",
    "Llama Scope": "`load_sae`",
    "Qwen-Scope (.pt)": "`saerl convert`",
    "dictionary_learning (.pt)": "`saerl convert`",
}
NONE = {
    ("sae-lens before 6.0", "abstopk"): "newer than 6.0",
    ("sae-lens before 6.0", "transcoders"): "none written before 6 is known to us",
    ("EleutherAI sparsify", "standard"): "its encoder always selects",
    ("EleutherAI sparsify", "abstopk"): "`signed` of older releases is refused: 1.3.3 has none to compare with",
    ("EleutherAI sparsify", "jumprelu"): "its encoder has no thresholds",
    ("EleutherAI sparsify", "gated"): "its encoder has no gate",
    ("Gemma Scope (npz)", "standard"): "every file has thresholds",
    ("Gemma Scope (npz)", "topk"): "every file has thresholds, none a k",
    ("Gemma Scope (npz)", "abstopk"): "every file has thresholds, none a k",
    ("Gemma Scope (npz)", "gated"): "no file has a gate",
    ("Llama Scope", "standard"): "`act_fn` relu is read as JumpReLU at 0, which it is",
    ("Llama Scope", "topk"): "published as JumpReLU, made of the TopK that was trained; `act_fn` topk is refused",
    ("Llama Scope", "abstopk"): "OpenMOSS has no such activation",
    ("Llama Scope", "gated"): "`use_glu_encoder`, its only gate, is refused: not published",
    ("Qwen-Scope (.pt)", "standard"): "all are TopK",
    ("Qwen-Scope (.pt)", "abstopk"): "all are TopK, after ReLU",
    ("Qwen-Scope (.pt)", "jumprelu"): "all are TopK; no file has thresholds",
    ("Qwen-Scope (.pt)", "gated"): "all are TopK; no file has a gate",
    ("Qwen-Scope (.pt)", "transcoders"): "all read and write the residual stream",
    ("dictionary_learning (.pt)", "abstopk"): "no class of 0.1.0 selects by size alone",
    ("dictionary_learning (.pt)", "transcoders"): "no class of 0.1.0; another `dict_class` is refused",
}
"""Why there is nothing in a cell."""


def newest() -> dict:
    """The findings of the last run over all formats, with its date."""
    found: dict = json.loads(max(RESULTS.glob("*_sae_formats.json")).read_text())
    return found


def table(results: dict) -> str:
    """The whole table, in Markdown. Raises KeyError for an empty cell without a reason."""
    owners: dict[tuple[str, str], set[str]] = {}
    for finding in results["findings"]:
        owners.setdefault((finding["format"], finding["kind"]), set()).add(finding["owner"])
    lines = [f"| format | by | {' | '.join(KINDS)} |", "|---" * (len(KINDS) + 2) + "|"]
    for name, door in DOORS.items():
        cells = []
        for kind in KINDS:
            held = owners.get((name, kind))
            cells.append(f"= {', '.join(sorted(held, key=by_owner))}" if held else f"– {NONE[name, kind]}")
        lines.append(f"| {name} | {door} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def by_owner(owner: str) -> tuple[bool, str]:
    """Libraries first, then the formula."""
    return owner == "formula", owner


def in_page() -> str:
    """The table as the page has it."""
    return PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page.replace(BEGIN + in_page() + END, BEGIN + table(newest()) + END), encoding="utf-8")

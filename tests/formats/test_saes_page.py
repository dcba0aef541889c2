"""docs/saes.md shows what the comparisons found when all of them ran; those whose library is here run in test_owners.py."""

import pytest

from tests.formats import saes_page
from tests.formats.owners import CASES, KINDS

if not saes_page.PAGE.exists():
    pytest.skip("needs the source tree", allow_module_level=True)


def test_every_comparison_was_run_and_held():
    results = saes_page.newest()
    found = {finding["test"].rpartition("[")[2].rstrip("]"): finding for finding in results["findings"]}
    assert set(found) == set(CASES), "run tests/formats/test_owners.py with every library, and --findings"
    for name, finding in found.items():
        case = CASES[name]
        assert finding["outcome"] == "passed"
        assert (finding["format"], finding["kind"]) == (case.format, case.kind)
        assert finding["owner"].split(" ")[0] == case.owner


def test_the_table_is_what_was_found():
    assert saes_page.in_page() == saes_page.table(saes_page.newest()), "run python -m tests.formats.saes_page"


def test_a_cell_is_filled_or_has_its_reason():
    cells = {(name, kind) for name in saes_page.DOORS for kind in KINDS}
    held = {(case.format, case.kind) for case in CASES.values()}
    assert held | set(saes_page.NONE) == cells
    assert not held & set(saes_page.NONE)
    assert {case.format for case in CASES.values()} == set(saes_page.DOORS)

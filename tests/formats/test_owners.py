"""Encode of every format x kind, against the library that owns it and against its formula: what docs/saes.md shows."""

from importlib.metadata import version

import pytest

from tests.formats.owners import CASES, DICTIONARIES, KINDS
from tests.formats.test_golden import rows


@pytest.mark.parametrize("name", CASES)
def test_encode_is_that_of_its_owner(name, tmp_path, monkeypatch, record_property):
    case = CASES[name]
    case.compare(tmp_path, monkeypatch)
    record_property("rows", len(rows()))
    for key in ("format", "kind"):
        record_property(key, getattr(case, key))
    record_property("owner", case.owner if case.owner == "formula" else f"{case.owner} {version(case.owner)}")


def test_every_class_that_is_converted_is_compared():
    from saerl_fast.formats.convert import _CLASSES

    assert {name: kind for name, (_, _, kind) in DICTIONARIES.items()} == {n: kind for n, (kind, _) in _CLASSES.items()}
    assert {case.kind for case in CASES.values()} == set(KINDS)

"""docs/models.md says what was just found in a model of each family."""

import pytest

from tests.extract import models_page

if not models_page.PAGE.exists():
    pytest.skip("needs the source tree", allow_module_level=True)


def test_the_table_is_what_the_models_show():
    made = models_page.table()
    assert "DIFFERS" not in made
    assert models_page.in_page() == made, "run python -m tests.extract.models_page"

"""docs/models.md says what was just found in a model of each family; and what finds it can tell right from wrong."""

import pytest

from saerl_fast.extract import attention
from saerl_fast.extract.batching import collate
from saerl_fast.extract.capture import Capture
from tests import families
from tests.extract import models_page
from tests.extract.cells import CPU, LAYER, POINTS, named, read, truth

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
needs_page = pytest.mark.skipif(not models_page.PAGE.exists(), reason="needs the source tree")


@needs_page
def test_the_table_has_all_families_and_points():
    lines = models_page.in_page().splitlines()
    assert lines[:2] == models_page.head()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {family}" for family in families.FAMILIES]


@needs_page
@pytest.mark.parametrize("family", families.FAMILIES)
def test_each_cell_is_what_the_model_shows(family):
    """Early exit bit for bit; batched is single and packed is unpacked by the 2x rule: at every point, or the reason."""
    row = models_page.row(family)
    assert "NOT" not in row
    assert row.count(": e b p |") + row.count("none: ") == len(POINTS)
    assert row in models_page.in_page().splitlines(), "run python -m tests.extract.models_page"


def attend_to_all(query, key, value, packed, rule):
    """What happens where the texts of a row are taken for one."""
    whole = attention.Packing("", packed.bounds, packed.text_of, (sum(packed.lengths),))
    return attention.text_by_text(query, key, value, whole, rule)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_cell_sees_a_text_that_sees_another(family, monkeypatch):
    """Packed texts taken for one, and padding taken for text: far outside the rule wherever attention lies below."""
    monkeypatch.setattr(attention, "KERNELS", {"leaks": attention.Kernel(attend_to_all, lambda *_: None)})
    found = truth(family)
    batch = collate(found.texts, 2, "left", CPU)
    batch.attention_mask.fill_(1)
    for point in found.alone:
        exact, allowed = found.exact[point], found.allowed(point)
        packed = read(found.model, named(point), found.texts, kernel="leaks")
        with Capture(found.model, named(point)) as capture:
            hidden = capture(batch)
        padded = hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.kept)
        for rows in (packed, padded):
            worst = float((rows.double() - exact).abs().max()) / allowed
            assert worst > 1000 if point != "embed" else worst <= 1


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_cell_sees_another_block(family):
    found = truth(family)
    for point in found.alone:
        if point != "embed":
            rows = read(found.model, named(point, LAYER - 1), found.texts)
            assert float((rows.double() - found.exact[point]).abs().max()) > 1000 * found.allowed(point)

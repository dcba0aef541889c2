"""The page in headless Chromium: no word on the console, no request, no sideways scrolling; and that this can fail."""

import shutil

import pytest

from tests.report.browser import overflows, served, visit

pytestmark = pytest.mark.slow


@pytest.fixture
def shown(page, tmp_path):
    """The finished page alone in a folder."""
    (tmp_path / "site").mkdir()
    return shutil.copy(page, tmp_path / "site" / "report.html")


def test_the_page_is_silent_and_asks_for_nothing(shown, tmp_path):
    with served(shown.parent) as root:
        found = visit(f"{root}/report.html", tmp_path / "browser")
    assert found.console == []
    assert found.requests == [f"{root}/report.html"]
    assert "Held-out accuracy" in found.dom
    assert "hacked" not in found.dom.partition("</title>")[0]


def test_errors_and_requests_of_a_page_are_seen(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "bad.html").write_text(
        '<link rel="icon" href="data:,"><p>text</p><script>nothing()</script><script>console.error("oh")</script>'
        '<img src="pixel.png"><link rel="stylesheet" href="https://example.org/style.css">'
    )
    with served(tmp_path / "site") as root:
        found = visit(f"{root}/bad.html", tmp_path / "browser")
    assert any("nothing is not defined" in line for line in found.console)
    assert any('"oh"' in line for line in found.console)
    assert set(found.requests) == {f"{root}/bad.html", f"{root}/pixel.png", "https://example.org/style.css"}


def test_the_pages_own_policy_stops_what_data_might_bring(shown, tmp_path):
    text = shown.read_text()
    marked = text.replace("</main>", "<script>document.title = 'hacked'</script><img src='/pixel.png'></main>")
    assert marked != text
    shown.write_text(marked)
    with served(shown.parent) as root:
        found = visit(f"{root}/report.html", tmp_path / "browser")
    assert "<title>hacked" not in found.dom
    assert found.requests == [f"{root}/report.html"]
    assert any("Content Security Policy" in line for line in found.console)


def test_the_page_never_scrolls_sideways(shown, tmp_path):
    for width, (inside, content) in overflows(
        shown.parent, "report.html", [380, 700, 1400], tmp_path / "browser"
    ).items():
        assert inside >= width - 20  # a scroll bar
        assert content <= inside, width


def test_sideways_scrolling_is_seen(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "wide.html").write_text('<div style="width:900px">text</div>')
    found = overflows(tmp_path / "site", "wide.html", [380, 1400], tmp_path / "browser")
    assert found[380][1] > found[380][0]
    assert found[1400][1] <= found[1400][0]

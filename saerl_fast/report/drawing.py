"""Matplotlib figures as inline SVG that takes its colours and letters from the page, light or dark."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saerl_fast.errors import MissingDependency

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#010203", "#010204", "#010205", "#010206"
SERIES = tuple(f"#0102{code:02x}" for code in range(0x10, 0x16))
"""Stand-ins, drawn by matplotlib and replaced by the page's own colours in the SVG."""
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", PAPER: "card"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES, 1)
}
WIDE, HALF, NARROW = 1040, 500, 340
"""Widths of drawings in CSS pixels, at which letters have their own size: a wide page, half of it, a phone."""

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "saerl_fast",
    "font.size": 12.0,
    "axes.titlesize": 12.0,
    "axes.labelsize": 12.0,
    "xtick.labelsize": 11.0,
    "ytick.labelsize": 11.0,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "text.parse_math": False,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Picture:
    """Two drawings of the same content as SVG, for wide pages and for narrow ones; label is their text alternative."""

    label: str
    wide: str
    narrow: str


def require_drawing() -> None:
    """Raise MissingDependency where what a report is made with is not installed."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingDependency(
            f"a report needs Jinja2 and matplotlib: pip install 'saerl-fast[report]' ({error})"
        ) from error


def picture(draw: Callable[[Figure, bool], None], label: str, height: int, narrow_height: int | None = None) -> Picture:
    """Draw twice, for wide pages and for narrow ones. draw(figure, wide) fills an empty figure."""
    return Picture(label, _svg(draw, True, WIDE, height), _svg(draw, False, NARROW, narrow_height or height))


def half_picture(draw: Callable[[Figure, bool], None], label: str, height: int = 240) -> Picture:
    """The same for a picture that stands beside another on wide pages."""
    return Picture(label, _svg(draw, True, HALF, height), _svg(draw, False, NARROW, height - 20))


def horizontal_grid(axes: Axes) -> None:
    """Lines across only, and no ticks."""
    axes.grid(visible=False, axis="x")
    axes.tick_params(length=0)


def _svg(draw: Callable[[Figure, bool], None], wide: bool, width: int, height: int) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        # a point of the drawing is a pixel of the page
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure, wide)
        target = io.StringIO()
        nothing: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(target, format="svg", metadata=nothing)
    return _for_the_page(target.getvalue(), width, height)


def _for_the_page(svg: str, width: int, height: int) -> str:
    """Without its head; colours as variables of the page, letters inherited, ids of its own."""
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    body = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font-size: \1px", body)
    own = f"p{hashlib.sha256(body.encode()).hexdigest()[:8]}-"
    body = re.sub(r'\bid="', f'id="{own}', body)
    body = body.replace("url(#", f"url(#{own}").replace('xlink:href="#', f'xlink:href="#{own}')
    body = re.sub(r"<style type=\"text/css\">.*?</style>", "", body, flags=re.DOTALL)
    return f'viewBox="0 0 {width} {height}">{body.strip()}</svg>'

"""write_report: everything of a run through the templates into one file."""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saerl_fast import __version__
from saerl_fast.durable import replace
from saerl_fast.errors import InputError
from saerl_fast.report.clusters import clusters_view
from saerl_fast.report.difficulty import difficulty_view
from saerl_fast.report.drawing import Picture, require_drawing
from saerl_fast.report.find import find_pieces
from saerl_fast.report.overview import overview_view, sanity_view
from saerl_fast.report.plans import plans_view
from saerl_fast.report.quality import quality_view
from saerl_fast.report.read import Run, read_run
from saerl_fast.report.scores import scores_view
from saerl_fast.report.sources import sources_view
from saerl_fast.report.training import training_view
from saerl_fast.report.wording import FILTERS

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

logger = logging.getLogger(__name__)

NAME = "report.html"


def write_report(
    folder: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    data: str | None = None,
    topic: str | None = None,
    level: str | None = None,
    defect: str | None = None,
) -> Path:
    """One self-contained HTML page about the run in ``folder``; returns its path.

    folder: holds what featurize, evaluate, label, plan and train have left, itself or up to two folders down.
        What is absent is said on the page.
    out: the file (default ``folder``/report.html); written whole or not at all.
    data: the table of texts, where it is not where featurize read it, nor under its name in ``folder``.
    topic, level, defect: columns of the feature folder's table with the truth: categories; numbers, higher is harder;
        anything but empty, null, 0, false, none, no, sound, ok or good for a defective row.

    Raises MissingDependency (the extra ``report``), FormatError (nothing of a run is there, or a piece is not what it
    should be), CorruptStoreError and IncompleteStoreError (a broken piece), InputError (no such column),
    JobMismatchError (``data`` is another table), DiskFullError.
    """
    require_drawing()
    root = Path(folder)
    pieces = find_pieces(root)
    target = root / NAME if out is None else Path(out)
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise InputError(f"out: wanted a file in a folder that exists; got {target}")
    run = read_run(root, pieces, data=data, topic=topic, level=level, defect=defect)
    replace(target, render(run, level=level).encode())
    return target


def render(run: Run, *, level: str | None = None) -> str:
    """The page as text."""
    sections: dict[str, Any] = {
        "scores": None if run.evaluation is None else scores_view(run.evaluation),
        "clusters": clusters_view(run),
        "difficulty": difficulty_view(run),
        "quality": quality_view(run),
        "plans": plans_view(run),
        "training": training_view(run, level),
        "sanity": sanity_view(run),
    }
    return (
        environment()
        .get_template("page.html")
        .render(
            **sections,
            overview=overview_view(run, sections),
            sources=sources_view(run),
            title=run.folder.resolve().name,
            also=[str(path) for path in run.pieces.also],
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=__version__,
        )
    )


def environment() -> Environment:
    """Everything that is put into a template is escaped; a name that is not there is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("saerl_fast.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= FILTERS | {"svg": svg}
    return found


def svg(picture: Picture) -> Markup:
    """A picture with its text alternative; of its two widths the page's style shows one."""
    from markupsafe import Markup

    parts = (("only-wide", picture.wide), ("only-narrow", picture.narrow))
    head = Markup('<svg class="picture {}" role="img" aria-label="{}" ')
    return Markup("").join(head.format(name, picture.label) + Markup(drawn) for name, drawn in parts)  # noqa: S704
